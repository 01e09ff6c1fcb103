"""What the collector tells people: one sentence, with the cure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CollectorError(Exception):
    """`str()` is one sentence that a user can act on."""


class Refused(CollectorError):
    """A request that is wrong. `status` is the HTTP status it is answered with."""

    def __init__(self, message: str, status: int = 400, retry_after: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.beside: Mapping[str, Any] = {}
        """What the answer says beside the sentence."""
        self.retry_after = retry_after
        """Seconds after which it is worth trying again, 0 where that is not known."""
