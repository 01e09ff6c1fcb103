"""A ledger drawn for people: a table that is redrawn in place on a terminal, a line a second elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from vtap_api.ledger import Row, Totals, totals

_ARROWS = {"Ingress": "→", "Egress": "←"}


def terms_of(total: Totals) -> dict[str, int]:
    """What is shown, by name. What nobody can account for yet is under way while traffic runs."""
    agent, collector = total.agent, total.collector
    return {
        "seen": agent.seen,
        "excluded": agent.excluded,
        "unsampled": agent.unsampled,
        "limited": agent.limited,
        "sent": agent.sent,
        "received": collector.received,
        "stored": collector.stored,
        "lost": sum(collector.lost.values()),
        "dropped": total.dropped,
        "under way": total.unaccounted,
    }


def lines_of(rows: Sequence[Row]) -> list[str]:
    """A heading, a line a tap point, and a line of sums."""
    shown = [(_name(row), terms_of(totals([row]))) for row in rows] + [("total", terms_of(totals(rows)))]
    width = max(len(name) for name, _ in shown)
    heading = f"{'':{width}}" + "".join(f"{term:>12}" for term in shown[0][1])
    return [heading, *(f"{name:{width}}" + "".join(f"{count:>12,}" for count in terms.values()) for name, terms in shown)]


def _name(row: Row) -> str:
    return f"{_ARROWS[row.name.direction]} {row.name.pod[1]} {row.name.interface}"


class LiveTable:
    """Draws over what it drew last when `out` is a terminal."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._drawn = 0

    def show(self, seconds: float, phase: str, rows: Sequence[Row]) -> None:
        """Draw the state `seconds` after the start. While packets are on their way some are not accounted for yet."""
        if self._out.isatty():
            lines = [f"{seconds:4.0f} s  {phase}", *lines_of(rows)]
            erase = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
            self._out.write(erase + "\n".join(lines) + "\n")
            self._drawn = len(lines)
        else:
            terms = terms_of(totals(rows))
            self._out.write(f"{seconds:4.0f} s  {phase}: {', '.join(f'{name} {count}' for name, count in terms.items())}\n")
        self._out.flush()

    def leave(self) -> None:
        """Let what is drawn stand; the next drawing begins below."""
        self._drawn = 0
