"""Whether a packet's checksums are right, by the standards alone: neither our own code nor the kernel's is asked."""

from __future__ import annotations

_IPV4, _IPV6, _VLANS = 0x0800, 0x86DD, (0x8100, 0x88A8)
_ETHERNET = 14
_MORE_FRAGMENTS, _OFFSET = 0x2000, 0x1FFF
_ICMP, _IGMP, _TCP, _UDP, _ICMPV6 = 1, 2, 6, 17, 58
_HOP_BY_HOP, _DESTINATION = 0, 60
_NAMES = {_ICMP: "ICMP", _IGMP: "IGMP", _TCP: "TCP", _UDP: "UDP", _ICMPV6: "ICMPv6"}
_WITHOUT_ADDRESSES = (_ICMP, _IGMP)


def wrong(frame: bytes) -> str:
    """What is wrong with the checksums of an Ethernet frame, tagged or not; empty where nothing is, or where it has none.

    IPv4's header (RFC 791), and above IPv4 or IPv6 (RFC 8200) those of TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792), IGMP
    (RFC 3376) and ICMPv6 (RFC 4443). A fragment has a part of what its checksum covers: of it only IPv4's header is looked at.
    """
    at = 12
    while int.from_bytes(frame[at : at + 2]) in _VLANS:
        at += 4
    kind, packet = int.from_bytes(frame[at : at + 2]), frame[at + 2 :]
    if kind == _IPV4:
        return _wrong_ipv4(packet)
    return _wrong_ipv6(packet) if kind == _IPV6 else ""


def _wrong_ipv4(packet: bytes) -> str:
    header, length = (packet[0] & 15) * 4, int.from_bytes(packet[2:4])
    if length > len(packet):
        return f"IPv4 of {length} bytes, of which {len(packet)} are there"
    if not _sums_up(packet[:header]):
        return f"IPv4 header {packet[:header].hex()}"
    if int.from_bytes(packet[6:8]) & (_MORE_FRAGMENTS | _OFFSET):
        return ""
    return _wrong_payload(packet[9], packet[12:20], packet[header:length], may_lack=True)


def _wrong_ipv6(packet: bytes) -> str:
    payload = packet[40:][: int.from_bytes(packet[4:6])]
    if len(payload) < int.from_bytes(packet[4:6]):
        return f"IPv6 of {int.from_bytes(packet[4:6])} bytes, of which {len(payload)} are there"
    protocol = packet[6]
    while protocol in (_HOP_BY_HOP, _DESTINATION):
        protocol, payload = payload[0], payload[8 + payload[1] * 8 :]
    return _wrong_payload(protocol, packet[8:40], payload, may_lack=False)


def _wrong_payload(protocol: int, addresses: bytes, payload: bytes, *, may_lack: bool) -> str:
    """`may_lack` where UDP may have no checksum, which 0 says."""
    if protocol not in _NAMES:
        return ""
    if protocol == _UDP and not any(payload[6:8]):
        return "" if may_lack else "UDP over IPv6 without a checksum"
    pseudo = b"" if protocol in _WITHOUT_ADDRESSES else addresses + len(payload).to_bytes(4) + protocol.to_bytes(4)
    return "" if _sums_up(pseudo + payload) else f"{_NAMES[protocol]} checksum of {payload[:20].hex()}, {len(payload)} bytes"


def _sums_up(data: bytes) -> bool:
    """Whether all 16-bit words, the checksum among them, add up to all ones (RFC 1071): to 0 modulo 0xFFFF."""
    return int.from_bytes(data + bytes(len(data) % 2)) % 0xFFFF == 0
