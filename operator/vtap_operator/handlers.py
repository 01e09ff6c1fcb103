"""What kopf tells us. Only raw events are handled: no handler leaves a trace on an object, no finalizer, no annotation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from vtap_api.base import API_GROUP
from vtap_operator.access import Access
from vtap_operator.operator import Operator
from vtap_operator.resources import TAP_DESTINATIONS, TAP_NODES, VIRTUAL_TAPS, Resource

PATIENT = (1, 2, 4, 8, 15, *[30] * 10_000)
"""Seconds between kopf's tries: an API server that is away is waited for."""


def settings() -> kopf.OperatorSettings:
    """kopf's."""
    made = kopf.OperatorSettings()
    made.peering.standalone = True
    # Events to users are our own; kopf's are about itself.
    made.posting.enabled = False
    made.posting.level = logging.CRITICAL
    # Unused, as no handler needs either, but never kopf's own if one ever did.
    made.persistence.finalizer = f"{API_GROUP}/operator"
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=API_GROUP)
    made.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=API_GROUP)
    # Our CRDs are there when kopf starts, and it needs no right to watch all others.
    made.scanning.disabled = True
    made.networking.request_timeout = 30
    made.networking.connect_timeout = 10
    made.networking.error_backoffs = PATIENT
    made.watching.server_timeout = 300
    made.watching.client_timeout = 330
    made.watching.connect_timeout = 10
    made.watching.inactivity_timeout = 90
    made.watching.chunk_size = 500
    # Handlers only take note. A task that waits longer for the same object would be kept for each of ten thousand.
    made.queueing.idle_timeout = 0.05
    return made


def registry(operator: Operator, access: Access) -> kopf.OperatorRegistry:
    """Thin handlers over `operator`."""
    made = kopf.OperatorRegistry()

    @kopf.on.login(registry=made)
    async def login(**_: Any) -> kopf.ConnectionInfo:  # pyright: ignore[reportUnusedFunction]
        return access.for_kopf()

    @kopf.on.probe(id="trouble", registry=made)
    async def trouble(**_: Any) -> str:  # pyright: ignore[reportUnusedFunction]
        return operator.trouble()

    @kopf.on.probe(id="queues", registry=made)
    async def queues(**_: Any) -> dict[str, int]:  # pyright: ignore[reportUnusedFunction]
        all_queues = (operator.taps.queue, operator.destinations.queue, operator.nodes.queue, operator.peers.queue)
        return {queue.name: len(queue) for queue in all_queues}

    _take(made, VIRTUAL_TAPS, operator.tap_event)
    _take(made, TAP_DESTINATIONS, operator.destination_event)
    _take(made, TAP_NODES, operator.tap_node_event)
    return made


def _take(made: kopf.OperatorRegistry, resource: Resource, told: Callable[[bool, Mapping[str, Any]], None]) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, id=f"{resource.plural}-seen", registry=made)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        told(event["type"] == "DELETED", event["object"])
