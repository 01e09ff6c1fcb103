"""Copies without a tunnel: rewritten by `send`, recovered at the monitor's edge, byte for byte, and never answered by anyone."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.pipeline import frames
from tests.unit.pipeline.node import (
    ADDRESSES,
    EGRESS,
    ETH_P_ALL,
    INGRESS,
    PEER_MAC,
    POD_MAC,
    SINK,
    PACKET_IGNORE_OUTGOING,
    SOL_PACKET,
    UPLINK,
    Capture,
    Inside,
    Node,
    ip,
    mac_of,
    wait_until,
    why_not,
)
from vtap_agent.pipeline.recover import EdgePrograms
from vtap_agent.pipeline.recover_probe import EdgeProber
from vtap_agent.plan.dataplane import Action, DataPlane, Destination, Encapsulation, TapProgram
from vtap_agent.plan.recover import EdgeTarget, Monitor, alias_of, ids_of

MONITOR4, MONITOR6 = "10.10.0.99", "fd00:10::99"
OTHER_MAC = bytes.fromhex("020000000003")
MONITOR = "mon0"


class Site(Node):
    """The node's uplink and the host-side end of a monitor's veth are ports of one bridge, in the namespace that is else the sink."""

    def _build(self) -> None:
        super()._build()
        self.monitor = _new_namespace()
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
            handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            handle.bind((device, ETH_P_ALL))
        return Capture(handle)


def _new_namespace() -> int:
    from tests.unit.pipeline.node import new_namespace

    return new_namespace()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := why_not():
        pytest.skip(reason)
    with Site() as made:
        yield made


def payload(length: int, seed: int = 7) -> bytes:
    return bytes((i * 31 + seed) & 0xFF for i in range(length))


def packet(kind: str, version: int, number: int = 0) -> bytes:
    source, target = (frames.POD4, frames.PEER4) if version == 4 else (frames.POD6, frames.PEER6)
    content = struct.pack(">I", number) + payload(200 + number % 7, number)
    if kind == "udp":
        return frames.ip(source, target, 17, frames.udp(source, target, 4000, 9, content))
    if kind == "tcp":
        return frames.ip(source, target, 6, frames.tcp(source, target, 4000, 9, content, seq=number))
    if kind == "udp without checksum":
        body = frames.udp(source, target, 4000, 9, content)
        return frames.ip(source, target, 17, body[:6] + b"\0\0" + body[8:])
    if kind == "first fragment":
        return frames.ipv4(source, target, 17, frames.udp(source, target, 4000, 9, content)[:64], fragment=0x2000)
    if kind == "later fragment":
        return frames.ipv4(source, target, 17, content, fragment=0x0010)
    if kind == "options":
        return frames.ipv4(source, target, 6, frames.tcp(source, target, 4000, 9, content), options=b"\x94\x04\0\0")
    if kind == "wrong checksum":
        made = bytearray(packet("tcp", version, number))
        made[-1] ^= 0xFF
        return bytes(made)
    if kind == "icmp":
        if version == 4:
            body = struct.pack(">BBHHH", 8, 0, 0, 1, number) + content
            return frames.ipv4(source, target, 1, body[:2] + struct.pack(">H", frames.checksum(body)) + body[4:])
        body = struct.pack(">BBHHH", 128, 0, 0, 1, number) + content
        sum_ = frames.checksum(frames.pseudo(source, target, 58, len(body)) + body)
        return frames.ipv6(source, target, 58, body[:2] + struct.pack(">H", sum_) + body[4:])
    raise AssertionError(kind)


KINDS = [(kind, 4) for kind in
         ("udp", "tcp", "udp without checksum", "first fragment", "later fragment", "options", "wrong checksum", "icmp")]  # fmt: skip
KINDS += [(kind, 6) for kind in ("udp", "tcp", "udp without checksum", "wrong checksum", "icmp")]


def plane(site: Site, version: int = 4) -> DataPlane:
    return site.plane(destination=site.rewriting(version))


def egress(ip_packet: bytes, to: bytes = PEER_MAC, version: int = 4) -> bytes:
    return frames.ethernet(to, POD_MAC, 0x0800 if version == 4 else 0x86DD, ip_packet)


def originals(captured: list[bytes]) -> list[bytes]:
    """What is not the monitor's own chatter, nor a frame between agents and edges."""
    return [frame for frame in captured if frame[6:12] in (POD_MAC, PEER_MAC, OTHER_MAC)]


@pytest.mark.parametrize(("kind", "version"), KINDS, ids=[f"{kind} v{version}" for kind, version in KINDS])
def test_the_monitor_sees_every_packet_as_it_was(site: Site, kind: str, version: int) -> None:
    site.serve(MONITOR4 if version == 4 else MONITOR6)
    site.apply(plane(site, version))
    before = site.counters(1)
    sent = [egress(packet(kind, version, number), version=version) for number in range(20)]
    capture = site.watch(site.monitor, "eth0")
    for frame in sent:
        site.tap(EGRESS, frame)
    found: list[bytes] = []
    wait_until(lambda: len(found.extend(originals(capture.frames(1, 0.2))) or found) >= 20, f"20 {kind} arrive")
    assert found == sent
    after = site.settled(1)
    assert after.sent - before.sent == 20
    assert after.dropped == before.dropped
