"""The C core's inner functions, called directly: what the tests of pure parts need beyond `vtap_collector.native`."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtap_collector.native import Core, CoreSettings, Direction, StreamInfo, library, packed

WINDOW = 8192
NODE_ADDRESS = "10.0.0.1"
TAI_OFFSET = 37


class Gaps(ctypes.Structure):
    _fields_ = [
        ("next", ctypes.c_uint64),
        ("base", ctypes.c_uint64),
        ("missing", ctypes.c_uint64),
        ("bits", ctypes.c_uint64 * (WINDOW // 64)),
    ]

    def arrive(self, sequence: int) -> tuple[int, int]:
        """(verdict, newly lost)"""
        lost = ctypes.c_uint64()
        verdict = library().gaps_arrive_slowly(ctypes.byref(self), ctypes.c_uint32(sequence), ctypes.byref(lost))
        return verdict, lost.value

    def settle(self, upto: int) -> int:
        function = library().gaps_settle
        function.restype = ctypes.c_uint64
        return function(ctypes.byref(self), ctypes.c_uint64(upto))

    def expect(self, upto: int) -> int:
        lost = ctypes.c_uint64()
        library().gaps_expect(ctypes.byref(self), ctypes.c_uint64(upto), ctypes.byref(lost))
        return lost.value


class WireCopy(ctypes.Structure):
    _fields_ = [
        ("frame", ctypes.c_void_p),
        ("frame_length", ctypes.c_uint32),
        ("key", ctypes.c_uint32),
        ("sequence", ctypes.c_uint32),
        ("session", ctypes.c_uint16),
        ("encapsulation", ctypes.c_uint8),
        ("has_sequence", ctypes.c_bool),
    ]


class WireTrailer(ctypes.Structure):
    _fields_ = [("tai_ns", ctypes.c_uint64), ("original_length", ctypes.c_uint32), ("flags", ctypes.c_uint16)]


class IdleCore(Core):
    """A core without threads: datagrams are handed to it, files are written by `stop`."""

    def ingest(self, source: int, address: str, datagram: bytes) -> None:
        library().ingest(ctypes.c_void_p(self._handle), source, packed(address), datagram, ctypes.c_size_t(len(datagram)))

    def write(self) -> None:
        """What the threads do as time passes: settle, close what is to be closed, write."""
        for _pass in range(2):  # what is missing is noted, then given up
            library().receive_pass(ctypes.c_void_p(self._handle))
        library().writer_drain(ctypes.c_void_p(self._handle))


@contextmanager
def idle_core(directory: Path, **settings: object) -> Iterator[IdleCore]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with IdleCore(descriptor, CoreSettings(max_streams=16, max_taps=4, max_nodes=2, **settings)) as core:  # pyright: ignore[reportArgumentType]
            core.set_node(0, [NODE_ADDRESS], TAI_OFFSET)
            core.open_tap(0, "shop", "checkout")
            yield core
    finally:
        os.close(descriptor)


def stream(key: int, *, direction: Direction = Direction.Egress, trailer: bool = True, name: str = "") -> StreamInfo:
    return StreamInfo(key, 0, 0, direction, 0xABC0000 + key, 0, trailer, name or f"shop/web-{key}/eth0 egress", f"key {key}")
