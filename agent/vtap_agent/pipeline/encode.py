"""Values of the plan as the bytes of map entries. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import struct
from collections.abc import Iterable, Mapping
from ctypes import Structure
from typing import TypeVar

from vtap_agent.errors import TellUser
from vtap_agent.pipeline import layout
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    MAX_FLOOD_ENTRIES,
    MAX_SLOTS,
    Action,
    Destination,
    Direction,
    Encapsulation,
    Match,
    Oversize,
    PortRange,
    Sampling,
    SamplingType,
    TapPoint,
    TapPointName,
    TapProgram,
)

GRE_UDP_PORT = 4754
ETHERNET_LENGTH = 14
UDP = 17
T = TypeVar("T", bound=Structure)
ANY_PORT = PortRange(0, 0xFFFF)
NOWHERE = 0xFFFFFFFF
"""A destination or program index that no map has."""
BUCKET_UNITS_PER_NS = 64
MAX_COST_PER_BYTE = 1 << 47
WORD = (1 << 64) - 1
QUICK_ENTRIES = 2
V4_MAPPED = bytes(10) + b"\xff\xff"


def digest(name: str) -> bytes:
    """16 bytes that stand for a name in a map."""
    return hashlib.sha256(name.encode()).digest()[:16]


def point_digest(name: TapPointName) -> bytes:
    """16 bytes that stand for a tap point."""
    return digest("\0".join((*(str(getattr(name, field)) for field in name.__slots__),)))


def mapped(address: bytes) -> bytes:
    """16 bytes for either family; IPv4 as ::ffff:a.b.c.d (RFC 4291 §2.5.5.2)."""
    return address if len(address) == 16 else V4_MAPPED + address


def address_words(address: bytes) -> tuple[int, int]:
    """An address as the two words a little-endian machine loads from it."""
    first, second = struct.unpack("=QQ", mapped(address))
    return first, second


def _set(array: object, values: Iterable[int]) -> None:
    for index, value in enumerate(values):
        array[index] = value  # type: ignore[index]


def _prefix(match: Match) -> tuple[tuple[int, int], tuple[int, int]]:
    if match.peer is None:
        return (0, 0), (0, 0)
    network, length = match.peer
    bits = length + (96 if len(network) == 4 else 0)
    mask = (((1 << bits) - 1) << (128 - bits)).to_bytes(16, "big")
    cut = bytes(a & b for a, b in zip(mapped(network), mask, strict=True))
    return address_words(cut), address_words(mask)


def _meta(match: Match) -> tuple[int, int]:
    """(value, mask) of the packet's summary word."""
    value = mask = 0
    version = match.ip_version or (None if match.peer is None else 4 if len(match.peer[0]) == 4 else 6)
    if version is not None:
        value, mask = value | version, mask | 0xFF
    if match.protocol is not None:
        value |= match.protocol << layout.META_PROTOCOL_SHIFT | layout.META_IS_IP
        mask |= 0xFF << layout.META_PROTOCOL_SHIFT | layout.META_IS_IP
    if match.vlan is not None:
        value |= match.vlan << layout.META_VLAN_SHIFT
        mask |= 0xFFFF << layout.META_VLAN_SHIFT
    if match.pod_ports is not None or match.peer_ports is not None:
        value, mask = value | layout.META_HAS_PORTS, mask | layout.META_HAS_PORTS
    if match.tcp_flags is not None:
        flags, care = match.tcp_flags
        value |= (flags & care) << layout.META_TCP_FLAGS_SHIFT | layout.META_HAS_TCP_FLAGS
        mask |= care << layout.META_TCP_FLAGS_SHIFT | layout.META_HAS_TCP_FLAGS
    return value, mask


def fill_rule(rule: layout.Rule, match: Match) -> None:
    """Writes one match into its place in a program."""
    network, mask = _prefix(match)
    rule.meta, rule.meta_mask = _meta(match)
    _set(rule.peer, network)
    _set(rule.peer_mask, mask)
    pod, peer = match.pod_ports or ANY_PORT, match.peer_ports or ANY_PORT
    rule.pod_first, rule.pod_last, rule.peer_first, rule.peer_last = pod.first, pod.last, peer.first, peer.last
    rule.include = int(match.action is Action.INCLUDE)
    rule.uses_peer_set = int(match.peer_set is not None)
    rule.peer_set = match.peer_set or 0


def _skip(one_in: int) -> tuple[int, int]:
    """(scale, shift) such that ``-log2(U) in 2**-32 · scale >> shift`` is the geometric skip: floor(log U / log(1 - 1/n))."""
    inverse = -1 / math.log2(1 - 1 / one_in)
    exponent = 26 - math.floor(math.log2(inverse))
    return min(round(inverse * 2**exponent), (1 << 27) - 1), 32 + exponent


