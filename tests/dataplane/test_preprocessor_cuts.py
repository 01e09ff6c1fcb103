"""Segments cut out of a super-packet by `pick` are, byte by byte, those that the kernel makes of it for a tap that takes all."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.dataplane.cut_copies import CUTTINGS, told
from tests.dataplane.handing_over import node_with_copies
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import DEADLINE, INGRESS, KEY, PEER_MAC, POD_MAC, Inside, Node, point, wait_until, why_not
from vtap_agent.plan.dataplane import ANY_VLAN, Action, Direction, Sampling, SamplingType, Source, TapProgram

HOUR = 3_600_000_000_000
OUTER, TRAILER = 54, 20
SO_MEMINFO = 55
TIMESTAMPS = bytes.fromhex("0101080a0000000100000002")
ACK, PSH, FIN, CWR = 0x10, 0x08, 0x01, 0x80
DF = 0x4000


@pytest.fixture(scope="module", params=["here", "elsewhere"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with node_with_copies(request.param, tmp_path_factory.mktemp("sysfs")) as made:
        yield made


@dataclass(frozen=True)
class Shape:
    """A super-packet toward the pod."""

    version: int = 4
    mss: int = 1300
    length: int = 1300 * 20 + 17
    flags: int = ACK
    tcp_options: bytes = b""
    ip_options: bytes = b""
    ident: int = 7
    fragment: int = 0
    tags: tuple[tuple[int, int], ...] = ()
    seq: int = 1

    @property
    def segments(self) -> int:
        return -(-self.length // self.mss)

    def packet(self) -> bytes:
        """With its virtio header in front."""
        source, destination = (frames.PEER4, frames.POD4) if self.version == 4 else (frames.PEER6, frames.POD6)
        payload = os.urandom(self.length)
        tcp = frames.tcp_super(source, destination, 5201, 40000, payload, self.seq, self.flags, self.tcp_options)
        if self.version == 4:
            inner = frames.ipv4(source, destination, 6, tcp, fragment=self.fragment, options=self.ip_options, ident=self.ident)
        else:
            inner = frames.ipv6(source, destination, 6, tcp)
        frame = frames.ethernet(POD_MAC, PEER_MAC, frames.ethertype(source), inner, self.tags)
        return frames.virtio(self.version, self.mss, len(frame) - self.length, 20 + len(self.tcp_options)) + frame


SHAPES = {
    "IPv4": Shape(),
    "IPv6": Shape(version=6),
    "the last one whole": Shape(length=1300 * 20),
    "two segments": Shape(length=1301),
    "64 KiB": Shape(mss=1448, length=65535 - 60),
    "TCP options": Shape(tcp_options=TIMESTAMPS),
    "IPv6 with TCP options": Shape(version=6, tcp_options=TIMESTAMPS),
    "IPv4 options": Shape(ip_options=bytes([1] * 12)),
    "PSH and FIN": Shape(flags=ACK | PSH | FIN),
    "CWR": Shape(flags=ACK | CWR),
    "don't fragment": Shape(fragment=DF, ident=0xFFF8),
    "a tag": Shape(tags=((0x8100, 0x6000 | 30),)),
    "two tags": Shape(version=6, tags=((0x88A8, 30), (0x8100, 77))),
    "numbers that wrap": Shape(seq=0xFFFFFFFF - 5000, ident=0xFFFF),
    "a jumbo MSS": Shape(mss=8948, length=8948 * 6 + 3),
    "a small MSS": Shape(mss=536, length=536 * 100 + 1),
}
MOST_CUTS = 2
WHOLE = {"CWR"}
"""Those that `pick` hands over whole."""


def tcp_checksum(segment: bytes) -> bytes:
    """Of IPv4 without options."""
    return segment[50:52]


def inner(copy: bytes) -> bytes:
    return copy[OUTER:-TRAILER]


def tapped(node: Node, *programs: TapProgram) -> None:
    """As many taps of the pod, slot 0 and on; whatever the packet's tags."""
    slots = tuple(range(len(programs)))
    names = [f"shop/t{slot}" for slot in slots]
    plane = node.plane(destination=node.destination(mtu=9600))
    node.apply(
        replace(
            plane,
            points=tuple(point(slot, Direction.INGRESS, name) for slot, name in zip(slots, names, strict=True)),
            sources=tuple(Source(INGRESS, vlan, POD_MAC, False, slots) for vlan in (0, 30, ANY_VLAN)),
            programs=dict(zip(names, programs, strict=True)),
        )
    )
    node.pipeline.reset_slots(slots)


