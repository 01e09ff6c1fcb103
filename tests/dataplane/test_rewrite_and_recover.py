"""Copies without a tunnel: rewritten by `send`, recovered at the monitor's edge, byte for byte, and never answered by anyone."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.dataplane.attached import programs_at
from tests.dataplane.hooked_node import force_clsact
from tests.dataplane.packets import ICMP, ICMPV6, TCP, Packet, is_housekeeping, packet_in
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import (
    EGRESS,
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    PEER_MAC,
    POD_MAC,
    SINK,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    UPLINK,
    Capture,
    Inside,
    Node,
    ip,
    mac_of,
    new_namespace,
    wait_until,
    why_not,
)
from vtap_agent.drivers import libbpf, qdiscs
from vtap_agent.pipeline import layout, recover_layout, rewrites
from vtap_agent.pipeline.recover import EdgeCounters, EdgePrograms
from vtap_agent.pipeline.recover_probe import EdgeProber
from vtap_agent.plan.dataplane import ANY_VLAN, DataPlane, Destination, Encapsulation
from vtap_agent.plan.recover import EdgeTarget, Monitor, alias_of, ids_of

HOUR = 3_600_000_000_000
"""Nanoseconds."""
MONITOR4, MONITOR6 = "10.10.0.99", "fd00:10::99"
OTHER_MAC = bytes.fromhex("020000000003")
MONITOR = "mon0"
MSS = 1300
SYN, ACK = 0x02, 0x10


class Site(Node):
    """The uplink and the host-side end of a monitor's veth are ports of one bridge, in the namespace that is else the sink."""

    def _build(self) -> None:
        super()._build()
        self.monitor = new_namespace()
        with Inside(self.sink):
            ip("addr", "flush", "dev", SINK)
            ip("link", "add", "name", "sw0", "type", "bridge")
            ip("link", "add", MONITOR, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{self.monitor}")
            for port in (SINK, MONITOR):
                ip("link", "set", port, "master", "sw0", "up")
            ip("link", "set", "sw0", "up")
            self.edge_ifindex = socket.if_nametoindex(MONITOR)
        with Inside(self.monitor):
            ip("link", "set", "lo", "up")
            ip("link", "set", "eth0", "up")
            ip("addr", "add", f"{MONITOR4}/16", "dev", "eth0")
            ip("-6", "addr", "add", f"{MONITOR6}/64", "dev", "eth0", "nodad")
            ip("route", "add", "default", "via", "10.10.0.1")
            self.monitor_mac = mac_of("eth0")
        self.edges: EdgePrograms | None = None

    def _leave(self) -> None:
        if getattr(self, "edges", None) is not None:
            self.remove_edge()
        super()._leave()

    def monitor_of(self, address: str) -> Monitor:
        return Monitor(self.edge_ifindex, MONITOR, address, alias_of(address), self.monitor_mac)

    def serve(self, *addresses: str) -> None:
        """The edge of the monitor, as the agent of its node makes it."""
        with Inside(self.sink):
            self.edges = self.edges or EdgePrograms(self.root)
            assert self.edges.apply(self.monitor_of(address) for address in addresses) == ()

    def remove_edge(self) -> None:
        if self.edges is not None:
            with Inside(self.sink):
                self.edges.destroy()
            self.edges = None

    def rewriting(self, version: int = 4, **changes: object) -> Destination:
        address = MONITOR4 if version == 4 else MONITOR6
        plain = self.destination(Encapsulation.REWRITE, version)
        made = replace(
            plain, remote=socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, address),
            gateway_mac=alias_of(address), source_mac=ids_of(self.uplink_mac), port=0, trailer=False,
        )  # fmt: skip
        return replace(made, **changes)  # type: ignore[arg-type]

    def free_ids(self) -> None:
        self._change_ids(lambda bucket: bytes(len(bucket)))

    def hold_ids(self) -> None:
        """Those that are taken stay so, however long the test takes: as if another CPU had just used them, and far later."""
        later = struct.pack("=Q", time.clock_gettime_ns(time.CLOCK_MONOTONIC) + HOUR)

        def held(bucket: bytes) -> bytes:
            entries = range(rewrites.LOCK, len(bucket), ctypes.sizeof(recover_layout.RewriteEntry))
            changed = bytearray(bucket)
            for at in entries:
                if any(bucket[at : at + 8]):
                    changed[at : at + 8] = later
            return bytes(changed)

        self._change_ids(held)

    def _change_ids(self, change: Callable[[bytes], bytes]) -> None:
        fd = libbpf.get_pinned(self.root / "maps" / f"rewrite_ids_v{layout.LAYOUT_VERSION}")
        assert fd is not None
        buckets = libbpf.Map(fd)
        for index, bucket in enumerate(buckets.values()):
            buckets.update(struct.pack("=I", index), change(bucket))
        buckets.close()

    def watch(self, where: int, device: str) -> Capture:
        with Inside(where):
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            handle.bind((device, ETH_P_ALL))
        return Capture(handle)


