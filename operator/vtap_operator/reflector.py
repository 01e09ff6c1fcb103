"""Lists objects page by page, then watches them, for ever. Keeps nothing of them itself: a sink takes what it needs.

Begins anew when the API server says that the watch is too old (410 Gone). A watch that is silent, although bookmarks come every
minute, is dropped and taken up again where it was.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Generic, Protocol, TypeVar

import msgspec

from vtap_operator import metrics
from vtap_operator.client import Client
from vtap_operator.errors import ApiError
from vtap_operator.resources import Resource
from vtap_operator.wire import Event, EventObject, Page

log = logging.getLogger(__name__)

PAGE = 500
"""Objects of one page, as kubectl's."""
WATCH_SECONDS = (240, 300)
"""How long the API server is asked to keep a watch; drawn anew each time, so that many do not end together."""
SILENCE = 90.0
"""Seconds without an event or bookmark until a watch is given up; the API server sends a bookmark about every minute."""
BACKOFF = (0.5, 1, 2, 5, 10, 20, 30)
BREATH = 0.005
"""Seconds of work on a page or burst of events until others get their turn."""

Item = TypeVar("Item")
Taken = TypeVar("Taken", contravariant=True)


class Sink(Protocol[Taken]):
    """Takes objects. Between `begin` and `end` come all that there are; what was there before and is not among them is gone."""

    def begin(self) -> None: ...

    def put(self, item: Taken) -> None: ...

    def drop(self, item: Taken) -> None: ...

    def end(self) -> None: ...


class _BeginAnew(Exception):
    """What we know is too old to go on from."""


class Reflector(Generic[Item]):
    """Tells a sink of all objects of a kind. `synced` is set when the first listing is complete."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        item: type[Item],
        sink: Sink[Item],
        *,
        namespace: str = "",
        label_selector: str = "",
        metadata_only: bool = False,
        name: str = "",
    ) -> None:
        self._client = client
        self._resource = resource
        self._sink = sink
        self._namespace = namespace
        self._params = {"labelSelector": label_selector} if label_selector else {}
        self._metadata_only = metadata_only
        self._page = msgspec.json.Decoder(Page[item])
        self._item = msgspec.json.Decoder(item)
        self._event = msgspec.json.Decoder(Event)
        self._meta = msgspec.json.Decoder(EventObject)
        self.name = name or resource.plural
        self.synced = asyncio.Event()
        self.heard = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the API server last sent anything."""
        return time.monotonic() - self.heard

    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                await self._follow(version)
            except _BeginAnew:
                metrics.WATCH_RESTARTS.labels(self.name).inc()
            except (ApiError, msgspec.MsgspecError) as error:
                metrics.ERRORS.labels(f"watch {self.name}").inc()
                level = logging.WARNING if failures else logging.INFO
                log.log(level, "%s cannot be listed: %s; trying again", self.name, error)
                if not (isinstance(error, ApiError) and error.gone):
                    await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)] * random.uniform(0.5, 1))
                    failures += 1

    def read(self, body: bytes) -> Item:
        """One object, as an answer has it."""
        return self._item.decode(body)

    def _heard(self) -> None:
        self.heard = time.monotonic()

    async def _list(self) -> str:
        """The version that a watch goes on from."""
        self._sink.begin()
        following = ""
        while True:
            params = {**self._params, "limit": str(PAGE), **({"continue": following} if following else {})}
            body = await self._client.page(
                self._resource, namespace=self._namespace, params=params, metadata_only=self._metadata_only
            )
            page = self._page.decode(body)
            self._heard()
            await self._put_all(page.items or [])
            following = page.metadata.continue_
            if not following:
                self._sink.end()
                self.synced.set()
                return page.metadata.resource_version

    async def _put_all(self, items: list[Item]) -> None:
        since = time.monotonic()
        for item in items:
            self._sink.put(item)
            if time.monotonic() - since > BREATH:
                await asyncio.sleep(0)
                since = time.monotonic()

    async def _follow(self, version: str) -> None:
        """Watch after watch, each from where the last ended."""
        failures = 0
        while True:
            params = {
                **self._params,
                "resourceVersion": version,
                "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),
            }
            started = time.monotonic()
            try:
                version = await self._watch(version, params)
                failures = 0 if time.monotonic() - started > 1 else failures + 1
            except ApiError as error:
                if error.gone:
                    raise _BeginAnew from None
                metrics.ERRORS.labels(f"watch {self.name}").inc()
                log.info("%s cannot be watched: %s; trying again", self.name, error)
                failures += 1
            if failures:
                await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF)) - 1] * random.uniform(0.5, 1))

    async def _watch(self, version: str, params: dict[str, str]) -> str:
        """One watch. The version it came to."""
        stream = self._client.watch(
            self._resource, namespace=self._namespace, params=params, metadata_only=self._metadata_only, silence=SILENCE
        )
        async for lines in stream:
            self._heard()
            since = time.monotonic()
            for line in lines:
                version = self._take(line) or version
                if time.monotonic() - since > BREATH:
                    await asyncio.sleep(0)
                    since = time.monotonic()
        return version

    def _take(self, line: bytes) -> str:
        """One event. The version it came with."""
        event = self._event.decode(line)
        meta = self._meta.decode(event.object)
        if event.type == "ERROR":
            raise ApiError(meta.code, meta.reason, meta.message or "the watch failed")
        if event.type in ("ADDED", "MODIFIED"):
            self._sink.put(self._item.decode(event.object))
        elif event.type == "DELETED":
            self._sink.drop(self._item.decode(event.object))
        return meta.metadata.resource_version
