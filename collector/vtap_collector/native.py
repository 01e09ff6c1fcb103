"""The C core as seen from Python: structures of src/vtap_collector.h, and one class over its functions.

Nothing here runs per packet. All calls but `stop`, `live_close`, `replay` and `scan` return within microseconds; those four
block and belong in a thread.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, Self

from vtap_collector.errors import CollectorError, Refused

ABI = 3
NO_TAP = 0xFFFFFFFF
MAX_ADDRESSES = 16
_ERROR_SIZE = 1024
_LIBRARY = Path(__file__).with_name("libvtapcollector.so")


class Source(IntEnum):
    """What a socket delivers."""

    GRE_UDP = 0
    VXLAN = 1
    GRE_RAW4 = 2
    GRE_RAW6 = 3


class Sink(IntEnum):
    """Where copies end: in files, or only in counts."""

    FILES = 0
    COUNT = 1


class Direction(IntEnum):
    """As epb_flags has it, from the pod's interface."""

    Ingress = 1
    Egress = 2


class _Config(ctypes.Structure):
    _fields_ = [
        ("directory", c_int32),
        ("sink", c_uint32),
        ("max_streams", c_uint32),
        ("max_taps", c_uint32),
        ("max_nodes", c_uint32),
        ("chunk_bytes", c_uint32),
        ("buffer_bytes", c_uint64),
        ("flush_ns", c_uint64),
        ("grace_ns", c_uint64),
        ("statistics_ns", c_uint64),
        ("rotate_bytes", c_uint64),
        ("rotate_ns", c_uint64),
        ("rotate_packets", c_uint64),
        ("rotate_interfaces", c_uint64),
        ("hardware", c_char_p),
        ("os", c_char_p),
        ("application", c_char_p),
    ]


class _StreamInfo(ctypes.Structure):
    _fields_ = [
        ("key", c_uint32),
        ("node", c_uint32),
        ("tap", c_uint32),
        ("direction", c_uint32),
        ("incarnation", c_uint64),
        ("snap_length", c_uint32),
        ("trailer", c_uint32),
        ("name", c_char_p),
        ("description", c_char_p),
    ]


class _Counts(ctypes.Structure):
    """A structure of nothing but 64-bit counts."""

    def values(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name, *_type in self._fields_}


class _StreamCounts(_Counts):
    _fields_ = [
        (name, c_uint64)
        for name in (
            "received", "received_bytes", "lost_network", "lost_socket", "stored", "dropped_disk", "dropped_slow",
            "dropped_crash", "duplicate", "late", "in_flight", "next_sequence", "closed",
        )
    ]  # fmt: skip


class _CoreCounts(_Counts):
    _fields_ = [
        (name, c_uint64)
        for name in (
            "datagrams", "unannounced_key", "unannounced_address", "malformed", "socket_overflow", "socket_unexplained",
            "receive_errors", "receive_batches", "write_errors", "last_write_error", "chunks_used", "chunks_allocated",
            "files_opened", "captured", "wakeups", "ring_outages", "written_bytes", "rings_down",
        )
    ]  # fmt: skip


class _Select(ctypes.Structure):
    _fields_ = [("filter", c_char_p), ("every_ns", c_uint64), ("count", c_uint64)]


class _ConsumerCounts(_Counts):
    _fields_ = [(name, c_uint64) for name in ("offered", "selected", "dropped", "bytes", "finished")]


class _FileSummary(_Counts):
    _fields_ = [(name, c_uint64) for name in ("packets", "first_ns", "last_ns", "whole_bytes")]


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """Wire packets of one stream, or summed over several. `received = stored + Σ dropped` at rest."""

    received: int = 0
    received_bytes: int = 0
    lost_network: int = 0
    lost_socket: int = 0
    stored: int = 0
    dropped_disk: int = 0
    dropped_slow: int = 0
    dropped_crash: int = 0
    """Received, and still in the buffers of a collector that was killed."""
    duplicate: int = 0
    late: int = 0
    in_flight: int = 0
    next_sequence: int = 0
    closed: int = 0
    lost_before: int = 0
    """Sent before this collector knew the stream, and so unknown to it. Not the core's: to that they are lost in the network."""

    def __add__(self, other: StreamCounts) -> StreamCounts:
        return StreamCounts(*(getattr(self, name) + getattr(other, name) for name in StreamCounts.__slots__))


