"""The operator as a whole: who is told of what, and what runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vtap_api.base import API_VERSION
from vtap_api.names import COMPONENT_LABEL, collector_name, label_value
from vtap_operator import metrics
from vtap_operator.audit import STUCK_AFTER, Audit
from vtap_operator.certificate_keeper import CertificateKeeper
from vtap_operator.client import Client
from vtap_operator.collectors import PodTemplate, collector_pod
from vtap_operator.conditions import tap_status_from
from vtap_operator.destination_keeper import DestinationKeeper
from vtap_operator.errors import ApiError
from vtap_operator.events import Poster
from vtap_operator.keeping import KeyedSink
from vtap_operator.node_keeper import NodeKeeper
from vtap_operator.peer_keeper import PeerKeeper
from vtap_operator.records import Tap, TapId, read_destination, read_tap, read_tap_node
from vtap_operator.reflector import Reflector
from vtap_operator.resources import NAMESPACES, NODES, PODS, TAP_DESTINATIONS, TAP_NODES, VIRTUAL_TAPS
from vtap_operator.tap_keeper import TapKeeper
from vtap_operator.wire import Bare, WholePod
from vtap_operator.world import World

log = logging.getLogger(__name__)

TICK = 5.0
"""Seconds between looks at what nobody reports, such as time that went by."""

DEFAULT_AGAIN_AFTER = 30.0
"""Seconds until it is tried again to make the default destination, where the API server refused."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says."""

    namespace: str
    pods: Mapping[str, Any] = field(default_factory=dict[str, Any])
    default_destination: Mapping[str, Any] | None = None
    own_certificates: bool = True


