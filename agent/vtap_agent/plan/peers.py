"""Peer selectors resolved to sets of addresses. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from vtap_agent.plan.cluster import PeerKey, Peers
from vtap_agent.plan.inventory_model import Inventory, Pod
from vtap_agent.plan.selectors import matches
from vtap_api import Peer

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that Kubernetes puts on every namespace; the only one known without an API server."""


def namespace_labels(namespace: str) -> Mapping[str, str]:
    """The labels a namespaceSelector sees."""
    return {NAMESPACE_NAME_LABEL: namespace}


class PeerSets:
    """Sets by content: the same addresses always get the same id, other addresses another.

    `known` holds what every selector means, where the operator resolves them; without it the node's own pods are all there are.
    """

    def __init__(self, inventory: Inventory, known: Peers | None = None) -> None:
        self._known = known
        self._pods = inventory.pods
        self._addresses: dict[str, set[str]] = {}
        for interface in inventory.interfaces:
            self._addresses.setdefault(interface.pod.uid, set()).update(interface.addresses)
        self.sets: dict[int, frozenset[str]] = {}

    def resolve(self, peer: Peer, own_namespace: str) -> int:
        """The id of the set of addresses of all pods that `peer` selects, as seen from a tap in `own_namespace`."""
        known = self._known
        addresses = self._of_pods(peer, own_namespace) if known is None else known[PeerKey.of(own_namespace, peer)]
        digest = hashlib.sha256("\n".join(sorted(addresses)).encode()).digest()
        set_id = int.from_bytes(digest[:4], "big") or 1
        while self.sets.get(set_id, addresses) != addresses:
            set_id = set_id % (2**32 - 1) + 1
        self.sets[set_id] = addresses
        return set_id

    def _of_pods(self, peer: Peer, own_namespace: str) -> frozenset[str]:
        return frozenset(
            address
            for pod in self._pods
            if _selects(peer, own_namespace, pod)
            for address in self._addresses.get(pod.ref.uid, ())
        )


def _selects(peer: Peer, own_namespace: str, pod: Pod) -> bool:
    """As a NetworkPolicyPeer: without a namespaceSelector only the tap's own namespace counts."""
    if peer.namespace_selector is None:
        if pod.ref.namespace != own_namespace:
            return False
    elif not matches(peer.namespace_selector, namespace_labels(pod.ref.namespace)):
        return False
    return peer.pod_selector is None or matches(peer.pod_selector, pod.labels)
