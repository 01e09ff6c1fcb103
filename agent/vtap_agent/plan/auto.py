"""What `Auto` can't have on this node's bridges: asked before planning, of what it would take rather than of what is there. Pure.

So the answer changes with the bridges alone, not with itself. Places for mirrors are others' too, who may come and go, and so are
flows: once a mirror or a group was refused, `Auto` holds it for refused until it was not for REGAIN seconds, so that a tap point
goes over once, and not each time that one of them is made or deleted. It holds to that only as long as the other copies instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace

from vtap_agent.plan.dataplane import Backend, DataPlane, Feed, Group, Mirror

REGAIN = 60.0
"""Seconds that what `Auto` would rather take has to have been free before it leaves what it took instead."""


@dataclass(frozen=True, slots=True)
class Leanings:
    """Where `Auto` would have flows or mirrors copy if nothing were refused, and which mirrors taps ask for by name."""

    groups: frozenset[Feed] = frozenset()
    mirrors: frozenset[Feed] = frozenset()
    named_mirrors: frozenset[Feed] = frozenset()


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The feeds that `Auto` can't have, and why: of OVSGroup as a clause, of OVSMirror as a sentence with its cure."""

    groups: Mapping[Feed, str] = field(default_factory=dict[Feed, str])
    mirrors: Mapping[Feed, str] = field(default_factory=dict[Feed, str])
    refused_at: Mapping[Feed, float] = field(default_factory=dict[Feed, float], compare=False)
    """When each of both was refused last, in seconds of a monotonic clock."""


Ask = Callable[[DataPlane], Mapping[Feed, str]]
"""Which feeds of a data plane the backends refuse."""


def unavailable(leanings: Leanings, ask: Ask, before: Unavailable, now: float) -> Unavailable:
    """What can't be had now. A bridge is asked for groups only where they are what `Auto` would take, as it reads all flows."""
    groups = _ask_groups(leanings.groups, ask)
    groups_held = _held(before.groups, leanings.groups - groups.keys(), before, now)
    mirrors = leanings.mirrors | {by(Backend.OVS_MIRROR, feed) for feed in (*groups, *groups_held)}
    refused = _refused_mirrors(mirrors, leanings.named_mirrors, ask)
    groups_held = {feed: clause for feed, clause in groups_held.items() if by(Backend.OVS_MIRROR, feed) not in refused}
    held = _held(before.mirrors, mirrors - refused.keys(), before, now)
    instead = frozenset(by(Backend.OVS_GROUP, feed) for feed in (*refused, *held))
    groups = {**groups, **_ask_groups(instead - leanings.groups, ask)}
    held = {feed: sentence for feed, sentence in held.items() if by(Backend.OVS_GROUP, feed) not in {**groups, **groups_held}}
    refused_at = {feed: before.refused_at[feed] for feed in (*held, *groups_held)} | dict.fromkeys((*refused, *groups), now)
    return Unavailable({**groups_held, **groups}, {**held, **refused}, refused_at)


def _held(before: Mapping[Feed, str], free: Set[Feed], known: Unavailable, now: float) -> Mapping[Feed, str]:
    """Those of `free` that were refused a short while ago, and why."""
    return {feed: why for feed, why in before.items() if feed in free and now - known.refused_at[feed] < REGAIN}


def by(backend: Backend, feed: Feed) -> Feed:
    """The same place and direction, copied by one or the other of Open vSwitch's ways."""
    return replace(feed, backend=backend)


def _ask_groups(feeds: frozenset[Feed], ask: Ask) -> Mapping[Feed, str]:
    return ask(DataPlane(groups={feed: Group(feed, ()) for feed in sorted(feeds)})) if feeds else {}


def _ask_mirrors(feeds: frozenset[Feed], ask: Ask) -> Mapping[Feed, str]:
    return ask(DataPlane(mirrors={feed: Mirror(feed, frozenset()) for feed in sorted(feeds)})) if feeds else {}


def _refused_mirrors(mirrors: frozenset[Feed], named: frozenset[Feed], ask: Ask) -> Mapping[Feed, str]:
    """Those of `mirrors` that are refused, or have to leave their place on the bridge to one that a tap names."""
    if not mirrors:
        return {}
    refused = _ask_mirrors(mirrors | named, ask)
    short = {feed.place: sentence for feed, sentence in refused.items() if feed in named}
    if short:
        for feed in _ask_mirrors(named, ask):
            short.pop(feed.place, None)
    yielding = {feed: short[feed.place] for feed in mirrors - named if feed.place in short}
    return {**yielding, **{feed: sentence for feed, sentence in refused.items() if feed in mirrors}}
