"""How fast tap points run, from two readings of their counters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vtap_agent.report.ledger import Row


@dataclass(frozen=True, slots=True)
class Sample:
    """All rows at one moment, `at` in seconds of a monotonic clock."""

    at: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one tap point, a second: wire packets, and bits of the frames that the pod saw or of the outer packets sent."""

    seen_packets: float
    seen_bits: float
    sent_packets: float
    sent_bits: float

    def as_json(self) -> dict[str, float]:
        """As ``GET /v1/status`` shows it."""
        return {
            "seenPackets": round(self.seen_packets, 1),
            "seenBits": round(self.seen_bits),
            "sentPackets": round(self.sent_packets, 1),
            "sentBits": round(self.sent_bits),
        }


_STILL = Rate(0.0, 0.0, 0.0, 0.0)


def rates(before: Sample, now: Sample) -> Mapping[str, Rate]:
    """By incarnation, of the streams that both samples know and that still run."""
    seconds = now.at - before.at
    known = {row.incarnation: row for row in before.rows if not row.closed}
    if seconds <= 0:
        return {}
    return {
        row.incarnation: _rate(known[row.incarnation], row, seconds)
        for row in now.rows
        if not row.closed and row.incarnation in known
    }


def _rate(before: Row, now: Row, seconds: float) -> Rate:
    old, new = before.counters, now.counters
    if old is new:
        return _STILL
    return Rate(
        seen_packets=(new.seen - old.seen) / seconds,
        seen_bits=(new.seen_bytes - old.seen_bytes) * 8 / seconds,
        sent_packets=(new.sent - old.sent) / seconds,
        sent_bits=(new.sent_bytes - old.sent_bytes) * 8 / seconds,
    )
