"""Streams through time: no slot is free before nothing feeds it, and no packet is forgotten or counted twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vtap_agent import accounts as module
from vtap_agent.accounts import LAST_WORD, SETTLE, SETTLE_AT_LAST, Accounts
from vtap_agent.errors import Retry, TellUser
from vtap_agent.plan.dataplane import Direction, NodeCounters, PointCounters, TapPointName
from vtap_agent.plan.slots import StreamName

FIRST_KEY = 4096


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def stream(number: int) -> StreamName:
    point = TapPointName("shop", "web", "shop", f"web-{number}", f"uid-{number}", "eth0", Direction.EGRESS)
    return StreamName(point, "default GRE_UDP 198.18.2.2 4754 http://c")


def counters(pair_dropped: int = 0, **points: PointCounters) -> NodeCounters:
    return NodeCounters({int(slot[1:]): value for slot, value in points.items()}, {}, pair_dropped)


def seen(accounts: Accounts, reading: NodeCounters) -> list[int]:
    return [row.counters.seen for row in accounts.rows(reading)]


def test_a_stream_that_is_still_fed_is_not_closed_however_long_it_is_unwanted(tmp_path: Path, clock: Clock) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0)])
    accounts.admit([])
    clock.now += 100 * SETTLE
    assert not accounts.due(), "the pass that takes it away has not come to its end"
    assert accounts.used_slots() == {0} and len(accounts.leaving) == 1
    accounts.unfed()
    clock.now += SETTLE
    assert accounts.due()
    accounts.settle(counters(s0=PointCounters(seen=7)))
    assert accounts.used_slots() == frozenset() and accounts.leaving == frozenset()
    assert seen(accounts, counters()) == [7]


def test_a_stream_whose_copies_are_on_their_way_is_read_when_they_have_come_or_never_will(tmp_path: Path, clock: Clock) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0), stream(1)])
    accounts.admit([])
    accounts.unfed()
    waiting, dropped = PointCounters(seen=9, handed=9, arrived=4), PointCounters(seen=9, handed=9, arrived=9)
    clock.now += SETTLE
    accounts.settle(counters(s0=waiting, s1=dropped))
    assert accounts.used_slots() == {0} and accounts.due()
    clock.now += SETTLE
    accounts.settle(counters(s0=replace(waiting, arrived=8, sent=8)))
    assert accounts.used_slots() == {0}
    clock.now += SETTLE_AT_LAST
    accounts.settle(counters(s0=replace(waiting, arrived=8, sent=8)))
    assert accounts.used_slots() == frozenset()
    assert [row.counters.sent for row in accounts.rows(counters()) if row.counters.handed > row.counters.arrived] == [8]


def test_a_stream_that_is_wanted_again_goes_on(tmp_path: Path, clock: Clock) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0)])
    before = accounts.slots
    accounts.admit([])
    accounts.unfed()
    accounts.admit([stream(0)])
    clock.now += 2 * SETTLE
    assert not accounts.due() and accounts.slots == before


def test_totals_of_a_closed_stream_are_told_for_a_while_only(tmp_path: Path, clock: Clock) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0)])
    accounts.admit([])
    accounts.unfed()
    last = counters(s0=PointCounters(sent=5, next_sequence=5))
    accounts.settle(last, at_once=True)
    assert [total.sent for total in accounts.totals(accounts.rows(counters())).values()] == [5]
    for number in (1, 2):
        clock.now += LAST_WORD
        accounts.admit([stream(number)])
        accounts.admit([])
        accounts.unfed()
        accounts.settle(counters(), at_once=True)
    assert len(accounts.totals(accounts.rows(counters()))) == 1
    assert len(accounts.rows(counters())) == 3


def test_drops_in_the_pair_are_explained_to_what_ends_before_what_runs(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0), stream(1)])
    accounts.admit([stream(0)])
    accounts.unfed()
    # Slot 0 has copies on their way, slot 1 has come to rest.
    reading = counters(10, s0=PointCounters(handed=50, arrived=40), s1=PointCounters(handed=30, arrived=20))
    accounts.settle(reading, at_once=True)
    (closed,) = [row for row in accounts.rows(counters(10, s0=PointCounters(handed=50, arrived=50))) if row.closed]
    assert closed.counters.dropped == {"pair": 10}


def test_a_pair_that_is_made_anew_keeps_explaining(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0)])
    for pair_dropped, missing in ((10, 10), (0, 10), (4, 14)):
        reading = counters(pair_dropped, s0=PointCounters(handed=100, arrived=100 - missing))
        accounts.observe(reading)
        (row,) = accounts.rows(reading)
        assert row.counters.dropped.get("pair", 0) == missing


def test_only_streams_that_there_are_stay_confirmed(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0)])
    own = (FIRST_KEY, accounts.slots.assigned[stream(0)].incarnation)
    accounts.confirm([own, (FIRST_KEY + 9, "f" * 16)])
    assert accounts.confirmed == {own}
    accounts.admit([])
    accounts.unfed()
    accounts.settle(counters(), at_once=True)
    accounts.confirm([own])
    assert accounts.confirmed == frozenset()


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0), stream(1)])
    accounts.admit([stream(0)])
    accounts.unfed()
    accounts.settle(counters(3, s1=PointCounters(seen=3, handed=3)), at_once=True)
    again = Accounts(tmp_path / "s.json", FIRST_KEY)
    reading = counters(3, s0=PointCounters(seen=1))
    assert again.rows(reading) == accounts.rows(reading) and again.slots == accounts.slots


def test_keys_of_running_streams_do_not_move(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    Accounts(tmp_path / "s.json", 2 * FIRST_KEY)
    accounts.admit([stream(0)])
    with pytest.raises(TellUser, match="give --first-key 4096"):
        Accounts(tmp_path / "s.json", 2 * FIRST_KEY)


def test_a_state_that_cannot_be_saved_changes_nothing(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    accounts.admit([stream(0)])
    before = accounts.slots
    (tmp_path / "s.json.new").mkdir()
    with pytest.raises(Retry, match="cannot be saved"):
        accounts.admit([stream(0), stream(1)])
    assert accounts.slots == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "slots": []}', '"text"'])
def test_a_damaged_state_file_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(TellUser, match="move it away to start afresh"):
        Accounts(tmp_path / "s.json", FIRST_KEY)


def test_slots_are_not_reused_while_others_rest(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "s.json", FIRST_KEY)
    used = []
    for number in range(5):
        accounts.admit([stream(number)])
        used.append(accounts.slots.assigned[stream(number)].slot)
        accounts.admit([])
        accounts.unfed()
        accounts.settle(counters(), at_once=True)
    assert used == [0, 1, 2, 3, 4]


def test_with_another_block_of_keys_every_stream_begins_anew_where_that_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    accounts = Accounts(file, 4096)
    accounts.admit([stream(0)])
    (before,) = accounts.slots.assigned.values()
    moved = Accounts(file, 8192, 16, move=True)
    assert moved.slots.assigned == {} and moved.slots.size == 16
    moved.admit([stream(0)])
    (after,) = moved.slots.assigned.values()
    assert after.incarnation != before.incarnation
    assert Accounts(file, 8192, 16, move=True).slots == moved.slots
