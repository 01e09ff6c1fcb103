"""What goes wrong in a lab, and waiting for what should come true."""

from __future__ import annotations

import time
from collections.abc import Callable


class LabError(Exception):
    """`str()` is a sentence that says what failed, with what the failing program printed."""


def wait_for(condition: Callable[[], object], timeout: float, what: str, every: float = 0.02) -> None:
    """Return once `condition()` is true; LabError saying that `what` did not happen after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(every)
