"""Changes under load, restarts, replacements and the end: no gap, no unfiltered packet, no lost counter, nothing left behind."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.pipeline import frames
from tests.unit.pipeline.node import (
    EGRESS,
    INGRESS,
    PEER_MAC,
    POD_MAC,
    UPLINK,
    Node,
    open_accounts,
    point,
    wait_until,
    why_not,
)
from vtap_agent.drivers import links
from vtap_agent.pipeline import Pipeline, compiler, devices, encode
from vtap_agent.plan.dataplane import Action, DataPlane, Direction, Match, PortRange, Source, TapProgram

SECRET, PUBLIC = 4444, 80


@pytest.fixture
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with Node() as made:
        yield made


def datagram(port: int, number: int) -> bytes:
    payload = struct.pack(">I", number)
    packet = frames.ipv4(frames.PEER4, frames.POD4, 17, frames.udp(frames.PEER4, frames.POD4, 9, port, payload))
    return frames.ethernet(POD_MAC, PEER_MAC, 0x0800, packet)


class Load:
    """Numbered datagrams in a thread, to the secret and the public port in turn."""

    def __init__(self, node: Node) -> None:
        self._writer = node.writer(INGRESS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            for port in (SECRET, PUBLIC):
                self._writer.send(datagram(port, self.sent))
            self.sent += 1

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def hides_secret(snap_length: int) -> TapProgram:
    return TapProgram(
        Action.INCLUDE, (Match(Action.EXCLUDE, protocol=17, pod_ports=PortRange(SECRET, SECRET)),), snap_length=snap_length
    )


def inner_ports(copies: list[bytes]) -> list[int]:
    return [struct.unpack_from(">H", copy, 54 + 14 + 20 + 2)[0] for copy in copies]


def test_swapping_programs_under_load_lets_no_excluded_packet_through(node: Node) -> None:
    node.apply(node.plane(hides_secret(0)))
    capture = node.capture()
    copies: list[bytes] = []
    with Load(node) as load:
        for change in range(60):
            node.apply(node.plane(hides_secret(change % 2 * 100)))
            copies += capture.frames(0, deadline=0)
    counters = node.settled(0)
    copies += capture.frames(counters.sent - len(copies))
    assert set(inner_ports(copies)) == {PUBLIC}
    assert counters.seen == 2 * load.sent
    assert counters.excluded == counters.sent == load.sent
    assert len(copies) == load.sent


def test_sources_that_come_and_go_leave_the_others_whole(node: Node) -> None:
    plane = node.plane()
    other = bytes.fromhex("020000000009")
    points = (*plane.points, point(2, Direction.INGRESS))
    more = replace(plane, points=points, sources=(*plane.sources, Source(INGRESS, 0, other, False, (2,))))
    both = replace(more, sources=(replace(plane.sources[0], slots=(0, 2)), plane.sources[1]))
    node.apply(plane)
    with Load(node) as load:
        for _ in range(10):
            for desired in (more, both, plane):
                node.apply(desired)
    counters = node.settled(0)
    assert counters.seen == counters.sent == 2 * load.sent


def test_a_restarted_agent_adopts_everything_without_a_gap(node: Node) -> None:
    plane = node.plane()
    node.apply(plane)
    programs = dict(node.pipeline._kernel.program_ids)
    with Load(node) as load:
        for _ in range(3):
            node.reopen()
            assert node.pipeline.plan(plane, node.ports) == []
    assert node.pipeline._kernel.program_ids == programs
    counters = node.settled(0)
    assert counters.seen == counters.sent == 2 * load.sent


def test_new_programs_take_over_in_place_and_keep_the_counters(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = node.plane()
    node.apply(plane)
    before = dict(node.pipeline._kernel.program_ids)
    with Load(node) as load:
        monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DANOTHER_VERSION"))
        node.reopen()
        assert node.pipeline.verify(plane) == []
    after = node.pipeline._kernel.program_ids
    assert all(after[name] != before[name] for name in before)
    assert [path.name for path in (node.root / "programs").iterdir()] == [compiler.source_hash()]
    counters = node.settled(0)
    assert counters.seen == counters.sent == 2 * load.sent


def test_an_agent_that_adopts_maps_from_before_the_loop_guard_guards_at_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = node.plane()
    node.apply(plane)
    node.tap(INGRESS, datagram(PUBLIC, 1))
    before = node.settled(0)
    (guard,) = (node.root / "maps").glob("tunnels_v*")
    guard.unlink()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DANOTHER_VERSION"))
    node.reopen()
    assert node.pipeline.adopted and node.settled(0) == before
    assert len(list(node.pipeline._kernel.maps["tunnels"].walk())) == 2


KILLED_AT = """
import os, sys
from pathlib import Path
from vtap_agent.pipeline import Pipeline
from vtap_agent.drivers import libbpf, links

