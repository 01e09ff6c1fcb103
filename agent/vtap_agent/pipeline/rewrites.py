"""Which ids rewritten copies bear now, and what each stands for: for edges that are not ours."""

from __future__ import annotations

import ctypes
import ipaddress
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtap_agent.drivers import libbpf
from vtap_agent.drivers.libbpf import Map
from vtap_agent.pipeline import layout, recover_layout
from vtap_agent.pipeline.encode import ETHERNET_LENGTH
from vtap_agent.pipeline.kernel import ZERO

LOCK = 8
"""Bytes of a bucket before its entries."""


@dataclass(frozen=True, slots=True)
class RewriteId:
    """What copies with this source MAC address were. All in the usual notations."""

    id: str
    sent_to: str
    monitor: str
    destination_mac: str
    destination: str
    source_mac: str

    def to_json(self) -> dict[str, Any]:
        """One of ``GET /v1/rewrites``."""
        return {
            "id": self.id,
            "sentTo": {"mac": self.sent_to, "address": self.monitor},
            "original": {"destinationMAC": self.destination_mac, "destination": self.destination, "sourceMAC": self.source_mac},
        }


def rewrite_ids(root: Path) -> list[RewriteId]:
    """Those in use, from the pins under `root`; [] where nothing was ever sent."""
    fd = libbpf.get_pinned(root / "maps" / f"rewrite_ids_v{layout.LAYOUT_VERSION}")
    if fd is None:
        return []
    buckets = Map(fd)
    try:
        raw = buckets.values()
    finally:
        buckets.close()
    destinations = _destinations(root)
    return [
        _told(number, entry.meaning, destinations[entry.meaning.to])
        for number, entry in _entries(raw)
        if entry.meaning.to in destinations
    ]


def _entries(buckets: list[bytes]) -> Iterator[tuple[int, recover_layout.RewriteEntry]]:
    now, size = time.clock_gettime_ns(time.CLOCK_MONOTONIC), ctypes.sizeof(recover_layout.RewriteEntry)
    for index, bucket in enumerate(buckets):
        for way in range(recover_layout.REWRITE_WAYS):
            entry = recover_layout.RewriteEntry.from_buffer_copy(bucket, LOCK + way * size)
            if entry.used and now - entry.used < recover_layout.REWRITE_IDLE * 10**9:
                yield index * recover_layout.REWRITE_WAYS + way, entry


def _destinations(root: Path) -> dict[int, bytes]:
    """The first headers of each destination, by its index."""
    found: dict[int, bytes] = {}
    for path in (root / "inners").glob(f"destinations_*_v{layout.LAYOUT_VERSION}"):
        fd = libbpf.get_pinned(path)
        named = re.match(r"destinations_(\d+)_", path.name)
        if fd is None or named is None:
            continue
        inner = Map(fd)
        try:
            value = inner.lookup(ZERO)
        finally:
            inner.close()
        if value is not None:
            found[int(named[1])] = bytes(layout.DestinationValue.from_buffer_copy(value).header)
    return found


def _told(number: int, meaning: recover_layout.Meaning, header: bytes) -> RewriteId:
    ip = header[ETHERNET_LENGTH:]
    monitor = ip[24:40] if ip[0] >> 4 == 6 else ip[16:20]
    original = ipaddress.IPv6Address(bytes(meaning.address))
    return RewriteId(
        id=(header[6:10] + number.to_bytes(2, "big")).hex(":"),
        sent_to=header[:6].hex(":"),
        monitor=str(ipaddress.ip_address(monitor)),
        destination_mac=bytes(meaning.destination).hex(":"),
        destination=str(original.ipv4_mapped or original),
        source_mac=bytes(meaning.source).hex(":"),
    )
