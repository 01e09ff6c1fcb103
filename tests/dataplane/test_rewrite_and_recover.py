"""Copies without a tunnel: rewritten by `send`, recovered at the monitor's edge, byte for byte, and never answered by anyone."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

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
from vtap_agent.pipeline.recover import EdgeCounters, EdgePrograms
from vtap_agent.pipeline.recover_probe import EdgeProber
from vtap_agent.plan.dataplane import ANY_VLAN, DataPlane, Destination, Encapsulation
from vtap_agent.plan.recover import EdgeTarget, Monitor, alias_of, ids_of

MONITOR4, MONITOR6 = "10.10.0.99", "fd00:10::99"
OTHER_MAC = bytes.fromhex("020000000003")
MONITOR = "mon0"


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

    def watch(self, where: int, device: str) -> Capture:
        with Inside(where):
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            handle.bind((device, ETH_P_ALL))
        return Capture(handle)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
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
    udp, tcp = frames.udp(*ends, 4000, 9, content), frames.tcp(*ends, 4000, 9, content, seq=number)
    wrong = tcp[:-1] + bytes([tcp[-1] ^ 0xFF])
    if kind == "icmp":
        return icmp(ends, version, struct.pack(">HH", 1, number) + content)
    makers: dict[str, Callable[[], bytes]] = {
        "udp": lambda: frames.ip(*ends, 17, udp),
        "tcp": lambda: frames.ip(*ends, 6, tcp),
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


KINDS4 = ("udp", "tcp", "udp without checksum", "first fragment", "later fragment", "options", "wrong checksum", "icmp")
KINDS6 = ("udp", "tcp", "udp without checksum", "wrong checksum", "icmp", "behind options", "fragment header", "later part")
KINDS = [*((kind, 4) for kind in KINDS4), *((kind, 6) for kind in KINDS6)]


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


def said_by_monitor(site: Site, capture: Capture) -> list[bytes]:
    """IP packets that the monitor's own stack sent, neighbour discovery and group reports apart."""
    sent = [frame for frame in capture.frames(1, 0.3) if frame[6:12] == site.monitor_mac]
    ipv4 = [frame for frame in sent if frame[12:14] == b"\x08\0" and frame[23] != 2]
    return ipv4 + [frame for frame in sent if frame[12:14] == b"\x86\xdd" and frame[20] == 6]


def counted(site: Site, slot: int, act: Callable[[], object]) -> tuple[int, dict[str, int]]:
    """(sent, dropped by reason) that come of it."""
    before = site.settled(slot)
    act()
    after = site.settled(slot)
    dropped = {reason: count - before.dropped.get(reason, 0) for reason, count in after.dropped.items()}
    return after.sent - before.sent, {reason: count for reason, count in dropped.items() if count}


@pytest.mark.parametrize(("kind", "version"), KINDS, ids=[f"{kind} v{version}" for kind, version in KINDS])
def test_the_monitor_sees_every_packet_as_it_was(site: Site, kind: str, version: int) -> None:
    site.serve(MONITOR4 if version == 4 else MONITOR6)
    site.apply(plane(site, version))
    sent = [egress(packet(kind, version, number), version=version) for number in range(20)]
    capture = site.watch(site.monitor, "eth0")

    def send() -> None:
        for frame in sent:
            site.tap(EGRESS, frame)
        assert arriving(capture, 20) == sent

    assert counted(site, 1, send) == (20, {})


def test_on_its_way_a_copy_is_a_right_packet_to_the_monitor_from_an_id(site: Site) -> None:
    site.serve(MONITOR4)
    site.apply(plane(site))
    capture = site.watch(site.sink, SINK)
    site.tap(EGRESS, egress(packet("tcp", 4)))
    found: list[bytes] = []
    wait_until(lambda: bool(found.extend(capture.frames(1, 0.2)) or [f for f in found if f[12:14] == b"\x08\0"]), "it passes")
    copy = next(frame for frame in found if frame[12:14] == b"\x08\0")
    assert copy[:6] == alias_of(MONITOR4) and copy[6:10] == ids_of(site.uplink_mac)[:4]
    assert copy[30:34] == socket.inet_aton(MONITOR4)
    assert frames.checksum(copy[14:34]) == 0
    assert frames.checksum(frames.pseudo(frames.POD4, MONITOR4, 6, len(copy) - 34) + copy[34:]) == 0


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


def test_more_destinations_than_ids_are_counted_and_never_mixed_up(site: Site) -> None:
    site.serve(MONITOR4)
    site.apply(plane(site))
    capture = site.watch(site.monitor, "eth0")
    sent = [
        egress(frames.ipv4(frames.POD4, to, 17, frames.udp(frames.POD4, to, 1, 2, to.encode())))
        for to in (f"198.51.{number >> 8}.{number & 255}" for number in range(5000))
    ]

    def send() -> None:
        for at in range(0, len(sent), 100):
            for frame in sent[at : at + 100]:
                site.tap(EGRESS, frame)
            site.settled(1)

    left, dropped = counted(site, 1, send)
    assert dropped.keys() == {"noId"} and left + dropped["noId"] == 5000
    assert left > 3000  # 4,096 places in buckets of eight, filled at random
    found = arriving(capture, left)
    assert len(found) == left and set(found) <= set(sent)


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


@pytest.mark.parametrize("version", [4, 6])
def test_the_monitors_kernel_answers_no_copy_recovered_or_not(site: Site, version: int) -> None:
    address = MONITOR4 if version == 4 else MONITOR6
    kinds = ("tcp", "udp", "icmp")
    copies = [egress(packet(kind, version, number), version=version) for number in range(5) for kind in kinds]
    own = {"destination": site.rewriting(version, gateway_mac=site.monitor_mac)}
    with Inside(site.monitor):  # where an answer would go
        family = ["-4"] if version == 4 else ["-6"]
        at = frames.POD4 if version == 4 else frames.POD6
        ip(*family, "neigh", "replace", at, "lladdr", POD_MAC.hex(":"), "dev", "eth0", "nud", "permanent")
    answers = site.watch(site.sink, MONITOR)

    def answered() -> list[bytes]:
        site.settled(1)
        return said_by_monitor(site, answers)

    site.serve(address)
    site.apply(plane(site, version))
    capture = site.watch(site.monitor, "eth0")
    for frame in copies:
        site.tap(EGRESS, frame)
    assert arriving(capture, len(copies)) == copies
    assert answered() == []

    site.remove_edge()
    for frame in copies:
        site.tap(EGRESS, frame)
    unrecovered: list[bytes] = []

    def seen() -> bool:
        unrecovered.extend(frame for frame in capture.frames(1, 0.2) if frame[:6] == alias_of(address))
        return len(unrecovered) >= len(copies)

    wait_until(seen, "the monitor sees unrecovered copies")
    assert answered() == []

    # The test would see an answer: sent to the monitor's own MAC address, copies are answered.
    site.apply(site.plane(destination=own["destination"]))
    for frame in copies:
        site.tap(EGRESS, frame)
    wait_until(lambda: bool(answered()), "the monitor answers what is sent to its own address")


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


def test_nothing_of_ours_remains_at_an_edge(site: Site) -> None:
    site.serve(MONITOR4)
    site.remove_edge()
    assert not (site.root / "recover").exists()
    with Inside(site.sink):
        shown = subprocess.run(["tc", "filter", "show", "dev", MONITOR, "egress"], capture_output=True, text=True, check=False)
        assert "bpf" not in shown.stdout
        program = subprocess.run(["bpftool", "net", "show", "dev", MONITOR], capture_output=True, text=True, check=False)
        assert "recover" not in program.stdout
