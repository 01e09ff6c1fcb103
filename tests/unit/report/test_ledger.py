"""The agent's ledger explains drops only as far as a device counted them, and forgets no packet of what is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from vtap_agent.plan.dataplane import Direction, PointCounters, TapPointName
from vtap_agent.report.ledger import MAX_CLOSED, Row, attribute_pair_drops, close, row_from_json, row_to_json


def row(number: int, **counters: Any) -> Row:
    name = TapPointName("shop", "web", "shop", f"web-{number}", f"uid-{number}", "eth0", Direction.EGRESS)
    return Row(4096 + number, f"{number:016x}", name, "default", PointCounters(**counters))


def missing(counters: PointCounters) -> int:
    return counters.handed - counters.arrived - counters.dropped.get("pair", 0)


def test_drops_that_the_device_counted_are_explained() -> None:
    points = {
        0: PointCounters(handed=100, arrived=90),
        1: PointCounters(handed=50, arrived=50),
        2: PointCounters(handed=9, arrived=4),
    }
    explained = attribute_pair_drops(points, 15)
    assert {slot: counters.dropped.get("pair", 0) for slot, counters in explained.items()} == {0: 10, 1: 0, 2: 5}


def test_what_no_device_counted_stays_missing() -> None:
    explained = attribute_pair_drops({0: PointCounters(handed=100, arrived=0)}, 40)
    assert missing(explained[0]) == 60


def test_more_device_drops_than_missing_segments_invent_nothing() -> None:
    explained = attribute_pair_drops({0: PointCounters(handed=100, arrived=99)}, 40)
    assert explained[0].dropped == {"pair": 1}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 5))
def test_closing_many_points_loses_no_packet(seen: list[int], limit: int) -> None:
    closed: tuple[Row, ...] = ()
    for number, packets in enumerate(seen):
        closed = close(closed, [row(number, seen=packets, sent=packets // 2)], limit)
    assert sum(item.counters.seen for item in closed) == sum(seen)
    assert sum(item.counters.sent for item in closed) == sum(packets // 2 for packets in seen)
    assert len(closed) <= limit + 1 and all(item.closed for item in closed)


def test_rows_survive_the_state_file() -> None:
    (original,) = close((), [row(3, seen=7, excluded=1)], MAX_CLOSED)
    assert row_from_json(row_to_json(original)) == original


def test_taps_of_ever_new_names_do_not_make_the_rows_grow() -> None:
    closed: tuple[Row, ...] = ()
    for number in range(50):
        one = row(number, seen=1, sent=1)
        closed = close(closed, [replace(one, name=replace(one.name, tap_name=f"job-{number}"))], limit=2, sums_limit=3)
    assert len(closed) <= 2 + 3 + 1
    assert sum(item.counters.seen for item in closed) == 50


def test_streams_to_others_are_not_summed_up_with_those_to_our_collector() -> None:
    ours, others = row(1, sent=5), replace(row(2, sent=7), announced=False)
    closed = close((), [ours, others], limit=0)
    assert {(item.announced, item.counters.sent) for item in closed} == {(True, 5), (False, 7)}
