"""Frames byte by byte, with right checksums: what the tests put on a tap port."""

from __future__ import annotations

import socket
import struct

POD4, PEER4 = "10.10.0.11", "10.10.0.12"
POD6, PEER6 = "fd00:10::11", "fd00:10::12"


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(destination: bytes, source: bytes, kind: int, payload: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """`tags` are (TPID, TCI), outermost first."""
    return destination + source + b"".join(struct.pack(">HH", *tag) for tag in tags) + struct.pack(">H", kind) + payload


def pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    if ":" in source:
        ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
        return ends + struct.pack(">IxxxB", length, protocol)
    return socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">BBH", 0, protocol, length)


def ipv4(
    source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"", ident: int = 7
) -> bytes:
    """`fragment` is the flags and offset field."""
    length = 20 + len(options)
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | length // 4,
        0,
        length + len(payload),
        ident,
        fragment,
        64,
        protocol,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    head += options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def ipv6(source: str, destination: str, next_header: int, payload: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack(">IHBB", 6 << 28, len(payload), next_header, 64) + ends + payload


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    head = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0)
    sum_ = checksum(pseudo(source, destination, 17, 8 + len(payload)) + head + payload) or 0xFFFF
    return head[:6] + struct.pack(">H", sum_) + payload


def udp_partial(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    """As `udp`, but the checksum field holds the pseudo header's sum only: the rest is an offload's task."""
    partial = ~checksum(pseudo(source, destination, 17, 8 + len(payload))) & 0xFFFF
    return struct.pack(">HHHH", sport, dport, 8 + len(payload), partial) + payload


def tcp(source: str, destination: str, sport: int, dport: int, payload: bytes, flags: int = 0x10, seq: int = 1) -> bytes:
    head = struct.pack(">HHIIBBHHH", sport, dport, seq, 0, 5 << 4, flags, 512, 0, 0)
    sum_ = checksum(pseudo(source, destination, 6, 20 + len(payload)) + head + payload)
    return head[:16] + struct.pack(">H", sum_) + head[18:] + payload


def tcp_super(
    source: str, destination: str, sport: int, dport: int, payload: bytes, seq: int = 1, flags: int = 0x10, options: bytes = b""
) -> bytes:
    """A TCP segment whose checksum field holds the pseudo header's sum only: the rest is an offload's task."""
    length = 20 + len(options)
    partial = ~checksum(pseudo(source, destination, 6, length + len(payload))) & 0xFFFF
    return struct.pack(">HHIIBBHHH", sport, dport, seq, 0, length // 4 << 4, flags, 512, partial, 0) + options + payload


def ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    return ipv6(source, destination, protocol, payload) if ":" in source else ipv4(source, destination, protocol, payload)


def ethertype(address: str) -> int:
    return 0x86DD if ":" in address else 0x0800


def virtio(version: int, gso_size: int, headers: int, tcp: int = 20) -> bytes:
    """struct virtio_net_hdr for TCP: checksum needed from the last `tcp` bytes of the headers on, segments of `gso_size`."""
    return struct.pack("=BBHHHH", 1, 1 if version == 4 else 4, headers, gso_size, headers - tcp, 16)


def virtio_checksum(start: int, field: int) -> bytes:
    """struct virtio_net_hdr of a packet that stays whole: the checksum from `start` on belongs `field` bytes behind that."""
    return struct.pack("=BBHHHH", 1, 0, 0, 0, start, field)
