"""Taps that end by themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from vtap_api.values import Duration

Key = TypeVar("Key")


def expiry(creation: str, ttl: Duration | None) -> datetime | None:
    """When a tap is over; None where it has no end. `creation` is RFC 3339, as the API server writes it."""
    if ttl is None:
        return None
    return datetime.fromisoformat(creation) + timedelta(microseconds=ttl.nanoseconds // 1000)


def due(expiries: Mapping[Key, datetime], now: datetime) -> Iterable[Key]:
    """Those that are over."""
    return [key for key, at in expiries.items() if at <= now]
