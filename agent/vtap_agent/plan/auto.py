"""What `Auto` can't have on this node's bridges: asked before planning, of what it would take rather than of what is there. Pure.

So the answer changes with the bridges alone, not with itself. Places for mirrors are others' too, who may come and go: once a
mirror was refused, `Auto` holds it for refused until it was not for REGAIN seconds, so that a tap point goes over once, and not
each time that one of them is made or deleted. It holds to that only as long as flows copy instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from vtap_agent.plan.dataplane import Backend, DataPlane, Feed, Group, Mirror

REGAIN = 60.0
"""Seconds that there has to have been a mirror for it before `Auto` leaves OVSGroup again."""


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
    """When each mirror was refused last, in seconds of a monotonic clock."""


Ask = Callable[[DataPlane], Mapping[Feed, str]]
"""Which feeds of a data plane the backends refuse."""


def unavailable(leanings: Leanings, ask: Ask, before: Unavailable, now: float) -> Unavailable:
    """What can't be had now. A bridge is asked for groups only where they are what `Auto` would take, as it reads all flows."""
    groups = _ask_groups(leanings.groups, ask)
    mirrors = leanings.mirrors | {by(Backend.OVS_MIRROR, feed) for feed in groups}
    refused = _refused_mirrors(mirrors, leanings.named_mirrors, ask)
    held = {
        feed: sentence
        for feed, sentence in before.mirrors.items()
        if feed in mirrors - refused.keys() and now - before.refused_at[feed] < REGAIN
    }
    instead = frozenset(by(Backend.OVS_GROUP, feed) for feed in (*refused, *held))
    groups = {**groups, **_ask_groups(instead - leanings.groups, ask)}
    held = {feed: sentence for feed, sentence in held.items() if by(Backend.OVS_GROUP, feed) not in groups}
    refused_at = {**{feed: before.refused_at[feed] for feed in held}, **dict.fromkeys(refused, now)}
    return Unavailable(groups, {**held, **refused}, refused_at)


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
