"""Counters of any slots are read in few calls, and read right whatever the kernel offers."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.unit.pipeline.node import Node, why_not
from vtap_agent.drivers.libbpf import Map, possible_cpus
from vtap_agent.pipeline.counters import RUN_GAP, runs


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with Node() as made:
        yield made


def test_slots_that_lie_together_are_one_stretch() -> None:
    assert runs([]) == []
    assert runs([7, 5, 4, 6]) == [(4, 4)]
    assert runs([0, RUN_GAP - 1, 4095]) == [(0, RUN_GAP), (4095, 1)]
    assert runs([0, RUN_GAP + 1]) == [(0, 1), (RUN_GAP + 1, 1)]


def count(node: Node, slot: int, seen: int, sent: int, sequence: int) -> None:
    """Write as if every CPU had seen `seen` packets and sent `sent` copies."""
    maps = node.pipeline._kernel.maps
    picked = struct.pack("=Q", seen).ljust(maps["picked"].stride, b"\0")
    handled = struct.pack("=4Q", sent, 0, 0, sent).ljust(maps["handled"].stride, b"\0")
    key = slot.to_bytes(4, "little")
    maps["picked"].update(key, picked * possible_cpus())
    maps["handled"].update(key, handled * possible_cpus())
    maps["slots"].update(key, struct.pack("=QQI", 0, 0, sequence).ljust(maps["slots"].value_size, b"\0"))


@pytest.mark.parametrize("batches", [True, False])
def test_every_slot_is_read_as_it_was_written(node: Node, monkeypatch: pytest.MonkeyPatch, batches: bool) -> None:
    slots = (0, 1, 33, 70, 4095)
    for place, slot in enumerate(slots, 1):
        count(node, slot, place * 10, place, place + 100)
    for one in node.pipeline._kernel.maps.values():
        monkeypatch.setattr(one, "_batches", batches)
    points = node.pipeline.counters(slots).points
    cpus = possible_cpus()
    assert points.keys() == set(slots)
    assert [(points[slot].seen, points[slot].arrived, points[slot].sent, points[slot].next_sequence) for slot in slots] == [
        (place * 10 * cpus, place * cpus, place * cpus, place + 100) for place in range(1, len(slots) + 1)
    ]


def test_a_reading_is_fresh_and_takes_as_many_calls_for_many_slots_as_for_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Map._batch

    def batch(self: Map, after: bytes | None, count: int):
        asked.append(self.name)
        return real(self, after, count)

    monkeypatch.setattr(Map, "_batch", batch)
    before = node.pipeline.counters(range(200)).points
    assert sorted(asked) == ["handled", "picked", "slots"]
    assert node.pipeline.counters(range(200)).points is before, "nothing has moved"
    count(node, 150, 5, 3, 9)
    after = node.pipeline.counters(range(200)).points
    assert {slot for slot in after if after[slot] is not before[slot]} == {150}
    assert after[150].seen == 5 * possible_cpus()


@pytest.mark.parametrize("batches", [True, False])
def test_all_of_a_hash_map_is_read(node: Node, monkeypatch: pytest.MonkeyPatch, batches: bool) -> None:
    peers = node.pipeline._kernel.maps["peers"]
    monkeypatch.setattr(peers, "_batches", batches)
    written = {number.to_bytes(4, "little") * (peers.key_size // 4) for number in range(5000)}
    for key in written:
        peers.update(key, b"\1")
    keys, values = peers.content()
    assert {keys[at : at + peers.key_size] for at in range(0, len(keys), peers.key_size)} == written
    assert values == b"\1" * len(written) and len(keys) == len(written) * peers.key_size
    for key in written:
        peers.delete(key)
    assert peers.content() == (b"", b"")
