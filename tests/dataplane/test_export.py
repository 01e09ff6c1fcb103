"""Each encapsulation over each family: the far veth's frames decoded by tshark, and what was tapped is inside, byte for byte."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.pipeline import frames
from tests.unit.pipeline.node import (
    EGRESS,
    INCARNATION,
    INGRESS,
    KEY,
    PEER_MAC,
    POD_MAC,
    Inside,
    Node,
    point,
    wait_until,
    why_not,
)
from vtap_agent.plan.dataplane import Action, DataPlane, DestinationState, Direction, Encapsulation, Oversize, Source, TapProgram

TUNNELS = [kind for kind in Encapsulation if kind is not Encapsulation.REWRITE]
ENCAPSULATIONS = [(kind, version) for kind in TUNNELS for version in (4, 6)]
SO_NO_CHECK = 11
UDP_NO_CHECK6_RX = 102
"""RFC 6935 lets a tunnel's receiver accept a zero checksum over IPv6."""
NAMES = [f"{kind.name}-IPv{version}" for kind, version in ENCAPSULATIONS]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with Node() as made:
        yield made


def write_pcap(path: Path, packets: list[bytes]) -> None:
    records = [struct.pack("=IIII", 0, 0, len(packet), len(packet)) + packet for packet in packets]
    path.write_bytes(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"".join(records))


