"""Three opinions on one packet: the eBPF program's (by BPF_PROG_TEST_RUN), the Python reference's, and libpcap's."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.pipeline import frames, pcap
from tests.unit.pipeline.node import EGRESS, INGRESS, PEER_MAC, POD_MAC, Node
from vtap_agent.drivers import libbpf
from vtap_agent.pipeline import encode
from vtap_agent.pipeline.kernel import ZERO
from vtap_agent.plan import reference
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    Action,
    Direction,
    Feed,
    Match,
    PortRange,
    Sampling,
    SamplingType,
    Source,
    TapProgram,
)

REDIRECT, SHOT = 7, 2
IFINDEX_OFFSET, CONTEXT_SIZE = 40, 192

V4 = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.168.7.9", "255.255.255.255"]
V6 = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "2001:db8::9", "::ffff:10.0.0.1"]
PEER_SETS = {1: frozenset({"10.0.0.1", "fd00::1"}), 2: frozenset({"192.168.7.9"}), 3: frozenset()}
PORTS = [0, 1, 53, 80, 443, 5432, 65535]
PROTOCOLS = [1, 6, 17, 47, 58, 132]
VLANS = [0, 1, 30, 4095]

ports = st.sampled_from(PORTS)
port_ranges = st.tuples(ports, ports).map(lambda pair: PortRange(min(pair), max(pair)))


@st.composite
def transports(draw: st.DrawFn, source: str, destination: str) -> tuple[int, bytes]:
    protocol = draw(st.sampled_from(PROTOCOLS))
    sport, dport, payload = draw(ports), draw(ports), draw(st.binary(max_size=20))
    if protocol == 6:
        return 6, frames.tcp(source, destination, sport, dport, payload, flags=draw(st.integers(0, 255)))
    if protocol == 17:
        return 17, frames.udp(source, destination, sport, dport, payload)
    if protocol == 132:
        return 132, struct.pack(">HHII", sport, dport, 0, 0) + payload
    return protocol, struct.pack(">BBH", 8, 0, 0) + payload.ljust(8, b"\0")


@st.composite
def extension(draw: st.DrawFn) -> tuple[int, bytes]:
    kind = draw(st.sampled_from([0, 43, 44, 51, 60]))
    if kind == 44:
        return kind, struct.pack(">HI", draw(st.sampled_from([0, 1, 8 << 3, 100 << 3 | 1])), 5)
    size = draw(st.integers(0, 2))
    if kind == 51:
        return kind, bytes([size * 2 + 2]) + bytes(2 + size * 8 + 12)
    return kind, bytes([size]) + bytes(6 + size * 8)


@st.composite
def ip_packets(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        source, destination = draw(st.sampled_from(V4)), draw(st.sampled_from(V4))
        protocol, payload = draw(transports(source, destination))
        options = bytes([1]) * (4 * draw(st.integers(0, 10)))
        fragment = draw(st.sampled_from([0, 0x4000, 0x2000, 0x2001, 100]))
        return frames.ipv4(source, destination, protocol, payload, fragment=fragment, options=options)
    source, destination = draw(st.sampled_from(V6)), draw(st.sampled_from(V6))
    protocol, payload = draw(transports(source, destination))
    for kind, rest in draw(st.lists(extension(), max_size=3)):
        protocol, payload = kind, bytes([protocol]) + rest + payload
    return frames.ipv6(source, destination, protocol, payload)


@st.composite
def frames_of_any_kind(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        payload, ethertype = draw(st.binary(min_size=28, max_size=60)), draw(st.sampled_from([0x0806, 0x88CC, 0x1234]))
    else:
        payload = draw(ip_packets())
        ethertype = 0x0800 if payload[0] >> 4 == 4 else 0x86DD
    if kind == 1:
        # BPF_PROG_TEST_RUN refuses what is shorter than the network header.
        payload = payload[: draw(st.integers(20 if ethertype == 0x0800 else 40, len(payload)))]
    tags = tuple((0x8100, vid) for vid in draw(st.lists(st.sampled_from(VLANS), max_size=2)))
    # Padded as Ethernet does it, but for frames cut on purpose.
    frame = frames.ethernet(POD_MAC, PEER_MAC, ethertype, payload, tags)
    return frame if kind == 1 else frame.ljust(60, b"\0")


@st.composite
def rules(draw: st.DrawFn) -> Match:
    peer = draw(
        st.none()
        | st.tuples(st.sampled_from(V4).map(socket.inet_aton), st.integers(0, 32))
        | st.tuples(st.sampled_from(V6).map(lambda a: socket.inet_pton(socket.AF_INET6, a)), st.integers(0, 128))
    )
    versions = [None, 4, 6] if peer is None else [None, 4 if len(peer[0]) == 4 else 6]
    version = draw(st.sampled_from(versions))
    return Match(
        action=draw(st.sampled_from(Action)),
        ip_version=version,
        peer=peer,
        peer_set=draw(st.none() | st.sampled_from([1, 2, 3])),
        protocol=draw(st.none() | st.sampled_from(PROTOCOLS)),
        pod_ports=draw(st.none() | port_ranges),
        peer_ports=draw(st.none() | port_ranges),
        vlan=draw(st.none() | st.sampled_from(VLANS)),
        tcp_flags=draw(st.none() | st.tuples(st.integers(0, 255), st.sampled_from([0x02, 0x12, 0xFF, 0]))),
    )


programs = st.builds(TapProgram, st.sampled_from(Action), st.lists(rules(), max_size=5).map(tuple))


def context(node: Node, key: Feed) -> bytes:
    index = socket.if_nametoindex(node.ports[key].ours)
    return bytes(IFINDEX_OFFSET) + struct.pack("=I", index) + bytes(CONTEXT_SIZE - IFINDEX_OFFSET - 4)


def turned(frame: bytes, key: Feed) -> bytes:
    """The MAC addresses as at the tap port of `key`: the pod's is the destination toward it, the source from it."""
    return (POD_MAC + PEER_MAC if key is INGRESS else PEER_MAC + POD_MAC) + frame[12:]


