"""What is kept of a collection that is followed: the little we need of each object, by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from vtap_agent.sources.kubernetes.following import Object

T = TypeVar("T")


def name_of(item: Object) -> str:
    """``namespace/name``; ``/name`` where it belongs to the whole cluster."""
    metadata = item["metadata"]
    return f"{metadata.get('namespace', '')}/{metadata['name']}"


class Shelf(Generic[T]):
    """A `Sink`. `keep` says what is kept of an object, None for nothing; `changed` is called when something kept is different.

    Thread-safe. `items` gives the same mapping as long as nothing has changed.
    """

    def __init__(self, keep: Callable[[Object], T | None], changed: Callable[[], None]) -> None:
        self._keep = keep
        self._changed = changed
        self._lock = threading.Lock()
        self._items: Mapping[str, T] = MappingProxyType({})
        self.synced = False
        """Whether the API server has told of all objects."""

    def items(self) -> Mapping[str, T]:
        """What is kept, by name."""
        with self._lock:
            return self._items

    def restore(self, items: Mapping[str, T]) -> None:
        """What was kept when the agent last ran, before following begins."""
        with self._lock:
            self._items = MappingProxyType(dict(items))

    def replace(self, items: list[Object]) -> None:
        """These are all objects."""
        kept = {name_of(item): found for item in items if (found := self._keep(item)) is not None}
        first, self.synced = not self.synced, True
        self._become(kept, anyway=first)

    def put(self, item: Object) -> None:
        """Added or changed."""
        self._set(name_of(item), self._keep(item))

    def remove(self, item: Object) -> None:
        """Gone."""
        self._set(name_of(item), None)

    def _set(self, name: str, kept: T | None) -> None:
        items = self.items()
        if kept is None and name in items:
            self._become({other: value for other, value in items.items() if other != name})
        elif kept is not None and items.get(name) != kept:
            self._become({**items, name: kept})

    def _become(self, items: dict[str, T], *, anyway: bool = False) -> None:
        with self._lock:
            different = items != self._items
            if different:
                self._items = MappingProxyType(items)
        if different or anyway:
            self._changed()
