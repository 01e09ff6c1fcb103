"""Packets that pass the node's end of a pair by are told from those that came through, and from a reading that took long."""

from __future__ import annotations

import pytest

from vtap_agent.plan.passers_by import ENOUGH, QUIET, Reading, Watch, watched


def at_rest(pod: int, node: int) -> Reading:
    """Nothing came while both ends were read."""
    return Reading(node, pod, node)


def after(*readings: Reading, every: float = 10.0) -> Watch:
    watch = Watch(readings[0])
    for number, reading in enumerate(readings):
        watch = watched(watch if number else None, reading, number * every)
    return watch


def test_what_passes_by_is_found_whatever_passed_before() -> None:
    assert after(at_rest(5_000, 1_000), at_rest(5_000 + ENOUGH, 1_000)).seen_at == 10


def test_a_difference_from_before_says_nothing() -> None:
    assert after(at_rest(5_000, 1_000), at_rest(9_000, 5_000)).seen_at is None


def test_few_packets_are_enough_among_very_many_and_of_any_number_of_readings() -> None:
    assert after(at_rest(0, 0), at_rest(10**9 + ENOUGH, 10**9)).seen_at == 10
    slowly = [at_rest(number + 1_000 * number, 1_000 * number) for number in range(ENOUGH + 1)]
    assert after(*slowly[:-1]).seen_at is None
    assert after(*slowly).seen_at == 10 * ENOUGH


@pytest.mark.parametrize("first", [0, 20_000, 50_000])
@pytest.mark.parametrize("last", [950_000, 980_000, 1_000_000])
def test_a_reading_that_takes_long_raises_no_alarm(first: int, last: int) -> None:
    """All come through, 50,000 of them while both ends are read; the pod's end is read some time meanwhile."""
    assert after(Reading(0, first, 50_000), Reading(950_000, last, 1_000_000)).seen_at is None


def test_a_device_whose_end_receives_less_raises_no_alarm() -> None:
    """As where packets are dropped on the way from the node's end."""
    assert after(at_rest(0, 0), at_rest(400, 1_000)).seen_at is None


def test_silence_ends_nothing_and_other_packets_only_after_a_while() -> None:
    found = after(at_rest(0, 0), at_rest(100, 0))
    assert found.seen_at == 10
    silent = watched(found, at_rest(100, 0), 10 + 2 * QUIET)
    assert silent.seen_at == 10
    through = at_rest(100 + ENOUGH, ENOUGH)
    assert watched(found, through, 10 + QUIET - 1).seen_at == 10
    assert watched(found, through, 10 + QUIET).seen_at is None


def test_a_single_packet_keeps_up_what_was_found() -> None:
    found = after(at_rest(0, 0), at_rest(100, 0))
    assert watched(found, at_rest(151, 50), 200).seen_at == 200
