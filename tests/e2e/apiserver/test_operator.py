"""What the operator does in a cluster, judged by a real API server."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import pytest
from cryptography import x509

from tests.e2e.apiserver.running import NAMESPACE, VTAP, Operator, condition, pod, tap_path, until
from tests.e2e.apiserver.server import ApiServer
from vtap_api.refusals import destination_not_allowed, destination_not_found
from vtap_operator.permissions import PERMISSIONS


@pytest.fixture
def place(api: ApiServer, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:50].strip("-")
    api.make("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def tap(api: ApiServer, place: str, name: str = "tap", **spec: Any) -> dict[str, Any]:
    body = {
        "apiVersion": "vtap.dev/v1alpha1",
        "kind": "VirtualTap",
        "metadata": {"name": name},
        "spec": {"podSelector": {}, **spec},
    }
    return api.make(f"{VTAP}/namespaces/{place}/virtualtaps", body)


def slices(api: ApiServer, place: str) -> list[dict[str, Any]]:
    found = api.get(f"{VTAP}/namespaces/{NAMESPACE}/tappeerslices")
    assert found is not None
    return [one["spec"] for one in found["items"] if one["spec"]["tapNamespace"] == place]


def test_each_node_gets_keys_of_its_own(api: ApiServer, operator: Operator) -> None:
    def blocks() -> dict[str, int]:
        items = (api.get(f"{VTAP}/tapnodes") or {"items": []})["items"]
        return {one["metadata"]["name"]: one["spec"]["keyBlock"]["first"] for one in items}

    until("two nodes have keys", lambda: len(blocks()) == 2)
    before = blocks()
    api.make("/api/v1/nodes", {"metadata": {"name": "node-c"}})
    until("the third has", lambda: "node-c" in blocks())
    assert len(set(blocks().values())) == 3
    assert {node: blocks()[node] for node in before} == before


def test_a_tap_whose_destination_is_not_there_is_told_so_until_it_is(api: ApiServer, operator: Operator, place: str) -> None:
    tap(api, place, destinationRef={"name": "later"})
    said = until("it is refused", lambda: condition(api, tap_path(place), "Accepted"))
    known = [one["metadata"]["name"] for one in (api.get(f"{VTAP}/tapdestinations") or {})["items"]]
    assert said == ("False", "DestinationNotFound", destination_not_found("later", known).sentence)

    def events() -> list[dict[str, Any]]:
        found = api.get(f"/api/v1/namespaces/{place}/events")
        assert found is not None
        return [one for one in found["items"] if one["involvedObject"]["name"] == "tap"]

    (event,) = until("an Event says it", events)
    assert (event["type"], event["reason"], event["message"]) == ("Warning", *said[1:])
    body = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "later"}}
    allowed = {"from": "Selector", "selector": {"matchLabels": {"team": "red"}}}
    api.make(f"{VTAP}/tapdestinations", {**body, "spec": {"gre": {"address": "192.0.2.9"}, "allowedNamespaces": allowed}})
    refused = ("False", "DestinationNotAllowed", destination_not_allowed("later", place).sentence)
    until("it is not allowed", lambda: condition(api, tap_path(place), "Accepted") == refused)
    api.patch(f"/api/v1/namespaces/{place}", {"metadata": {"labels": {"team": "red"}}})
    until("it is accepted", lambda: (condition(api, tap_path(place), "Accepted") or "?")[0] == "True")
    made = api.get(tap_path(place))
    assert made is not None and "finalizers" not in made["metadata"] and "annotations" not in made["metadata"]


def test_peers_are_resolved_and_followed(api: ApiServer, operator: Operator, place: str) -> None:
    rules = [{"action": "Include", "peer": {"podSelector": {"matchLabels": {"app": "db"}}}}]
    tap(api, place, filter={"defaultAction": "Exclude", "rules": rules})
    until("there is a slice with nothing", lambda: [one.get("addresses") for one in slices(api, place)] == [[]])
    pod(api, place, "db-0", "10.1.0.1", {"app": "db"})
    pod(api, place, "web-0", "10.1.0.2", {"app": "web"})
    service = {"metadata": {"name": "db"}, "spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]}}
    address = api.make(f"/api/v1/namespaces/{place}/services", service)["spec"]["clusterIP"]
    until("pod and Service are there", lambda: [set(one["addresses"]) for one in slices(api, place)] == [{"10.1.0.1", address}])
    api.delete(f"/api/v1/namespaces/{place}/pods/db-0")
    until("both are gone", lambda: [one["addresses"] for one in slices(api, place)] == [[]])
    api.delete(tap_path(place))
    until("no slice is left", lambda: slices(api, place) == [])


def test_what_nodes_say_is_summed_up(api: ApiServer, operator: Operator, place: str) -> None:
    pod(api, place, "web-0", "10.2.0.1", {"app": "web"}, node="node-a")
    pod(api, place, "web-1", "10.2.0.2", {"app": "web"}, node="node-b")
    for node in ("node-a", "node-b"):
        pod(api, NAMESPACE, f"agent-{node}", "192.0.2.1", {"vtap.dev/component": "agent"}, node=node)
    generation = tap(api, place, podSelector={"matchLabels": {"app": "web"}})["metadata"]["generation"]
    until("nobody said anything", lambda: (condition(api, tap_path(place), "Programmed") or "??")[1] == "Pending")

    def say(node: str, **other: Any) -> None:
        stamp = {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation}
        good = [
            {"type": kind, "status": "True", "reason": kind, "message": "all is well", **stamp}
            for kind in ("Programmed", "Delivering")
        ]
        entry = {
            "namespace": place, "name": "tap", "generation": generation, "matchedPods": 1, "attachedPods": 1, "failedPods": 0,
            "conditions": good, **other,
        }  # fmt: skip
        api.patch(f"{VTAP}/tapnodes/{node}/status", {"status": {"taps": [entry]}})

    say("node-a")
    say("node-b")
    programmed = ("True", "Programmed", "2 pods on 2 nodes are copied")
    until("both copy", lambda: condition(api, tap_path(place), "Programmed") == programmed)
    assert condition(api, tap_path(place), "Delivering") == ("True", "Delivering", "all is well")
    made = api.get(tap_path(place))
    assert made is not None and (made["status"]["matchedPods"], made["status"]["attachedPods"]) == (2, 2)
    api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/agent-node-b")
    until("an agent is missed", lambda: (condition(api, tap_path(place), "Programmed") or "??")[1] == "NoAgent")


def test_a_collector_is_run_and_followed(api: ApiServer, operator: Operator) -> None:
    name, path = "vtap-collector-default", f"{VTAP}/tapdestinations/default"
    until("it starts", lambda: (condition(api, path, "Ready") or "??")[1] == "CollectorStarting")
    own = f"/namespaces/{NAMESPACE}"
    for kind in (
        f"/apis/apps/v1{own}/deployments", f"/api/v1{own}/services", f"/api/v1{own}/serviceaccounts",
        f"/apis/networking.k8s.io/v1{own}/networkpolicies",
    ):  # fmt: skip
        assert api.get(f"{kind}/{name}"), kind
    secret = api.get(f"/api/v1{own}/secrets/{name}-tls")
    assert secret is not None
    certificate = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert f"{name}.{NAMESPACE}.svc" in names.get_values_for_type(x509.DNSName)
    labels = {"vtap.dev/component": "collector", "vtap.dev/destination": "default"}
    pod(api, NAMESPACE, "collector-1", "10.3.0.1", labels)
    until("its address is known", lambda: _collector(api) == {
        "address": "10.3.0.1", "port": 4754, "url": f"https://{name}.{NAMESPACE}.svc:9471",
    })  # fmt: skip
    api.delete(f"/api/v1{own}/pods/collector-1")
    until("its address is taken back", lambda: _collector(api) is None)
    pod(api, NAMESPACE, "collector-2", "10.3.0.2", labels)
    until("it is followed", lambda: (_collector(api) or {}).get("address") == "10.3.0.2")


def _collector(api: ApiServer) -> dict[str, Any] | None:
    return ((api.get(f"{VTAP}/tapdestinations/default") or {}).get("status") or {}).get("collector")


def test_a_tap_ends_by_itself(api: ApiServer, operator: Operator, place: str) -> None:
    tap(api, place, ttl="10s")
    started = time.monotonic()
    until("it is gone", lambda: api.get(tap_path(place)) is None)
    assert time.monotonic() - started > 8


def test_a_tap_goes_while_the_operator_is_down_and_its_slices_after_it(api: ApiServer, operator: Operator, place: str) -> None:
    rules = [{"action": "Include", "peer": {"namespaceSelector": {}}}]
    tap(api, place, filter={"defaultAction": "Exclude", "rules": rules})
    until("it has slices", lambda: slices(api, place))
    assert operator.stop() == 0
    api.delete(tap_path(place))
    assert api.get(tap_path(place)) is None, "nothing holds it"
    operator.start()
    until("its slices go", lambda: slices(api, place) == [])


def test_a_collector_that_is_none_any_more_leaves_only_what_it_captured(api: ApiServer, operator: Operator) -> None:
    body = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "kept"}}
    api.make(f"{VTAP}/tapdestinations", {**body, "spec": {"collector": {"storage": {"type": "PersistentVolumeClaim"}}}})
    own = f"/namespaces/{NAMESPACE}"
    claim, deployment = (f"{kind}{own}/{{}}/vtap-collector-kept" for kind in ("/api/v1", "/apis/apps/v1"))
    until("it runs", lambda: api.get(deployment.format("deployments")))
    path = f"{VTAP}/tapdestinations/kept"
    api.patch(path, {"spec": {"collector": None, "gre": {"address": "192.0.2.9"}}})
    until("it is an endpoint", lambda: (condition(api, path, "Ready") or "??")[1] == "External")
    assert api.get(deployment.format("deployments")) is None
    assert api.get(f"/api/v1{own}/secrets/vtap-collector-kept-tls") is None
    assert api.get(claim.format("persistentvolumeclaims")) is not None


def test_a_tap_node_without_keys_gets_them(api: ApiServer, operator: Operator) -> None:
    api.make(
        f"{VTAP}/tapnodes", {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapNode", "metadata": {"name": "node-d"}, "spec": {}}
    )
    api.make("/api/v1/nodes", {"metadata": {"name": "node-d"}})
    until("it has", lambda: (api.get(f"{VTAP}/tapnodes/node-d") or {"spec": {}})["spec"].get("keyBlock"))


def test_every_right_is_used_and_none_is_missed(operator: Operator) -> None:
    """Of this run and of the one before the operator was stopped, which together did everything that it can do."""
    counted = re.findall(
        r'^vtap_operator_api_requests_total\{code="(\d+)",resource="([^"]+)",verb="([^"]+)"\}', operator.metrics(), re.M
    )
    assert [one for one in counted if one[0] == "403"] == []
    used = {(resource, verb) for _, resource, verb in counted}
    used |= {(resource, "create") for code, resource, verb in counted if code == "201" and verb == "patch"}
    # kopf watches these with a client of its own, whose requests are not counted; without its watches no test here would pass.
    used |= {(plural, "watch") for plural in ("virtualtaps", "tapdestinations", "tapnodes")}
    granted = {(one.resource.plural, verb) for one in PERMISSIONS for verb in one.verbs if verb != "bind"}
    assert granted - used == set()


def test_it_says_that_it_works(operator: Operator) -> None:
    assert operator.get("/healthz") == "ok\n"
    assert "Traceback" not in operator.log.read_text()


def test_the_api_server_may_be_away_for_a_while(api: ApiServer, operator: Operator, place: str) -> None:
    api.stop()
    time.sleep(3)  # the fault itself: it is away for that long
    api.start()
    tap(api, place, destinationRef={"name": "nowhere"})
    until("the operator is back at work", lambda: condition(api, tap_path(place), "Accepted"))
    assert operator.get("/healthz") == "ok\n"
