"""What all keepers share: the clock, and sinks that are made of two functions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key")


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class KeyedSink(Generic[Item, Key]):
    """A sink that knows by keys what was there, so that a new listing tells what is gone."""

    def __init__(self, key: Callable[[Item], Key], put: Callable[[Item], None], drop: Callable[[Key], None]) -> None:
        self._key = key
        self._put = put
        self._drop = drop
        self._there: set[Key] = set()
        self._listed: set[Key] | None = None

    def begin(self) -> None:
        self._listed = set()

    def put(self, item: Item) -> None:
        key = self._key(item)
        self._there.add(key)
        if self._listed is not None:
            self._listed.add(key)
        self._put(item)

    def drop(self, item: Item) -> None:
        key = self._key(item)
        self._there.discard(key)
        self._drop(key)

    def end(self) -> None:
        if self._listed is not None:
            for key in self._there - self._listed:
                self._drop(key)
            self._there &= self._listed
        self._listed = None
