"""From what was seen of the cluster to what is desired on this node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vtap_agent.plan.cluster import Cluster, InForce, expired, settle
from vtap_agent.plan.selection import Desired
from vtap_api import TapDestination, TapPeerSlice, VirtualTap


@dataclass(frozen=True, slots=True)
class Seen:
    """What matters to this node, as last understood."""

    taps: tuple[VirtualTap, ...]
    destinations: tuple[TapDestination, ...]
    slices: tuple[TapPeerSlice, ...]
    namespaces: Mapping[str, Mapping[str, str]]
    own_namespace: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is desired, what of it is in force, and when (seconds since 1970) time alone will change it."""

    desired: Desired
    in_force: InForce
    until: float | None


def desired_of(seen: Seen, before: InForce, now: float) -> Outcome:
    """`before` is what was in force so far; `now` in seconds since 1970."""
    in_force, waiting = settle(seen.taps, seen.slices, before)
    over, until = expired(seen.taps, now)
    cluster = Cluster(
        own_namespace=seen.own_namespace,
        namespaces=seen.namespaces,
        peers=in_force.peers,
        former={name: in_force.taps[name] for name in waiting if name in in_force.taps},
        waiting=waiting,
        expired=over,
    )
    generations = {
        f"{item.kind}/{getattr(item.metadata, 'namespace', '')}/{item.metadata.name}": item.metadata.generation
        for item in (*seen.taps, *seen.destinations)
    }
    return Outcome(Desired(seen.taps, seen.destinations, generations, cluster), in_force, until)
