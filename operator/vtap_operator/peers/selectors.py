"""Peer selectors as values: what names one, and what it selects. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from vtap_api import LabelSelector, Peer, VirtualTapSpec
from vtap_api.meta import SelectorOperator
from vtap_api.selectors import matches

HASH_LENGTH = 20
"""Hexadecimal digits of a selector's hash: 80 bits, so that a collision among millions is out of reach."""


class PeerKey(NamedTuple):
    """Names a peer selector. Selectors are canonical JSON; None where the rule has none.

    A selector without `namespace_selector` selects in `tap_namespace` only, as in a NetworkPolicyPeer.
    """

    tap_namespace: str
    pod_selector: str | None
    namespace_selector: str | None

    @property
    def hash(self) -> str:
        """Names its slices."""
        return hashlib.sha256(json.dumps(self, separators=(",", ":")).encode()).hexdigest()[:HASH_LENGTH]

    @property
    def resolution(self) -> PeerKey:
        """What it resolves to depends on this alone: with a namespace selector, not on the tap's own namespace."""
        return self if self.namespace_selector is None else self._replace(tap_namespace="")


def canonical(selector: LabelSelector) -> str:
    """The same text for selectors that are equal field by field. Keys of labels are in order; expressions keep theirs."""
    return json.dumps(selector_json(selector), sort_keys=True, separators=(",", ":"))


def selector_json(selector: LabelSelector) -> dict[str, Any]:
    """As in an object of the API, without what is empty."""
    return selector.model_dump(mode="json", exclude_defaults=True)


@lru_cache(maxsize=4096)
def parsed(text: str) -> LabelSelector:
    """The selector that `canonical` made a text of."""
    return LabelSelector.model_validate_json(text)


def peer_key(peer: Peer, tap_namespace: str) -> PeerKey | None:
    """None for a peer that is a network."""
    if peer.cidr is not None:
        return None
    pod, namespace = (None if one is None else canonical(one) for one in (peer.pod_selector, peer.namespace_selector))
    return PeerKey(tap_namespace, pod, namespace)


def peer_keys(spec: VirtualTapSpec, tap_namespace: str) -> frozenset[PeerKey]:
    """All peer selectors of a tap's rules."""
    rules = spec.filter.rules if spec.filter else ()
    keys = (peer_key(rule.peer, tap_namespace) for rule in rules if rule.peer is not None)
    return frozenset(key for key in keys if key is not None)


@dataclass(frozen=True, slots=True)
class Matcher:
    """A label selector with what finds candidates quickly: objects have at least one of `anchors`, where there are any."""

    selector: LabelSelector
    anchors: tuple[tuple[str, str], ...]

    def __call__(self, labels: Mapping[str, str]) -> bool:
        return matches(self.selector, labels)

    @property
    def selects_all(self) -> bool:
        """Whether it is empty."""
        return not self.selector.match_labels and not self.selector.match_expressions


def matcher(selector: LabelSelector | None) -> Matcher:
    """A missing selector selects everything, as an empty one does."""
    known = selector or LabelSelector()
    if known.match_labels:
        return Matcher(known, (min(known.match_labels.items(), key=_commonness),))
    for one in known.match_expressions:
        if one.operator is SelectorOperator.IN:
            return Matcher(known, tuple((one.key, value) for value in one.values))
    return Matcher(known, ())


def _commonness(pair: tuple[str, str]) -> tuple[int, str]:
    """A long value is shared by fewer objects than a short one, as a rule; any choice is right, some are faster."""
    return (-len(pair[1]), pair[0])


def brute_force(
    key: PeerKey,
    pods: Iterable[tuple[str, Mapping[str, str], Iterable[str]]],
    services: Iterable[tuple[str, Mapping[str, str], Iterable[str]]],
    namespaces: Mapping[str, Mapping[str, str]],
) -> frozenset[str]:
    """The definition: addresses of selected pods, and ClusterIPs of Services that lead to at least one of them.

    Pods are (namespace, labels, addresses), Services (namespace, selector, ClusterIPs). Slow; `index` gives the same quickly.
    """
    pod_selector = matcher(None if key.pod_selector is None else parsed(key.pod_selector))
    namespace_selector = None if key.namespace_selector is None else matcher(parsed(key.namespace_selector))

    def reaches(namespace: str) -> bool:
        if namespace_selector is None:
            return namespace == key.tap_namespace
        return namespace_selector(namespaces.get(namespace, {}))

    chosen = [(namespace, labels, own) for namespace, labels, own in pods if reaches(namespace) and pod_selector(labels)]
    addresses = {address for _, _, own in chosen for address in own}
    for namespace, wanted, own in services:
        if wanted and any(namespace == other and wanted.items() <= labels.items() for other, labels, _ in chosen):
            addresses.update(own)
    return frozenset(addresses)
