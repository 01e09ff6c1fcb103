"""Keeps TapPeerSlices as peer selectors resolve. Pods and Services are watched only while some tap has a peer selector."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from vtap_api import LabelSelector
from vtap_operator import metrics
from vtap_operator.client import Client
from vtap_operator.peers.index import Group, PeerIndex
from vtap_operator.peers.selectors import PeerKey
from vtap_operator.peers.slices import digest, key_of, parse_name, slice_name, slice_object
from vtap_operator.reflector import Reflector
from vtap_operator.resources import PODS, SERVICES, TAP_PEER_SLICES
from vtap_operator.wire import FINISHED, PeerSlice, Pod, Service, cluster_ips, pod_addresses
from vtap_operator.work import Queue

log = logging.getLogger(__name__)

WRITERS = 16
"""Slices that are written at a time."""
MAX_POD_ADDRESSES = 64
"""Of one pod; who may annotate a pod may claim any number."""
PATIENCE = 60.0
"""Seconds without peer selectors until what is known of pods is dropped, as a tap that is replaced may be right back."""

Published = tuple[int, int]
"""Digest and resource version of a slice as the API server has it."""


class PeerKeeper:
    """`others_synced` says whether taps and namespaces are known completely: nothing is written before."""

    def __init__(self, client: Client, namespace: str, others_synced: asyncio.Event) -> None:
        self._client = client
        self._namespace = namespace
        self._others_synced = others_synced
        self._users: Counter[PeerKey] = Counter()
        self._by_hash: dict[str, PeerKey] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._published: dict[str, Published] = {}
        self._held: dict[PeerKey, dict[int, tuple[str, ...]]] | None = {}
        self._fresh: set[PeerKey] = set()
        self._flushing = False
        self._wanted = asyncio.Event()
        self.on_start: Callable[[], None] = lambda: None
        self.index = PeerIndex()
        self.reflectors: tuple[Reflector[Pod] | Reflector[Service], ...] = ()
        self.queue = Queue[str]("slices", self._write, WRITERS)
        self.slices = Reflector(client, TAP_PEER_SLICES, PeerSlice, _SliceSink(self), namespace=namespace)

    @property
    def counts_pods(self) -> bool:
        """Whether `index` knows all pods."""
        return self.index.started

    def census(self, namespace: str, selector: LabelSelector) -> Counter[str]:
        """Pods that a selector selects, by node."""
        return self.index.census(namespace, selector)

    def overflowing(self, keys: Iterable[PeerKey]) -> bool:
        """Whether one of these selects more addresses than there may be slices for."""
        return self.index.started and any(group.layout.overflows for key in keys if (group := self.index.group(key)) is not None)

    # What taps want.

    def change(self, before: Iterable[PeerKey], after: Iterable[PeerKey]) -> None:
        """A tap has other selectors than before."""
        old, new = frozenset(before), frozenset(after)
        for key in new - old:
            self._users[key] += 1
            if self._users[key] == 1:
                self._by_hash[key.hash] = key
                self._fresh.add(key)
        unused = [key for key in old - new if self._release(key)]
        if unused:
            self._mark_slices(unused)
            self.index.drop_selectors(unused)
            for key in unused:
                del self._by_hash[key.hash]
        if old != new:
            metrics.SELECTORS.set(len(self._by_hash))
            self.flush_soon()
        if self._users:
            self._wanted.set()
        else:
            self._wanted.clear()

    def _release(self, key: PeerKey) -> bool:
        self._users[key] -= 1
        if self._users[key] > 0:
            return False
        del self._users[key]
        self._fresh.discard(key)
        return True

    def _mark_slices(self, keys: Iterable[PeerKey]) -> None:
        for key in keys:
            group = self.index.group(key)
            if group is not None:
                self.queue.mark_all(slice_name(key.hash, index) for index in range(len(group.layout.slices)))

    # What there is.

    def put_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        """A namespace, or new labels of one."""
        self._namespaces[name] = labels
        self.index.put_namespace(name, labels)
        self.flush_soon()

    def drop_namespace(self, name: str) -> None:
        """It is gone."""
        self._namespaces.pop(name, None)
        self.index.drop_namespace(name)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Have what changed written, once for all that changes at once."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._fresh:
            fresh, self._fresh = self._fresh, set()
            self.index.add_selectors(fresh)
        if self.index.started:
            for group, changed in self.index.take_changes().items():
                self._mark_group(group, changed)
            metrics.ADDRESSES.set(len(self.index.addresses))
            metrics.PODS.set(self.index.pod_count)

    def _mark_group(self, group: Group, changed: Iterable[int]) -> None:
        indices = set(changed)
        for key in group.selectors():
            selector_hash = key.hash
            self.queue.mark_all(slice_name(selector_hash, index) for index in indices)
            beyond = len(group.layout.slices)
            while (name := slice_name(selector_hash, beyond)) in self._published:
                self.queue.mark(name)
                beyond += 1

    # Writing.

    async def _write(self, name: str) -> None:
        if not self.index.started and self._users_of(name):
            return  # Nothing is resolved yet: an empty slice would be taken for nobody. `_start` marks all.
        wanted = self._wanted_slice(name)
        if wanted is None:
            if name in self._published:
                await self._client.delete(TAP_PEER_SLICES, name, self._namespace)
                self._published.pop(name, None)
            return
        key, selector_hash, index, count, addresses = wanted
        said = digest(key, index, count, addresses)
        if self._published.get(name, (None, 0))[0] == said:
            return
        body = slice_object(key, selector_hash, index, count, addresses, self._namespace)
        answer = await self._client.apply(TAP_PEER_SLICES, body)
        self._published[name] = (said, _version(self.slices.read(answer)))

    def _users_of(self, name: str) -> bool:
        parsed = parse_name(name)
        return parsed is not None and parsed[0] in self._by_hash

    def _wanted_slice(self, name: str) -> tuple[PeerKey, str, int, int, list[str]] | None:
        parsed = parse_name(name)
        key = self._by_hash.get(parsed[0]) if parsed else None
        group = self.index.group(key) if key is not None else None
        if parsed is None or key is None or group is None or parsed[1] >= len(group.layout.slices) or group.layout.overflows:
            return None
        numbers = group.layout.slices[parsed[1]]
        return key, parsed[0], parsed[1], len(group.layout.slices), [self.index.addresses.text(number) for number in numbers]

    # What the API server says of slices.

    def saw_slice(self, one: PeerSlice) -> None:
        """As it is; set right where it is not as it should be."""
        name, version = one.metadata.name, _version(one)
        known = self._published.get(name)
        if known is not None and version < known[1]:
            return
        key = key_of(one)
        addresses = tuple(one.spec.addresses or ())
        self._published[name] = (digest(key, one.spec.index, one.spec.count, addresses), version)
        if self._held is not None and key is not None:
            self._held.setdefault(key, {})[one.spec.index] = addresses
        if self.index.started:
            self.queue.mark(name)

    def lost_slice(self, name: str) -> None:
        """It is gone, by whomever."""
        self._published.pop(name, None)
        if self.index.started and self._wanted_slice(name) is not None:
            self.queue.mark(name)

    # Running.

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.slices.run())
            group.create_task(self._rounds())

    async def _rounds(self) -> None:
        """While there are peer selectors, watch pods and Services. The first round also clears away what an earlier run left."""
        await self.slices.synced.wait()
        await self._others_synced.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run())
            while True:
                if self._users:
                    await self._watch_while_wanted()
                self._forget()
                await self._wanted.wait()

    def _forget(self) -> None:
        """No tap has a peer selector."""
        self.index = PeerIndex()
        self._held = None
        for name, labels in self._namespaces.items():
            self.index.put_namespace(name, labels)
        self._fresh = set(self._users)
        self.queue.mark_all(self._published)
        metrics.PODS.set(0)
        metrics.ADDRESSES.set(0)

    async def _watch_while_wanted(self) -> None:
        pods = Reflector(self._client, PODS, Pod, _PodSink(self))
        services = Reflector(self._client, SERVICES, Service, _ServiceSink(self))
        self.reflectors = (pods, services)
        self._flush()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.run()) for one in self.reflectors]
            await asyncio.gather(pods.synced.wait(), services.synced.wait())
            self._start()
            while self._users:
                await asyncio.sleep(PATIENCE)
            for task in tasks:
                task.cancel()
        self.reflectors = ()

    def _start(self) -> None:
        self._flush()
        held = {key: [at.get(i, ()) for i in range(max(at) + 1)] for key, at in (self._held or {}).items()}
        self._held = None
        started = time.perf_counter()
        self.index.start(held)
        took = time.perf_counter() - started
        metrics.FULL_RESOLVE.set(took)
        log.info("%d peer selectors resolved over %d pods in %.2f s", len(self._by_hash), self.index.pod_count, took)
        self.queue.mark_all(name for name in self._published)
        self.flush_soon()
        self.on_start()


def _version(one: PeerSlice) -> int:
    """Resource versions are numbers that grow (KEP-5504); one that is not counts as the oldest."""
    with contextlib.suppress(ValueError):
        return int(one.metadata.resource_version)
    return 0


class _SliceSink:
    def __init__(self, keeper: PeerKeeper) -> None:
        self._keeper = keeper
        self._there: set[str] = set()
        self._listed: set[str] = set()

    def begin(self) -> None:
        self._listed = set()

    def put(self, item: PeerSlice) -> None:
        self._there.add(item.metadata.name)
        self._listed.add(item.metadata.name)
        self._keeper.saw_slice(item)

    def drop(self, item: PeerSlice) -> None:
        self._there.discard(item.metadata.name)
        self._keeper.lost_slice(item.metadata.name)

    def end(self) -> None:
        for name in self._there - self._listed:
            self._keeper.lost_slice(name)
        self._there &= self._listed


class _PodSink:
    def __init__(self, keeper: PeerKeeper) -> None:
        self._keeper = keeper

    def begin(self) -> None:
        self._keeper.index.begin_listing("pods")

    def put(self, item: Pod) -> None:
        meta = item.metadata
        if item.status.phase in FINISHED:
            self._keeper.index.drop_pod(meta.namespace, meta.name)
        else:
            addresses = islice(pod_addresses(item), MAX_POD_ADDRESSES)
            self._keeper.index.put_pod(meta.namespace, meta.name, meta.labels or {}, addresses, item.spec.node_name)
        self._changed()

    def drop(self, item: Pod) -> None:
        self._keeper.index.drop_pod(item.metadata.namespace, item.metadata.name)
        self._changed()

    def end(self) -> None:
        self._keeper.index.end_listing("pods")
        self._changed()

    def _changed(self) -> None:
        if self._keeper.index.started:
            self._keeper.flush_soon()


class _ServiceSink:
    def __init__(self, keeper: PeerKeeper) -> None:
        self._keeper = keeper

    def begin(self) -> None:
        self._keeper.index.begin_listing("services")

    def put(self, item: Service) -> None:
        selector = {} if item.spec.type == "ExternalName" else item.spec.selector or {}
        self._keeper.index.put_service(item.metadata.namespace, item.metadata.name, selector, cluster_ips(item))
        self._changed()

    def drop(self, item: Service) -> None:
        self._keeper.index.drop_service(item.metadata.namespace, item.metadata.name)
        self._changed()

    def end(self) -> None:
        self._keeper.index.end_listing("services")
        self._changed()

    def _changed(self) -> None:
        if self._keeper.index.started:
            self._keeper.flush_soon()