def _sampling_type(sampling: Sampling) -> SamplingType:
    return SamplingType.ALL if sampling.type is SamplingType.ONE_IN and sampling.one_in <= 1 else sampling.type


def program(name: str, value: TapProgram) -> bytes:
    """struct program."""
    made = layout.Program()
    _set(made.name, digest(name))
    made.flags = (layout.PROGRAM_INCLUDE if value.default_action is Action.INCLUDE else 0) | (
        layout.PROGRAM_HEADERS_ONLY if value.headers_only else 0
    )
    sampling = value.sampling
    made.sampling = _sampling_type(sampling)
    made.interval_ns, made.packets, made.flow_threshold = sampling.interval_ns, sampling.packets, sampling.flow_threshold
    if made.sampling == SamplingType.ONE_IN:
        made.skip_scale, made.skip_shift = _skip(sampling.one_in)
    made.snap_length = value.snap_length
    if value.rate_bits_per_second:
        units = 8e9 * BUCKET_UNITS_PER_NS / value.rate_bits_per_second
        made.cost_per_byte = max(1, min(round(units * 65536), MAX_COST_PER_BYTE))
        made.burst = round(value.burst_bits / value.rate_bits_per_second * 1e9 * BUCKET_UNITS_PER_NS)
    made.rule_count = len(value.matches)
    for rule, match in zip(made.rules, value.matches, strict=False):
        fill_rule(rule, match)
    return bytes(made)


def _ip_header(value: Destination, protocol: int) -> bytes:
    """IPv4 (RFC 791) or IPv6 (RFC 8200), TTL or hop limit 64, DSCP 0; length, id, fragment field and checksum zero."""
    if len(value.remote) == 16:
        return struct.pack(">IHBB", 6 << 28, 0, protocol, 64) + value.local + value.remote
    return struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 64, protocol, 0) + value.local + value.remote


def _tunnel(value: Destination) -> tuple[int, bytes]:
    """(IP protocol, headers behind IP) with zeros for port, length, key and sequence."""
    udp = struct.pack(">HHHH", 0, value.port, 0, 0)
    match value.encapsulation:
        case Encapsulation.GRE_UDP:  # RFC 8086
            return 17, udp + struct.pack(">HHII", 0x3000, 0x6558, 0, 0)
        case Encapsulation.GRE:  # RFC 2784, 2890
            return 47, struct.pack(">HHII", 0x3000, 0x6558, 0, 0)
        case Encapsulation.VXLAN:  # RFC 7348
            return 17, udp + struct.pack(">II", 0x08000000, 0)
        case Encapsulation.ERSPAN2:  # draft-foschiano-erspan
            return 47, struct.pack(">HHIII", 0x1000, 0x88BE, 0, 0, 0)
        case Encapsulation.REWRITE:  # the copy's own headers follow
            return 0, b""


def _partial_checksum(header: bytes) -> int:
    """Unfolded sum of the header's words as a little-endian machine loads them (RFC 1071 §2(B): order does not matter)."""
    return sum(struct.unpack(f"={len(header) // 2}H", header))


def destination(value: Destination) -> bytes:
    """struct destination, with the outer headers ready but for each packet's own values."""
    v6 = len(value.remote) == 16
    protocol, tunnel = _tunnel(value)
    ip = _ip_header(value, protocol)
    header = value.gateway_mac + value.source_mac + (b"\x86\xdd" if v6 else b"\x08\x00") + ip + tunnel
    made = layout.DestinationValue()
    _set(made.name, digest(value.name))
    _set(made.header, struct.unpack(f"={layout.MAX_HEADER // 8}Q", header.ljust(layout.MAX_HEADER, b"\0")))
    made.state, made.ifindex, made.mtu = value.state, value.ifindex, value.mtu
    made.encapsulation = value.encapsulation
    made.header_length, made.ip_length = len(header), len(ip)
    made.checksum = 0 if v6 else _partial_checksum(ip)
    made.fixed_id = value.fixed_id or 0
    made.flags = (
        (layout.DESTINATION_TRAILER if value.trailer else 0)
        | (layout.DESTINATION_FRAGMENT if value.oversize is Oversize.FRAGMENT else 0)
        | (layout.DESTINATION_FIXED_ID if value.fixed_id is not None else 0)
        | (layout.DESTINATION_IPV6 if v6 else 0)
    )
    return bytes(made)


