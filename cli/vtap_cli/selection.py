"""The first N packets of each interface in each T seconds, of what tshark's display filter let pass.

The collector selects like this by itself where a capture filter says which packets count; a display filter is known to tshark
alone, so that its output has to be selected from: decoded lines, JSON or pcapng.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

from vtap_cli.errors import CliError

MARKS = (("Interface", "%Cus:frame.interface_id:0:R"), ("Epoch", "%Cus:frame.time_epoch:0:R"))
"""Columns that decoded lines have to begin with; `lines` takes them off."""

_LINE = re.compile(rb"\s*(\d+)\s+(\d+)(?:\.(\d{1,9}))?\s(.*)", re.DOTALL)
_JSON_INTERFACE = re.compile(rb'"frame\.interface_id": "(\d+)"')
_JSON_TIME = re.compile(rb'"frame\.time_epoch": "(\d+)(?:\.(\d{1,9}))?')
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_TIME_RESOLUTION = 9
_OTHER_VERSION = "tshark's output is not understood; is it of a version that vtap does not know?"


@dataclass(slots=True)
class Selection:
    """`count` packets of each interface in each `every_ns` by capture time, or `count` in all where that is 0.

    An interface's first packet begins its first window, as in the collector.
    """

    count: int
    every_ns: int
    _taken: int = 0
    _windows: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    def admits(self, interface: int, time_ns: int) -> bool:
        """Whether this packet is one of those wanted; to be asked once for each, in order."""
        if not self.every_ns:
            self._taken += 1
            return self._taken <= self.count
        began, taken = self._windows.get(interface, (time_ns, 0))
        if time_ns < began:
            began, taken = time_ns, 0
        elif time_ns - began >= self.every_ns:
            began, taken = time_ns - (time_ns - began) % self.every_ns, 0
        self._windows[interface] = (began, taken + 1)
        return taken < self.count

    @property
    def is_complete(self) -> bool:
        """No further packet can be one of those wanted."""
        return not self.every_ns and self._taken >= self.count


Form = Callable[[IO[bytes], Selection], Iterator[bytes]]


def lines(stream: IO[bytes], selection: Selection) -> Iterator[bytes]:
    """Decoded lines. Raises CliError for one without the marks."""
    while not selection.is_complete and (line := stream.readline()):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CliError(_OTHER_VERSION)
        if selection.admits(int(match[1]), _nanoseconds(match[2], match[3])):
            yield match[4]


def json_array(stream: IO[bytes], selection: Selection) -> Iterator[bytes]:
    """An array of packets. Raises CliError for one without interface and time."""
    separator = b"[\n"
    while not selection.is_complete and (packet := _json_object(stream)):
        interface, time = _JSON_INTERFACE.search(packet), _JSON_TIME.search(packet)
        if interface is None or time is None:
            raise CliError(_OTHER_VERSION)
        if selection.admits(int(interface[1]), _nanoseconds(time[1], time[2])):
            yield separator + packet
            separator = b"\n,\n"
    yield b"[\n]\n" if separator == b"[\n" else b"\n]\n"


def _json_object(stream: IO[bytes]) -> bytes:
    """The next packet, found by its indentation; empty at the end."""
    found: list[bytes] = []
    while line := stream.readline():
        bare = line.rstrip(b"\r\n,")
        if bare == b"  {" or found:
            found.append(line)
        if bare == b"  }":
            return b"".join(found).rstrip(b"\r\n,")
    return b""


def pcapng(stream: IO[bytes], selection: Selection) -> Iterator[bytes]:
    """Whole blocks; those that are no packets pass. Raises CliError for what is no pcapng."""
    order, units = "<", dict[int, int]()
    while not selection.is_complete and len(head := stream.read(8)) == 8:
        if head[:4] == b"\x0a\x0d\x0d\x0a":
            magic = stream.read(4)
            order, units, head = "<" if magic == b"\x4d\x3c\x2b\x1a" else ">", {}, head + magic
        kind, length = struct.unpack_from(f"{order}II", head)
        if length < 12 or length % 4:
            raise CliError(_OTHER_VERSION)
        block = head + stream.read(length - len(head))
        if len(block) < length:
            return
        if kind == _INTERFACE:
            units[len(units)] = _resolution(block[16:-4], order)
        if kind != _PACKET or selection.admits(*_packet_time(block, order, units)):
            yield block


def _packet_time(block: bytes, order: str, units: dict[int, int]) -> tuple[int, int]:
    interface, high, low = struct.unpack_from(f"{order}III", block, 8)
    return interface, (high << 32 | low) * 10**9 // units.get(interface, 10**6)


def _resolution(options: bytes, order: str) -> int:
    """Units a second, by if_tsresol."""
    at = 0
    while at + 4 <= len(options):
        code, length = struct.unpack_from(f"{order}HH", options, at)
        if code == _TIME_RESOLUTION:
            value = options[at + 4]
            return 1 << (value & 0x7F) if value & 0x80 else 10**value
        at += 4 + length + -length % 4
    return 10**6


def _nanoseconds(seconds: bytes, fraction: bytes | None) -> int:
    return int(seconds) * 10**9 + int((fraction or b"").ljust(9, b"0"))
