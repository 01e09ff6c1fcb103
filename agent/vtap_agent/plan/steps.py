"""Steps that turn what is into what should be, and the one order in which they run.

A pass collects the steps of every backend and of the pipeline, sorts them by phase, and applies them. Additions come before the
copies that feed them, removals after the copies that fed them have gone, so that no copy ever meets a half-made data plane.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol, TypeVar


class Phase(IntEnum):
    """When in a pass a step runs."""

    PREPARE = 0
    """Peer sets, programs, destinations, points: written to maps that nothing reads yet, or swapped whole."""
    TAP_PORT = 1
    """Devices that carry copies are made and silenced, not yet part of a bridge."""
    ATTACH = 2
    """eBPF programs on those devices."""
    SELECT = 3
    """Sources that gain tap points."""
    MIRROR = 4
    """One transaction a backend: ports, mirror rows, selections; flows and groups. Both growing and shrinking."""
    DESELECT = 5
    """Sources that lose tap points or go."""
    RETIRE = 6
    """Points, programs, destinations and peer sets that nothing names any more; detached programs; devices."""


class Step(Protocol):
    """One change. `str()` is a sentence for the log. Concrete steps are frozen dataclasses of their backend or the pipeline."""

    @property
    def phase(self) -> Phase: ...


S = TypeVar("S", bound=Step)


def ordered(steps: Iterable[S]) -> list[S]:
    """Stable order by phase."""
    return sorted(steps, key=lambda step: step.phase)