class Operator:
    """`tap_event` and its like take what kopf is told; everything else is watched here."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.world = World()
        self.poster = Poster(client)
        self._others_synced = asyncio.Event()
        self.peers = PeerKeeper(client, settings.namespace, self._others_synced)
        self.taps = TapKeeper(client, settings.namespace, self.world, self.peers, self.poster)
        self.certificates = CertificateKeeper(client, settings.namespace, enabled=settings.own_certificates)
        template = PodTemplate(settings.namespace, settings.pods)
        self.destinations = DestinationKeeper(client, template, self.world, self.certificates, self.poster)
        self.nodes = NodeKeeper(client, self.world, self.poster)
        self._bare_namespaces = Reflector(
            client, NAMESPACES, Bare, KeyedSink(_name, self._put_namespace, self._drop_namespace), metadata_only=True
        )
        self._bare_nodes = Reflector(client, NODES, Bare, KeyedSink(_name, self._put_node, self._drop_node), metadata_only=True)
        self._own_pods = Reflector(
            client, PODS, WholePod, KeyedSink(_pod_name, self._put_own_pod, self._drop_own_pod),
            namespace=settings.namespace, label_selector=f"{COMPONENT_LABEL} in (agent, collector)", name="own pods",
        )  # fmt: skip
        self.audits = (
            Audit(client, VIRTUAL_TAPS, self._known_taps, lambda name: self._drop_tap(_tap_id(name))),
            Audit(client, TAP_DESTINATIONS, self._known_destinations, self._drop_destination),
            Audit(client, TAP_NODES, self._known_tap_nodes, self._drop_tap_node),
        )
        self.synced = asyncio.Event()

    # What kopf is told.

    def tap_event(self, gone: bool, raw: Mapping[str, Any]) -> None:
        """A VirtualTap as it is, or was last."""
        meta = raw.get("metadata") or {}
        key = (meta.get("namespace", "default"), meta.get("name", ""))
        if gone:
            self._drop_tap(key)
            return
        before = self.world.taps.get(key)
        after = _as_before(before, raw) or read_tap(raw)
        if before is not None and before.uid != after.uid:
            self._drop_tap(key)
            before = None
        self.world.put_tap(after)
        self.taps.changed(before, after)

    def _drop_tap(self, key: TapId) -> None:
        before = self.world.drop_tap(key)
        if before is not None:
            self.taps.changed(before, None)

    def destination_event(self, gone: bool, raw: Mapping[str, Any]) -> None:
        """A TapDestination as it is, or was last."""
        if gone:
            self._drop_destination((raw.get("metadata") or {}).get("name", ""))
            return
        after = read_destination(raw)
        before = self.world.destinations.get(after.name)
        if before is not None and before.uid != after.uid:
            self.destinations.forget(after.name)
        self.world.destinations[after.name] = after
        self.destinations.queue.mark(after.name)
        if before is None or (before.model, before.uid) != (after.model, after.uid):
            self.taps.destination_changed(after.name)

    def _drop_destination(self, name: str) -> None:
        if self.world.destinations.pop(name, None) is not None:
            self.destinations.forget(name)
            self.certificates.forget(f"{collector_name(name)}-tls")
            self.taps.destination_changed(name)

    def tap_node_event(self, gone: bool, raw: Mapping[str, Any]) -> None:
        """A TapNode as it is, or was last."""
        if gone:
            self._drop_tap_node((raw.get("metadata") or {}).get("name", ""))
            return
        after = read_tap_node(raw)
        before = self.world.put_tap_node(after)
        if after.problem and (before is None or before.problem != after.problem):
            log.warning("%s", after.problem)
        self.taps.reported(before, after)
        self.nodes.changed()

    def _drop_tap_node(self, name: str) -> None:
        before = self.world.drop_tap_node(name)
        if before is not None:
            self.taps.reported(before, None)
            self.nodes.changed()

    def _known_taps(self) -> dict[str, tuple[str, str]]:
        return {f"{one.namespace}/{one.name}": (one.uid, one.version) for one in self.world.taps.values()}

    def _known_destinations(self) -> dict[str, tuple[str, str]]:
        return {one.name: (one.uid, one.version) for one in self.world.destinations.values()}

    def _known_tap_nodes(self) -> dict[str, tuple[str, str]]:
        return {one.name: (one.uid, one.version) for one in self.world.tap_nodes.values()}

    # What is watched here.

    def _put_namespace(self, item: Bare) -> None:
        name, labels = item.metadata.name, item.metadata.labels or {}
        if self.world.namespaces.get(name) != labels:
            self.world.namespaces[name] = labels
            self.peers.put_namespace(name, labels)
            self.taps.namespace_changed(name)

    def _drop_namespace(self, name: str) -> None:
        self.world.namespaces.pop(name, None)
        self.peers.drop_namespace(name)

    def _put_node(self, item: Bare) -> None:
        if self.world.nodes.get(item.metadata.name) != item.metadata.uid:
            self.world.nodes[item.metadata.name] = item.metadata.uid
            self.nodes.changed()

    def _drop_node(self, name: str) -> None:
        self.world.nodes.pop(name, None)

    def _put_own_pod(self, item: WholePod) -> None:
        if (item.metadata.labels or {}).get(COMPONENT_LABEL) == "collector":
            pod = collector_pod(item)
            self.world.collector_pods[pod.name] = pod
            self._mark_collector(pod.destination)
        else:
            ready = any(one.type == "Ready" and one.status == "True" for one in item.status.conditions or ())
            self._agents_changed(self.world.put_agent_pod(item.metadata.name, item.spec.node_name, ready=ready))

    def _drop_own_pod(self, name: str) -> None:
        pod = self.world.collector_pods.pop(name, None)
        if pod is not None:
            self._mark_collector(pod.destination)
        self._agents_changed(self.world.drop_agent_pod(name))

    def _mark_collector(self, label: str) -> None:
        self.destinations.queue.mark_all([name for name in self.world.destinations if label_value(name) == label])

    def _agents_changed(self, nodes: set[str]) -> None:
        for node in nodes:
            self.taps.agent_changed(node)

    # Running.

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for one in (*self.audits, self._bare_namespaces, self._bare_nodes, self._own_pods, self.certificates, self.poster):
                group.create_task(one.run())
            group.create_task(self._tick())
            group.create_task(self.peers.run())
            group.create_task(self._make_default_destination())
            await self._wait_for_sync()
            for queue in (self.taps.queue, self.destinations.queue, self.nodes.queue):
                group.create_task(queue.run())
            self.nodes.changed()
            group.create_task(self.taps.recount())
            group.create_task(self.taps.end_those_due())

    async def _wait_for_sync(self) -> None:
        """Nothing is said of a tap while not all is known that it depends on."""
        for one in (*self.audits, self._bare_namespaces, self._bare_nodes):
            await one.synced.wait()
        self._others_synced.set()
        await self._own_pods.synced.wait()
        self.synced.set()
        log.info(
            "%d taps, %d destinations, %d nodes known", len(self.world.taps), len(self.world.destinations), len(self.world.nodes)
        )

    async def _make_default_destination(self) -> None:
        spec = self.settings.default_destination
        if spec is None:
            return
        body = {"apiVersion": API_VERSION, "kind": "TapDestination", "metadata": {"name": "default"}, "spec": dict(spec)}
        while True:
            try:
                if await self.client.create(TAP_DESTINATIONS, body):
                    log.info("TapDestination default was made")
                return
            except ApiError as error:
                # Everybody else's taps must not wait for it.
                log.warning("TapDestination default cannot be made: %s; trying again", error)
                await asyncio.sleep(DEFAULT_AGAIN_AFTER)

    async def _tick(self) -> None:
        while True:
            for one in self.watches():
                metrics.WATCH_AGE.labels(one.name).set(one.age)
            for audit in self.audits:
                metrics.WATCH_AGE.labels(audit.resource.plural).set(audit.lag)
            self.destinations.tick()
            await asyncio.sleep(TICK)

    def watches(self) -> tuple[Reflector[Any], ...]:
        """All that run now, but for kopf's."""
        return (self._bare_namespaces, self._bare_nodes, self._own_pods, self.peers.slices, *self.peers.reflectors)

    def trouble(self) -> str:
        """Why the operator should be restarted; empty where it should not. An API server that is away is no reason."""
        stuck = [one.resource.plural for one in self.audits if one.lag > STUCK_AFTER]
        return f"the watch of {', '.join(stuck)} is stuck" if stuck else ""


def _name(item: Bare) -> str:
    return item.metadata.name


def _pod_name(item: WholePod) -> str:
    return item.metadata.name


def _tap_id(name: str) -> TapId:
    namespace, _, rest = name.partition("/")
    return (namespace, rest)


def _as_before(before: Tap | None, raw: Mapping[str, Any]) -> Tap | None:
    """Where only the status may have changed, the spec need not be read again."""
    meta = raw["metadata"]
    if before is None or (before.uid, before.generation) != (meta.get("uid"), meta.get("generation")):
        return None
    return replace(before, version=meta.get("resourceVersion", ""), status=tap_status_from(raw.get("status")))