def tunnel_keys(value: bytes) -> frozenset[bytes]:
    """struct tunnel_key of every packet that leaves for a destination, from its struct destination."""
    made = decode(layout.DestinationValue, value)
    if made.encapsulation == Encapsulation.REWRITE:  # what it is told by is its source MAC address
        return frozenset()
    ip = bytes(made.header)[ETHERNET_LENGTH:]
    remote, protocol = (ip[24:40], ip[6]) if made.flags & layout.DESTINATION_IPV6 else (ip[16:20], ip[9])
    # A fragment's ports are unknown: it stands under port 0.
    ports = {0, int.from_bytes(ip[made.ip_length + 2 : made.ip_length + 4], "big")} if protocol == UDP else {0}
    return frozenset(_tunnel_key(remote, protocol, port) for port in ports)


def _tunnel_key(address: bytes, protocol: int, port: int) -> bytes:
    made = layout.TunnelKey(protocol=protocol, port=port)
    _set(made.address, address_words(address))
    return bytes(made)


def point(value: TapPoint, destinations: Mapping[str, int]) -> bytes:
    """struct point. `destinations` says at which index each destination is."""
    made = layout.Point(in_use=1, key=value.key, destination=destinations.get(value.destination, NOWHERE))
    made.incarnation_full = int(value.incarnation, 16)
    made.incarnation = made.incarnation_full & 0xFFFFFFFF
    made.flags = layout.POINT_EGRESS if value.name.direction is Direction.EGRESS else 0
    _set(made.name, point_digest(value.name))
    return bytes(made)


def source_key(ifindex: int, vlan: int, mac: bytes) -> bytes:
    """struct source_key."""
    made = layout.SourceKey(ifindex=ifindex, vlan=vlan)
    _set(made.mac, mac)
    return bytes(made)


def source(strip: bool, entries: tuple[int, ...]) -> bytes:
    """struct source."""
    made = layout.Source(count=len(entries), flags=layout.SOURCE_STRIP if strip else 0)
    _set(made.entries, entries)
    return bytes(made)


def quick_table(sources: Iterable[tuple[int, int, bytes, bool, tuple[int, ...]]]) -> dict[int, bytes]:
    """Buckets by index, from (ifindex, VLAN, MAC, strip, entries): sources of one entry, as many as find room."""
    buckets: dict[int, list[layout.Quick]] = {}
    for ifindex, vlan, mac, strip, entries in sources:
        if len(entries) != 1 or vlan == ANY_VLAN:
            continue
        slot, program_index = entries[0] & 0xFFFF, entries[0] >> 16
        if program_index >= MAX_SLOTS:
            continue
        place = layout.QUICK_USED | program_index << layout.QUICK_PROGRAM_SHIFT | slot | (layout.QUICK_STRIP if strip else 0)
        mac_vlan = int.from_bytes(mac, "little") | vlan << 48
        bucket = buckets.setdefault(_quick_index(mac_vlan, ifindex), [])
        if len(bucket) < QUICK_ENTRIES:
            bucket.append(layout.Quick(mac_vlan, ifindex, place))
    return {index: bytes(layout.QuickBucket((layout.Quick * QUICK_ENTRIES)(*bucket))) for index, bucket in buckets.items()}


def _quick_index(mac_vlan: int, ifindex: int) -> int:
    mixed = (mac_vlan * layout.QUICK_MULTIPLIER & WORD) ^ ifindex
    return (mixed * layout.QUICK_MULTIPLIER & WORD) * layout.QUICK_BUCKETS >> 64


def flood_key(ifindex: int, vlan: int) -> bytes:
    """struct flood_key."""
    return bytes(layout.FloodKey(ifindex=ifindex, vlan=vlan))


def flood(receivers: list[tuple[bytes, bool, int]]) -> bytes:
    """`receivers` are (MAC, strip, entry). `TellUser` when they are more than a list holds."""
    if len(receivers) > MAX_FLOOD_ENTRIES:
        raise TellUser(
            f"{len(receivers)} tapped receivers share a VLAN; at most {MAX_FLOOD_ENTRIES} can: tap fewer pods on this node"
        )
    made = layout.Flood(count=len(receivers))
    for value, (mac, strip, entry) in zip(made.entries, receivers, strict=False):
        _set(value.mac, mac)
        value.flags, value.entry = layout.SOURCE_STRIP if strip else 0, entry
    return bytes(made)


def peer_key(number: int, address: str) -> bytes:
    """struct peer_key: one address of one set."""
    parsed = ipaddress.ip_address(address)
    made = layout.PeerKey(set=number, version=parsed.version)
    _set(made.address, address_words(parsed.packed))
    return bytes(made)


def decode(kind: type[T], raw: bytes) -> T:
    """A map entry as a structure."""
    return kind.from_buffer_copy(raw)