ALL = TapProgram(Action.INCLUDE, ())


def first(packets: int) -> TapProgram:
    return TapProgram(Action.INCLUDE, (), Sampling(SamplingType.PER_INTERVAL, packets=packets, interval_ns=HOUR))


def one_in(number: int) -> TapProgram:
    return TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=number))


@pytest.fixture(scope="module", autouse=True)
def large_underlay(node: Node) -> None:
    node.set_underlay_mtu(9600)


def segments_of(node: Node, shape: Shape, packet: bytes) -> list[bytes]:
    """What the kernel makes of it."""
    tapped(node, ALL)
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(packet)
    copies = capture.frames(shape.segments)
    assert len(copies) == shape.segments
    return [inner(copy) for copy in copies]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("wanted", [1, 2])
def test_the_first_segments_of_an_interval(node: Node, name: str, wanted: int) -> None:
    shape = SHAPES[name]
    packet = shape.packet()
    expected = segments_of(node, shape, packet)
    tapped(node, first(wanted))
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(packet)
    assert [inner(copy) for copy in capture.frames(wanted)] == expected[:wanted]
    counters = node.settled(0)
    assert (counters.seen, counters.sent) == (shape.segments, wanted)
    assert counters.unsampled == shape.segments - wanted
    assert counters.handed == counters.arrived
    assert counters.handed == (shape.segments if name in WHOLE or wanted == shape.segments else wanted)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("how", ["snapLength", "headersOnly"])
def test_a_segment_that_was_cut_out_is_truncated_as_any(node: Node, name: str, how: str) -> None:
    shape = SHAPES[name]
    packet, cutting = shape.packet(), CUTTINGS[how]
    headers = len(packet) - 10 - shape.length
    expected = [cutting.of(segment, headers) for segment in segments_of(node, shape, packet)]
    for wanted in (1, 2):
        tapped(node, replace(first(wanted), snap_length=cutting.snap_length, headers_only=cutting.headers_only))
        capture = node.capture()
        node.writer(INGRESS, offload=True).send(packet)
        assert [told(copy) for copy in capture.frames(wanted)] == expected[:wanted]


@pytest.mark.parametrize("name", SHAPES)
def test_one_in_n_of_the_segments(node: Node, name: str) -> None:
    shape = SHAPES[name]
    packet = shape.packet()
    expected = segments_of(node, shape, packet)
    tapped(node, one_in(shape.segments))
    capture = node.capture()
    writer = node.writer(INGRESS, offload=True)
    rounds = 60
    for _ in range(rounds):
        writer.send(packet)
    counters = node.settled(0)
    assert counters.seen == rounds * shape.segments
    copies = [inner(copy) for copy in capture.frames(counters.sent)]
    assert len(copies) == counters.sent > 0
    assert set(copies) <= set(expected)
    assert counters.handed == counters.arrived
    if name not in WHOLE and shape.segments > MOST_CUTS:
        # A packet of three hits and more stays whole: one in twelve.
        assert counters.handed < counters.seen / 2