@pytest.fixture(scope="module", params=["bridge"])
def site() -> Iterator[Site]:
    """The parameter gives all tests here an id by which they are chosen as the contract's column of that name is: `-k bridge`."""
    if reason := why_not():
        pytest.skip(reason)
    with Site() as made:
        yield made


def payload(length: int, seed: int = 7) -> bytes:
    return bytes((i * 31 + seed) & 0xFF for i in range(length))


def packet(kind: str, version: int, number: int = 0) -> bytes:
    """An IP packet from the pod's peer's address to the pod's, of a kind and with a number."""
    ends = (frames.POD4, frames.PEER4) if version == 4 else (frames.POD6, frames.PEER6)
    content = struct.pack(">I", number) + payload(200 + number % 7, number)
    udp, tcp = frames.udp(*ends, 4000, 9, content), frames.tcp(*ends, 4000, 9, content, ACK, number)
    wrong = tcp[:-1] + bytes([tcp[-1] ^ 0xFF])
    if kind == "icmp":
        return icmp(ends, version, struct.pack(">HH", 1, number) + content)
    makers: dict[str, Callable[[], bytes]] = {
        "udp": lambda: frames.ip(*ends, 17, udp),
        "tcp": lambda: frames.ip(*ends, 6, tcp),
        "syn": lambda: frames.ip(*ends, 6, frames.tcp(*ends, 4000, 9, b"", SYN, number)),
        "short": lambda: frames.ip(*ends, 17, frames.udp(*ends, 4000, 9, bytes([number]))),
        "hardly anything": lambda: frames.ip(*ends, NO_NEXT_HEADER, bytes([number])),
        "wrong checksum": lambda: frames.ip(*ends, 6, wrong),
        "udp without checksum": lambda: frames.ip(*ends, 17, udp[:6] + b"\0\0" + udp[8:]),
        "first fragment": lambda: frames.ipv4(*ends, 17, udp[:64], fragment=0x2000),
        "later fragment": lambda: frames.ipv4(*ends, 17, content, fragment=0x0010),
        "options": lambda: frames.ipv4(*ends, 6, tcp, options=b"\x94\x04\0\0"),
        "behind options": lambda: frames.ipv6(*ends, 60, bytes([6, 0, 1, 4, 0, 0, 0, 0]) + tcp),
        "fragment header": lambda: frames.ipv6(*ends, 44, struct.pack(">BBHI", 17, 0, 1, number) + udp[:64]),
        "later part": lambda: frames.ipv6(*ends, 44, struct.pack(">BBHI", 17, 0, 64, number) + content),
    }
    return makers[kind]()


def icmp(ends: tuple[str, str], version: int, rest: bytes) -> bytes:
    """An echo request."""
    kind, protocol = (8, 1) if version == 4 else (128, 58)
    body = struct.pack(">BBH", kind, 0, 0) + rest
    covered = body if version == 4 else frames.pseudo(*ends, 58, len(body)) + body
    return frames.ip(*ends, protocol, body[:2] + struct.pack(">H", frames.checksum(covered)) + body[4:])


