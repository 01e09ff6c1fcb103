"""Numbered Ethernet frames that no host answers: EtherType 0x88B5, for local experiments (IEEE 802)."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

MAGIC = b"vtap-contract"
BROADCAST = "ff:ff:ff:ff:ff:ff"
MULTICAST = "01:00:5e:7f:00:01"
LINK_LOCAL = "01:80:c2:00:00:0e"
"""A group that bridges do not forward (IEEE 802.1Q, 8.6.3)."""
_ETHERTYPE = 0x88B5
_VLAN = 0x8100
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Frame:
    """`vlan` 0 means untagged; otherwise one 802.1Q tag with that VLAN id and priority 0."""

    destination: str
    source: str
    number: int
    vlan: int = 0

    def tagged(self, vlan: int) -> Frame:
        return Frame(self.destination, self.source, self.number, vlan)

    def encode(self) -> bytes:
        tag = struct.pack("!HH", _VLAN, self.vlan) if self.vlan else b""
        body = MAGIC + struct.pack("!I", self.number)
        return _mac(self.destination) + _mac(self.source) + tag + struct.pack("!H", _ETHERTYPE) + body.ljust(50, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Frame | None:
        """None for anything that is not one of ours, whatever its tags."""
        at, vlan = 12, 0
        if data[12:14] == struct.pack("!H", _VLAN):
            at, vlan = 16, int.from_bytes(data[14:16]) & 0xFFF
        body = data[at + 2 :]
        if int.from_bytes(data[at : at + 2]) != _ETHERTYPE or not body.startswith(MAGIC):
            return None
        return cls(data[:6].hex(":"), data[6:12].hex(":"), int.from_bytes(body[len(MAGIC) :][:4]), vlan)


def frame(destination: str, source: str, vlan: int = 0) -> Frame:
    """A frame with a number of its own."""
    return Frame(destination, source, next(_numbers), vlan)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
