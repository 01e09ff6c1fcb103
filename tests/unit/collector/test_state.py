"""What a collector finds of its predecessor: counts that stand, and what a kill leaves to be put right."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.collector.copies import copy, numbered_frame
from tests.unit.collector.core_library import NODE_ADDRESS, IdleCore, idle_core, stream
from vtap_collector.native import StreamCounts

RECEIVED, LOST_NETWORK, JUDGING = 64, 80, 32
"""Offsets of members of the first stream's state."""


def word(path: Path, offset: int, change: Callable[[int], int], form: str = "<Q") -> None:
    """Change a number of the first stream's state."""
    state = bytearray(path.read_bytes())
    _magic, _version, _stream_size, tap_size, _streams, taps = struct.unpack_from("<QIIIII", state)
    at = (4096 + tap_size * taps + 4095) // 4096 * 4096 + offset
    struct.pack_into(form, state, at, change(struct.unpack_from(form, state, at)[0]))
    path.write_bytes(state)


@contextmanager
def a_core(directory: Path) -> Iterator[IdleCore]:
    with idle_core(directory) as core:
        core.open_stream(0, stream(1))
        yield core


def send(core: IdleCore, *numbers: int) -> None:
    for number in numbers:
        core.ingest(0, NODE_ADDRESS, copy(1, number, numbered_frame(number)))


def killed(core: IdleCore) -> None:
    """What is in the buffers is lost, and nothing is closed."""
    core.free()


def counts_after(directory: Path) -> StreamCounts:
    with a_core(directory) as core:
        return core.stream_counts(0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".state" / "streams"


@pytest.mark.parametrize("wrong", [5, -5])
def test_a_clean_restart_leaves_a_wrong_count_to_be_seen(tmp_path: Path, state: Path, wrong: int) -> None:
    with a_core(tmp_path) as core:
        send(core, *range(10))
    word(state, RECEIVED, lambda received: received + wrong)
    for _restart in range(2):
        counts = counts_after(tmp_path)
        assert (counts.received, counts.stored, counts.dropped_crash) == (10 + wrong, 10, 0)


def test_what_a_kill_left_in_the_buffers_is_lost_by_the_crash(tmp_path: Path) -> None:
    with a_core(tmp_path) as core:
        send(core, *range(10))
    with a_core(tmp_path) as core:
        send(core, *range(10, 17))
        killed(core)
    for _restart in range(2):
        counts = counts_after(tmp_path)
        assert (counts.received, counts.stored, counts.dropped_crash) == (17, 10, 7)


@pytest.mark.parametrize("wrong", [5, -5])
def test_a_wrong_count_is_not_charged_to_a_crash(tmp_path: Path, state: Path, wrong: int) -> None:
    with a_core(tmp_path) as core:
        send(core, *range(10))
    with a_core(tmp_path) as core:
        send(core, *range(10, 17))
        killed(core)
    word(state, RECEIVED, lambda received: received + wrong)
    counts = counts_after(tmp_path)
    assert counts.received == 17 + wrong
    assert counts.dropped_crash == (7 if wrong > 0 else 7 + wrong)


def test_a_copy_that_was_being_counted_is_lost_by_the_crash(tmp_path: Path, state: Path) -> None:
    with a_core(tmp_path) as core:
        send(core, *range(10))
        killed(core)
    word(state, RECEIVED, lambda received: received - 1)
    word(state, JUDGING, lambda _nothing: 1, "<I")
    counts = counts_after(tmp_path)
    assert (counts.received, counts.dropped_crash, counts.lost_network) == (10, 10, 0)


def test_numbers_that_were_being_given_up_are_lost(tmp_path: Path, state: Path) -> None:
    with a_core(tmp_path) as core:
        send(core, 0, 20_000)  # the window holds 8,192
        killed(core)
    word(state, LOST_NETWORK, lambda _lost: 0)
    word(state, JUDGING, lambda _nothing: 2, "<I")
    counts = counts_after(tmp_path)
    assert (counts.received, counts.lost_network + counts.in_flight) == (2, 19_999)
