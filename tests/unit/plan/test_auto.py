"""What `Auto` can't have: asked of the bridges, and held to for a while where others' mirrors come and go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from vtap_agent.plan.auto import REGAIN, Leanings, Unavailable, by, unavailable
from vtap_agent.plan.dataplane import Backend, DataPlane, Direction, Feed
from vtap_agent.plan.mirrors import MAX_MIRRORS, ObservedBridge, ObservedMirror, ObservedMirrors, refusals
from vtap_agent.plan.stamps import Stamp
from vtap_agent.plan.tap_ports import tap_port_name

NODE = "node-a"
INGRESS, EGRESS = (Feed(Backend.OVS_MIRROR, "br0", direction) for direction in Direction)
INGRESS_GROUP, EGRESS_GROUP = (Feed(Backend.OVS_GROUP, "br0", direction) for direction in Direction)
BOTH = frozenset({INGRESS, EGRESS})
LIMIT = "bridge br0 can hold 32 mirrors, Open vSwitch's limit, and others use"


class Bridge:
    """With as many of others' mirrors as there are, and those of ours that were wanted last."""

    def __init__(self, others: int) -> None:
        self.others = others
        self.ours: frozenset[Feed] = frozenset()
        self.no_groups: Mapping[Feed, str] = {}
        self.asked: list[DataPlane] = []
        self.known = Unavailable()

    def refuses(self, wanted: DataPlane) -> Mapping[Feed, str]:
        self.asked.append(wanted)
        rows = [self._row(f"span{number}", None) for number in range(self.others)]
        rows += [self._row(tap_port_name(NODE, feed), Stamp(NODE, 1)) for feed in sorted(self.ours)]
        observed = ObservedMirrors({"br0": ObservedBridge("br0", {}, {}, (), tuple(rows))})
        groups = {feed: why for feed, why in self.no_groups.items() if feed in wanted.groups}
        return {**refusals(observed, wanted.mirrors, NODE), **groups}

    @staticmethod
    def _row(name: str, stamp: Stamp | None) -> ObservedMirror:
        return ObservedMirror(f"uuid-{name}", name, stamp, frozenset(), frozenset(), "", True, True)

    def at(self, now: float, leanings: Leanings) -> set[Feed]:
        """What `Auto` can't have then; mirrors of ours are afterwards those that it and taps by name have."""
        self.known = unavailable(leanings, self.refuses, self.known, now)
        self.ours = (leanings.mirrors | leanings.named_mirrors) - self.known.mirrors.keys()
        return {*self.known.groups, *self.known.mirrors}


@pytest.mark.parametrize(("others", "refused"), [(30, set()), (31, {INGRESS}), (32, {INGRESS, EGRESS})])
def test_what_is_refused_is_what_there_is_no_place_for(others: int, refused: set[Feed]) -> None:
    bridge = Bridge(others)
    for now in range(3):
        assert bridge.at(now, Leanings(mirrors=BOTH)) == refused, "however often it is asked, and whatever was made of it"


def test_the_mirror_that_is_there_keeps_its_place_before_one_that_comes() -> None:
    bridge = Bridge(31)
    assert bridge.at(0, Leanings(mirrors=frozenset({INGRESS}))) == set()
    assert bridge.at(1, Leanings(mirrors=BOTH)) == {EGRESS}


def test_a_mirror_is_taken_again_once_there_was_room_for_a_while() -> None:
    bridge, wants = Bridge(32), Leanings(mirrors=frozenset({EGRESS}))
    for now in range(0, 100, 10):
        bridge.others = 32 if now % 20 == 0 else 31
        assert bridge.at(now, wants) == {EGRESS}, "others' mirrors come and go"
    assert bridge.at(80 + REGAIN - 1, wants) == {EGRESS}
    assert bridge.at(80 + REGAIN, wants) == set()
    bridge.others = 32
    assert bridge.at(80 + REGAIN + 1, wants) == {EGRESS}, "at once: there is no other way"


def test_a_mirror_is_not_waited_for_where_flows_cannot_copy_meanwhile() -> None:
    bridge, wants = Bridge(32), Leanings(mirrors=frozenset({EGRESS}))
    assert bridge.at(0, wants) == {EGRESS}
    bridge.others, bridge.no_groups = 31, {EGRESS_GROUP: "it needs flows of its own"}
    assert bridge.at(1, wants) == {EGRESS_GROUP}


