"""Makes vswitchd translate running flows anew, seldom and beside the loop: a purge costs everybody's flows an upcall."""

from __future__ import annotations

import logging
import threading
import time

from vtap_agent.drivers.unixctl import Vswitchd
from vtap_agent.errors import VtapError

log = logging.getLogger(__name__)

MIN_INTERVAL = 1.0
"""Seconds between two purges. The first after a quiet time runs at once."""


class FlowPurger:
    """Requests that come while a purge waits or runs become one. `close` ends its thread."""

    def __init__(self, vswitchd: Vswitchd, min_interval: float = MIN_INTERVAL) -> None:
        self._vswitchd = vswitchd
        self._min_interval = min_interval
        self._condition = threading.Condition()
        self._pending = ""
        self._running = False
        self._closing = False
        self._thread: threading.Thread | None = None
        self.purges = 0
        """Since the start."""
        self.failures = 0
        """Requests that vswitchd did not carry out; it was down, and its flows with it, or it hung."""

    def request(self, reason: str) -> None:
        """Purge soon. Returns at once."""
        with self._condition:
            self._pending = self._pending or reason
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flow-purge", daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing is pending; False after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._pending and not self._running, timeout)

    def close(self) -> None:
        """Drop what is pending and end the thread."""
        with self._condition:
            self._closing = True
            self._pending = ""
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        earliest = 0.0
        while True:
            with self._condition:
                while not self._closing and (not self._pending or time.monotonic() < earliest):
                    self._condition.wait(max(0.0, earliest - time.monotonic()) if self._pending else None)
                if self._closing:
                    return
                reason, self._pending, self._running = self._pending, "", True
            self._purge(reason)
            earliest = time.monotonic() + self._min_interval
            with self._condition:
                self._running = False
                self._condition.notify_all()

    def _purge(self, reason: str) -> None:
        try:
            self._vswitchd.purge_flows()
        except VtapError as error:
            self.failures += 1
            log.warning("running flows could not be purged: %s", error)
        except Exception:
            self.failures += 1
            log.exception("purging running flows failed unexpectedly")
        else:
            self.purges += 1
            log.info("purged running flows: %s", reason)
