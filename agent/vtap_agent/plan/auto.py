"""What `Auto` can't have on this node's bridges: asked before planning, of what it would take rather than of what is there. Pure.

So the answer changes with the bridges alone, not with itself. Places for mirrors are others' too, who may come and go, and so are
flows: once a mirror or a group was refused, `Auto` holds it for refused until it was not for REGAIN seconds, so that a tap point
goes over once, and not each time that one of them is made or deleted. It holds to that only as long as the other copies instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
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


class _Groups:
    """What of OVSGroup the bridges refuse: each feed is asked for once, and only where it matters, as that reads all flows."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._asked: set[Feed] = set()
        self.refused: dict[Feed, str] = {}

    def look(self, feeds: Iterable[Feed]) -> None:
        """From now on `refused` tells of these places and directions, too."""
        new = {by(Backend.OVS_GROUP, feed) for feed in feeds} - self._asked
        self._asked |= new
        if new:
            self.refused |= self._ask(DataPlane(groups={feed: Group(feed, ()) for feed in sorted(new)}))

    def without(self, feeds: Set[Feed]) -> frozenset[Feed]:
        """Those at which flows can't copy."""
        self.look(feeds)
        return frozenset(feed for feed in feeds if by(Backend.OVS_GROUP, feed) in self.refused)


def unavailable(leanings: Leanings, ask: Ask, before: Unavailable, now: float) -> Unavailable:
    """What can't be had now. A bridge is asked for groups only where they are what `Auto` would take."""
    groups = _Groups(ask)
    groups.look(leanings.groups)
    groups_held = _held(before.groups, leanings.groups - groups.refused.keys(), before, now)
    mirrors = leanings.mirrors | {by(Backend.OVS_MIRROR, feed) for feed in (*groups.refused, *groups_held)}
    refused = _refused_mirrors(mirrors, leanings.named_mirrors, groups, ask)
    groups_held = {feed: clause for feed, clause in groups_held.items() if by(Backend.OVS_MIRROR, feed) not in refused}
    held = _held(before.mirrors, mirrors - refused.keys(), before, now)
    groups.look((*refused, *held))
    no_groups = {**groups_held, **groups.refused}
    held = {feed: sentence for feed, sentence in held.items() if by(Backend.OVS_GROUP, feed) not in no_groups}
    refused_at = {feed: before.refused_at[feed] for feed in (*held, *groups_held)}
    return Unavailable(no_groups, {**held, **refused}, refused_at | dict.fromkeys((*refused, *groups.refused), now))


def _held(before: Mapping[Feed, str], free: Set[Feed], known: Unavailable, now: float) -> Mapping[Feed, str]:
    """Those of `free` that were refused a short while ago, and why."""
    return {feed: why for feed, why in before.items() if feed in free and now - known.refused_at[feed] < REGAIN}


def by(backend: Backend, feed: Feed) -> Feed:
    """The same place and direction, copied by one or the other of Open vSwitch's ways."""
    return replace(feed, backend=backend)


def _ask_mirrors(feeds: frozenset[Feed], ask: Ask) -> Mapping[Feed, str]:
    return ask(DataPlane(mirrors={feed: Mirror(feed, frozenset()) for feed in sorted(feeds)})) if feeds else {}


def _refused_mirrors(mirrors: frozenset[Feed], named: frozenset[Feed], groups: _Groups, ask: Ask) -> Mapping[Feed, str]:
    """Those of `mirrors` that are refused, or leave the last place on the bridge to one that has no other way."""
    if not mirrors:
        return {}
    asked = mirrors | named
    refused = _ask_mirrors(asked, ask)
    stuck = (refused.keys() & named) | groups.without(refused.keys() - named)
    could = {feed for feed in mirrors - named - refused.keys() if feed.place in {one.place for one in stuck}}
    could -= groups.without(could)
    helped = stuck - _ask_mirrors(asked - could, ask).keys() if could else frozenset[Feed]()
    place_of = {feed.place: refused[feed] for feed in helped}
    yielding = {feed: place_of[feed.place] for feed in could if feed.place in place_of}
    left = yielding | {feed: sentence for feed, sentence in refused.items() if feed in mirrors - helped}
    return _told(left, named, asked - left.keys() - (refused.keys() - helped), ask)


def _told(refused: Mapping[Feed, str], named: frozenset[Feed], kept: frozenset[Feed], ask: Ask) -> Mapping[Feed, str]:
    """With whom the last place on a bridge is for, where it is one of `kept` that takes it."""
    takers = {feed.place: feed for feed in kept}
    without_them = _ask_mirrors(frozenset(feed for feed in refused if feed.place in takers), ask)

    def tell(feed: Feed, sentence: str) -> str:
        taker = takers.get(feed.place)
        if taker is None or feed in without_them:
            return sentence
        whose = "a tap that names OVSMirror" if taker in named else taker.direction
        return f"{sentence.partition('; ')[0]}: the last place is for {whose}"

    return {feed: tell(feed, sentence) for feed, sentence in refused.items()}
