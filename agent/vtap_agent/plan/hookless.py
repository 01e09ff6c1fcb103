"""Sides of devices that eBPF can't look at, where Open vSwitch could copy instead: what `Auto` goes by. Pure.

Before Linux 6.6 somebody's `ingress` qdisc leaves no place at a device's egress, where a pod's Ingress is seen. As with mirrors
and groups (`auto.py`), `Auto` goes back once there has been a place for REGAIN seconds, or at once where Open vSwitch can't copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vtap_agent.plan.auto import REGAIN, Unavailable
from vtap_agent.plan.dataplane import Backend, Direction, Feed
from vtap_agent.plan.inventory_model import Inventory


@dataclass(frozen=True, slots=True)
class Hookless:
    """Sides of devices, and why not there, as a clause."""

    clauses: Mapping[Feed, str] = field(default_factory=dict[Feed, str])
    refused_at: Mapping[Feed, float] = field(default_factory=dict[Feed, float], compare=False)
    """When each was refused last, in seconds of a monotonic clock."""


Ask = Callable[[frozenset[Feed]], Mapping[Feed, str]]
"""Which sides of devices there is no place at, in sentences."""


def hookless(inventory: Inventory, ask: Ask, before: Hookless, ovs: Unavailable, now: float) -> Hookless:
    """Those of pods whose interfaces have a port; `ovs` is what of Open vSwitch `Auto` could not have there."""
    sides = {
        Feed(Backend.EBPF, one.host_name, direction, one.host_ifindex): (one.port.bridge, direction)
        for one in inventory.interfaces
        if one.host_ifindex and one.port is not None
        for direction in Direction
    }
    refused = {feed: sentence.partition("; ")[0] for feed, sentence in ask(frozenset(sides)).items()} if sides else {}
    held = {
        feed: clause
        for feed, clause in before.clauses.items()
        if feed in sides.keys() - refused.keys() and now - before.refused_at[feed] < REGAIN and _copies(ovs, *sides[feed])
    }
    refused_at = {feed: before.refused_at[feed] for feed in held} | dict.fromkeys(refused, now)
    return Hookless({**held, **refused}, refused_at)


def _copies(ovs: Unavailable, bridge: str, direction: Direction) -> bool:
    """Whether Open vSwitch has a way there."""
    group, mirror = (Feed(backend, bridge, direction) for backend in (Backend.OVS_GROUP, Backend.OVS_MIRROR))
    return group not in ovs.groups or mirror not in ovs.mirrors