NO_NEXT_HEADER = 59
KINDS = ("udp", "tcp", "syn", "icmp", "short", "udp without checksum", "wrong checksum")
KINDS4 = (*KINDS, "first fragment", "later fragment", "options")
KINDS6 = (*KINDS, "hardly anything", "behind options", "fragment header", "later part")
ALL_KINDS = [*((kind, 4) for kind in KINDS4), *((kind, 6) for kind in KINDS6)]


def plane(site: Site, version: int = 4) -> DataPlane:
    return site.plane(destination=site.rewriting(version))


def egress(ip_packet: bytes, to: bytes = PEER_MAC, version: int = 4) -> bytes:
    return frames.ethernet(to, POD_MAC, 0x0800 if version == 4 else 0x86DD, ip_packet)


def originals(captured: list[bytes]) -> list[bytes]:
    """What is not the monitor's own chatter, nor a frame between agents and edges."""
    return [frame for frame in captured if frame[6:12] in (POD_MAC, PEER_MAC, OTHER_MAC)]


def arriving(capture: Capture, count: int) -> list[bytes]:
    """The originals that reach the monitor, once there are so many."""
    found: list[bytes] = []

    def enough() -> bool:
        found.extend(originals(capture.frames(1, 0.2)))
        return len(found) >= count

    wait_until(enough, f"{count} copies at the monitor")
    return found


def introduce(site: Site, capture: Capture, version: int) -> None:
    """Until a new edge knows the id: it is told once a second, and another test's edge may have been told just now."""
    frame = egress(packet("short", version), version=version)

    def comes() -> bool:
        site.tap(EGRESS, frame)
        return frame in capture.frames(1, 0.1)

    wait_until(comes, "a first copy comes")
    site.settled(1)
    while capture.frames(1, 0.2):
        pass


_requests = itertools.count(1)


def said_until_now(site: Site, listening: Capture, version: int) -> list[Packet]:
    """What the monitor's stack has said, housekeeping apart, until it answers an echo request that is sent to itself now."""
    ends = (frames.POD4, MONITOR4) if version == 4 else (frames.POD6, MONITOR6)
    mark = struct.pack(">HH", 0x7654, next(_requests))
    with Inside(site.sink), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as handle:
        handle.bind((MONITOR, 0))
        handle.send(frames.ethernet(site.monitor_mac, POD_MAC, frames.ethertype(ends[0]), icmp(ends, version, mark)))
    said: list[Packet] = []

    def answers() -> bool:
        said.extend(said_by_monitor(site, listening))
        return any(answer_of(one) == "echo reply" and one.content[4:8] == mark for one in said)

    wait_until(answers, "the monitor answers an echo request of its own")
    return [one for one in said if one.content[4:8] != mark]


def said_by_monitor(site: Site, listening: Capture) -> list[Packet]:
    found = [packet_in(frame) for frame in listening.frames(1, 0.2) if frame[6:12] == site.monitor_mac]
    return [packet for packet in found if packet is not None and not is_housekeeping(packet)]


