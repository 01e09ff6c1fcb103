"""An agent that a row of a benchmark may replace by one with other options."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from vtap_lab.daemons import Agent
from vtap_lab.lab import Lab


class ReplaceableAgent:
    """The lab's agent, running from the start."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._running: Agent = lab.start_agent()

    @contextlib.contextmanager
    def with_options(self, *arguments: str) -> Iterator[None]:
        """Another agent in the place of the first, inside of the context."""
        self._restart(arguments)
        try:
            yield
        finally:
            self._restart(())

    def get(self, path: str) -> Any:
        """What the one that runs now answers."""
        return self._running.get(path)

    def _restart(self, arguments: Sequence[str]) -> None:
        self._running.stop()
        self._running = self._lab.start_agent(*arguments)
