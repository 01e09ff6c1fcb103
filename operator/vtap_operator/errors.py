"""Errors that the operator expects. `str()` is one sentence that a person can act on."""

from __future__ import annotations


class OperatorError(Exception):
    """Something that a person has to change: wrong options, no access."""


class ApiError(Exception):
    """The API server refused, or could not be asked (`status` 0). `reason` is Kubernetes' word for it, such as Conflict.

    `retry_after`: seconds that the API server asks to wait.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def gone(self) -> bool:
        """Whether a listing or watch has to begin anew."""
        return self.status == 410 or self.reason == "Expired"

    @property
    def passing(self) -> bool:
        """Whether it may go away by itself."""
        return self.status in (0, 408, 409, 429) or self.status >= 500
