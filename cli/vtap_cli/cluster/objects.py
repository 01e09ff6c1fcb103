"""What we read of Kubernetes objects, with care for fields that a newer version may have added or left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

Object = Mapping[str, Any]
TARGETS = ("gre", "vxlan", "erspan", "rewrite")
"""Kinds of destination that are not ours."""


def name_of(item: Object) -> str:
    """metadata.name."""
    return str((item.get("metadata") or {}).get("name", ""))


def identity(item: Object) -> tuple[str, str]:
    """(namespace, name)."""
    return str((item.get("metadata") or {}).get("namespace", "")), name_of(item)


def made_at(item: Object) -> str:
    """metadata.creationTimestamp: RFC 3339 in UTC, so that later ones are greater."""
    return str((item.get("metadata") or {}).get("creationTimestamp", ""))


def labels_of(item: Object) -> dict[str, str]:
    """metadata.labels."""
    return dict((item.get("metadata") or {}).get("labels") or {})


def destination_of(tap: Object) -> str:
    """The name of the tap's TapDestination."""
    return str(((tap.get("spec") or {}).get("destinationRef") or {}).get("name") or "default")


def service_of(destination: Object) -> tuple[str, str] | None:
    """(namespace, name) of the Service of the collector that the operator runs for it; None where its status names none."""
    url = ((destination.get("status") or {}).get("collector") or {}).get("url") or ""
    labels = (urlsplit(str(url)).hostname or "").split(".")
    return (labels[1], labels[0]) if len(labels) >= 3 and labels[2] == "svc" else None


def is_collector(destination: Object) -> bool:
    """Whether copies go to a collector of ours, whoever runs it."""
    return (destination.get("spec") or {}).get("collector") is not None


def target_of(destination: Object) -> str:
    """Where copies go, for people: ``collector vtap-system/vtap-collector-default``, ``gre 10.0.9.2``."""
    spec = destination.get("spec") or {}
    for kind in TARGETS:
        if spec.get(kind) is not None:
            return f"{kind} {spec[kind].get('address', '')}".rstrip()
    if address := own_address(destination):
        return f"collector at {address}"
    service = service_of(destination)
    return f"collector {service[0]}/{service[1]}" if service else "collector that has no address yet"


def own_address(destination: Object) -> str:
    """The address of a collector that somebody else runs, as the destination says; empty where the operator runs it."""
    return str(((destination.get("spec") or {}).get("collector") or {}).get("address") or "")
