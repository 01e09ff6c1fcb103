"""Queues of keys that have to be looked at. A key that is marked again while it is handled is handled again afterwards.

Handling brings the cluster to what is wanted by what is known at that time, so that it does not matter which event marked a key,
nor how often.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Generic, TypeVar

from vtap_operator import metrics
from vtap_operator.errors import ApiError

log = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 60.0

Key = TypeVar("Key", bound=Hashable)


class Queue(Generic[Key]):
    """Keys in the order of their marking, each at most once."""

    def __init__(self, name: str, handle: Callable[[Key], Awaitable[None]], workers: int = 1) -> None:
        self.name = name
        self._handle = handle
        self._workers = workers
        self._waiting: dict[Key, None] = {}
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._something = asyncio.Event()
        self._depth = metrics.QUEUE_DEPTH.labels(name)
        self._seconds = metrics.HANDLER_SECONDS.labels(name)
        self._errors = metrics.ERRORS.labels(name)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._busy)

    @property
    def idle(self) -> bool:
        """Whether nothing waits, is handled or is to be tried again."""
        return not self._waiting and not self._busy and not self._timers

    def mark(self, *keys: Key) -> None:
        """They have to be looked at."""
        self.mark_all(keys)

    def mark_all(self, keys: Iterable[Key]) -> None:
        """They have to be looked at."""
        for key in keys:
            if key in self._busy:
                self._again.add(key)
            else:
                self._waiting[key] = None
                if (timer := self._timers.pop(key, None)) is not None:
                    timer.cancel()
        if self._waiting:
            self._something.set()
        self._depth.set(len(self._waiting))

    def offer(self, keys: Iterable[Key]) -> None:
        """They have to be looked at, but for those that failed: these are tried again when it is their time."""
        self.mark_all([key for key in keys if key not in self._timers])

    def forget(self, key: Key) -> None:
        """Its failures; what waits is handled all the same."""
        self._failures.pop(key, None)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._something.clear()
                await self._something.wait()
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._depth.set(len(self._waiting))
            self._busy.add(key)
            started = time.perf_counter()
            try:
                await self._handle(key)
                self._failures.pop(key, None)
            except Exception as error:  # noqa: BLE001 - whatever one object does to us, the others are looked after
                self._failed(key, error)
            finally:
                self._seconds.observe(time.perf_counter() - started)
                self._busy.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.mark(key)

    def _failed(self, key: Key, error: Exception) -> None:
        """It is tried again, later each time."""
        self._errors.inc()
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        if isinstance(error, ApiError):
            log.log(logging.WARNING if count else logging.INFO, "%s %s: %s; trying again", self.name, _shown(key), error)
        else:
            log.error("%s %s: this should not have happened; trying again", self.name, _shown(key), exc_info=error)
        delay = min(FIRST_BACKOFF * 2**count, LONGEST_BACKOFF)
        if key not in self._again:
            self._timers[key] = asyncio.get_running_loop().call_later(delay, self._retry, key)

    def _retry(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.mark(key)


def _shown(key: Hashable) -> str:
    return "/".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