@pytest.mark.parametrize("order", [(ALL, one_in(10)), (one_in(10), ALL), (first(1), first(2), ALL), (first(2), first(1))])
def test_other_taps_of_the_pod_get_all_that_is_theirs(node: Node, order: tuple[TapProgram, ...]) -> None:
    shape = SHAPES["TCP options"]
    packet = shape.packet()
    expected = segments_of(node, shape, packet)
    for _ in range(20):
        tapped(node, *order)
        capture = node.capture()
        node.writer(INGRESS, offload=True).send(packet)
        counters = [node.settled(slot) for slot in range(len(order))]
        copies = capture.frames(sum(one.sent for one in counters))
        for slot, program in enumerate(order):
            mine = [inner(copy) for copy in copies if struct.unpack(">I", copy[46:50])[0] == KEY + slot]
            assert len(mine) == counters[slot].sent
            if program is ALL:
                assert mine == expected
            elif program.sampling.type is SamplingType.PER_INTERVAL:
                assert mine == expected[: program.sampling.packets]
            else:
                assert mine == [segment for segment in expected if segment in mine]


def test_every_segment_has_the_same_chance(node: Node) -> None:
    shape = Shape(mss=500, length=500 * 10)
    packet = shape.packet()
    expected = segments_of(node, shape, packet)
    tapped(node, one_in(10))
    capture = node.capture()
    writer = node.writer(INGRESS, offload=True)
    rounds = 3000
    for number in range(rounds):
        writer.send(packet)
        if number % 100 == 99:
            node.settled(0)
    copies = [inner(copy) for copy in capture.frames(node.settled(0).sent)]
    # Binomial: mean 300, standard deviation 16.4; six of them.
    for segment in expected:
        assert abs(copies.count(segment) - rounds / 10) < 6 * 16.4
    assert node.pipeline.counters().pair_dropped == 0


def test_a_checksum_that_comes_out_as_zero(node: Node) -> None:
    """The kernel's two ways of completing a checksum differ in nothing but this."""
    shape = SHAPES["IPv4"]
    packet = bytearray(shape.packet())
    at = 10 + 54 + shape.mss - 2
    packet[at : at + 2] = bytes(2)
    packet[at : at + 2] = tcp_checksum(segments_of(node, shape, bytes(packet))[0])
    expected = segments_of(node, shape, bytes(packet))
    assert tcp_checksum(expected[0]) == bytes(2)
    tapped(node, first(1))
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(bytes(packet))
    assert [inner(copy) for copy in capture.frames(1)] == expected[:1]


def test_without_the_pair_for_cut_segments_packets_stay_whole(node: Node) -> None:
    """As where the driver takes no XDP program."""
    shape = SHAPES["IPv4"]
    packet = shape.packet()
    expected = segments_of(node, shape, packet)
    tapped(node, first(1))
    control = node.pipeline._kernel.control()
    index, control.cut_ifindex = control.cut_ifindex, 0
    node.pipeline._kernel.set_control(control)
    try:
        capture = node.capture()
        node.writer(INGRESS, offload=True).send(packet)
        assert [inner(copy) for copy in capture.frames(1)] == expected[:1]
        assert node.settled(0).handed == shape.segments
    finally:
        control.cut_ifindex = index
        node.pipeline._kernel.set_control(control)


def test_a_receiver_is_not_charged_for_the_super_packet(node: Node) -> None:
    shape = SHAPES["64 KiB"]
    tapped(node, first(1))
    with Inside(node.sink), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("198.18.0.2", 4754))
        node.writer(INGRESS, offload=True).send(shape.packet())
        assert select.select([receiver], [], [], DEADLINE)[0]
        (charged,) = struct.unpack_from("=I", receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    assert shape.mss < charged < 12 << 10


def test_a_super_packet_whose_checksum_is_complete_goes_the_old_way(node: Node) -> None:
    """No offload is asked to complete it, as its field doesn't hold the pseudo header's sum: nothing may be taken for granted."""
    shape = SHAPES["IPv4"]
    packet = bytearray(shape.packet())
    packet[10 + 14 + 20 + 16] ^= 0x55
    expected = segments_of(node, shape, bytes(packet))
    tapped(node, first(1))
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(bytes(packet))
    assert [inner(copy) for copy in capture.frames(1)] == expected[:1]
    wait_until(lambda: node.counters(0).arrived == shape.segments, "all of it crossed the pair")