def picked(node: Node, frame: bytes, key: Feed, program: TapProgram) -> bool:
    """Whether `pick` hands the frame over, by what it returns."""
    node.pipeline._kernel.swap("programs", 0, {ZERO: encode.program("shop/web", program)})
    fd = node.pipeline._kernel.programs[f"pick_{key.direction.lower()}"]
    verdict = libbpf.test_run(fd, frame, context(node, key)).verdict
    assert verdict in (REDIRECT, SHOT)
    return verdict == REDIRECT


@pytest.fixture(scope="module")
def tapped(node: Node) -> Node:
    plane = node.plane(peer_sets=PEER_SETS)
    everywhere = tuple(Source(one.feed, vlan, one.mac, False, one.slots) for one in plane.sources for vlan in (0, ANY_VLAN))
    for step in node.pipeline.plan(replace(plane, sources=everywhere), node.ports):
        node.pipeline.apply(step)
    return node


def pcap_can_judge(frame: bytes, program: TapProgram) -> bool:
    """libpcap finds ports and flags behind IPv6 only without extension headers, and takes no cut packets for granted."""
    bare = pcap.without_tags(frame)
    extended = bare[12:14] == b"\x86\xdd" and len(bare) > 20 and bare[20] in (0, 43, 44, 51, 60)
    asks_deep = any(match.pod_ports or match.peer_ports or match.tcp_flags for match in program.matches)
    return len(frame) >= 60 and not (extended and asks_deep)


@given(frame=frames_of_any_kind(), program=programs, key=st.sampled_from([INGRESS, EGRESS]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_program_the_reference_and_libpcap_agree(tapped: Node, frame: bytes, program: TapProgram, key: Feed) -> None:
    frame = turned(frame, key)
    packet = reference.parse(frame, key.direction)
    assert packet is not None
    expected = reference.decide(program, packet, PEER_SETS)
    assert picked(tapped, frame, key, program) == (expected is Action.INCLUDE)
    if pcap.library() is None or not pcap_can_judge(frame, program):
        return
    for match in program.matches:
        assert pcap.matches(match, frame, key.direction, PEER_SETS) == reference.matches(match, packet, PEER_SETS), (
            pcap.expression(match, key.direction, PEER_SETS)
        )


def test_libpcap_is_there() -> None:
    assert pcap.library() is not None, "install libpcap0.8: without it the third opinion is missing"


@given(packet=ip_packets(), threshold=st.sampled_from([0, 1 << 30, 1 << 31, 3 << 30, 1 << 32]))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flow_is_kept_or_not_as_the_reference_says_in_both_directions(tapped: Node, packet: bytes, threshold: int) -> None:
    frame = frames.ethernet(POD_MAC, PEER_MAC, 0x0800 if packet[0] >> 4 == 4 else 0x86DD, packet)
    program = TapProgram(Action.INCLUDE, (), Sampling(SamplingType.FLOWS, flow_threshold=threshold))
    for key in (INGRESS, EGRESS):
        known = reference.parse(turned(frame, key), key.direction)
        assert known is not None
        assert picked(tapped, turned(frame, key), key, program) == reference.keeps_flow(program, known)


@given(packet=ip_packets())
def test_the_flow_hash_knows_no_direction(packet: bytes) -> None:
    frame = frames.ethernet(POD_MAC, PEER_MAC, 0x0800 if packet[0] >> 4 == 4 else 0x86DD, packet)
    there, back = (reference.parse(frame, direction) for direction in Direction)
    assert there is not None
    assert back is not None
    assert reference.flow_hash(there) == reference.flow_hash(back)


def test_128_rules_decide_by_the_last(tapped: Node) -> None:
    other = Match(Action.EXCLUDE, protocol=6, peer_ports=PortRange(1, 2))
    datagram = frames.udp("10.0.0.1", "10.0.0.2", 9, 9, b"")
    udp = frames.ethernet(POD_MAC, PEER_MAC, 0x0800, frames.ipv4("10.0.0.1", "10.0.0.2", 17, datagram))
    rules_ = (*(other,) * 127, Match(Action.INCLUDE, protocol=17))
    assert picked(tapped, udp, INGRESS, TapProgram(Action.EXCLUDE, rules_))
    assert not picked(tapped, udp, INGRESS, TapProgram(Action.EXCLUDE, rules_[:-1]))


def test_more_than_four_tags_are_malformed_and_counted(tapped: Node) -> None:
    frame = frames.ethernet(POD_MAC, PEER_MAC, 0x0800, bytes(60), ((0x8100, 1),) * 5)
    before = tapped.counters(0).dropped.get("malformed", 0)
    assert not picked(tapped, frame, INGRESS, TapProgram(Action.INCLUDE, ()))
    assert tapped.counters(0).dropped["malformed"] == before + 1
