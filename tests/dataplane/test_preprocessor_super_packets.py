"""What the kernel hands over unsegmented, written as Open vSwitch with userspace TSO does: with virtio headers."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.dataplane.cut_copies import CUTTINGS, told
from tests.dataplane.handing_over import node_with_copies
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import EGRESS, INGRESS, KEY, PEER_MAC, POD_MAC, Node, open_accounts, point, wait_until, why_not
from vtap_agent.plan.dataplane import Action, Direction, Sampling, SamplingType, Source, TapProgram

MSS = 1300


@pytest.fixture(scope="module", params=["here", "elsewhere"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with node_with_copies(request.param, tmp_path_factory.mktemp("sysfs")) as made:
        yield made


def super_packet(payload: bytes, version: int = 4, seq: int = 1, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """A frame toward the pod with its virtio header in front."""
    source, destination = (frames.PEER4, frames.POD4) if version == 4 else (frames.PEER6, frames.POD6)
    segment = frames.tcp_super(source, destination, 5201, 40000, payload, seq)
    frame = frames.ethernet(POD_MAC, PEER_MAC, frames.ethertype(source), frames.ip(source, destination, 6, segment), tags)
    return frames.virtio(version, MSS, len(frame) - len(payload)) + frame


def tcp_of(inner: bytes, version: int) -> tuple[int, bytes, bool]:
    """(sequence number, payload, checksum verifies) of a copied frame without tags."""
    start = 14 + (20 if version == 4 else 40)
    segment = inner[start:]
    source, destination = (frames.PEER4, frames.POD4) if version == 4 else (frames.PEER6, frames.POD6)
    verifies = frames.checksum(frames.pseudo(source, destination, 6, len(segment)) + segment) == 0
    return struct.unpack(">I", segment[4:8])[0], segment[20:], verifies


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("length", [MSS * 2, MSS * 44 + 17, 65535 - 80])
def test_a_super_packet_arrives_as_its_segments(node: Node, version: int, length: int) -> None:
    node.apply(node.plane())
    before = node.settled(0)
    capture = node.capture()
    payload = os.urandom(length)
    packet = super_packet(payload, version)
    node.writer(INGRESS, offload=True).send(packet)
    segments = -(-length // MSS)
    copies = capture.frames(segments)
    assert len(copies) == segments
    assert max(len(copy) for copy in copies) <= 1514
    parts = [tcp_of(copy[54:-20], version) for copy in copies]
    assert all(verifies for _, _, verifies in parts)
    assert b"".join(part for _, part, _ in sorted(parts)) == payload

    after = node.settled(0)
    headers = len(packet) - 10 - length
    assert after.seen - before.seen == segments
    assert after.seen_bytes - before.seen_bytes == length + segments * headers
    assert after.handed - before.handed == after.arrived - before.arrived == after.sent - before.sent == segments


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", CUTTINGS)
def test_each_segment_of_a_super_packet_is_cut_on_its_own(node: Node, version: int, name: str) -> None:
    packet = super_packet(os.urandom(MSS * 20 + 17), version)
    headers, cutting = 14 + (20 if version == 4 else 40) + 20, CUTTINGS[name]
    node.apply(node.plane())
    capture, writer = node.capture(), node.writer(INGRESS, offload=True)
    writer.send(packet)
    whole = [copy[54:-20] for copy in capture.frames(21)]
    assert all(tcp_of(frame, version)[2] for frame in whole) and len(whole) == 21
    node.apply(node.plane(cutting.program, node.destination(**cutting.destination)))
    before = node.settled(0)
    writer.send(packet)
    assert [told(copy) for copy in capture.frames(21)] == [cutting.of(frame, headers) for frame in whole]
    after = node.settled(0)
    assert (after.seen - before.seen, after.sent - before.sent, after.dropped) == (21, 21, before.dropped)


@pytest.mark.parametrize("version", [4, 6])
def test_the_checksum_of_a_packet_that_is_none_to_segment_is_complete_in_its_copy(node: Node, version: int) -> None:
    """As a switch hands it on that leaves checksums to devices."""
    node.apply(node.plane())
    ends = (frames.PEER4, frames.POD4) if version == 4 else (frames.PEER6, frames.POD6)
    capture, writer = node.capture(), node.writer(INGRESS, offload=True)
    expected: list[bytes] = []
    for protocol, partial, complete, field in ((17, frames.udp_partial, frames.udp, 6), (6, frames.tcp_super, frames.tcp, 16)):
        for payload in (b"", b"odd", bytes(range(256)) * 5):
            packets = (frames.ip(*ends, protocol, way(*ends, 9, 80, payload)) for way in (partial, complete))
            left, done = (frames.ethernet(POD_MAC, PEER_MAC, frames.ethertype(ends[0]), packet) for packet in packets)
            writer.send(frames.virtio_checksum(14 + (20 if version == 4 else 40), field) + left)
            expected.append(done)
    assert [copy[54:-20] for copy in capture.frames(len(expected))] == expected


def test_segments_keep_the_order_and_the_time_of_their_packet(node: Node) -> None:
    """Of 900: the backlog of the receiving CPU holds 1,000 (net.core.netdev_max_backlog), and may have to wait for it."""
    node.apply(node.plane())
    capture = node.capture()
    writer = node.writer(INGRESS, offload=True)
    for number in range(30):
        writer.send(super_packet(bytes(MSS * 30), seq=1 + number * MSS * 30))
    copies = capture.frames(900)
    assert len(copies) == 900
    sequences = [struct.unpack(">I", copy[50:54])[0] for copy in copies]
    assert sequences == sorted(sequences)
    assert [tcp_of(copy[54:-20], 4)[0] for copy in copies] == [1 + i * MSS for i in range(900)]
    times = [struct.unpack(">Q", copy[-20:-12])[0] for copy in copies]
    assert times == sorted(times)
    assert len(set(times)) == 30


def test_a_tag_that_the_kernel_took_out_of_the_frame_is_back_in_every_copy(node: Node) -> None:
    plane = node.plane()
    node.apply(replace(plane, sources=(Source(INGRESS, 30, POD_MAC, False, (0,)),)))
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(super_packet(bytes(MSS * 3), tags=((0x8100, 0x6000 | 30),)))
    copies = capture.frames(3)
    assert [copy[54 + 12 : 54 + 18] for copy in copies] == [bytes.fromhex("8100601e0800")] * 3
    lengths = [struct.unpack(">I", copy[-12:-8])[0] for copy in copies]
    assert lengths == [14 + 4 + 40 + MSS] * 3


def test_a_tag_that_only_the_bridge_sees_is_gone(node: Node) -> None:
    plane = node.plane()
    node.apply(replace(plane, sources=(Source(INGRESS, 30, POD_MAC, True, (0,)),)))
    before = node.settled(0)
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(super_packet(bytes(MSS * 3), tags=((0x8100, 30), (0x8100, 77))))
    copies = capture.frames(3)
    assert [copy[54 + 12 : 54 + 18] for copy in copies] == [bytes.fromhex("8100004d0800")] * 3
    after = node.settled(0)
    assert after.seen_bytes - before.seen_bytes == 3 * (14 + 4 + 40 + MSS)


def test_several_taps_of_one_pod_each_get_every_segment(node: Node) -> None:
    plane = node.plane()
    points = tuple(point(slot, Direction.INGRESS) for slot in range(10, 15))
    node.apply(replace(plane, points=points, sources=(Source(INGRESS, 0, POD_MAC, False, tuple(range(10, 15))),)))
    capture = node.capture()
    node.writer(INGRESS, offload=True).send(super_packet(bytes(MSS * 20)))
    copies = capture.frames(100)
    keys = [struct.unpack(">I", copy[46:50])[0] for copy in copies]
    assert {key: keys.count(key) for key in keys} == {KEY + slot: 20 for slot in range(10, 15)}


@pytest.mark.parametrize(
    "sampling",
    [Sampling(SamplingType.ONE_IN, one_in=7), Sampling(SamplingType.PER_INTERVAL, packets=50, interval_ns=3_600_000_000_000)],
    ids=["OneIn", "PerInterval"],
)
def test_samplers_count_segments_not_super_packets(node: Node, sampling: Sampling) -> None:
    node.apply(node.plane(TapProgram(Action.INCLUDE, (), sampling)))
    node.pipeline.reset_slots([0])
    writer = node.writer(INGRESS, offload=True)
    for _ in range(200):
        writer.send(super_packet(bytes(MSS * 40)))
        wait_until(lambda: open_accounts(node.counters(0)) == 0, "the packet's segments met their fate")
    counters = node.settled(0)
    assert counters.seen == 8000
    if sampling.type is SamplingType.PER_INTERVAL:
        assert counters.sent == 50
    else:
        # 8000 draws at 1/7: mean 1143, standard deviation 31.3; six of them.
        assert abs(counters.sent - 8000 / 7) < 6 * 31.3


def test_plain_packets_and_super_packets_mix(node: Node) -> None:
    node.apply(node.plane())
    node.pipeline.reset_slots([0, 1])
    capture = node.capture()
    writer = node.writer(INGRESS, offload=True)
    plain = frames.ethernet(
        PEER_MAC, POD_MAC, 0x0800, frames.ipv4(frames.POD4, frames.PEER4, 6, frames.tcp(frames.POD4, frames.PEER4, 1, 2, b""))
    )
    for _ in range(50):
        writer.send(super_packet(bytes(MSS * 10)))
        node.tap(EGRESS, plain)
    capture.frames(550)
    assert (node.settled(0).sent, node.settled(1).sent) == (500, 50)
    assert node.pipeline.counters().pair_dropped == 0
    assert node.pipeline.stale() == 0
