"""What the operator may do to which objects: all that it does, and no more. The chart grants exactly these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vtap_operator import resources as known
from vtap_operator.resources import Resource

COLLECTOR_ROLE = "vtap-collector"
"""The ClusterRole that collectors get: create tokenreviews and subjectaccessreviews. The chart makes it."""


@dataclass(frozen=True, slots=True)
class Permission:
    """One rule. `own_namespace`: in the operator's namespace only (a Role); else everywhere (a ClusterRole)."""

    resource: Resource
    verbs: tuple[str, ...]
    why: str
    own_namespace: bool = False
    subresource: str = ""
    names: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As in a rule's resources."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural

    def rule(self) -> dict[str, Any]:
        """As in a Role or ClusterRole."""
        names = {"resourceNames": list(self.names)} if self.names else {}
        return {"apiGroups": [self.resource.group], "resources": [self.full_name], **names, "verbs": list(self.verbs)}


_READ = ("list", "watch")
_MAKE = ("create", "patch", "delete")

PERMISSIONS = (
    Permission(known.VIRTUAL_TAPS, ("delete", *_READ), "accept them, and delete those whose ttl is over"),
    Permission(known.VIRTUAL_TAPS, ("patch",), "say what became of them", subresource="status"),
    Permission(known.TAP_DESTINATIONS, ("create", *_READ), "run collectors, and make the default destination"),
    Permission(known.TAP_DESTINATIONS, ("patch",), "say where collectors are", subresource="status"),
    Permission(known.TAP_NODES, ("create", "patch", *_READ), "give key blocks, and read what agents say"),
    Permission(known.TAP_PEER_SLICES, (*_MAKE, *_READ), "write what peer selectors resolve to", own_namespace=True),
    Permission(known.NODES, _READ, "know which nodes need a TapNode (metadata only)"),
    Permission(known.NAMESPACES, _READ, "know their labels (metadata only)"),
    Permission(known.PODS, _READ, "resolve peer selectors, count what taps select, and follow collectors"),
    Permission(known.SERVICES, _READ, "know which ClusterIPs lead to a peer"),
    Permission(known.EVENTS, ("create",), "tell a tap's owner what to change"),
    Permission(known.CLUSTER_ROLE_BINDINGS, _MAKE, "let collectors ask who may read packets"),
    Permission(known.CLUSTER_ROLES, ("bind",), "let collectors ask who may read packets", names=(COLLECTOR_ROLE,)),
    Permission(known.DEPLOYMENTS, _MAKE, "run collectors", own_namespace=True),
    Permission(known.SERVICES, _MAKE, "reach collectors", own_namespace=True),
    Permission(known.SERVICE_ACCOUNTS, _MAKE, "run collectors", own_namespace=True),
    Permission(known.NETWORK_POLICIES, _MAKE, "shield collectors", own_namespace=True),
    Permission(known.CLAIMS, ("create", "patch"), "store what collectors capture", own_namespace=True),
    Permission(known.SECRETS, ("get", *_MAKE), "issue and renew certificates", own_namespace=True),
)


def cluster_rules(permissions: Iterable[Permission] = PERMISSIONS) -> list[dict[str, Any]]:
    """Rules of the operator's ClusterRole."""
    return [one.rule() for one in permissions if not one.own_namespace]


def namespace_rules(permissions: Iterable[Permission] = PERMISSIONS) -> list[dict[str, Any]]:
    """Rules of the operator's Role in its own namespace."""
    return [one.rule() for one in permissions if one.own_namespace]


def granted(permissions: Iterable[Permission] = PERMISSIONS) -> frozenset[tuple[str, str, str, bool]]:
    """(group, resource with subresource, verb, own namespace only)."""
    return frozenset((one.resource.group, one.full_name, verb, one.own_namespace) for one in permissions for verb in one.verbs)
