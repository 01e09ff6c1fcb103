"""Counters, not rows, say whether a mirror copies."""

from __future__ import annotations

import pytest

from vtap_agent.plan.dataplane import Backend, Direction, Feed
from vtap_agent.plan.mirror_health import MirrorReading, MirrorSample, MirrorState, health, purge_after_change

EGRESS = Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS)
INGRESS = Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS)


def judge(key: Feed, before: MirrorReading, after: MirrorReading) -> MirrorState:
    return health(MirrorSample(0, {key: before}), MirrorSample(2, {key: after}), 2)[key].state


def reading(copies: int, *, held: bool = True, age: float = 100, **selected: int) -> MirrorReading:
    return MirrorReading(copies, selected, held, age)


def test_as_many_copies_as_packets_is_copying() -> None:
    assert judge(EGRESS, reading(0, a=0, b=0), reading(1000, a=400, b=600)) is MirrorState.COPYING


def test_no_packets_says_nothing() -> None:
    assert judge(EGRESS, reading(5, a=5), reading(5, a=5)) is MirrorState.IDLE


@pytest.mark.parametrize("key", [EGRESS, INGRESS])
def test_packets_without_copies_need_a_purge(key: Feed) -> None:
    judged = health(MirrorSample(0, {key: reading(7, a=0)}), MirrorSample(2, {key: reading(7, a=50)}), 2)[key]
    assert (judged.state, judged.needs_purge, judged.least) == (MirrorState.MISSING, True, 50)


@pytest.mark.parametrize("key", [EGRESS, INGRESS])
def test_an_overloaded_switch_that_loses_packets_before_it_copies_them_is_not_purged(key: Feed) -> None:
    assert judge(key, reading(0, a=0), reading(4689, a=7610)) is MirrorState.COPYING


def test_a_few_packets_prove_nothing() -> None:
    assert judge(EGRESS, reading(0, a=0), reading(0, a=9)) is MirrorState.IDLE


def test_a_broadcast_to_many_receivers_is_rightly_copied_once() -> None:
    assert judge(INGRESS, reading(0, a=0, b=0, c=0), reading(100, a=100, b=100, c=100)) is MirrorState.COPYING


def test_copies_of_what_is_selected_no_longer_need_a_purge() -> None:
    judged = health(MirrorSample(0, {EGRESS: reading(0)}), MirrorSample(2, {EGRESS: reading(500)}), 2)[EGRESS]
    assert (judged.state, judged.needs_purge) == (MirrorState.LEAKING, True)


def test_while_the_selection_changes_more_copies_are_no_leak() -> None:
    assert judge(EGRESS, reading(0, a=0), reading(500, b=3)) is MirrorState.COPYING


def test_a_port_made_again_counts_from_nothing() -> None:
    assert judge(EGRESS, reading(1000, a=1000), reading(0, a=20)) is MirrorState.IDLE


def test_a_mirror_that_ofproto_does_not_hold_is_told_once_its_statistics_are_overdue() -> None:
    assert judge(EGRESS, reading(0, held=False, age=1), reading(0, held=False, age=3)) is MirrorState.IDLE
    assert judge(EGRESS, reading(0, held=False, age=18), reading(0, held=False, age=20)) is MirrorState.NOT_HELD


def test_a_new_mirror_is_not_judged_yet() -> None:
    assert health(MirrorSample(0, {}), MirrorSample(2, {EGRESS: reading(0, a=1000)}), 2)[EGRESS].state is MirrorState.IDLE


@pytest.mark.parametrize("version", ["2.17.11", "3.0.7", "3.1.0", "3.1.5", "3.2.3", "3.3.2", "2.15.0", "", "unknown"])
def test_versions_that_may_not_notice_a_change(version: str) -> None:
    assert purge_after_change(version)


@pytest.mark.parametrize(
    "version", ["2.17.12", "3.0.8", "3.1.6", "3.2.4", "3.3.3", "3.3.8", "3.4.0", "3.5.1", "4.0.0", "4.0.0-rc1"]
)
def test_versions_that_notice(version: str) -> None:
    assert not purge_after_change(version)
