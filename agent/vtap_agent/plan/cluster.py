"""What only a cluster knows of taps: namespaces' labels, peers that the operator resolved, taps that have had their time. Pure.

A tap whose peers are not all resolved is not compiled: a new one waits, an edited one goes on as the version before it. Addresses
that were complete once hold until other complete ones come, so that slices may be rewritten one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vtap_agent.plan.compile import referenced_peers
from vtap_api import LabelSelector, Peer, TapPeerSlice, VirtualTap

COMPONENT_LABEL = "vtap.dev/component"
"""Bears operator, agent or collector; in our own namespace such a pod is never tapped."""


@dataclass(frozen=True, slots=True)
class PeerKey:
    """A peer selector as seen from a tap's namespace: what slices are looked up by."""

    tap_namespace: str
    pod_selector: LabelSelector | None
    namespace_selector: LabelSelector | None

    @classmethod
    def of(cls, namespace: str, peer: Peer) -> PeerKey:
        """Of a peer in a rule of a tap in `namespace`."""
        return cls(namespace, peer.pod_selector, peer.namespace_selector)


Peers = Mapping[PeerKey, frozenset[str]]
"""Addresses without prefix length."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What planning needs of a cluster beside taps and destinations. Taps are named "namespace/name"."""

    own_namespace: str = ""
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    """Labels by namespace; one that is missing has not been seen yet."""
    peers: Peers = field(default_factory=dict[PeerKey, frozenset[str]])
    """Of every tap in force."""
    former: Mapping[str, VirtualTap] = field(default_factory=dict[str, VirtualTap])
    """Versions that go on, of taps that have been edited and wait."""
    waiting: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why taps are not in force as they stand: a sentence each."""
    expired: frozenset[str] = frozenset()
    """Taps that have outlived their ttl."""


@dataclass(frozen=True, slots=True)
class InForce:
    """Versions of taps whose peers are all known, by "namespace/name", and those peers."""

    taps: Mapping[str, VirtualTap] = field(default_factory=dict[str, VirtualTap])
    peers: Peers = field(default_factory=dict[PeerKey, frozenset[str]])


def tap_key(tap: VirtualTap) -> str:
    """``namespace/name``."""
    return f"{tap.metadata.namespace}/{tap.metadata.name}"


def complete_sets(slices: Iterable[TapPeerSlice]) -> dict[PeerKey, frozenset[str]]:
    """Addresses of the selectors of which every slice is there: as many as each of them says, and no two with one index."""
    found: dict[PeerKey, list[TapPeerSlice]] = defaultdict(list)
    for item in slices:
        spec = item.spec
        found[PeerKey(spec.tap_namespace, spec.pod_selector, spec.namespace_selector)].append(item)
    return {
        key: frozenset(address for item in items for address in item.spec.addresses)
        for key, items in found.items()
        if {item.spec.count for item in items} == {len(items)} and {item.spec.index for item in items} == set(range(len(items)))
    }


def settle(wanted: Iterable[VirtualTap], slices: Iterable[TapPeerSlice], before: InForce) -> tuple[InForce, dict[str, str]]:
    """(what is in force now, sentences about the taps that wait), after `before` was in force."""
    known = {**before.peers, **complete_sets(slices)}
    taps: dict[str, VirtualTap] = {}
    waiting: dict[str, str] = {}
    for tap in wanted:
        name = tap_key(tap)
        former = before.taps.get(name)
        missing = [key for key in peer_keys(tap) if key not in known]
        if not missing:
            taps[name] = tap
        elif former is not None and former.metadata.uid == tap.metadata.uid:
            taps[name] = former
            waiting[name] = _unresolved(len(missing)) + "; until then the tap goes on as it was before"
        else:
            waiting[name] = _unresolved(len(missing)) + "; until then nothing is copied"
    used = {key for tap in taps.values() for key in peer_keys(tap)}
    return InForce(taps, {key: known[key] for key in used}), waiting


def peer_keys(tap: VirtualTap) -> tuple[PeerKey, ...]:
    """What has to be resolved for a tap."""
    return tuple(PeerKey.of(tap.metadata.namespace, peer) for peer in referenced_peers(tap.spec))


def _unresolved(count: int) -> str:
    what = "a peer selector" if count == 1 else f"{count} peer selectors"
    return f"spec.filter.rules: the operator has not resolved {what} yet (check that vtap-operator runs)"


def expires_at(tap: VirtualTap) -> float | None:
    """Seconds since 1970 at which copies end; None for never. A tap without a creation time has not been created by anyone."""
    if tap.spec.ttl is None or not tap.metadata.creation_timestamp:
        return None
    return datetime.fromisoformat(tap.metadata.creation_timestamp).timestamp() + tap.spec.ttl.nanoseconds / 1e9


def expired(taps: Iterable[VirtualTap], now: float) -> tuple[frozenset[str], float | None]:
    """(the taps that have outlived their ttl, when the next one will have)."""
    ends = {tap_key(tap): end for tap in taps if (end := expires_at(tap)) is not None}
    over = frozenset(name for name, end in ends.items() if end <= now)
    return over, min((end for name, end in ends.items() if name not in over), default=None)