def decode(path: Path) -> list[dict[str, list[str]]]:
    """tshark's own view, one dictionary of fields a frame; reassembles fragments."""
    wanted = [
        "ip.ttl",
        "ip.dsfield",
        "ip.checksum.status",
        "ip.flags.df",
        "ipv6.hlim",
        "udp.srcport",
        "udp.dstport",
        "gre.key",
        "gre.sequence_number",
        "gre.proto",
        "vxlan.vni",
        "erspan.version",
        "erspan.spanid",
        "erspan.vlan",
        "erspan.direction",
        "eth.dst",
        "eth.type",
        "frame.protocols",
        "tcp.checksum.status",
        "udp.checksum.status",
        "udp.checksum",
        "ip.id",
        "frame.len",
    ]
    command = ["tshark", "-r", str(path), "-T", "json", "-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE"]
    command += ["-o", "udp.check_checksum:TRUE"] + [word for field in wanted for word in ("-e", field)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


def some_frame(length: int = 300, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    payload = bytes(i * 7 & 0xFF for i in range(length))
    return frames.ethernet(
        POD_MAC,
        PEER_MAC,
        0x0800,
        frames.ipv4(frames.PEER4, frames.POD4, 17, frames.udp(frames.PEER4, frames.POD4, 5000, 7, payload)),
        tags,
    )


def outer_length(kind: Encapsulation, version: int) -> int:
    tunnel = {Encapsulation.GRE_UDP: 20, Encapsulation.GRE: 12, Encapsulation.VXLAN: 16, Encapsulation.ERSPAN2: 16}[kind]
    return 14 + (20 if version == 4 else 40) + tunnel


@pytest.mark.parametrize(("kind", "version"), ENCAPSULATIONS, ids=NAMES)
def test_tshark_decodes_it_and_the_copy_is_byte_for_byte(node: Node, tmp_path: Path, kind: Encapsulation, version: int) -> None:
    node.apply(node.plane(destination=node.destination(kind, version)))
    before = node.counters(0).next_sequence
    capture = node.capture()
    frame = some_frame()
    for _ in range(3):
        node.tap(INGRESS, frame)
    packets = capture.frames(3)
    assert len(packets) == 3
    start = outer_length(kind, version)
    trailer = 20 if kind is Encapsulation.GRE_UDP else 0
    assert [packet[start : len(packet) - trailer] for packet in packets] == [frame] * 3

    file = tmp_path / "copies.pcap"
    write_pcap(file, packets)
    decoded = decode(file)
    for number, fields in enumerate(decoded):
        assert_outer(fields, version)
        assert_tunnel(fields, kind, before + number)


def assert_outer(fields: dict[str, list[str]], version: int) -> None:
    if version == 4:
        assert fields["ip.ttl"][0] == "64"
        assert fields["ip.dsfield"][0] == "0x00"
        assert fields["ip.checksum.status"][0] == "1"
        assert fields["ip.flags.df"][0] in ("1", "True")
    else:
        assert fields["ipv6.hlim"][0] == "64"


def assert_tunnel(fields: dict[str, list[str]], kind: Encapsulation, sequence: int) -> None:
    if kind in (Encapsulation.GRE_UDP, Encapsulation.VXLAN):
        assert fields["udp.dstport"][0] == ("4754" if kind is Encapsulation.GRE_UDP else "4789")
        assert 49152 <= int(fields["udp.srcport"][0]) <= 65535
        assert fields["udp.checksum"][0] == "0x0000"
    if kind in (Encapsulation.GRE_UDP, Encapsulation.GRE):
        assert int(fields["gre.key"][0], 16) == KEY
        assert fields["gre.proto"] == ["0x6558"]
    if kind is Encapsulation.VXLAN:
        assert fields["vxlan.vni"] == [str(KEY)]
    else:
        assert fields["gre.sequence_number"] == [str(sequence)]
    if kind is Encapsulation.ERSPAN2:
        assert fields["gre.proto"] == ["0x88be"]
        assert fields["erspan.version"] == ["1"]
        assert fields["erspan.spanid"] == [str(KEY & 0x3FF)]
    assert fields["eth.dst"][-1] == "02:00:00:00:00:01"
    # The inner UDP checksum is right.
    assert fields["udp.checksum.status"][-1] == "1"


def test_a_shared_id_replaces_the_streams_own(node: Node, tmp_path: Path) -> None:
    node.apply(node.plane(destination=node.destination(Encapsulation.VXLAN, fixed_id=77)))
    capture = node.capture()
    node.tap(INGRESS, some_frame())
    write_pcap(tmp_path / "c.pcap", capture.frames(1))
    assert [fields["vxlan.vni"] for fields in decode(tmp_path / "c.pcap")] == [["77"]]


def test_erspan_says_the_vlan_and_keeps_the_tag(node: Node, tmp_path: Path) -> None:
    plane = node.plane(destination=node.destination(Encapsulation.ERSPAN2))
    node.apply(replace(plane, sources=(Source(INGRESS, 30, POD_MAC, False, (0,)),)))
    capture = node.capture()
    frame = some_frame(tags=((0x8100, 0xA000 | 30),))
    node.tap(INGRESS, frame)
    packets = capture.frames(1)
    write_pcap(tmp_path / "c.pcap", packets)
    (fields,) = decode(tmp_path / "c.pcap")
    assert fields["erspan.vlan"] == ["30"]
    assert packets[0][outer_length(Encapsulation.ERSPAN2, 4) :] == frame


@pytest.mark.parametrize("length", [1400, 1472, 2500, 8900])
@pytest.mark.parametrize("version", [4, 6])
def test_fragments_are_put_together_by_the_receivers_stack(node: Node, version: int, length: int) -> None:
    node.apply(node.plane(destination=node.destination(version=version)))
    frame = some_frame(length)
    with Inside(node.sink):
        receiver = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        if version == 6:
            receiver.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
        receiver.bind(("198.18.0.2" if version == 4 else "fd00::2", 4754))
        receiver.settimeout(10)
    capture = node.capture()
    with receiver:
        for _ in range(5):
            node.tap(INGRESS, frame)
            datagram = receiver.recv(65536)
            assert datagram[12:-20] == frame
    packets = capture.frames(5)
    assert max(len(packet) for packet in packets) <= 1514
    assert len(packets) > 5 or length == 1400
    counters = node.settled(0)
    assert counters.dropped == {}


def test_the_trailer_says_when_how_long_and_what_was_cut(node: Node) -> None:
    node.apply(node.plane(TapProgram(Action.INCLUDE, (), snap_length=100)))
    capture = node.capture()
    frame = some_frame(1000)
    before = time.clock_gettime_ns(time.CLOCK_TAI)
    node.tap(INGRESS, frame)
    (packet,) = capture.frames(1)
    after = time.clock_gettime_ns(time.CLOCK_TAI)
    moment, length, flags, version, zero, magic = struct.unpack(">QIHBBI", packet[-20:])
    assert before <= moment <= after
    assert (length, flags, version, zero, magic) == (len(frame), 1, 1, 0, 0x76544150)
    assert packet[54:-20] == frame[:100]


def test_headers_only_ends_behind_the_transport_header(node: Node) -> None:
    node.apply(node.plane(TapProgram(Action.INCLUDE, (), headers_only=True)))
    capture = node.capture()
    node.tap(INGRESS, some_frame(1000))
    (packet,) = capture.frames(1)
    assert packet[54:-20] == some_frame(1000)[:42]


@pytest.mark.parametrize("version", [4, 6])
def test_truncate_cuts_to_the_mtu_and_says_so(node: Node, version: int) -> None:
    node.apply(node.plane(destination=node.destination(version=version, oversize=Oversize.TRUNCATE)))
    capture = node.capture()
    frame = some_frame(1472)
    node.tap(INGRESS, frame)
    (packet,) = capture.frames(1)
    assert len(packet) == 1514
    start = outer_length(Encapsulation.GRE_UDP, version)
    assert packet[start:-20] == frame[: 1514 - start - 20]
    _, length, flags, *_ = struct.unpack(">QIHBBI", packet[-20:])
    assert (length, flags) == (len(frame), 2)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (DestinationState.NO_ROUTE, "noRoute"),
        (DestinationState.NO_NEIGHBOUR, "noNeighbour"),
        (DestinationState.NOT_READY, "notReady"),
    ],
)
def test_an_unreachable_destination_counts_its_reason_and_recovers(node: Node, state: DestinationState, reason: str) -> None:
    node.apply(node.plane(destination=node.destination(state=state)))
    before = node.settled(0)
    node.tap(INGRESS, some_frame())
    wait_until(lambda: node.counters(0).seen > before.seen, "the packet is seen")
    after = node.settled(0)
    assert after.dropped.get(reason, 0) == before.dropped.get(reason, 0) + 1
    assert after.sent == before.sent
    node.apply(node.plane())
    capture = node.capture()
    node.tap(INGRESS, some_frame())
    assert len(capture.frames(1)) == 1


