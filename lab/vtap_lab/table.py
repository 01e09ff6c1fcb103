"""A ledger drawn for people: a table that is redrawn in place on a terminal, a line a second elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

TERMS = ("seen", "excluded", "unsampled", "limited", "sent", "received", "stored", "lost", "dropped", "unaccounted")


@dataclass(frozen=True)
class Row:
    """One tap point: what it is called, and its terms in wire packets."""

    name: str
    terms: Mapping[str, int]


def rows_of(ledger: Mapping[str, Any]) -> list[Row]:
    """The rows of what ``vtap ledger -o json`` prints."""
    return [Row(_name(row), {term: _count(row[term]) for term in TERMS}) for row in ledger["rows"]]


def _name(row: Mapping[str, Any]) -> str:
    arrow = "→" if row["direction"] == "Ingress" else "←"
    return f"{arrow} {row['pod']['name']} {row['interface']}"


def _count(value: int | Mapping[str, int]) -> int:
    """A term, or the sum of one that is given by reason."""
    return value if isinstance(value, int) else sum(value.values())


def total(rows: Sequence[Row]) -> Mapping[str, int]:
    """Each term over all tap points."""
    return {term: sum(row.terms[term] for row in rows) for term in TERMS}


def lines_of(rows: Sequence[Row]) -> list[str]:
    """A heading, a line a tap point, and where there are several a line of sums."""
    shown = [*rows, Row("total", total(rows))] if len(rows) > 1 else list(rows)
    name_width = max([len(row.name) for row in shown] + [9])
    heading = f"{'tap point':{name_width}}" + "".join(f"{term:>12}" for term in TERMS)
    return [heading, *(f"{row.name:{name_width}}" + "".join(f"{row.terms[term]:>12,}" for term in TERMS) for row in shown)]


class LiveTable:
    """Draws over what it drew last when `out` is a terminal."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._drawn = 0

    def show(self, seconds: float, phase: str, rows: Sequence[Row]) -> None:
        """Draw the state `seconds` after the start."""
        if self._out.isatty():
            lines = [f"{seconds:4.0f} s  {phase}", *lines_of(rows)]
            erase = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
            self._out.write(erase + "\n".join(lines) + "\n")
            self._drawn = len(lines)
        else:
            sums = total(rows)
            self._out.write(f"{seconds:4.0f} s  {phase}: {' '.join(f'{term}={sums[term]}' for term in TERMS)}\n")
        self._out.flush()

    def leave(self) -> None:
        """Let what is drawn stand; the next drawing begins below."""
        self._drawn = 0
