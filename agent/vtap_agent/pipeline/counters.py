"""Counters of slots, summed over CPUs and over both programs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from ctypes import Structure, sizeof

from vtap_agent.pipeline import encode, layout
from vtap_agent.pipeline.kernel import Kernel
from vtap_agent.plan.dataplane import PointCounters

PICK_REASONS = {
    "lease": "dropped_lease",
    "clone": "dropped_clone",
    "notReady": "dropped_not_ready",
    "malformed": "dropped_malformed",
    "loop": "dropped_loop",
    "handover": "dropped_handover",
}
SEND_REASONS = {
    "clone": "dropped_clone",
    "oversize": "dropped_oversize",
    "noRoute": "dropped_no_route",
    "noNeighbour": "dropped_no_neighbour",
    "redirect": "dropped_redirect",
    "malformed": "dropped_malformed",
    "notReady": "dropped_not_ready",
    "notRewritable": "dropped_not_rewritable",
    "noId": "dropped_no_id",
}


RUN_GAP = 32
"""Slots not asked for that are read along rather than asked around."""


def _words(kind: type[Structure]) -> dict[str, int]:
    """Which 64-bit word of the structure each counter is."""
    return {field[0]: getattr(kind, field[0]).offset // 8 for field in kind._fields_}


_PICKED, _HANDLED = _words(layout.PickCounters), _words(layout.SendCounters)


def _summed(raw: bytes, size: int) -> tuple[int, ...]:
    """Word by word over all CPUs, whose values of `size` bytes lie one behind the other."""
    words = struct.unpack(f"={len(raw) // 8}Q", raw)
    return tuple(map(sum, zip(*(words[at : at + size // 8] for at in range(0, len(words), size // 8)), strict=True)))


def _decoded(handled_raw: bytes, shared_raw: bytes, picked_raw: bytes) -> PointCounters:
    handled, picked = _summed(handled_raw, sizeof(layout.SendCounters)), _summed(picked_raw, sizeof(layout.PickCounters))
    dropped = {reason: handled[_HANDLED[field]] for reason, field in SEND_REASONS.items()}
    for reason, field in PICK_REASONS.items():
        dropped[reason] = dropped.get(reason, 0) + picked[_PICKED[field]]
    return PointCounters(
        seen=picked[_PICKED["seen"]],
        seen_bytes=picked[_PICKED["seen_bytes"]],
        excluded=picked[_PICKED["excluded"]],
        unsampled=picked[_PICKED["unsampled"]] + handled[_HANDLED["unsampled"]],
        limited=picked[_PICKED["limited"]] + handled[_HANDLED["limited"]],
        handed=picked[_PICKED["handed"]],
        arrived=handled[_HANDLED["arrived"]],
        sent=handled[_HANDLED["sent"]],
        sent_bytes=handled[_HANDLED["sent_bytes"]],
        next_sequence=encode.decode(layout.Shared, shared_raw).sequence,
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def runs(slots: Iterable[int]) -> list[tuple[int, int]]:
    """(first, count) of stretches that hold all of `slots`, and few others. Pure."""
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and slot - sum(found[-1]) < RUN_GAP:
            found[-1] = (found[-1][0], slot - found[-1][0] + 1)
        else:
            found.append((slot, 1))
    return found


class SlotCounters:
    """Reads many slots at once, and works out anew only what has moved since the last reading."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._raw: dict[int, tuple[bytes, bytes, bytes]] = {}
        self._points: Mapping[int, PointCounters] = {}

    def read(self, slots: Iterable[int]) -> Mapping[int, PointCounters]:
        """By slot. The very same mapping as last time where nothing has moved."""
        raw = self._read(frozenset(slots))
        if raw != self._raw:
            known, self._raw = self._raw, raw
            self._points = {
                slot: self._points[slot] if known.get(slot) == values else _decoded(*values) for slot, values in raw.items()
            }
        return self._points

    def _read(self, slots: frozenset[int]) -> dict[int, tuple[bytes, bytes, bytes]]:
        """`send` is read before `pick`, so that no term of the far side is newer than what it came from."""
        maps = [self._kernel.maps[name] for name in ("handled", "slots", "picked")]
        found: dict[int, tuple[bytes, bytes, bytes]] = {}
        for first, count in runs(slots):
            handled, shared, picked = ((one.read(first, count), one.entry_size) for one in maps)
            found |= {
                slot: (_entry(*handled, slot - first), _entry(*shared, slot - first), _entry(*picked, slot - first))
                for slot in range(first, first + count)
                if slot in slots
            }
        return found


def _entry(raw: bytes, size: int, index: int) -> bytes:
    return raw[index * size : (index + 1) * size]