@dataclass(frozen=True, slots=True)
class CoreCounts:
    """What no stream can be charged with, and the core's own state. `last_write_error` is an errno, 0 since the last success."""

    datagrams: int
    unannounced_key: int
    unannounced_address: int
    malformed: int
    socket_overflow: int
    socket_unexplained: int
    receive_errors: int
    receive_batches: int
    write_errors: int
    last_write_error: int
    chunks_used: int
    chunks_allocated: int
    files_opened: int
    captured: int
    """Of the datagrams, those that came through a ring."""
    wakeups: int
    """Of the receive thread, out of waiting for datagrams."""
    ring_outages: int
    written_bytes: int
    """To capture files."""
    rings_down: int
    """Bit 0: the interface of the ring added first is down or gone."""


@dataclass(frozen=True, slots=True)
class ConsumerCounts:
    """Packets that reached a consumer, that it selected, and that its full queue refused."""

    offered: int
    selected: int
    dropped: int
    bytes: int
    finished: int


@dataclass(frozen=True, slots=True)
class FileSummary:
    """Times in nanoseconds since the epoch, 0 without packets; `whole_bytes` ends with the last whole block."""

    packets: int
    first_ns: int
    last_ns: int
    whole_bytes: int


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Sizes in bytes, times in seconds; a rotation limit of 0 is none."""

    sink: Sink = Sink.FILES
    max_streams: int = 8192
    max_taps: int = 1024
    max_nodes: int = 1024
    chunk_bytes: int = 256 << 10
    buffer_bytes: int = 128 << 20
    flush: float = 0.02
    grace: float = 1.0
    statistics: float = 10.0
    rotate_bytes: int = 256 << 20
    rotate_seconds: float = 0
    rotate_packets: int = 0
    rotate_interfaces: int = 1024
    """A file describes at most so many, or twice the tap's open streams should that be more."""
    hardware: str = ""
    os: str = ""
    application: str = "vtap-collector"


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What the core has to know of an announced stream. `name` and `description` go into its Interface Description Block."""

    key: int
    node: int
    tap: int
    direction: Direction
    incarnation: int
    snap_length: int
    trailer: bool
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a consumer wants: a libpcap filter, and `count` packets of each stream every `every` seconds (0: in all)."""

    filter: str = ""
    every: float = 0
    count: int = 0

    def _native(self) -> _Select:
        return _Select(self.filter.encode(), round(self.every * 1e9), self.count)


_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "vtc_abi": (c_uint32, []),
    "vtc_open": (c_void_p, [ctypes.POINTER(_Config), c_char_p, c_size_t]),
    "vtc_add_socket": (c_int, [c_void_p, c_uint32, c_int, c_uint32, c_char_p, c_size_t]),
    "vtc_add_ring": (c_int, [c_void_p, c_int, c_uint32, c_uint32, c_char_p, c_uint32, c_char_p, c_size_t]),
    "vtc_divert": (c_int, [c_int, c_int, c_uint16, c_char_p, c_size_t]),
    "vtc_start": (c_int, [c_void_p, c_char_p, c_size_t]),
    "vtc_stop": (None, [c_void_p]),
    "vtc_free": (None, [c_void_p]),
    "vtc_node_set": (c_int, [c_void_p, c_uint32, c_char_p, c_uint32, c_int64]),
    "vtc_tap_open": (c_int, [c_void_p, c_uint32, c_char_p, c_char_p]),
    "vtc_tap_release": (c_int, [c_void_p, c_uint32]),
    "vtc_stream_open": (c_int, [c_void_p, c_uint32, ctypes.POINTER(_StreamInfo), c_char_p, c_size_t]),
    "vtc_stream_close": (c_int, [c_void_p, c_uint32]),
    "vtc_stream_release": (c_int, [c_void_p, c_uint32]),
    "vtc_stream_totals": (c_int, [c_void_p, c_uint32, c_uint64, c_uint32]),
    "vtc_stream_counts": (c_int, [c_void_p, c_uint32, ctypes.POINTER(_StreamCounts)]),
    "vtc_counts": (None, [c_void_p, ctypes.POINTER(_CoreCounts)]),
    "vtc_tap_file": (c_int, [c_void_p, c_uint32, c_char_p, c_size_t]),
    "vtc_allow_bytes": (None, [c_void_p, c_uint64, c_int]),
    "vtc_close_deleted": (None, [c_void_p]),
    "vtc_live_open": (c_int, [c_void_p, c_uint32, ctypes.POINTER(_Select), c_int, c_char_p, c_size_t]),
    "vtc_live_counts": (c_int, [c_void_p, c_int, ctypes.POINTER(_ConsumerCounts)]),
    "vtc_live_close": (None, [c_void_p, c_int]),
    "vtc_check_filter": (c_int, [c_char_p, c_char_p, c_size_t]),
    "vtc_replay": (
        c_int,
        [
            ctypes.POINTER(c_int),
            c_size_t,
            ctypes.POINTER(_Select),
            c_int,
            ctypes.POINTER(_ConsumerCounts),
            c_char_p,
            c_size_t,
        ],
    ),
    "vtc_scan": (c_int, [c_int, ctypes.POINTER(_FileSummary)]),
}


