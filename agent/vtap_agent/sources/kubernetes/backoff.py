"""How long to wait after failures, so that all agents of a cluster don't return at the same moment. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST, LAST = 0.5, 30.0


@dataclass(slots=True)
class Backoff:
    """Doubles from `first` to `last` seconds; of each, a random part from a half up. `random` gives numbers from 0 to 1."""

    random: Callable[[], float]
    first: float = FIRST
    last: float = LAST
    failures: int = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        ceiling = min(self.last, self.first * 2 ** min(self.failures, 32))
        self.failures += 1
        return ceiling * (0.5 + self.random() / 2)

    def reset(self) -> None:
        """After a success."""
        self.failures = 0
