"""Interleaved measuring: every round measures every row once, so that whatever else the machine does hits all rows alike.

A ratio is taken within a round, against that round's baseline. The A/A row repeats the baseline: the spread of its ratio is the
noise below which no other ratio means anything.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Sample = Mapping[str, float]
"""Figures of one measurement by name."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Figures:
    """Samples of one row, in the order of the rounds."""

    samples: tuple[Sample, ...]

    def values(self, figure: str) -> list[float]:
        """One figure over the rounds; rounds without it are left out."""
        return [sample[figure] for sample in self.samples if figure in sample]

    def median(self, figure: str) -> float:
        """NaN where no round has it."""
        values = self.values(figure)
        return statistics.median(values) if values else float("nan")


@dataclass(frozen=True)
class Ratio:
    """Median, lowest and highest of a figure over the baseline's of the same round."""

    median: float
    low: float
    high: float


def progress(text: str) -> None:
    """One line that is overwritten, on a terminal only; an empty text clears it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def is_possible(why_not: str | None) -> bool:
    """Whether nothing is in the way of measuring; what is goes to standard error, in a sentence."""
    if why_not:
        sys.stderr.write(f"bench: {why_not}\n")
    return not why_not


def interleave(rows: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, Figures]:
    """Measure every row in each of `rounds`, the order turning by one each round; progress goes to standard error."""
    names = list(rows)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            progress(f"  round {number + 1} of {rounds}: {name}")
            samples[name].append(rows[name]())
        if not sys.stderr.isatty():
            sys.stderr.write(f"  round {number + 1} of {rounds}\n")
    progress("")
    return {name: Figures(tuple(samples[name])) for name in names}


def differences(row: Figures, baseline: Figures, figure: str) -> list[float]:
    """By how much `row` is over `baseline`, in each round in which both have the figure."""
    pairs = zip(row.samples, baseline.samples, strict=True)
    return [one[figure] - other[figure] for one, other in pairs if figure in one and figure in other]


def ratio(row: Figures, baseline: Figures, figure: str) -> Ratio:
    """`row` over `baseline`, round by round."""
    pairs = zip(row.samples, baseline.samples, strict=True)
    ratios = [one[figure] / other[figure] for one, other in pairs if figure in one and other.get(figure)]
    if not ratios:
        return Ratio(float("nan"), float("nan"), float("nan"))
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table, the first column to the left and the others to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([title, lines[0], rule, *lines[1:], ""])


def write_json(name: str, content: Mapping[str, object]) -> Path:
    """bench/results/NAME.json, with what the figures depend on."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    about = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    file.write_text(json.dumps({"about": about, **content}, indent=1) + "\n")
    return file
