"""Keeps the status of VirtualTaps, and ends those whose time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

import msgspec

from vtap_api import LabelSelector
from vtap_api.base import API_VERSION
from vtap_api.meta import SelectorOperator
from vtap_api.refusals import Refusal, refusal_of
from vtap_api.selectors import NAMESPACE_NAME_LABEL
from vtap_operator import metrics, ttl
from vtap_operator.client import Client
from vtap_operator.conditions import with_times
from vtap_operator.events import News, Poster, Subject, news
from vtap_operator.keeping import now
from vtap_operator.peer_keeper import PeerKeeper
from vtap_operator.records import NodeReports, Tap, TapId
from vtap_operator.reflector import PAGE
from vtap_operator.resources import PODS, VIRTUAL_TAPS
from vtap_operator.summary import Picture, summarise
from vtap_operator.wire import FINISHED, Page, Pod
from vtap_operator.work import Queue
from vtap_operator.world import World

WRITERS = 8
RECOUNT_EVERY = 30.0
"""Seconds until the pods of a tap are counted again, though nobody said that something changed."""
LISTS_A_SECOND = 10.0
"""At most so many taps have their pods counted by asking the API server, each second."""
COUNTS_A_SECOND = 200.0
"""At most so many taps have their pods counted by what is known of all pods, each second."""
FRESH = 2.0
"""Seconds for which a count is believed, whatever changes."""

TOO_MANY_PEERS = Refusal(
    "TooManyPeers",
    "spec.filter.rules: a peer selector selects more than 1,024,000 addresses; select fewer pods, or write a cidr instead",
)


def selector_query(selector: LabelSelector) -> str:
    """As in the query of a list."""
    parts = [f"{key}={value}" for key, value in selector.match_labels.items()]
    for one in selector.match_expressions:
        match one.operator:
            case SelectorOperator.IN:
                parts.append(f"{one.key} in ({','.join(one.values)})")
            case SelectorOperator.NOT_IN:
                parts.append(f"{one.key} notin ({','.join(one.values)})")
            case SelectorOperator.EXISTS:
                parts.append(one.key)
            case SelectorOperator.DOES_NOT_EXIST:
                parts.append(f"!{one.key}")
    return ",".join(parts)


class TapKeeper:
    """Marked taps get the status that follows from the world."""

    def __init__(self, client: Client, namespace: str, world: World, peers: PeerKeeper, poster: Poster) -> None:
        self._client = client
        self._namespace = namespace
        self._world = world
        self._peers = peers
        self._poster = poster
        self._counted: dict[TapId, tuple[float, Mapping[str, int]]] = {}
        self._ending: dict[TapId, datetime] = {}
        self._pages = msgspec.json.Decoder(Page[Pod])
        self.queue = Queue[TapId]("taps", self._handle, WRITERS)
        peers.on_start = lambda: self.queue.mark_all(world.taps)

    # What happened.

    def changed(self, before: Tap | None, after: Tap | None) -> None:
        """A tap came, changed or went."""
        known = after or before
        if known is None:
            return
        self._peers.change(before.peers if before else (), after.peers if after else ())
        if after is None:
            self._counted.pop(known.id, None)
            self._ending.pop(known.id, None)
        elif before is None or before.pod_selector != after.pod_selector:
            self._counted.pop(known.id, None)
        if after is not None:
            if after.expiry is None:
                self._ending.pop(after.id, None)
            else:
                self._ending[after.id] = after.expiry
        self.queue.mark(known.id)

    def reported(self, before: NodeReports | None, after: NodeReports | None) -> None:
        """What a node says changed: the taps of which it says something else."""
        old, new = (before.reports if before else {}), (after.reports if after else {})
        self.queue.mark_all(tap for tap in old.keys() | new.keys() if old.get(tap) != new.get(tap))

    def agent_changed(self, node: str) -> None:
        """An agent came up or went down: the taps that have pods on its node."""
        self.queue.mark_all([tap for tap, (_, pods) in self._counted.items() if node in pods])

    def destination_changed(self, name: str) -> None:
        """Taps that name it, and those that are told which there are."""
        self.queue.mark_all([
            tap.id
            for tap in self._world.taps.values()
            if tap.destination == name or _reason(tap) == "DestinationNotFound"
        ])  # fmt: skip

    def namespace_changed(self, name: str) -> None:
        """Whether its taps may use their destinations may have changed."""
        self.queue.mark_all(self._world.taps_of_namespace(name))

    # Deciding.

    def refusal(self, tap: Tap) -> Refusal | None:
        """Why a tap cannot be had at all."""
        if tap.problem:
            return Refusal("Invalid", tap.problem)
        labels = self._world.namespaces.get(tap.namespace, {NAMESPACE_NAME_LABEL: tap.namespace})
        refused = refusal_of(tap.namespace, tap.destination, tap.backend, self._world.usable_destinations, labels)
        if refused is None and self._peers.overflowing(tap.peers):
            return TOO_MANY_PEERS
        return refused

    async def _handle(self, key: TapId) -> None:
        tap = self._world.taps.get(key)
        if tap is None:
            self.queue.forget(key)
            return
        refused = self.refusal(tap)
        pods = await self._pods(tap, asking=refused is None)
        if self._world.taps.get(key) is not tap:
            self.queue.mark(key)
            return
        picture = Picture(tap.generation, refused, pods, self._world.reports_of(key), self._world.agents)
        status = summarise(picture)
        status = replace(status, conditions=with_times(status.conditions, tap.status.conditions, now()))
        if status == tap.status:
            return
        patch = {"metadata": {"uid": tap.uid}, "status": status.to_json()}
        written = await self._client.merge(VIRTUAL_TAPS, tap.name, patch, namespace=tap.namespace, subresource="status")
        if written is None:
            return
        said = news(tap.status.conditions, status.conditions)
        self._world.status_written(tap, status)
        self._poster.post(subject(tap), said, now())

    # Counting.

    async def _pods(self, tap: Tap, *, asking: bool) -> Mapping[str, int] | None:
        """Pods that it selects by node. Asks the API server only if `asking`, and where the pods are not known anyway."""
        if tap.problem:
            return {}
        if self._peers.counts_pods and tap.namespace != self._namespace:
            pods: Mapping[str, int] = dict(self._peers.census(tap.namespace, tap.selector))
        else:
            at, held = self._counted.get(tap.id, (-FRESH, None))
            if time.monotonic() - at < FRESH or not asking:
                return held
            pods = await self._ask(tap)
        self._counted[tap.id] = (time.monotonic(), pods)
        return pods

    async def _ask(self, tap: Tap) -> dict[str, int]:
        """By the API server."""
        found: dict[str, int] = {}
        query = {"labelSelector": selector_query(tap.selector), "limit": str(PAGE)}
        following = ""
        while True:
            params = {**query, **({"continue": following} if following else {})}
            page = self._pages.decode(await self._client.page(PODS, namespace=tap.namespace, params=params))
            for pod in page.items or ():
                if pod.status.phase not in FINISHED:
                    found[pod.spec.node_name] = found.get(pod.spec.node_name, 0) + 1
            following = page.metadata.continue_
            if not following:
                return found

    async def recount(self) -> None:
        """Look at every tap now and then, evenly."""
        while True:
            started = time.monotonic()
            for key in list(self._world.taps):
                self.queue.mark(key)
                await asyncio.sleep(1 / (COUNTS_A_SECOND if self._peers.counts_pods else LISTS_A_SECOND))
            await asyncio.sleep(max(1.0, RECOUNT_EVERY - (time.monotonic() - started)))

    # Ending.

    async def end_those_due(self) -> None:
        """Delete taps whose ttl is over, each second."""
        ends = Queue[TapId]("ttl", self._end)
        async with asyncio.TaskGroup() as group:
            group.create_task(ends.run())
            while True:
                ends.offer(ttl.due(self._ending, now()))
                counts = {"true": 0, "false": 0}
                for tap in self._world.taps.values():
                    condition = tap.status.condition("Accepted")
                    counts["true" if condition is not None and condition.status == "True" else "false"] += 1
                for accepted, count in counts.items():
                    metrics.TAPS.labels(accepted).set(count)
                await asyncio.sleep(1.0)

    async def _end(self, key: TapId) -> None:
        tap = self._world.taps.get(key)
        if tap is None or tap.expiry is None or tap.expiry > now():
            return
        await self._client.delete(VIRTUAL_TAPS, tap.name, tap.namespace, tap.uid)
        self._ending.pop(key, None)
        self._poster.post(subject(tap), [News("Normal", "Expired", "its ttl is over, so that it was deleted")], now())


def subject(tap: Tap) -> Subject:
    """What Events about a tap are about."""
    return Subject(API_VERSION, "VirtualTap", tap.namespace, tap.name, tap.uid)


def _reason(tap: Tap) -> str:
    condition: Callable[[str], object] = tap.status.condition
    accepted = condition("Accepted")
    return getattr(accepted, "reason", "")