def answer_of(packet: Packet) -> str:
    """What a stack means by it."""
    if packet.protocol == TCP and packet.content[13] & 4:
        return "reset"
    names = {(ICMP, 0): "echo reply", (ICMP, 3): "unreachable", (ICMPV6, 129): "echo reply", (ICMPV6, 1): "unreachable"}
    return names.get((packet.protocol, packet.content[0]), f"protocol {packet.protocol}, type {packet.content[0]}")


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """What this thread sends is handled in its order, also where the kernel queues by CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def counted(site: Site, slot: int, act: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """(sent, dropped by reason) that come of it."""
    before = site.settled(slot)
    act()
    after = site.settled(slot)
    dropped = {reason: count - before.dropped.get(reason, 0) for reason, count in after.dropped.items()}
    return after.sent - before.sent, {reason: count for reason, count in dropped.items() if count}


@pytest.mark.parametrize(("kind", "version"), ALL_KINDS, ids=[f"{kind} v{version}" for kind, version in ALL_KINDS])
def test_the_monitor_sees_every_packet_as_it_was(site: Site, kind: str, version: int) -> None:
    site.serve(MONITOR4 if version == 4 else MONITOR6)
    site.apply(plane(site, version))
    sent = [egress(packet(kind, version, number), version=version) for number in range(20)]
    capture = site.watch(site.monitor, "eth0")

    def send() -> None:
        for frame in sent:
            site.tap(EGRESS, frame)
        assert arriving(capture, 20) == sent

    with on_one_cpu():
        assert counted(site, 1, send) == (20, {})


@pytest.mark.parametrize("version", [4, 6])
def test_a_super_packet_comes_as_its_segments_with_their_checksums(site: Site, version: int) -> None:
    """As a pod's kernel makes it, which leaves both to an offload."""
    ends = (frames.POD4, frames.PEER4) if version == 4 else (frames.POD6, frames.PEER6)
    data = payload(MSS * 40 + 17)
    parts = [(number, data[at : at + MSS]) for number, at in enumerate(range(0, len(data), MSS))]
    expected = [segment(ends, frames.tcp(*ends, 4000, 9, part, ACK, 1 + number * MSS), number) for number, part in parts]
    whole = segment(ends, frames.tcp_super(*ends, 4000, 9, data, 1, ACK), 0)
    site.serve(MONITOR4 if version == 4 else MONITOR6)
    site.apply(plane(site, version))
    capture, on_its_way = site.watch(site.monitor, "eth0"), site.watch(site.sink, SINK)

    def send() -> None:
        site.writer(EGRESS, offload=True).send(frames.virtio(version, MSS, len(whole) - len(data)) + whole)
        assert arriving(capture, len(expected)) == expected

    assert counted(site, 1, send) == (len(expected), {})
    monitor = MONITOR4 if version == 4 else MONITOR6
    for copy in passing(on_its_way, len(expected), monitor):
        expect_right(copy, monitor)


def segment(ends: tuple[str, str], content: bytes, number: int) -> bytes:
    """A frame of TCP, the IPv4 header's identification counted on."""
    packet = frames.ipv6(*ends, 6, content) if ":" in ends[0] else frames.ipv4(*ends, 6, content, ident=7 + number)
    return frames.ethernet(PEER_MAC, POD_MAC, frames.ethertype(ends[0]), packet)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("length", [1, 2, 1001, None], ids=["1", "2", "1001", "all ones"])
def test_a_checksum_that_was_left_to_an_offload_is_complete(site: Site, version: int, length: int | None) -> None:
    """Also one that comes to zero, which UDP writes as all ones: zero would say that there is none."""
    ends = (frames.POD4, frames.PEER4) if version == 4 else (frames.POD6, frames.PEER6)
    comes_to_zero = frames.udp(*ends, 4000, 9, bytes(2))[6:8]
    complete = frames.udp(*ends, 4000, 9, comes_to_zero if length is None else payload(length))
    assert length is not None or complete[6:8] == b"\xff\xff"
    partial = ~frames.checksum(frames.pseudo(*ends, 17, len(complete))) & 0xFFFF
    expected, left = (egress(frames.ip(*ends, 17, one), version=version) for one in (complete, with_sum(complete, partial)))
    site.serve(MONITOR4 if version == 4 else MONITOR6)
    site.apply(plane(site, version))
    capture = site.watch(site.monitor, "eth0")
    needs_checksum = struct.pack("=BBHHHH", 1, 0, 0, 0, len(left) - len(complete), 6)  # struct virtio_net_hdr
    site.writer(EGRESS, offload=True).send(needs_checksum + left)
    assert left != expected and arriving(capture, 1) == [expected]