left = int(sys.argv[2])
def deadly(real):
    def call(*arguments, **words):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return real(*arguments, **words)
    return call
for name in ("pin", "attach_tcx", "update_link"):
    setattr(libbpf, name, deadly(getattr(libbpf, name)))
for name in ("create_veth", "silence", "set_offloads", "remove"):
    setattr(links, name, deadly(getattr(links, name)))
Pipeline.open(Path(sys.argv[1]), "test-node")
print("done")
"""


def test_killed_at_any_step_of_starting_the_next_start_succeeds(node: Node) -> None:
    plane = node.plane()
    for step in (1, 9, 18, 19, 21, 23, 25, 27):
        node.pipeline.destroy()
        node.root.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(node.root)], check=True)
        command = [sys.executable, "-c", KILLED_AT, str(node.root), str(step)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -9 or killed.stdout == "done\n", killed.stderr
        node.pipeline = Pipeline.open(node.root, "test-node")
        node.pipeline.renew_lease(600)
        for key in node.ports:
            node.ports[key] = node.pipeline.ensure_tap_port(key)
        node.forget_writers()
        node.apply(plane)
        capture = node.capture()
        node.tap(INGRESS, datagram(PUBLIC, step))
        assert len(capture.frames(1)) == 1


class Cut(Exception):
    """The agent's end, in the middle of a change."""


@pytest.mark.parametrize("unfinished", ["floods", "quicks", "sources"])
def test_a_change_of_sources_that_was_cut_short_is_seen_and_made_good(
    node: Node, monkeypatch: pytest.MonkeyPatch, unfinished: str
) -> None:
    plane = node.plane()
    none_received = replace(plane, sources=plane.sources[1:])
    node.apply(plane)
    real = node.pipeline._kernel.swap

    def cut(outer: str, index: int, entries: dict[bytes, bytes]) -> None:
        if outer == unfinished:
            raise Cut
        real(outer, index, entries)

    monkeypatch.setattr(node.pipeline._kernel, "swap", cut)
    with pytest.raises(Cut):
        node.apply(none_received)
    monkeypatch.undo()
    assert node.pipeline.verify(none_received) != []
    node.reopen()
    assert node.pipeline.verify(plane) == []
    before = node.settled(0).sent
    node.tap(INGRESS, datagram(PUBLIC, 1))
    wait_until(lambda: node.counters(0).sent == before + 1, "a source that was to go is wanted again")
    node.apply(none_received)
    node.tap(INGRESS, datagram(PUBLIC, 2))
    wait_until(lambda: node.pipeline.counters().unattributed[INGRESS] == 1, "the second packet is nobody's")
    assert node.settled(0).sent == before + 1


def test_nothing_remains(node: Node) -> None:
    node.apply(node.plane())
    node.pipeline.destroy()
    assert links.stamped() == []
    assert {name for _, name in socket.if_nameindex()} == {"lo", UPLINK}
    assert list(node.root.iterdir()) == []
    node.pipeline = Pipeline.open(node.root, "test-node")