def test_flows_are_taken_again_once_they_were_allowed_for_a_while() -> None:
    bridge, wants = Bridge(0), Leanings(groups=frozenset({INGRESS_GROUP}))
    for now in range(0, 300, 5):
        bridge.no_groups = {INGRESS_GROUP: "a flow of another program's rewrites"} if now % 10 == 0 else {}
        assert bridge.at(now, wants) == {INGRESS_GROUP}, "another program's flow comes and goes"
        assert not bridge.known.mirrors, "a mirror copies instead"
    assert bridge.at(290 + REGAIN - 1, wants) == {INGRESS_GROUP}
    assert bridge.at(290 + REGAIN, wants) == set()
    bridge.no_groups = {INGRESS_GROUP: "a flow of another program's rewrites"}
    assert bridge.at(290 + REGAIN + 1, wants) == {INGRESS_GROUP}, "at once: there is no other way"


def test_flows_are_not_waited_for_where_no_mirror_can_copy_meanwhile() -> None:
    bridge, wants = Bridge(31), Leanings(groups=frozenset({INGRESS_GROUP}))
    bridge.no_groups = {INGRESS_GROUP: "it snoops"}
    assert bridge.at(0, wants) == {INGRESS_GROUP}
    bridge.others, bridge.no_groups = 32, {}
    assert bridge.at(1, wants) == {INGRESS}
    bridge.others = 31
    assert INGRESS_GROUP not in bridge.at(2, wants), "and flows that copy go on, whatever was before"


def test_where_neither_can_be_had_both_are_told() -> None:
    bridge = Bridge(32)
    bridge.no_groups = {INGRESS_GROUP: "it snoops"}
    assert bridge.at(0, Leanings(groups=frozenset({INGRESS_GROUP}))) == {INGRESS_GROUP, INGRESS}
    assert bridge.at(1, Leanings(mirrors=frozenset({INGRESS}))) == {INGRESS_GROUP, INGRESS}


def test_groups_are_asked_for_only_where_they_would_be_taken() -> None:
    bridge = Bridge(31)
    bridge.at(0, Leanings(mirrors=BOTH))
    assert {feed for wanted in bridge.asked for feed in wanted.groups} == {INGRESS_GROUP}
    bridge = Bridge(30)
    bridge.at(0, Leanings(mirrors=BOTH))
    assert not any(wanted.groups for wanted in bridge.asked)


@pytest.mark.parametrize("named", [INGRESS, EGRESS])
def test_the_last_mirror_is_for_the_tap_that_names_it(named: Feed) -> None:
    bridge, (other,) = Bridge(MAX_MIRRORS - 1), BOTH - {named}
    assert bridge.at(0, Leanings(mirrors=frozenset({other}))) == set()
    for now in range(1, 3):
        assert bridge.at(now, Leanings(mirrors=frozenset({other}), named_mirrors=frozenset({named}))) == {other}
        assert bridge.known.mirrors == {other: f"{LIMIT} 31: the last place is for a tap that names OVSMirror"}
    assert bridge.at(3, Leanings(mirrors=frozenset({named}), named_mirrors=frozenset({named}))) == set(), "it serves both"


@pytest.mark.parametrize("groupless", [INGRESS, EGRESS])
@pytest.mark.parametrize("leans", [Backend.OVS_MIRROR, Backend.OVS_GROUP])
def test_the_last_mirror_is_for_the_direction_that_flows_cannot_copy(groupless: Feed, leans: Backend) -> None:
    bridge, (other,) = Bridge(MAX_MIRRORS - 1), BOTH - {groupless}
    group = by(Backend.OVS_GROUP, groupless)
    bridge.no_groups = {group: "it snoops"}
    wants = Leanings(frozenset({group}), frozenset({other})) if leans is Backend.OVS_GROUP else Leanings(mirrors=BOTH)
    for now in range(3):
        assert bridge.at(now, wants) - {group} == {other}, "however often it is asked, and whatever was made of it"
        assert bridge.known.mirrors == {other: f"{LIMIT} 31: the last place is for {groupless.direction}"}


def test_a_tap_that_leaves_it_to_auto_keeps_its_place_where_flows_cannot_copy_instead() -> None:
    bridge = Bridge(MAX_MIRRORS - 1)
    bridge.no_groups = {EGRESS_GROUP: "it snoops"}
    wants = Leanings(mirrors=frozenset({EGRESS}))
    assert bridge.at(0, wants) == set()
    assert EGRESS not in bridge.at(1, replace(wants, named_mirrors=frozenset({INGRESS})))


def test_nothing_yields_where_that_would_not_help() -> None:
    bridge = Bridge(MAX_MIRRORS)
    assert bridge.at(0, Leanings(mirrors=frozenset({EGRESS}), named_mirrors=frozenset({INGRESS}))) == {EGRESS}