def with_sum(udp: bytes, checksum: int) -> bytes:
    return udp[:6] + struct.pack(">H", checksum) + udp[8:]


ON_ITS_WAY = [(kind, version) for kind in ("tcp", "udp", "short", "udp without checksum") for version in (4, 6)] + [("icmp", 6)]


@pytest.mark.parametrize(("kind", "version"), ON_ITS_WAY, ids=[f"{kind} v{version}" for kind, version in ON_ITS_WAY])
def test_on_its_way_a_copy_is_a_right_packet_to_the_monitor_from_an_id(site: Site, kind: str, version: int) -> None:
    monitor = MONITOR4 if version == 4 else MONITOR6
    site.serve(monitor)
    site.apply(plane(site, version))
    capture = site.watch(site.sink, SINK)
    original = egress(packet(kind, version), version=version)
    site.tap(EGRESS, original)
    (copy,) = passing(capture, 1, monitor)
    assert copy[6:10] == ids_of(site.uplink_mac)[:4]
    changed = {at for at, (before, after) in enumerate(zip(original, copy, strict=True)) if before != after}
    assert changed <= {*range(12), *addressed(version), *range(*checksum_at(kind, version))}
    expect_right(copy, monitor, has_checksum=kind != "udp without checksum")


def addressed(version: int) -> tuple[int, ...]:
    """Offsets of the destination address and of the IPv4 header's checksum."""
    return (24, 25, *range(30, 34)) if version == 4 else tuple(range(38, 54))


def checksum_at(kind: str, version: int) -> tuple[int, int]:
    """Offsets where the transport header's checksum begins and ends; none where the sender left it out."""
    header = 34 if version == 4 else 54
    within = {"tcp": 16, "icmp": 2}.get(kind, 6)
    return header + within, header + within + (0 if kind == "udp without checksum" else 2)


def passing(capture: Capture, count: int, monitor: str) -> list[bytes]:
    """Copies on their way, once there are so many."""
    found: list[bytes] = []

    def enough() -> bool:
        kinds = (b"\x08\0", b"\x86\xdd")
        found.extend(frame for frame in capture.frames(1, 0.2) if frame[:6] == alias_of(monitor) and frame[12:14] in kinds)
        return len(found) >= count

    wait_until(enough, f"{count} copies pass")
    return found


def expect_right(copy: bytes, monitor: str, *, has_checksum: bool = True) -> None:
    """Any stack and any offload on the way takes it for what it says."""
    read = packet_in(copy)
    assert read is not None and read.destination == monitor and read.is_exact
    assert read.checksum_is_right if has_checksum else not any(read.content[6:8])


def test_checksums_of_all_ones_come_back_as_such(site: Site) -> None:
    """One's complement has two zeros, and RFC 1624's update tells one of them."""
    site.serve(MONITOR4)
    site.apply(plane(site))
    zero = next(made for ident in range(1 << 16) if (made := _tcp_with_ident(ident))[10:12] == b"\0\0")
    ones = bytearray(zero)
    ones[10:12] = ones[36:38] = b"\xff\xff"
    capture = site.watch(site.monitor, "eth0")
    site.tap(EGRESS, egress(bytes(ones)))
    assert arriving(capture, 1) == [egress(bytes(ones))]


def test_a_transport_checksum_of_all_ones_comes_back_over_ipv6(site: Site) -> None:
    site.serve(MONITOR6)
    site.apply(plane(site, 6))
    ones = bytearray(packet("tcp", 6))
    ones[56:58] = b"\xff\xff"
    capture = site.watch(site.monitor, "eth0")
    site.tap(EGRESS, egress(bytes(ones), version=6))
    assert arriving(capture, 1) == [egress(bytes(ones), version=6)]


def _tcp_with_ident(ident: int) -> bytes:
    return frames.ipv4(frames.POD4, frames.PEER4, 6, frames.tcp(frames.POD4, frames.PEER4, 4000, 9, b"x"), ident=ident)