@cache
def library() -> ctypes.CDLL:
    """The loaded core. Raises CollectorError where it has not been built or is another version's."""
    if not _LIBRARY.exists():
        raise CollectorError(f"{_LIBRARY.name} is not built; run `python -m vtap_collector.build`")
    try:
        loaded = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        raise CollectorError(f"{_LIBRARY.name} does not load ({error}); is libpcap installed?") from None
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    if loaded.vtc_abi() != ABI:
        raise CollectorError(f"{_LIBRARY.name} is another version's; run `python -m vtap_collector.build`")
    return loaded


def check_filter(text: str) -> None:
    """Raises Refused with libpcap's own message where `text` is no capture filter for Ethernet."""
    error = ctypes.create_string_buffer(_ERROR_SIZE)
    if text and library().vtc_check_filter(text.encode(), error, _ERROR_SIZE) < 0:
        raise Refused(f"filter: {_text(error)}")


def replay(files: Sequence[int], selection: Selection, out: int) -> ConsumerCounts:
    """Write what `selection` lets pass of the pcapng files (descriptors) into the stream socket `out`, and close that."""
    descriptors = (c_int * len(files))(*files)
    counts, error = _ConsumerCounts(), ctypes.create_string_buffer(_ERROR_SIZE)
    select = selection._native()
    status = library().vtc_replay(descriptors, len(files), ctypes.byref(select), out, ctypes.byref(counts), error, _ERROR_SIZE)
    if status < 0:
        raise Refused(f"filter: {_text(error)}")
    return ConsumerCounts(**counts.values())


def divert(first: int, second: int, port: int) -> None:
    """Of two UDP sockets of one SO_REUSEPORT group, let the second swallow what rings take. Raises CollectorError."""
    error = ctypes.create_string_buffer(_ERROR_SIZE)
    if library().vtc_divert(first, second, port, error, _ERROR_SIZE) < 0:
        raise CollectorError(_text(error))


def scan(file: int) -> FileSummary:
    """Sum up an open pcapng file."""
    summary = _FileSummary()
    library().vtc_scan(file, ctypes.byref(summary))
    return FileSummary(**summary.values())


def _text(buffer: ctypes.Array[ctypes.c_char]) -> str:
    return buffer.value.decode(errors="replace").strip()


def packed(address: str) -> bytes:
    """16 bytes of an IP address, IPv4 mapped into IPv6."""
    parsed = ipaddress.ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed


