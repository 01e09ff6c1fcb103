"""Compares what kopf told us with what the API server has. kopf does not say when its first listing is complete, nor what was
deleted while a watch was down; and a watch that is silently stuck is the worst that can happen to an operator."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from vtap_operator import metrics
from vtap_operator.client import Client
from vtap_operator.errors import ApiError
from vtap_operator.reflector import PAGE
from vtap_operator.resources import Resource
from vtap_operator.wire import Bare, Page

log = logging.getLogger(__name__)

FIRST_EVERY = 0.5
EVERY = 120.0
STUCK_AFTER = 300.0
"""Seconds for which an object may be newer than what we were told of it."""

Known = Mapping[str, tuple[str, str]]
"""By name ("NAMESPACE/NAME", or "NAME"): UID and resource version."""


@dataclass(slots=True)
class Audit:
    """Of one kind. `known` says what we were told; `forget` drops what is gone."""

    client: Client
    resource: Resource
    known: Callable[[], Known]
    forget: Callable[[str], None]
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    behind: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])
    """Objects of which we know an old version only: the version that we know, and since when."""

    @property
    def lag(self) -> float:
        """Seconds for which we have been behind."""
        return max((time.monotonic() - since for _, since in self.behind.values()), default=0.0)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except (ApiError, msgspec.MsgspecError) as error:
                metrics.ERRORS.labels(f"audit {self.resource.plural}").inc()
                log.info("%s cannot be listed: %s; trying again", self.resource.plural, error)
                await asyncio.sleep(2)
            await asyncio.sleep(EVERY if self.synced.is_set() else FIRST_EVERY)

    async def look(self) -> None:
        """Once."""
        before = dict(self.known())
        listed = await self._list()
        for name in before.keys() - listed.keys():
            if self.known().get(name) == before[name]:
                log.info("%s %s is gone, of which nobody told us", self.resource.kind, name)
                self.forget(name)
        now = self.known()
        self._compare(listed, now)
        if listed.keys() <= now.keys():
            self.synced.set()

    def _compare(self, listed: Known, known: Known) -> None:
        behind: dict[str, tuple[str, float]] = {}
        for name, (_, version) in listed.items():
            seen = known.get(name, ("", ""))[1]
            if _older(seen, version):
                held = self.behind.get(name)
                behind[name] = held if held is not None and held[0] == seen else (seen, time.monotonic())
        self.behind = behind

    async def _list(self) -> dict[str, tuple[str, str]]:
        decoder = msgspec.json.Decoder(Page[Bare])
        found: dict[str, tuple[str, str]] = {}
        following = ""
        while True:
            params = {"limit": str(PAGE), **({"continue": following} if following else {})}
            page = decoder.decode(await self.client.page(self.resource, params=params, metadata_only=True))
            for one in page.items or ():
                meta = one.metadata
                name = f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
                found[name] = (meta.uid, meta.resource_version)
            following = page.metadata.continue_
            if not following:
                return found


def _older(seen: str, listed: str) -> bool:
    if seen.isdecimal() and listed.isdecimal():
        return int(seen) < int(listed)
    return seen != listed
