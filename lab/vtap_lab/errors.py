"""What goes wrong in a lab, and waiting for what should come true."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

PATIENCE = float(os.environ.get("VTAP_LAB_PATIENCE", "1"))
"""How many times longer than usual to wait, on a machine that is emulated or very busy."""


class LabError(Exception):
    """`str()` is a sentence that says what failed, with what the failing program printed."""


def comes_true(condition: Callable[[], object], timeout: float, every: float = 0.02) -> bool:
    """Wait until `condition()` is true, for `timeout` seconds at most; whether it came true."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def wait_for(condition: Callable[[], object], timeout: float, what: str, every: float = 0.02) -> None:
    """Return once `condition()` is true; LabError saying that `what` did not happen within `timeout` seconds."""
    if not comes_true(condition, timeout, every):
        raise LabError(f"{what}: not within {timeout:g} s")
