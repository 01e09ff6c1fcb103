"""A stream keeps its slot as long as it lives, and a released slot rests as long as possible."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtap_agent.plan.dataplane import Direction, TapPointName
from vtap_agent.plan.slots import SlotTable, StreamName, allocate, from_json, to_json


def stream(number: int) -> StreamName:
    return StreamName(TapPointName("shop", "web", "shop", f"web-{number}", f"uid-{number}", "eth0", Direction.EGRESS), "default")


def incarnations():
    return map("{:016x}".format, itertools.count(1)).__next__


@given(st.lists(st.sets(st.integers(0, 12)), max_size=20))
def test_slots_stay_unique_and_stable(rounds: list[set[int]]) -> None:
    table, new = SlotTable(size=8), incarnations()
    for wanted in rounds:
        before = table.assigned
        outcome = allocate(table, map(stream, wanted), new)
        table = outcome.table
        slots = [value.slot for value in table.assigned.values()]
        assert len(set(slots)) == len(slots) and all(0 <= slot < 8 for slot in slots)
        assert set(table.assigned) | set(outcome.refused) == set(map(stream, wanted))
        assert len(outcome.refused) == max(0, len(wanted) - 8)
        assert all(table.assigned[name] == before[name] for name in before.keys() & table.assigned.keys())
        assert not set(slots) & set(table.free)


def test_a_released_slot_is_used_last() -> None:
    new = incarnations()
    table = allocate(SlotTable(size=3), [stream(0), stream(1)], new).table
    table = allocate(table, [stream(1)], new).table
    table = allocate(table, [stream(1), stream(2)], new).table
    assert table.assigned[stream(2)].slot == 2
    table = allocate(table, [stream(1), stream(2), stream(3)], new).table
    assert table.assigned[stream(3)].slot == 0


def test_a_slot_handed_out_again_has_a_new_incarnation() -> None:
    new = incarnations()
    table = allocate(SlotTable(size=1), [stream(0)], new).table
    again = allocate(allocate(table, [], new).table, [stream(0)], new).table
    assert again.assigned[stream(0)].slot == table.assigned[stream(0)].slot
    assert again.assigned[stream(0)].incarnation != table.assigned[stream(0)].incarnation


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_the_table_survives_the_state_file(first: set[int], second: set[int]) -> None:
    new = incarnations()
    table = allocate(allocate(SlotTable(size=8), map(stream, first), new).table, map(stream, second), new).table
    assert from_json(json.loads(json.dumps(to_json(table)))) == table


def test_a_table_with_a_slot_assigned_twice_is_refused() -> None:
    data = to_json(allocate(SlotTable(size=8), [stream(0), stream(1)], incarnations()).table)
    data["assigned"][0]["slot"] = data["assigned"][1]["slot"]  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ValueError, match="twice"):
        from_json(data)
