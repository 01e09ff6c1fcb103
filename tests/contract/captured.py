"""What a tap stored, read from its files without our own code and without starting a program."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.contract import checksums
from tests.contract.frames import Frame
from tests.unit.collector.copies import read_pcapng
from vtap_lab.datagrams import MAGIC, Datagram

_IF_NAME = 2
_IPV4, _VLANS = 0x0800, (0x8100, 0x88A8)
_TCP = 6
_MORE_FRAGMENTS, _OFFSET = 0x2000, 0x1FFF


@dataclass(frozen=True, slots=True)
class Stored:
    """A packet. `interface` is the tap point's name, `length` the packet's own, of which `frame` may be the beginning.

    It was copied at `time_ns`, in nanoseconds since 1970.
    """

    interface: str
    length: int
    frame: bytes
    time_ns: int

    @property
    def is_cut(self) -> bool:
        return len(self.frame) < self.length


def stored(files: Iterable[Path]) -> list[Stored]:
    """In the order of the files. Every packet that is there whole has right checksums, or this fails."""
    packets = [packet for file in files for packet in _of(file)]
    wrong = [f"{packet.interface}: {said}" for packet in packets if not packet.is_cut and (said := checksums.wrong(packet.frame))]
    assert not wrong, f"{len(wrong)} of {len(packets)} copies, first {wrong[:3]}"
    return packets


def _of(file: Path) -> Iterator[Stored]:
    capture = read_pcapng(file.read_bytes())
    names = [options[_IF_NAME].decode() for options in capture.interfaces]
    for packet in capture.packets:
        yield Stored(names[packet.interface], packet.original, packet.frame, packet.time_ns)


def datagram_in(frame: bytes) -> Datagram | None:
    """The numbered datagram that begins in a frame, however it is wrapped."""
    at = frame.find(MAGIC)
    return None if at < 0 else Datagram.parse(frame[at:])


def numbered(packets: Iterable[Stored]) -> Counter[tuple[str, Datagram]]:
    """How often each numbered datagram is there, by (interface, datagram)."""
    pairs = ((packet.interface, datagram_in(packet.frame)) for packet in packets)
    return Counter((interface, datagram) for interface, datagram in pairs if datagram is not None)


def frames(packets: Iterable[Stored]) -> Counter[tuple[str, Frame]]:
    """How often each numbered frame is there, by (interface, frame with its tag)."""
    pairs = ((packet.interface, Frame.decode(packet.frame)) for packet in packets)
    return Counter((interface, frame) for interface, frame in pairs if frame is not None)


def ethertype(frame: bytes) -> int:
    """Of the frame as the pod saw it, a tag's included."""
    return int.from_bytes(frame[12:14])


def is_tagged(frame: bytes) -> bool:
    return ethertype(frame) in _VLANS


def fragments(packets: Iterable[Stored]) -> Counter[tuple[str, int, int]]:
    """How often each IPv4 fragment is there, by (interface, identification, offset in 8 bytes)."""
    found: Counter[tuple[str, int, int]] = Counter()
    for packet in packets:
        if ethertype(packet.frame) == _IPV4:
            identification, flags = struct.unpack_from("!HH", packet.frame, 18)
            if flags & (_MORE_FRAGMENTS | _OFFSET):
                found[packet.interface, identification, flags & _OFFSET] += 1
    return found


def tcp_stream(packets: Iterable[Stored], interface: str, port: int) -> bytes:
    """The bytes that went to a TCP port over IPv4, put together by sequence number; zeros where any are missing."""
    parts = [part for packet in packets if packet.interface == interface and (part := _tcp_part(packet.frame, port))]
    first = next((sequence for sequence, flags, _ in parts if flags & 2), None)
    assert first is not None, f"{interface}: no SYN to port {port} was stored"
    stream = bytearray()
    for sequence, flags, data in parts:
        at = (sequence - first - 1) & 0xFFFFFFFF
        if data and not flags & 2:
            stream.extend(bytes(max(0, at + len(data) - len(stream))))
            stream[at : at + len(data)] = data
    return bytes(stream)


def _tcp_part(frame: bytes, port: int) -> tuple[int, int, bytes] | None:
    """(sequence number, flags, payload)."""
    if ethertype(frame) != _IPV4 or frame[23] != _TCP:
        return None
    at = 14 + (frame[14] & 15) * 4
    end = 14 + int.from_bytes(frame[16:18])
    _, destination, sequence = struct.unpack_from("!HHI", frame, at)
    return (sequence, frame[at + 13], frame[at + (frame[at + 12] >> 4) * 4 : end]) if destination == port else None
