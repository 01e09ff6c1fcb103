"""Keeps collectors running and the status of TapDestinations."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from typing import Any

import msgspec

from vtap_api.base import API_VERSION
from vtap_api.names import collector_name
from vtap_operator import collectors
from vtap_operator.certificate_keeper import CertificateKeeper
from vtap_operator.certificates import collector_leaf
from vtap_operator.client import Client
from vtap_operator.collectors import CollectorState, PodTemplate
from vtap_operator.conditions import Condition, with_times
from vtap_operator.errors import ApiError
from vtap_operator.events import Poster, Subject, news
from vtap_operator.keeping import now
from vtap_operator.records import Destination, Said
from vtap_operator.resources import BY_KIND, TAP_DESTINATIONS
from vtap_operator.work import Queue
from vtap_operator.world import World

log = logging.getLogger(__name__)

AGAIN_AFTER = 600.0
"""Seconds until objects are applied again though nothing changed, in case somebody else changed them."""
RETRY_AFTER = 60.0
"""Seconds until objects that the API server refused are tried again."""


class DestinationKeeper:
    """Marked destinations get the objects and the status that follow from the world."""

    def __init__(
        self, client: Client, template: PodTemplate, world: World, certificates: CertificateKeeper, poster: Poster
    ) -> None:
        self._client = client
        self._template = template
        self._world = world
        self._certificates = certificates
        self._poster = poster
        self._applied: dict[str, tuple[bytes, float, str]] = {}
        """By destination: digest of its objects, when they were applied, and why that failed."""
        self._cleared: set[str] = set()
        """Destinations that are no collector of ours, of which nothing is left from when they were one."""
        self.queue = Queue[str]("destinations", self._handle, 2)

    def tick(self) -> None:
        """Time went by."""
        self.queue.mark_all(name for name, one in self._world.destinations.items() if one.is_run_here)

    def forget(self, name: str) -> None:
        """It is gone, and its objects with it, as they are owned by it."""
        self._applied.pop(name, None)
        self._cleared.discard(name)

    async def _handle(self, name: str) -> None:
        destination = self._world.destinations.get(name)
        if destination is None:
            self.queue.forget(name)
            return
        if destination.model is None:
            # What runs goes on, as it does on the nodes: a newer version's destination must not cost what was captured.
            await self._say(destination, self._follow(destination, "") if destination.collector else not_run_here(destination))
        elif destination.is_run_here:
            before = self._follow(destination, "")
            if destination.collector is not None and not before.address:
                # At once, whether or not anything can be applied: the address may be another pod's by now.
                await self._say(destination, before)
                self.queue.mark(name)
                return
            failure = await self._apply(destination)
            await self._say(destination, self._follow(destination, failure))
        else:
            await self._clear_away(destination)
            await self._say(destination, not_run_here(destination))

    def _follow(self, destination: Destination, failure: str) -> CollectorState:
        address = destination.collector[0] if destination.collector else ""
        pods = collectors.pods_of(destination.name, self._world.collector_pods.values())
        return collectors.follow(pods, address, failure)

    async def _apply(self, destination: Destination) -> str:
        """A sentence where the API server refuses what its collector needs."""
        self._cleared.discard(destination.name)
        wanted = collectors.objects(destination, self._template)
        digest = hashlib.sha256(msgspec.json.encode(wanted)).digest()
        held = self._applied.get(destination.name)
        if held is not None and held[0] == digest and time.monotonic() - held[1] < (RETRY_AFTER if held[2] else AGAIN_AFTER):
            return held[2]
        failure = ""
        try:
            name = collector_name(destination.name)
            await self._certificates.ensure(collector_leaf(name, self._template.namespace), collectors.owner(destination))
            for body in wanted:
                await self._client.apply(BY_KIND[body["apiVersion"], body["kind"]], body)
        except ApiError as error:
            if error.passing:
                raise
            failure = f"the API server refuses an object of the collector: {error}"
            log.warning("destination %s: %s", destination.name, failure)
        self._applied[destination.name] = (digest, time.monotonic(), failure)
        return failure

    async def _clear_away(self, destination: Destination) -> None:
        """It may have been a collector that we ran, which another operator before us may have begun to remove."""
        if destination.name in self._cleared:
            return
        self._certificates.forget(f"{collector_name(destination.name)}-tls")
        for kind, namespace, name in collectors.leftovers(destination.name, self._template.namespace):
            await self._client.delete(kind, name, namespace)
        self._applied.pop(destination.name, None)
        self._cleared.add(destination.name)

    async def _say(self, destination: Destination, state: CollectorState) -> None:
        if self._world.destinations.get(destination.name) is not destination:
            self.queue.mark(destination.name)
            return
        address = published(destination, state.address, self._template.namespace)
        conditions = with_times(conditions_of(destination, state), destination.conditions, now())
        if (conditions, address, destination.generation) == (
            destination.conditions, destination.collector, destination.observed_generation,
        ):  # fmt: skip
            return
        status: dict[str, Any] = {
            "observedGeneration": destination.generation,
            "collector": None if address is None else {"address": address[0], "port": address[1], "url": address[2]},
            "conditions": [one.to_json() for one in conditions],
        }
        patch = {"metadata": {"uid": destination.uid}, "status": status}
        written = await self._client.merge(TAP_DESTINATIONS, destination.name, patch, subresource="status")
        if written is None:
            return
        if self._world.destinations.get(destination.name) is destination:
            self._world.destinations[destination.name] = replace(
                destination, conditions=conditions, collector=address, observed_generation=destination.generation
            )
        about = Subject(API_VERSION, "TapDestination", "", destination.name, destination.uid)
        self._poster.post(about, news(destination.conditions, conditions), now())


def published(destination: Destination, address: str, namespace: str) -> tuple[str, int, str] | None:
    """Address, port and URL for the status. A port is never 0 there; transports without ports ignore it."""
    if address and destination.model is None and destination.collector is not None:
        return (address, *destination.collector[1:])
    if not address or destination.model is None or destination.model.spec.collector is None:
        return None
    port = destination.model.spec.collector.data_port or 4754
    return (address, port, collectors.url(destination.name, namespace))


def not_run_here(destination: Destination) -> CollectorState:
    """Of an endpoint that somebody else runs, or of a destination that cannot be read."""
    if destination.model is None:
        return CollectorState("", Said("False", "Invalid", "nothing can be sent there, see Accepted"))
    where = destination.model.spec.address
    what = f"copies are sent to {where}, which is not ours: whether they arrive can only be seen there"
    return CollectorState("", Said("True", "External", what))


def conditions_of(destination: Destination, state: CollectorState) -> list[Condition]:
    """Without times."""
    if destination.problem:
        accepted = Said("False", "Invalid", destination.problem)
    else:
        accepted = Said("True", "Accepted", "the destination is valid")
    return [
        Condition(kind, said.status, said.reason, said.message, destination.generation)
        for kind, said in (("Accepted", accepted), ("Ready", state.ready))
    ]
