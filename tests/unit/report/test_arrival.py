"""Nothing arrives: said when it is so, and never else."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from vtap_agent.plan.streams import StreamId
from vtap_agent.report.arrival import ENOUGH, PATIENCE, Watch, unarriving, watched

STREAM: StreamId = (7, "0" * 16)


def missing_after(answers: Iterable[tuple[float, int, int]]) -> list[bool]:
    """After each (time, sent, received)."""
    watches: dict[tuple[int, str], Watch] = {}
    said: list[bool] = []
    for now, sent, received in answers:
        watches = watched(watches, {STREAM: sent}, {STREAM: received}, now)
        said.append(STREAM in unarriving(watches))
    return said


def test_it_takes_time_and_copies() -> None:
    assert missing_after([(0, 0, 0), (1, ENOUGH, 0), (2, ENOUGH * 2, 0), (1 + PATIENCE, ENOUGH * 9, 0)]) == [False] * 3 + [True]
    assert missing_after([(0, 0, 0), (1, ENOUGH - 1, 0), (PATIENCE * 9, ENOUGH - 1, 0)]) == [False] * 3


def test_a_burst_that_is_lost_as_a_whole_is_missed_at_rest() -> None:
    assert missing_after([(0, 5, 5), (1, 5 + ENOUGH, 5), (1 + PATIENCE, 5 + ENOUGH, 5)]) == [False, False, True]


def test_one_copy_that_arrives_ends_it() -> None:
    stuck = [(0, 0, 0), (1, ENOUGH, 0), (1 + PATIENCE, ENOUGH, 0)]
    assert missing_after([*stuck, (2 + PATIENCE, ENOUGH + 1, 1)])[-2:] == [True, False]


def test_a_resting_stream_is_well() -> None:
    assert not any(missing_after([(0, 1000, 3), (PATIENCE, 1000, 3), (PATIENCE * 5, 1000, 3)]))


def test_a_collector_that_began_anew_is_judged_anew() -> None:
    stuck = [(0, 0, 9), (1, ENOUGH, 9), (1 + PATIENCE, ENOUGH, 9)]
    assert missing_after([*stuck, (2 + PATIENCE, 2 * ENOUGH, 0)])[-1] is False


def test_a_stream_that_the_collector_does_not_name_stays_as_it_was() -> None:
    before = {STREAM: Watch(1, 1, 2.0, missing=True)}
    assert watched(before, {STREAM: 5}, {}, 9.0) == before
    assert watched(before, {}, {STREAM: 5}, 9.0) == before


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=50))
def test_while_something_arrives_nothing_is_missing(steps: list[tuple[int, int]]) -> None:
    now, sent, received = 0.0, 0, 0
    answers: list[tuple[float, int, int]] = []
    for more, got in steps:
        now, sent, received = now + PATIENCE, sent + more, received + got
        answers.append((now, sent, received))
    assert not any(missing_after(answers))
