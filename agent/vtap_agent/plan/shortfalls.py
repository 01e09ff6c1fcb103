"""What is not as wanted, and whose taps feel it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vtap_agent.plan.dataplane import Feed
from vtap_agent.plan.verdicts import PointVerdict, TapVerdict


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A difference between what is and what should be.

    It concerns the taps named in `taps` ("namespace/name"), those with a tap point fed by one of `feeds`, or with `everybody`
    every tap that is fed at all. `ports`, where not None, narrows `feeds` to tap points on these ports (UUIDs). What concerns
    nobody is garbage still to be swept.
    """

    sentence: str
    feeds: frozenset[Feed] = frozenset()
    ports: frozenset[str] | None = None
    taps: frozenset[str] = frozenset()
    everybody: bool = False

    def concerns(self, verdict: TapVerdict) -> bool:
        """Whether a tap gets something else than it should."""
        if f"{verdict.namespace}/{verdict.name}" in self.taps:
            return True
        return any(point.fed and (self.everybody or self._is_about(point)) for point in verdict.points)

    @property
    def concerns_nobody(self) -> bool:
        """Whether no tap gets anything else than it should."""
        return not (self.everybody or self.taps or self.feeds) or (not self.taps and self.ports == frozenset())

    def _is_about(self, point: PointVerdict) -> bool:
        return point.feed in self.feeds and (self.ports is None or point.port in self.ports)


def about(verdict: TapVerdict, shortfalls: Iterable[Shortfall]) -> list[str]:
    """The sentences that concern a tap."""
    return [shortfall.sentence for shortfall in shortfalls if shortfall.concerns(verdict)]
