"""Events: what a person should hear of, once. What to say is decided by pure functions; a poster sends it, not too much of it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vtap_operator import metrics
from vtap_operator.client import Client
from vtap_operator.conditions import Condition
from vtap_operator.errors import ApiError
from vtap_operator.resources import EVENTS

log = logging.getLogger(__name__)

REMEMBERED = 4096
AGAIN_AFTER = 3600.0
"""Seconds until the same may be said again of the same object."""
RATE = 5.0
BURST = 50
"""Events a second, and at once: a destination that goes may concern thousands of taps."""
_QUIET = frozenset({"NoPods", "NotAccepted", "Pending", "PodsPending", "NothingProgrammed", "CollectorStarting"})
"""Reasons that are no news: what is said elsewhere, and what passes by itself."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that an Event is about. `namespace` is empty for one of the cluster."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class News:
    """`type` is Normal or Warning."""

    type: str
    reason: str
    message: str


def news(before: Iterable[Condition], after: Sequence[Condition]) -> list[News]:
    """What changed that somebody should hear: what went wrong, or wrong in another way, and what came right again."""
    held = {one.type: one for one in before}
    found: list[News] = []
    for one in after:
        old = held.get(one.type)
        if one.reason in _QUIET or (old is not None and (old.status, old.reason) == (one.status, one.reason)):
            continue
        if one.status == "False" or (one.status == "Unknown" and one.reason == "NoAgent"):
            found.append(News("Warning", one.reason, one.message))
        elif one.status == "True" and old is not None and old.status == "False" and old.reason not in _QUIET:
            found.append(News("Normal", one.reason, one.message))
    return found


def event(subject: Subject, said: News, now: datetime, reporter: str = "vtap-operator") -> dict[str, Any]:
    """An Event (core v1). Its name is made of what it says and the hour, so that one said before is refused as there already."""
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    stamp = f"{subject.uid} {said.reason} {said.message} {now:%Y-%m-%dT%H}"
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    involved = {
        "apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "uid": subject.uid,
        **({"namespace": subject.namespace} if subject.namespace else {}),
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{subject.name[:200]}.{digest}", "namespace": subject.namespace or "default"},
        "involvedObject": involved,
        "type": said.type,
        "reason": said.reason[:128],
        "message": said.message[:1024],
        "source": {"component": reporter},
        "reportingComponent": reporter,
        "reportingInstance": "",
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
    }


class Poster:
    """Sends Events, at a bounded rate. One that cannot be sent is dropped: it is in the status, too."""

    def __init__(self, client: Client, clock: Any = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._said: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._waiting: deque[dict[str, Any]] = deque()
        self._something = asyncio.Event()

    def post(self, subject: Subject, said: Iterable[News], now: datetime) -> None:
        """Soon, unless it was said within the hour."""
        for one in said:
            if not self._is_new(subject, one):
                continue
            if len(self._waiting) >= BURST:
                metrics.EVENTS_DROPPED.inc()
                continue
            self._waiting.append(event(subject, one, now))
            self._something.set()

    def _is_new(self, subject: Subject, said: News) -> bool:
        key, now = (subject.uid, said.reason, said.message), self._clock()
        if now - self._said.get(key, -AGAIN_AFTER) < AGAIN_AFTER:
            return False
        self._said[key] = now
        self._said.move_to_end(key)
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        return True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._something.clear()
            while self._waiting:
                body = self._waiting.popleft()
                try:
                    await self._client.create(EVENTS, body)
                except ApiError as error:
                    metrics.EVENTS_DROPPED.inc()
                    log.info("an Event could not be posted: %s", error)
                await asyncio.sleep(1 / RATE)
            await self._something.wait()