def test_each_of_many_destinations_gets_its_own_back(site: Site) -> None:
    """A wildcard: whatever the tapped pod talks to, told apart by ids."""
    site.serve(MONITOR4)
    site.apply(plane(site))
    sent = [
        egress(frames.ipv4(frames.POD4, f"192.0.2.{number}", 17, frames.udp(frames.POD4, f"192.0.2.{number}", 1, 2, b"!")), to)
        for number in range(1, 101)
        for to in (PEER_MAC, OTHER_MAC)
    ]
    capture = site.watch(site.monitor, "eth0")
    for frame in sent:
        site.tap(EGRESS, frame)
    assert sorted(arriving(capture, 200)) == sorted(sent)


@pytest.fixture
def all_ids_free(site: Site) -> Iterator[None]:
    """None is taken from other tests, nor from this one for others: an id stays taken for a while."""
    site.free_ids()
    yield
    site.free_ids()


@pytest.mark.usefixtures("all_ids_free")
def test_three_in_five_of_the_ids_are_found_and_what_finds_none_is_counted_and_never_mixed_up(site: Site) -> None:
    site.serve(MONITOR4)
    site.apply(plane(site))
    capture = site.watch(site.monitor, "eth0")
    sent = [
        egress(frames.ipv4(frames.POD4, to, 17, frames.udp(frames.POD4, to, 1, 2, to.encode())))
        for to in (f"198.51.{number >> 8}.{number & 255}" for number in range(5000))
    ]

    def send(chosen: list[bytes]) -> None:
        for at in range(0, len(chosen), 100):
            for frame in chosen[at : at + 100]:
                site.tap(EGRESS, frame)
            site.settled(1)
            site.hold_ids()

    left, dropped = counted(site, 1, lambda: send(sent[:2500]))
    assert (left, dropped) == (2500, {})  # of 4,096
    left, dropped = counted(site, 1, lambda: send(sent))
    assert dropped.keys() == {"noId"} and left + dropped["noId"] == 5000
    assert left > 4000  # two buckets of eight for each
    found = arriving(capture, 2500 + left)
    assert len(found) == 2500 + left and set(found) <= set(sent)


UNSENT = {
    "ARP": frames.ethernet(PEER_MAC, POD_MAC, 0x0806, bytes.fromhex("0001080006040001") + POD_MAC + bytes(14)),
    "broadcast": egress(packet("udp", 4), b"\xff" * 6),
    "multicast": egress(packet("udp", 4), bytes.fromhex("01005e000001")),
    "tagged": frames.ethernet(PEER_MAC, POD_MAC, 0x0800, packet("udp", 4), ((0x8100, 7),)),
    "IPv6 to an IPv4 monitor": egress(packet("udp", 6), version=6),
    "to the monitor itself": egress(frames.ipv4(frames.POD4, MONITOR4, 17, frames.udp(frames.POD4, MONITOR4, 1, 2, b"!"))),
    "no IP packet but called one": egress(bytes(40)),
}


@pytest.mark.parametrize("frame", UNSENT.values(), ids=UNSENT)
def test_what_has_no_form_without_a_tunnel_is_counted(site: Site, frame: bytes) -> None:
    site.serve(MONITOR4)
    made = plane(site)
    site.apply(replace(made, sources=tuple(replace(source, vlan=ANY_VLAN) for source in made.sources)))
    sent, dropped = counted(site, 1, lambda: site.tap(EGRESS, frame))
    assert (sent, dropped) == (0, {"notRewritable": 1})


def test_what_is_larger_than_the_way_allows_is_counted(site: Site) -> None:
    site.serve(MONITOR4)
    site.apply(site.plane(destination=site.rewriting(mtu=300)))
    small, large = (egress(packet("udp", 4, number) + bytes(60 * number)) for number in (0, 3))
    assert counted(site, 1, lambda: [site.tap(EGRESS, small), site.tap(EGRESS, large)]) == (1, {"oversize": 1})


