"""How threads wake the loop: "something changed", and calls that must run on the loop's own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vtap_agent.errors import Retry

T = TypeVar("T")
CALL_TIMEOUT = 5.0


class Mailbox:
    """Changes are coalesced: however many arrive during a pass, one pass follows."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._changed = False
        self._stopping = False
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []

    def changed(self, *_reason: object) -> None:
        """Something that planning reads may be different now."""
        with self._condition:
            self._changed = True
            self._condition.notify()

    def stop(self) -> None:
        """End the loop after the present pass."""
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the loop's thread and return what it returns. Raises Retry where the loop is busy too long."""
        future: Future[T] = Future()
        with self._condition:
            self._calls.append((function, future))
            self._condition.notify()
        try:
            return future.result(CALL_TIMEOUT)
        except TimeoutError as error:
            if future.done():
                raise
            future.cancel()
            raise Retry("the agent is busy; ask again") from error

    def wait(self, until: float) -> tuple[bool, bool]:
        """Serve calls until something changed, it is time to stop, or `until` (monotonic). Returns (changed, stopping).

        However many calls come, a change or the end of the time is not held up by more than one round of them.
        """
        while True:
            with self._condition:
                if not (self._changed or self._stopping or self._calls):
                    self._condition.wait(max(0.0, until - time.monotonic()))
                calls, self._calls = self._calls, []
                changed, stopping = self._changed, self._stopping
                self._changed = False
            for function, future in calls:
                _serve(function, future)
            if changed or stopping or time.monotonic() >= until:
                return changed, stopping


def _serve(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # noqa: BLE001  the caller's thread raises it again
        future.set_exception(error)
