"""Numbered Ethernet frames that no host answers: of EtherType 0x88B5, for local experiments (IEEE 802), or of other `KINDS`."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, replace

from tests.unit.pipeline import frames as wire

MAGIC = b"vtap-contract"
BROADCAST = "ff:ff:ff:ff:ff:ff"
MULTICAST = "01:00:5e:7f:00:01"
MULTICAST6 = "33:33:ff:00:00:02"
LINK_LOCAL = "01:80:c2:00:00:0e"
"""A group that bridges do not forward (IEEE 802.1Q, 8.6.3)."""
_VLAN = 0x8100
_LOCAL = "local"
_numbers = itertools.count(1)


def _arp(operation: int) -> bytes:
    """RFC 826."""
    ends = bytes.fromhex("02005e100001cb007101"), bytes.fromhex("000000000000cb007102")
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + b"".join(ends)


def _neighbour(kind: int, destination: str, flags: int) -> bytes:
    """A solicitation (135) or an advertisement (136) of RFC 4861."""
    body = struct.pack("!BBHI", kind, 0, 0, flags) + bytes.fromhex("20010db8000000000000000000000002") + b"\1\1\2\0\x5e\x10\0\1"
    checked = wire.checksum(wire.pseudo(_HERE6, destination, 58, len(body)) + body)
    packet = wire.ipv6(_HERE6, destination, 58, body[:2] + struct.pack("!H", checked) + body[4:])
    return packet[:7] + b"\xff" + packet[8:]


def _report() -> bytes:
    """An IGMPv2 membership report (RFC 2236), with the router alert option of RFC 2113."""
    body = struct.pack("!BBH4s", 0x16, 0, 0, bytes((239, 1, 2, 3)))
    body = body[:2] + struct.pack("!H", wire.checksum(body)) + body[4:]
    return wire.ipv4(_HERE, "239.1.2.3", 2, body, options=b"\x94\4\0\0")


_HERE, _THERE = "203.0.113.1", "203.0.113.2"
_HERE6, _THERE6 = "2001:db8::1", "2001:db8::2"
"""For documentation (RFC 5737, RFC 3849): no pod has them, so that no pod answers."""
KINDS = {
    _LOCAL: (0x88B5, b""),
    "arp-request": (0x0806, _arp(1)),
    "arp-reply": (0x0806, _arp(2)),
    "neighbour-solicitation": (0x86DD, _neighbour(135, "ff02::1:ff00:2", 0)),
    "neighbour-advertisement": (0x86DD, _neighbour(136, "ff02::1", 0x20000000)),
    "udp": (0x0800, wire.ipv4(_HERE, _THERE, 17, wire.udp(_HERE, _THERE, 9, 9, b""))),
    "udp6": (0x86DD, wire.ipv6(_HERE6, _THERE6, 17, wire.udp(_HERE6, _THERE6, 9, 9, b""))),
    "igmp": (0x0800, _report()),
}
"""EtherType and packet. The number comes behind the packet, as padding does."""


@dataclass(frozen=True)
class Frame:
    """`vlan` 0 means untagged; otherwise one 802.1Q tag with that VLAN id and priority 0."""

    destination: str
    source: str
    number: int
    vlan: int = 0
    kind: str = _LOCAL

    def tagged(self, vlan: int) -> Frame:
        return replace(self, vlan=vlan)

    def encode(self) -> bytes:
        tag = struct.pack("!HH", _VLAN, self.vlan) if self.vlan else b""
        ethertype, packet = KINDS[self.kind]
        body = packet + MAGIC + struct.pack("!I", self.number)
        return _mac(self.destination) + _mac(self.source) + tag + struct.pack("!H", ethertype) + body.ljust(50, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Frame | None:
        """None for anything that is not one of ours to the byte, whatever its tags."""
        at, vlan = 12, 0
        if data[12:14] == struct.pack("!H", _VLAN):
            at, vlan = 16, int.from_bytes(data[14:16]) & 0xFFF
        ethertype, body = int.from_bytes(data[at : at + 2]), data[at + 2 :]
        for kind, (own, packet) in KINDS.items():
            if ethertype == own and body.startswith(packet + MAGIC):
                number = body[len(packet + MAGIC) :][:4]
                return cls(data[:6].hex(":"), data[6:12].hex(":"), int.from_bytes(number), vlan, kind)
        return None


def frame(destination: str, source: str, vlan: int = 0, kind: str = _LOCAL) -> Frame:
    """A frame with a number of its own."""
    return Frame(destination, source, next(_numbers), vlan, kind)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
