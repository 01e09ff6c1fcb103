"""IP packets in untagged Ethernet frames: who talks to whom, what they carry, and whether a receiver would take them."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.unit.pipeline import frames

IPV4, IPV6 = 0x0800, 0x86DD
HOP_BY_HOP, ICMP, IGMP, TCP, UDP, ICMPV6 = 0, 1, 2, 6, 17, 58
NEIGHBOUR_DISCOVERY = range(133, 138)
"""Types of ICMPv6 (RFC 4861)."""
GROUP_REPORTS = (130, 131, 132, 143)
"""Types of ICMPv6, always behind a hop-by-hop header, of 8 bytes here (RFC 2710, RFC 3810)."""
_SYN = 2
_FRAGMENT = 0x3FFF


@dataclass(frozen=True, slots=True)
class Packet:
    """`protocol` is the IP protocol or, of IPv6, the first next header. `content` is what the IP header says that follows it."""

    source: str
    destination: str
    protocol: int
    content: bytes
    is_exact: bool
    """The length that the IP header tells is the frame's, and the IPv4 header's checksum is right."""

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination, of TCP and UDP."""
        source, destination = struct.unpack_from("!HH", self.content)
        return source, destination

    @property
    def data(self) -> bytes:
        """What TCP or UDP carries."""
        return self.content[8 if self.protocol == UDP else (self.content[12] >> 4) * 4 :]

    @property
    def checksum_is_right(self) -> bool:
        """Of the transport header; one that was left out, as UDP may, isn't."""
        if self.protocol == UDP and not any(self.content[6:8]):
            return False
        before = b"" if self.protocol == ICMP else frames.pseudo(self.source, self.destination, self.protocol, len(self.content))
        return frames.checksum(before + self.content) == 0


def packet_in(frame: bytes) -> Packet | None:
    """None where the frame has no IP packet, or a fragment of one."""
    kind = int.from_bytes(frame[12:14])
    if kind == IPV4:
        length, _, fragment = struct.unpack_from("!HHH", frame, 16)
        if fragment & _FRAGMENT:
            return None
        start = 14 + (frame[14] & 15) * 4
        ends = [socket.inet_ntop(socket.AF_INET, frame[at : at + 4]) for at in (26, 30)]
        is_exact = len(frame) == 14 + length and frames.checksum(frame[14:start]) == 0
        return Packet(ends[0], ends[1], frame[23], frame[start : 14 + length], is_exact)
    if kind == IPV6:
        (length,) = struct.unpack_from("!H", frame, 18)
        ends = [socket.inet_ntop(socket.AF_INET6, frame[at : at + 16]) for at in (22, 38)]
        return Packet(ends[0], ends[1], frame[20], frame[54 : 54 + length], len(frame) == 54 + length)
    return None


def is_housekeeping(packet: Packet) -> bool:
    """Whether a stack says it to keep its network going, and not because it was spoken to: neighbour discovery, group reports."""
    if packet.protocol == ICMPV6:
        return packet.content[0] in NEIGHBOUR_DISCOVERY
    behind_options = packet.protocol == HOP_BY_HOP and packet.content[0] == ICMPV6 and packet.content[8] in GROUP_REPORTS
    return packet.protocol == IGMP or behind_options


def tcp_stream(packets: Iterable[Packet], source: str, destination: str) -> bytes:
    """The bytes that went one way between two addresses, put together by sequence number; zeros where any are missing.

    There is one connection, of less than 4 GiB.
    """
    parts = [one for one in packets if (one.protocol, one.source, one.destination) == (TCP, source, destination)]
    first = next((_sequence(one) for one in parts if one.content[13] & _SYN), None)
    assert first is not None, f"no SYN from {source} to {destination}"
    stream = bytearray()
    for one in parts:
        at, data = (_sequence(one) - first - 1) & 0xFFFFFFFF, one.data
        if data:
            stream.extend(bytes(max(0, at + len(data) - len(stream))))
            stream[at : at + len(data)] = data
    return bytes(stream)


def _sequence(packet: Packet) -> int:
    return int.from_bytes(packet.content[4:8])


def datagrams(packets: Iterable[Packet], source: str, destination: str) -> Counter[bytes]:
    """How often each payload of UDP went one way between two addresses."""
    return Counter(one.data for one in packets if (one.protocol, one.source, one.destination) == (UDP, source, destination))