def test_an_id_whose_meaning_was_not_told_goes_no_further(site: Site) -> None:
    site.serve(MONITOR4)
    site.apply(plane(site))
    capture = site.watch(site.monitor, "eth0")
    frame = egress(packet("tcp", 4))
    site.tap(EGRESS, frame)
    assert arriving(capture, 1) == [frame]
    site.remove_edge()
    site.serve(MONITOR4)  # it knows nothing yet
    edges = site.edges
    assert edges is not None
    told = edges.counters()[MONITOR4].told
    site.tap(EGRESS, frame)
    wait_until(lambda: sum(vars_of(edges.counters()[MONITOR4])) > 0, "the edge meets it")
    met = edges.counters()[MONITOR4]
    assert (met.unknown, originals(capture.frames(1, 0.2))) in ((1, []), (0, [frame])), met  # told again if a second has passed
    wait_until(lambda: site.tap(EGRESS, frame) or edges.counters()[MONITOR4].told > told, "told again within a second")
    assert arriving(capture, 1)[0] == frame


def vars_of(counters: EdgeCounters) -> tuple[int, ...]:
    return (counters.unknown, counters.recovered)


ANSWERS = {"syn": "reset", "tcp": "reset", "udp": "unreachable", "icmp": "echo reply"}
"""What a stack says to each kind that is sent to itself."""


@pytest.mark.parametrize("version", [4, 6])
def test_the_monitors_kernel_answers_no_copy_recovered_or_not(site: Site, version: int) -> None:
    address = MONITOR4 if version == 4 else MONITOR6
    copies = {kind: [egress(packet(kind, version, number), version=version) for number in range(5)] for kind in ANSWERS}
    expected = [frame for some in copies.values() for frame in some]
    with Inside(site.monitor):  # where an answer would go
        family = ["-4"] if version == 4 else ["-6"]
        at = frames.POD4 if version == 4 else frames.POD6
        ip(*family, "neigh", "replace", at, "lladdr", POD_MAC.hex(":"), "dev", "eth0", "nud", "permanent")
    listening, capture = site.watch(site.sink, MONITOR), site.watch(site.monitor, "eth0")

    def tap(sent: list[bytes]) -> None:
        for frame in sent:
            site.tap(EGRESS, frame)
        site.settled(1)

    with on_one_cpu():
        site.serve(address)
        site.apply(plane(site, version))
        introduce(site, capture, version)
        tap(expected)
        assert arriving(capture, len(expected)) == expected
        assert said_until_now(site, listening, version) == []

        site.remove_edge()
        tap(expected)
        unrecovered: list[bytes] = []

        def seen() -> bool:
            unrecovered.extend(frame for frame in capture.frames(1, 0.2) if frame[:6] == alias_of(address))
            return len(unrecovered) >= len(expected)

        wait_until(seen, "the monitor sees unrecovered copies")
        assert said_until_now(site, listening, version) == []

        # Sent to the monitor's own MAC address, copies of every kind are answered: that would have been seen.
        site.apply(site.plane(destination=site.rewriting(version, gateway_mac=site.monitor_mac)))
        for kind, answer in ANSWERS.items():
            tap(copies[kind])
            assert {answer_of(one) for one in said_until_now(site, listening, version)} == {answer}, kind


def test_a_monitor_of_both_versions_has_an_edge_for_each(site: Site) -> None:
    site.serve(MONITOR4, MONITOR6)
    for version in (4, 6):
        site.apply(plane(site, version))
        capture = site.watch(site.monitor, "eth0")
        frame = egress(packet("tcp", version), version=version)
        came: list[bytes] = []

        def comes(frame: bytes = frame, capture: Capture = capture, came: list[bytes] = came) -> bool:
            site.tap(EGRESS, frame)  # told within a second, if another test's edge was told just now
            came.extend(originals(capture.frames(1, 0.1)))
            return bool(came)

        wait_until(comes, f"a copy of IPv{version} comes")
        assert set(came) == {frame}
    site.serve(MONITOR6)
    assert site.edges is not None and set(site.edges.counters()) == {MONITOR6}