def test_an_uplink_that_vanished_is_counted_and_leaves_no_gap_in_the_sequence(node: Node) -> None:
    node.apply(node.plane(destination=node.destination(ifindex=0x7FFFFFF)))
    before = node.settled(0)
    node.tap(INGRESS, some_frame(1472))
    wait_until(lambda: node.counters(0).seen > before.seen, "the packet is seen")
    after = node.settled(0)
    assert after.dropped.get("redirect", 0) == before.dropped.get("redirect", 0) + 1
    assert after.next_sequence == before.next_sequence


def test_the_source_port_is_the_flows_own_in_both_directions(node: Node) -> None:
    node.apply(node.plane())
    capture = node.capture()
    ports: dict[int, set[int]] = {}
    for flow in range(20):
        there = frames.udp(frames.POD4, frames.PEER4, 1000 + flow, 53, b"question")
        back = frames.udp(frames.PEER4, frames.POD4, 53, 1000 + flow, b"answer")
        node.tap(EGRESS, frames.ethernet(PEER_MAC, POD_MAC, 0x0800, frames.ipv4(frames.POD4, frames.PEER4, 17, there)))
        node.tap(INGRESS, frames.ethernet(POD_MAC, PEER_MAC, 0x0800, frames.ipv4(frames.PEER4, frames.POD4, 17, back)))
        ports[flow] = {struct.unpack(">H", packet[34:36])[0] for packet in capture.frames(2)}
    assert all(len(used) == 1 for used in ports.values())
    assert len(set.union(*ports.values())) > 10


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", TUNNELS)
def test_our_own_copies_on_their_way_through_a_tapped_router_are_not_copied(
    node: Node, kind: Encapsulation, version: int
) -> None:
    """Whole copies and fragments alike, seen where they enter the router's pod and where they leave it."""
    node.apply(node.plane(destination=node.destination(kind, version)))
    before = node.settled(0), node.settled(1)
    capture = node.capture()
    node.tap(INGRESS, some_frame(300))
    node.tap(INGRESS, some_frame(1500))
    outer = [frame for frame in capture.frames(3) if frame[12:14] in (b"\x08\x00", b"\x86\xdd")]
    assert len(outer) == 3
    for frame in outer:
        node.tap(INGRESS, POD_MAC + PEER_MAC + frame[12:])
        node.tap(EGRESS, PEER_MAC + POD_MAC + frame[12:])
    after = node.settled(0), node.settled(1)
    loops = [now.dropped.get("loop", 0) - then.dropped.get("loop", 0) for now, then in zip(after, before, strict=True)]
    assert loops == [3, 3]
    assert (after[0].sent - before[0].sent, after[1].sent - before[1].sent) == (2, 0)
    node.apply(DataPlane())
    assert list(node.pipeline._kernel.maps["tunnels"].walk()) == []


def test_each_stream_has_its_own_key_and_sequence(node: Node) -> None:
    plane = node.plane()
    node.apply(plane)
    starts = [node.counters(slot).next_sequence for slot in (0, 1)]
    capture = node.capture()
    for _ in range(4):
        node.tap(INGRESS, some_frame())
        node.tap(EGRESS, PEER_MAC + POD_MAC + some_frame()[12:])
    seen: dict[int, list[int]] = {}
    for packet in capture.frames(8):
        key, sequence = struct.unpack(">II", packet[46:54])
        seen.setdefault(key, []).append(sequence)
    assert seen == {KEY + slot: list(range(starts[slot], starts[slot] + 4)) for slot in (0, 1)}
    assert point(0, Direction.INGRESS).incarnation == INCARNATION