def test_a_tap_port_made_anew_is_selected_anew(node: Node) -> None:
    plane = node.plane()
    node.apply(plane)
    node.pipeline.remove_tap_port(EGRESS)
    assert node.pipeline.verify(plane) != []
    node.pipeline.ensure_tap_port(EGRESS)
    node.forget_writers()
    node.apply(plane)
    before = node.counters(1).sent
    node.tap(EGRESS, PEER_MAC + POD_MAC + datagram(PUBLIC, 1)[12:])
    wait_until(lambda: node.counters(1).sent == before + 1, "the copy is sent")


def test_what_a_tap_port_counted_is_still_told_when_it_has_gone_and_come_again(node: Node) -> None:
    plane = node.plane()
    stray = datagram(PUBLIC, 1)[6:12] + POD_MAC + datagram(PUBLIC, 1)[12:]

    def strays() -> int:
        return node.pipeline.counters().unattributed[INGRESS]

    node.apply(plane)
    node.tap(INGRESS, stray)
    wait_until(lambda: strays() == 1, "it fits nobody, and is counted")
    node.pipeline.remove_tap_port(INGRESS)
    assert strays() == 1
    node.pipeline.ensure_tap_port(INGRESS)
    node.forget_writers()
    node.apply(plane)
    node.tap(INGRESS, stray)
    wait_until(lambda: strays() == 2, "the next one is counted too")


def test_a_lost_pair_is_made_anew(node: Node) -> None:
    plane = node.plane()
    node.apply(plane)
    before = node.counters(0)
    devices.remove_pair("test-node")
    assert node.pipeline.verify(plane) == ["still to do: make the normalising pair"]
    node.apply(plane)
    capture = node.capture()
    node.tap(INGRESS, datagram(PUBLIC, 1))
    assert len(capture.frames(1)) == 1
    assert node.settled(0).sent == before.sent + 1


def test_an_empty_plane_frees_all(node: Node) -> None:
    node.apply(node.plane(peer_sets={7: frozenset({"10.0.0.1"})}))
    assert node.pipeline.counters().points.keys() == {0, 1}
    node.apply(DataPlane())
    assert node.pipeline.counters().points == {}
    kernel = node.pipeline._kernel
    assert (kernel.occupied("programs"), kernel.occupied("destinations")) == ([], [])
    assert list(kernel.maps["peers"].walk()) == []


def test_a_slot_given_to_another_point_starts_from_zero(node: Node) -> None:
    plane = node.plane()
    node.apply(plane)
    for number in range(5):
        node.tap(INGRESS, datagram(PUBLIC, number))
    wait_until(lambda: node.counters(0).sent == 5, "five copies are sent")
    again = replace(plane, points=(replace(plane.points[0], incarnation="00000000000000aa"), plane.points[1]))
    node.apply(replace(again, sources=()))
    assert node.counters(0).next_sequence == 0
    assert open_accounts(node.counters(0)) == node.counters(0).seen == 0


def test_a_peer_set_of_the_same_size_with_other_addresses_is_noticed_and_put_right(node: Node) -> None:
    wanted = frozenset({"10.0.0.1", "10.0.0.2", "fd00::7"})
    plane = node.plane(peer_sets={7: wanted, 8: frozenset({"10.0.0.9"})})
    node.apply(plane)
    peers = node.pipeline._kernel.maps["peers"]
    right = set(peers.walk())
    peers.delete(encode.peer_key(7, "10.0.0.2"))
    peers.update(encode.peer_key(7, "10.0.0.3"), b"\1")
    for _ in range(2):
        assert node.pipeline.verify(plane) == ["still to do: make peer set 7 the 3 addresses it stands for"]
        node.reopen()
    node.apply(plane)
    assert set(peers_of(node)) == right
    node.apply(node.plane(peer_sets={7: frozenset({"10.0.0.1", "10.0.0.2", "fd00::8"})}))
    assert set(peers_of(node)) == {encode.peer_key(7, address) for address in ("10.0.0.1", "10.0.0.2", "fd00::8")}


def peers_of(node: Node) -> list[bytes]:
    return list(node.pipeline._kernel.maps["peers"].walk())