def test_an_edge_answers_probes_and_its_end_shows(site: Site) -> None:
    site.remove_edge()
    changes: list[float] = []
    prober = EdgeProber(lambda: changes.append(time.monotonic()))
    target = EdgeTarget(MONITOR4, socket.if_nametoindex(UPLINK), site.uplink_mac, alias_of(MONITOR4))
    try:
        assert prober.watch(frozenset({target})) == frozenset()
        site.serve(MONITOR4)
        wait_until(lambda: prober.watch(frozenset({target})) == {MONITOR4}, "the edge answers")
        site.remove_edge()
        wait_until(lambda: not prober.watch(frozenset({target})), "its silence shows")
        wait_until(lambda: len(changes) == 2, "each change is told")
        assert prober.watch(frozenset()) == frozenset()
    finally:
        prober.stop()


def test_before_tcx_an_ingress_qdisc_leaves_an_edge_no_place(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    force_clsact(monkeypatch)
    site.remove_edge()
    with Inside(site.sink):
        subprocess.run(["tc", "qdisc", "add", "dev", MONITOR, "ingress"], check=True)
        edges = EdgePrograms(site.root)
        try:
            (problem,) = edges.apply([site.monitor_of(MONITOR4)])
            for words in (MONITOR4, f"tc qdisc del dev {MONITOR} ingress", f"tc qdisc add dev {MONITOR} clsact", "Linux 6.6"):
                assert words in problem
            assert programs_at(MONITOR) == []
            with monkeypatch.context() as older:  # It took every qdisc in clsact's place for clsact.
                older.setattr(qdiscs, "one_sided", frozenset)
                assert edges.apply([site.monitor_of(MONITOR4)]) == ()
                assert programs_at(MONITOR) != []
            assert edges.apply([site.monitor_of(MONITOR4)]) == (problem,)
            assert programs_at(MONITOR) == []
            subprocess.run(["tc", "qdisc", "del", "dev", MONITOR, "ingress"], check=True)
            assert edges.apply([site.monitor_of(MONITOR4)]) == ()
            assert programs_at(MONITOR) != []
        finally:
            edges.destroy()
            for kind in ("ingress", "clsact"):  # Whichever there is.
                subprocess.run(["tc", "qdisc", "del", "dev", MONITOR, kind], check=False, capture_output=True)


def qdiscs_at(device: str) -> list[str]:
    """Their kinds, but for those that every device has."""
    shown = subprocess.run(["tc", "-j", "qdisc", "show", "dev", device], check=True, capture_output=True, text=True).stdout
    return [kind for one in json.loads(shown) if (kind := one["kind"]) != "noqueue"]


@pytest.mark.parametrize("hook", ["tcx", "clsact"])
def test_nothing_of_ours_remains_at_an_edge(site: Site, monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    if hook == "clsact":
        force_clsact(monkeypatch)
    site.remove_edge()
    with Inside(site.sink):
        before = qdiscs_at(MONITOR)
        site.serve(MONITOR4, MONITOR6)
        assert len(programs_at(MONITOR)) == 1
        site.serve(MONITOR6)
        assert len(programs_at(MONITOR)) == 1
        site.remove_edge()
        wait_until(lambda: not programs_at(MONITOR), "the kernel has let go of the program")
        assert qdiscs_at(MONITOR) == before == []
    assert not (site.root / "recover").exists()


def test_a_clsact_of_others_at_an_edge_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    force_clsact(monkeypatch)
    site.remove_edge()
    with Inside(site.sink):
        subprocess.run(["tc", "qdisc", "add", "dev", MONITOR, "clsact"], check=True)
        site.serve(MONITOR4)
        site.remove_edge()
        assert qdiscs_at(MONITOR) == ["clsact"] and programs_at(MONITOR) == []
        subprocess.run(["tc", "qdisc", "del", "dev", MONITOR, "clsact"], check=True)
