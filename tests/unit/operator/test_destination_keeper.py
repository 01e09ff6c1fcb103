"""What becomes of a collector's address, and of the collector, whatever the API server says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from vtap_operator.certificate_keeper import CertificateKeeper
from vtap_operator.client import Client
from vtap_operator.collectors import CollectorPod, PodTemplate
from vtap_operator.destination_keeper import DestinationKeeper
from vtap_operator.errors import ApiError
from vtap_operator.events import Poster
from vtap_operator.records import read_destination
from vtap_operator.resources import Resource
from vtap_operator.world import World

POD = CollectorPod("pod", "u2", "default", "1", "10.0.0.1", ready=True, leaving=False)


class FakeApi:
    """Holds statuses and objects by kind and name; refuses to apply anything while `broken`."""

    def __init__(self) -> None:
        self.broken = False
        self.statuses: dict[str, Mapping[str, Any]] = {}
        self.objects: set[tuple[str, str]] = set()

    async def apply(self, resource: Resource, body: Mapping[str, Any]) -> bytes:
        if self.broken:
            raise ApiError(500, "InternalError", "a webhook does not answer")
        self.objects.add((resource.kind, body["metadata"]["name"]))
        return b"{}"

    async def merge(self, _resource: Resource, name: str, body: Mapping[str, Any], **_: str) -> bytes:
        self.statuses[name] = body["status"]
        return b"{}"

    async def delete(self, resource: Resource, name: str, namespace: str = "", uid: str = "") -> None:
        del namespace, uid
        self.objects.discard((resource.kind, name))


class Site:
    """A keeper, its world and its API server."""

    def __init__(self, pod: CollectorPod | None = POD) -> None:
        self.api, self.world = FakeApi(), World()
        client = cast("Client", self.api)
        certificates = CertificateKeeper(client, "vtap-system", enabled=False)
        template = PodTemplate("vtap-system", {"image": "registry.example/vtap-collector:1"})
        self.keeper = DestinationKeeper(client, template, self.world, certificates, Poster(client))
        self.pod(pod)

    def pod(self, pod: CollectorPod | None) -> None:
        self.world.collector_pods = {} if pod is None else {pod.name: pod}

    def put(self, spec: Mapping[str, Any], address: str = "") -> None:
        status = {"collector": {"address": address, "port": 4754, "url": "https://c.vtap-system.svc:9471"}} if address else {}
        meta = {"name": "default", "uid": "u1", "generation": 1, "resourceVersion": "7"}
        raw = {"apiVersion": "vtap.dev/v1alpha1", "metadata": meta, "spec": spec, "status": status}
        self.world.destinations["default"] = read_destination(raw)

    async def settle(self) -> None:
        """Let the keeper do all that can be done at once."""
        task = asyncio.create_task(self.keeper.queue.run())
        self.keeper.queue.mark("default")
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()

    @property
    def address(self) -> str | None:
        said = self.api.statuses["default"]["collector"]
        return None if said is None else said["address"]

    def said(self, kind: str) -> tuple[str, str]:
        (found,) = (one for one in self.api.statuses["default"]["conditions"] if one["type"] == kind)
        return found["status"], found["reason"]


def test_an_address_without_its_pod_is_taken_back_though_nothing_can_be_applied() -> None:
    """As after an installation anew, or while a webhook is down: it may be a tenant's pod's by now."""
    site = Site(pod=None)
    site.put({"collector": {}}, address="10.0.0.9")
    site.api.broken = True
    asyncio.run(site.settle())
    assert site.address is None and not site.api.objects
    site.api.broken = False
    asyncio.run(site.settle())
    assert ("Deployment", "vtap-collector-default") in site.api.objects


def test_a_destination_that_cannot_be_read_keeps_its_collector_and_what_it_captured() -> None:
    site = Site()
    site.put({"collector": {}})
    asyncio.run(site.settle())
    assert site.address == "10.0.0.1"
    site.put({"collector": {"somethingNewer": 1}}, address="10.0.0.1")
    asyncio.run(site.settle())
    assert ("Deployment", "vtap-collector-default") in site.api.objects
    assert site.address == "10.0.0.1"
    assert site.said("Accepted") == ("False", "Invalid") and site.said("Ready") == ("True", "Ready")
    site.pod(None)
    asyncio.run(site.settle())
    assert site.address is None


def test_a_destination_that_is_no_collector_any_more_has_none() -> None:
    site = Site()
    site.put({"collector": {}})
    asyncio.run(site.settle())
    site.put({"gre": {"address": "192.0.2.9"}}, address="10.0.0.1")
    asyncio.run(site.settle())
    assert site.address is None and ("Deployment", "vtap-collector-default") not in site.api.objects


def test_what_an_operator_before_has_left_of_a_collector_is_removed_once() -> None:
    """It ended, or was refused, after the destination had become something else: the status tells nothing of it any more."""
    site = Site(pod=None)
    site.api.objects = {("Deployment", "vtap-collector-default"), ("Deployment", "vtap-collector-other")}
    site.put({"gre": {"address": "192.0.2.9"}})
    asyncio.run(site.settle())
    assert site.api.objects == {("Deployment", "vtap-collector-other")}
    site.api.objects = {("Deployment", "vtap-collector-default")}
    asyncio.run(site.settle())
    assert site.api.objects, "it is not ours to remove time and again"
    site.put({"collector": {}})
    asyncio.run(site.settle())
    site.put({"gre": {"address": "192.0.2.9"}})
    asyncio.run(site.settle())
    assert ("Deployment", "vtap-collector-default") not in site.api.objects
