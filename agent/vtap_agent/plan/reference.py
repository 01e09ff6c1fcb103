"""What filter and samplers mean, said in Python: the standard that the eBPF programs are tested against.

A frame is bytes from the Ethernet header on, all tags inline. docs/preprocessor.md says the same in words.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from vtap_agent.plan.dataplane import Action, Direction, Match, PortRange, TapProgram

ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_ARP = 0x0800, 0x86DD, 0x0806
TAGS = frozenset({0x8100, 0x88A8})
MAX_TAGS = 4
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
TRANSPORT_HEADER = {UDP: 8, SCTP: 12}
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS = 0, 43, 44, 51, 60
EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS})
MAX_EXTENSIONS = 6
MAX_EXTENSION_OFFSET = 192
PARSED_BYTES = 256
WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Packet:
    """What the filter sees of a frame. Addresses are 4 or 16 bytes (6, MAC addresses, without IP); None is "not there".

    `header_length` counts from the Ethernet header to the end of the transport header, without tags.
    """

    vlan: int
    version: int | None = None
    protocol: int | None = None
    peer: bytes = b""
    pod: bytes = b""
    ports: tuple[int, int] | None = None
    """(pod's, peer's)"""
    tcp_flags: int | None = None
    fragment: bool = False
    header_length: int = 14


@dataclass(frozen=True, slots=True)
class _Transport:
    protocol: int | None
    ports: tuple[int, int] | None = None
    """(source, destination)"""
    tcp_flags: int | None = None
    header_length: int = 0
    fragment: bool = False
    addresses: tuple[bytes, bytes] = field(default=(b"", b""))


def _tags(frame: bytes) -> tuple[list[int], int, int] | None:
    """(VIDs, EtherType, offset behind it); None for more tags than are followed, or a cut frame."""
    vids: list[int] = []
    offset = 12
    while True:
        if len(frame) < offset + 2:
            return None
        (kind,) = struct.unpack_from(">H", frame, offset)
        if kind not in TAGS:
            return vids, kind, offset + 2
        if len(vids) == MAX_TAGS or len(frame) < offset + 6:
            return None
        vids.append(struct.unpack_from(">H", frame, offset + 2)[0] & 0xFFF)
        offset += 4


def _transport(protocol: int, data: bytes) -> tuple[tuple[int, int] | None, int | None, int]:
    """(ports, TCP flags, header length) of what follows the network header."""
    if protocol in (ICMP, ICMPV6):
        return None, None, 8
    if protocol == TCP and len(data) >= 20:
        source, destination = struct.unpack_from(">HH", data)
        return (source, destination), data[13], (data[12] >> 4) * 4
    if protocol in TRANSPORT_HEADER and len(data) >= 8:
        source, destination = struct.unpack_from(">HH", data)
        return (source, destination), None, TRANSPORT_HEADER[protocol]
    return None, None, 0


def _ipv4(data: bytes) -> _Transport | None:
    if len(data) < 20 or data[0] >> 4 != 4 or (header := (data[0] & 15) * 4) < 20:
        return None
    (where,) = struct.unpack_from(">H", data, 6)
    addresses = (data[12:16], data[16:20])
    if where & 0x1FFF:
        return _Transport(data[9], header_length=header, fragment=True, addresses=addresses)
    ports, flags, length = _transport(data[9], data[header:])
    return _Transport(data[9], ports, flags, header + length, bool(where & 0x3FFF), addresses)


def _extensions(data: bytes) -> tuple[int, int, bool, bool]:
    """(protocol, its offset, fragmented, first fragment) behind the extension headers that are followed (RFC 8200 §4)."""
    kind, offset, fragmented = data[6], 40, False
    for _ in range(MAX_EXTENSIONS):
        if kind not in EXTENSIONS or offset > MAX_EXTENSION_OFFSET or len(data) < offset + 8:
            break
        following = data[offset]
        if kind == FRAGMENT:
            (where,) = struct.unpack_from(">H", data, offset + 2)
            fragmented = bool(where & 0xFFF9)
            offset += 8
            if where & 0xFFF8:
                return following, offset, fragmented, False
        else:
            offset += (data[offset + 1] + 2) * 4 if kind == AUTHENTICATION else (data[offset + 1] + 1) * 8
        kind = following
    return kind, offset, fragmented, True


def _ipv6(data: bytes) -> _Transport | None:
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    kind, offset, fragmented, first = _extensions(data)
    addresses = (data[8:24], data[24:40])
    if offset > MAX_EXTENSION_OFFSET:
        return _Transport(kind, fragment=fragmented, addresses=addresses)
    if not first:
        return _Transport(kind, header_length=offset, fragment=fragmented, addresses=addresses)
    ports, flags, length = _transport(kind, data[offset:])
    return _Transport(kind, ports, flags, offset + length, fragmented, addresses)


def parse(frame: bytes, direction: Direction, strip: bool = False) -> Packet | None:
    """None for a frame that is no Ethernet or carries more than four tags: it is dropped as malformed."""
    tagged = _tags(frame)
    if tagged is None:
        return None
    vids, kind, offset = tagged
    visible = vids[1:] if strip else vids
    vlan = visible[0] if visible else 0
    read = {ETHERTYPE_IPV4: _ipv4, ETHERTYPE_IPV6: _ipv6}.get(kind)
    found = read(frame[offset:]) if read else None
    if found is None:
        peer, pod = (frame[6:12], frame[:6]) if direction is Direction.INGRESS else (frame[:6], frame[6:12])
        return Packet(vlan, peer=peer, pod=pod, header_length=42 if kind == ETHERTYPE_ARP else 14)
    source, destination = found.addresses
    toward_pod = direction is Direction.INGRESS
    ports = None if found.ports is None else (found.ports[1], found.ports[0]) if toward_pod else found.ports
    return Packet(
        vlan=vlan,
        version=4 if kind == ETHERTYPE_IPV4 else 6,
        protocol=found.protocol,
        peer=source if toward_pod else destination,
        pod=destination if toward_pod else source,
        ports=ports,
        tcp_flags=found.tcp_flags,
        fragment=found.fragment,
        header_length=14 + found.header_length,
    )


def _within(port: int, allowed: PortRange | None) -> bool:
    return allowed is None or allowed.first <= port <= allowed.last


def _has_prefix(address: bytes, prefix: tuple[bytes, int]) -> bool:
    network, length = prefix
    if len(address) != len(network):
        return False
    shift = len(network) * 8 - length
    return int.from_bytes(address, "big") >> shift == int.from_bytes(network, "big") >> shift


def _peer_matches(match: Match, packet: Packet, peer_sets: Mapping[int, frozenset[str]]) -> bool:
    if match.peer is not None and (packet.version is None or not _has_prefix(packet.peer, match.peer)):
        return False
    if match.peer_set is None:
        return True
    if packet.version is None:
        return False
    return str(ipaddress.ip_address(packet.peer)) in peer_sets.get(match.peer_set, frozenset())


def _ports_match(match: Match, packet: Packet) -> bool:
    if match.pod_ports is None and match.peer_ports is None:
        return True
    return packet.ports is not None and _within(packet.ports[0], match.pod_ports) and _within(packet.ports[1], match.peer_ports)


def _flags_match(match: Match, packet: Packet) -> bool:
    if match.tcp_flags is None:
        return True
    value, mask = match.tcp_flags
    return packet.tcp_flags is not None and packet.tcp_flags & mask == value & mask


def matches(match: Match, packet: Packet, peer_sets: Mapping[int, frozenset[str]]) -> bool:
    """Whether every condition that `match` states holds."""
    if match.ip_version is not None and packet.version != match.ip_version:
        return False
    if match.protocol is not None and packet.protocol != match.protocol:
        return False
    if match.vlan is not None and packet.vlan != match.vlan:
        return False
    return _peer_matches(match, packet, peer_sets) and _ports_match(match, packet) and _flags_match(match, packet)


def decide(program: TapProgram, packet: Packet, peer_sets: Mapping[int, frozenset[str]]) -> Action:
    """The first match that holds decides, else the default action."""
    for match in program.matches:
        if matches(match, packet, peer_sets):
            return match.action
    return program.default_action


def _mix(x: int) -> int:
    """MurmurHash3's 64-bit finalizer."""
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & WORD
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & WORD
    return x ^ x >> 33


def _end(address: bytes, port: int) -> int:
    wide = {4: bytes(10) + b"\xff\xff" + address, 6: bytes(8) + address + bytes(2)}.get(len(address), address)
    high, low = struct.unpack("<QQ", wide)
    return _mix((high * 0xC2B2AE3D27D4EB4F + low + port * 0x9E3779B97F4A7C15) & WORD)


def flow_hash(packet: Packet) -> int:
    """32 bits, the same for both directions of a flow and at both its ends. Fragments, the first included, go without ports."""
    pod_port, peer_port = packet.ports if packet.ports and not packet.fragment else (0, 0)
    ends = _end(packet.peer, peer_port) + _end(packet.pod, pod_port)
    return _mix((ends + (packet.protocol or 0)) & WORD) >> 32


def keeps_flow(program: TapProgram, packet: Packet) -> bool:
    """Whether the FLOWS sampler keeps the packet's flow."""
    return flow_hash(packet) < program.sampling.flow_threshold
