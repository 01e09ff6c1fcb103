"""Counters of one slot, summed over CPUs and over both programs."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure

from vtap_agent.pipeline import encode, layout
from vtap_agent.pipeline.kernel import Kernel, word
from vtap_agent.plan.dataplane import PointCounters

PICK_REASONS = {
    "lease": "dropped_lease",
    "clone": "dropped_clone",
    "notReady": "dropped_not_ready",
    "malformed": "dropped_malformed",
    "loop": "dropped_loop",
}
SEND_REASONS = {
    "clone": "dropped_clone",
    "oversize": "dropped_oversize",
    "noRoute": "dropped_no_route",
    "noNeighbour": "dropped_no_neighbour",
    "redirect": "dropped_redirect",
    "malformed": "dropped_malformed",
    "notReady": "dropped_not_ready",
}


def _total(values: Sequence[Structure], field: str) -> int:
    return sum(getattr(value, field) for value in values)


def point_counters(kernel: Kernel, slot: int) -> PointCounters:
    """`send` is read before `pick`, so that no term of the far side is newer than what it came from."""
    handled = [encode.decode(layout.SendCounters, raw) for raw in kernel.per_cpu("handled", word(slot))]
    shared = encode.decode(layout.Shared, kernel.maps["slots"].lookup(word(slot)) or b"")
    picked = [encode.decode(layout.PickCounters, raw) for raw in kernel.per_cpu("picked", word(slot))]
    dropped = {reason: _total(handled, field) for reason, field in SEND_REASONS.items()}
    for reason, field in PICK_REASONS.items():
        dropped[reason] = dropped.get(reason, 0) + _total(picked, field)
    return PointCounters(
        seen=_total(picked, "seen"),
        seen_bytes=_total(picked, "seen_bytes"),
        excluded=_total(picked, "excluded"),
        unsampled=_total(picked, "unsampled") + _total(handled, "unsampled"),
        limited=_total(picked, "limited") + _total(handled, "limited"),
        handed=_total(picked, "handed"),
        arrived=_total(handled, "arrived"),
        sent=_total(handled, "sent"),
        sent_bytes=_total(handled, "sent_bytes"),
        next_sequence=shared.sequence,
        dropped={reason: count for reason, count in dropped.items() if count},
    )
