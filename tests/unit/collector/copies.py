"""Copies as agents send them (docs/architecture.md, "The wire to our collector"), and pcapng read by other means than ours."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x76544150
TAI_OFFSET = 37


def trailer(utc_ns: int, original: int, flags: int = 0, version: int = 1, magic: int = MAGIC) -> bytes:
    return struct.pack("!QIHBBI", utc_ns + TAI_OFFSET * 10**9, original, flags, version, 0, magic)


def gre(key: int, sequence: int, frame: bytes) -> bytes:
    return struct.pack("!HHII", 0x3000, 0x6558, key, sequence & 0xFFFFFFFF) + frame


def copy(key: int, sequence: int, frame: bytes, utc_ns: int = 1_700_000_000_123_456_789, original: int | None = None) -> bytes:
    """What a UDP datagram to our collector carries."""
    return gre(key, sequence, frame) + trailer(utc_ns, len(frame) if original is None else original)


def vxlan(vni: int, frame: bytes) -> bytes:
    return struct.pack("!II", 0x08000000, vni << 8) + frame


def erspan(index: int, session: int, sequence: int, frame: bytes) -> bytes:
    return struct.pack("!HHI", 0x1000, 0x88BE, sequence) + struct.pack("!HHI", 0x1000, session, index) + frame


def numbered_frame(number: int, size: int = 64) -> bytes:
    """An Ethernet frame of an experimental EtherType that carries a number."""
    return b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x88\xb5" + number.to_bytes(8, "big") + bytes(size - 22)


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[14:22], "big")


@dataclass(frozen=True)
class Packet:
    interface: int
    time_ns: int
    original: int
    frame: bytes
    flags: int | None


@dataclass(frozen=True)
class Capture:
    """One section. Options by code; statistics by interface, the last block of each."""

    interfaces: list[dict[int, bytes]]
    packets: list[Packet]
    statistics: dict[int, dict[int, int]]


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        code, length = struct.unpack_from("=HH", data, at)
        if code == 0:
            break
        found[code] = data[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4
    return found


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        assert length % 4 == 0 and at + length <= len(data), f"block at {at} of {len(data)} claims {length} bytes"
        assert struct.unpack_from("=I", data, at + length - 4)[0] == length
        yield kind, data[at + 8 : at + length - 4]
        at += length


def read_pcapng(data: bytes) -> Capture:
    """Strict: every block must be whole, every interface described before it is used."""
    capture = Capture([], [], {})
    for number, (kind, body) in enumerate(_blocks(data)):
        assert (kind == 0x0A0D0D0A) == (number == 0), "one section header, at the start"
        if kind == 1:
            capture.interfaces.append(_options(body[8:]))
        elif kind == 5:
            (interface,) = struct.unpack_from("=I", body)
            assert interface < len(capture.interfaces)
            capture.statistics[interface] = {
                code: struct.unpack("=Q", value)[0] for code, value in _options(body[12:]).items() if code >= 4
            }
        elif kind == 6:
            interface, high, low, captured, original = struct.unpack_from("=IIIII", body)
            assert interface < len(capture.interfaces)
            options = _options(body[20 + (captured + 3) // 4 * 4 :])
            flags = struct.unpack("=I", options[2])[0] if 2 in options else None
            capture.packets.append(Packet(interface, high << 32 | low, original, body[20 : 20 + captured], flags))
    return capture


def read_by_wireshark(file: Path) -> list[tuple[int, int, bytes]]:
    """(time in ns, original length, bytes) of each packet, as Wireshark's own tools convert the file."""
    converted = subprocess.run(["editcap", "-F", "nsecpcap", str(file), "-"], capture_output=True, check=True).stdout
    found: list[tuple[int, int, bytes]] = []
    at = 24
    while at < len(converted):
        seconds, nanoseconds, captured, original = struct.unpack_from("=IIII", converted, at)
        found.append((seconds * 10**9 + nanoseconds, original, converted[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return found
