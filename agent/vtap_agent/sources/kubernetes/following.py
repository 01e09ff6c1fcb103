"""Following one resource by list and watch, on a thread of its own, for as long as the agent runs.

As the API conventions describe it ("Efficient detection of changes"): list in pages, watch from the list's version, go on from
the last version seen after an interruption, list anew after 410. What is told
of each object comes in order.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from vtap_agent.errors import VtapError
from vtap_agent.sources.kubernetes.access import Access
from vtap_agent.sources.kubernetes.backoff import Backoff
from vtap_agent.sources.kubernetes.client import JSON, ApiClient, ApiError, Event, Expired

log = logging.getLogger(__name__)

PAGE = 500
WATCH_SECONDS = (240.0, 480.0)
"""Between which a watch is asked to last; at random, so that not all agents return at once."""
SHORT_WATCH = 1.0
"""A watch that ends sooner without an event counts as a failure, lest an odd proxy makes us ask without pause."""
STILL_THERE = frozenset(
    {0, HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS, 500, 502, 503}
)
"""After other answers the version we went on from is not trusted: an API server restored from a backup knows only older ones."""
_METADATA = "application/json;as={kind};g=meta.k8s.io;v=v1,application/json"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """What to follow. `path` like ``/api/v1/pods``; `field_selector` may be empty.

    `metadata_only` asks for PartialObjectMetadata. `from_cache` lets the API server answer a list from memory, which may be a
    little behind: for large collections, where an index by node makes it cheap.
    """

    name: str
    path: str
    field_selector: str = ""
    metadata_only: bool = False
    from_cache: bool = False

    def accept(self, what: str) -> str:
        """The Accept header; `what` is PartialObjectMetadataList for a list, PartialObjectMetadata for a watch."""
        return _METADATA.format(kind=what) if self.metadata_only else JSON


class Sink(Protocol):
    """Takes what was seen; each call comes from the following thread and returns soon."""

    def replace(self, items: list[Object]) -> None:
        """These are all objects there are."""
        ...

    def put(self, item: Object) -> None:
        """Added or changed."""
        ...

    def remove(self, item: Object) -> None:
        """Gone; `item` is its last state."""
        ...


class Follower:
    """Use: construct, `start`, `stop`. `problem` and `contact_age` may be read from any thread."""

    def __init__(self, access: Access, resource: Resource, sink: Sink, backoff: Backoff | None = None) -> None:
        self.resource = resource
        self._client = ApiClient(access)
        self._sink = sink
        self._backoff = backoff or Backoff(random.random)
        self._version: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {resource.name}", daemon=True)
        self._contact = time.monotonic()
        self._watching = False
        self.problem = ""
        """A sentence while the API server can't be followed."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._client.abort()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def contact_age(self) -> float:
        """Seconds since the API server was last known to answer; 0 while a watch stands."""
        return 0.0 if self._watching else time.monotonic() - self._contact

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait = self._follow_once()
            if wait:
                self._stopping.wait(wait)

    def _follow_once(self) -> float:
        """List where needed, then watch until that ends; returns the seconds to wait before the next time."""
        try:
            if self._version is None:
                self._list()
            self._watch(self._version or "")
        except Expired as error:
            log.info("%s: listing anew: %s", self.resource.name, error)
            self._version = None
            return self._backoff.next()
        except ApiError as error:
            if error.status not in STILL_THERE:
                self._version = None
            return self._failed(str(error), error.retry_after)
        except VtapError as error:
            return self._failed(str(error))
        except Exception as error:
            log.exception("following %s failed unexpectedly", self.resource.name)
            self._version = None
            return self._failed(f"following {self.resource.name} failed unexpectedly ({type(error).__name__}: {error})")
        finally:
            if self._watching:
                self._watching, self._contact = False, time.monotonic()
        return 0.0

    def _failed(self, sentence: str, retry_after: float = 0.0) -> float:
        if self._stopping.is_set():
            return 0.0
        if sentence != self.problem:
            log.warning("%s", sentence)
        self.problem = sentence
        return max(self._backoff.next(), retry_after)

    def _query(self) -> dict[str, str]:
        selector = self.resource.field_selector
        return {"fieldSelector": selector} if selector else {}

    def _list(self) -> None:
        """The whole collection, page by page; where a page's continuation has expired, all at once."""
        try:
            items, version = self._pages({"limit": str(PAGE)})
        except Expired:
            items, version = self._pages({})
        self._in_contact()
        self._sink.replace(items)
        self._version = version

    def _pages(self, extra: Mapping[str, str]) -> tuple[list[Object], str]:
        resource = self.resource
        query = {**self._query(), **extra}
        if resource.from_cache:
            query["resourceVersion"] = "0"
        items: list[Object] = []
        while True:
            page = self._client.get(resource.path, query, resource.accept("PartialObjectMetadataList"))
            items += page.get("items") or []
            metadata: Mapping[str, str] = page["metadata"]
            token = metadata.get("continue", "")
            if not token:
                return items, metadata["resourceVersion"]
            query.pop("resourceVersion", None)
            query["continue"] = token

    def _watch(self, version: str) -> None:
        seconds = random.uniform(*WATCH_SECONDS)
        started, events = time.monotonic(), 0
        query = {**self._query(), "resourceVersion": version}
        stream = self._client.watch(self.resource.path, query, seconds, self.resource.accept("PartialObjectMetadata"))
        self._in_contact()
        self._watching = True
        for event in stream:
            events += 1
            self._backoff.reset()
            self._take(event)
        if not events and time.monotonic() - started < SHORT_WATCH:
            raise ApiError(f"the API server ends watches of {self.resource.name} at once", HTTPStatus.OK)
        self._backoff.reset()

    def _take(self, event: Event) -> None:
        if event.kind in ("ADDED", "MODIFIED"):
            self._sink.put(event.object)
        elif event.kind == "DELETED":
            self._sink.remove(event.object)
        elif event.kind != "BOOKMARK":
            raise ApiError(f"the API server sent a {event.kind} event for {self.resource.name}, which is unknown")
        self._version = event.object["metadata"]["resourceVersion"]

    def _in_contact(self) -> None:
        if self.problem:
            log.info("%s: the API server answers again", self.resource.name)
        self.problem = ""
        self._contact = time.monotonic()