class Core:
    """One collector's core. Slots, node and tap numbers are the caller's."""

    def __init__(self, directory: int, settings: CoreSettings) -> None:
        """`directory` is a descriptor of the collector's directory, open as long as the core is. Raises CollectorError."""
        self._library = library()
        self._error = ctypes.create_string_buffer(_ERROR_SIZE)
        config = _Config(
            directory, settings.sink, settings.max_streams, settings.max_taps, settings.max_nodes, settings.chunk_bytes,
            settings.buffer_bytes, _ns(settings.flush), _ns(settings.grace), _ns(settings.statistics), settings.rotate_bytes,
            _ns(settings.rotate_seconds), settings.rotate_packets, settings.rotate_interfaces,
            settings.hardware.encode(), settings.os.encode(), settings.application.encode(),
        )  # fmt: skip
        self.settings = settings
        self.rings: list[str] = []
        """Interfaces, in the order of the bits of `CoreCounts.rings_down`."""
        self._handle = self._library.vtc_open(ctypes.byref(config), self._error, _ERROR_SIZE)
        if not self._handle:
            raise CollectorError(_text(self._error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_reason: object) -> None:
        self.stop()
        self.free()

    def _check(self, status: int) -> int:
        if status < 0:
            raise CollectorError(_text(self._error))
        return status

    def add_socket(self, source: Source, descriptor: int, receive_buffer: int) -> None:
        """The core takes the bound, non-blocking socket over."""
        self._check(self._library.vtc_add_socket(self._handle, source, descriptor, receive_buffer, self._error, _ERROR_SIZE))

    def add_ring(self, descriptor: int, interface: int, port: int, only: str, size: int) -> None:
        """Capture on an interface (its index) what comes for `port` and matches `only`, a libpcap expression; empty is all.

        The core takes the unbound packet socket over. Raises CollectorError, and then all is received as without the ring.
        """
        status = self._library.vtc_add_ring(
            self._handle, descriptor, interface, port, only.encode(), size, self._error, _ERROR_SIZE
        )
        self._check(status)
        self.rings.append(socket.if_indextoname(interface))

    def start(self) -> None:
        self._check(self._library.vtc_start(self._handle, self._error, _ERROR_SIZE))

    def stop(self) -> None:
        """Drain the sockets, write everything, close the files with their last statistics. Counts stay readable."""
        if self._handle:
            self._library.vtc_stop(self._handle)

    def free(self) -> None:
        """Nothing else may be called afterwards."""
        if self._handle:
            self._library.vtc_free(self._handle)
            self._handle = None

    def set_node(self, node: int, addresses: Sequence[str], tai_offset: int) -> None:
        """At most MAX_ADDRESSES addresses."""
        if self._library.vtc_node_set(self._handle, node, b"".join(map(packed, addresses)), len(addresses), tai_offset) < 0:
            raise CollectorError(f"node {node}: out of range")

    def open_tap(self, tap: int, namespace: str, name: str) -> None:
        if self._library.vtc_tap_open(self._handle, tap, namespace.encode(), name.encode()) < 0:
            raise CollectorError(f"tap {tap}: out of range")

    def release_tap(self, tap: int) -> bool:
        """False while the tap has streams, consumers or an open file."""
        return self._library.vtc_tap_release(self._handle, tap) == 0

    def open_stream(self, slot: int, info: StreamInfo) -> bool:
        """True where the counts of the same incarnation are taken up again."""
        native = _StreamInfo(
            info.key, info.node, info.tap, info.direction, info.incarnation, info.snap_length, info.trailer,
            info.name.encode(), info.description.encode(),
        )  # fmt: skip
        return self._check(self._library.vtc_stream_open(self._handle, slot, ctypes.byref(native), self._error, _ERROR_SIZE)) == 1

    def close_stream(self, slot: int) -> None:
        """No more copies are sent; the stream closes after the grace time."""
        self._library.vtc_stream_close(self._handle, slot)

    def release_stream(self, slot: int) -> bool:
        """Forget a closed stream; False while copies of it are still to be written."""
        return self._library.vtc_stream_release(self._handle, slot) == 0

    def totals(self, slot: int, sent: int, next_sequence: int) -> None:
        """What the agent says has left; sequence numbers are modulo 2**32."""
        self._library.vtc_stream_totals(self._handle, slot, sent, next_sequence & 0xFFFFFFFF)

    def stream_counts(self, slot: int) -> StreamCounts:
        counts = _StreamCounts()
        self._library.vtc_stream_counts(self._handle, slot, ctypes.byref(counts))
        return StreamCounts(**counts.values())

    def counts(self) -> CoreCounts:
        counts = _CoreCounts()
        self._library.vtc_counts(self._handle, ctypes.byref(counts))
        return CoreCounts(**counts.values())

    def tap_file(self, tap: int) -> str:
        """The name of the file being written, empty where there is none."""
        name = ctypes.create_string_buffer(256)
        self._library.vtc_tap_file(self._handle, tap, name, len(name))
        return name.value.decode()

    def allow_bytes(self, until: int, wake: int) -> None:
        """Let files grow until `written_bytes` is `until`, or a chunk more. `wake`, an eventfd, is signalled when they have:
        after a second without more, copies are dropped as on a full disk."""
        self._library.vtc_allow_bytes(self._handle, until, wake)

    def close_deleted(self) -> None:
        """Have the writer close files that were deleted under it. Blocks until it has, a second at most."""
        self._library.vtc_close_deleted(self._handle)

    def open_live(self, tap: int, selection: Selection, descriptor: int) -> int:
        """Stream pcapng into the stream socket `descriptor`, which the core takes over. Returns the consumer's number."""
        select = selection._native()
        opened = self._library.vtc_live_open(self._handle, tap, ctypes.byref(select), descriptor, self._error, _ERROR_SIZE)
        return self._check(opened)

    def live_counts(self, consumer: int) -> ConsumerCounts | None:
        counts = _ConsumerCounts()
        if self._library.vtc_live_counts(self._handle, consumer, ctypes.byref(counts)) < 0:
            return None
        return ConsumerCounts(**counts.values())

    def close_live(self, consumer: int) -> None:
        self._library.vtc_live_close(self._handle, consumer)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
