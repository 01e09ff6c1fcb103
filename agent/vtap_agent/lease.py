"""Renews the lease on copying while the loop is alive, however long one pass of it waits for Open vSwitch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from vtap_agent.errors import VtapError

log = logging.getLogger(__name__)

LEASE = 10.0
"""Seconds that copies go on without the agent."""
RENEW_EVERY = 1.0
HUNG_AFTER = 60.0
"""Seconds without a sign of life after which the loop counts as hung: then the lease ends as if the agent had died. No pass
takes so long, since whatever it waits for has a shorter timeout."""


class Lease(threading.Thread):
    """`renew` takes the lease's length in seconds. `lock` is held while it runs: whoever writes the same maps holds it too."""

    def __init__(self, renew: Callable[[float], None]) -> None:
        super().__init__(name="lease", daemon=True)
        self.lock = threading.Lock()
        self._renew = renew
        self._ended = threading.Event()
        self._alive_at = time.monotonic()

    def beat(self) -> None:
        """A sign of life from the loop."""
        self._alive_at = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._alive_at

    def end(self) -> None:
        """Renew no more; the lease runs out by itself."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        hung = False
        while True:
            was_hung, hung = hung, self.silence > HUNG_AFTER
            if not hung:
                self._renew_once()
            elif not was_hung:
                log.error("the loop has not moved for %g s: copies end with the lease, until it moves again", HUNG_AFTER)
            if self._ended.wait(RENEW_EVERY):
                return

    def _renew_once(self) -> None:
        try:
            with self.lock:
                self._renew(LEASE)
        except (VtapError, OSError) as error:
            log.warning("the lease could not be renewed, it is tried again: %s", error)
        except Exception:
            log.exception("renewing the lease failed unexpectedly, it is tried again")
