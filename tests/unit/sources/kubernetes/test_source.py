"""What an agent in a cluster wants and remembers, seen through an API server that speaks the real protocol."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.waiting import eventually
from tests.unit.sources.kubernetes.api_server import ApiServer
from vtap_agent.plan.cluster import Cluster
from vtap_agent.plan.selection import Desired
from vtap_agent.sources.kubernetes import memory
from vtap_agent.sources.kubernetes.access import Access
from vtap_agent.sources.kubernetes.permissions import PERMISSIONS
from vtap_agent.sources.kubernetes.pods import KubernetesPods
from vtap_agent.sources.kubernetes.source import ClusterSource

OURS, NODE = "vtap-system", "here"
DATABASES = {"podSelector": {"matchLabels": {"app": "db"}}}


class Found:
    """Sandboxes of pods that are all found at once."""

    problem = ""
    settled = True

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._paths: dict[str, str] = {}

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def want(self, pods: frozenset[str]) -> None:
        self._paths = {uid: f"/proc/{uid}/ns/net" for uid in pods}
        self._changed()

    def look_again(self) -> None: ...

    def paths(self) -> dict[str, str]:
        return self._paths


class Agent:
    """A source and how often it told of a change."""

    def __init__(self, access: Access, state: Path) -> None:
        self.source = ClusterSource(access, NODE, OURS, state, KubernetesPods(Found))  # pyright: ignore[reportArgumentType]
        self.changed = threading.Event()
        self.source.on_change(self.changed.set)

    def __enter__(self) -> Agent:
        self.source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()

    @property
    def desired(self) -> Desired:
        return self.source.snapshot().desired

    @property
    def taps(self) -> list[str]:
        return [str(tap) for tap in self.desired.taps]

    @property
    def cluster(self) -> Cluster:
        assert self.desired.cluster is not None
        return self.desired.cluster


def pod(name: str, namespace: str = "shop", node: str = NODE, phase: str = "Running", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"metadata": metadata, "spec": {"nodeName": node, **spec}, "status": {"phase": phase}}


def tap(name: str = "web", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {}, **spec}}


def filtered(peer: dict[str, Any] = DATABASES, **spec: Any) -> dict[str, Any]:
    return tap(filter={"defaultAction": "Exclude", "rules": [{"action": "Include", "peer": peer}]}, **spec)


def peers(*addresses: str, **more: Any) -> dict[str, Any]:
    spec = {"tapNamespace": "shop", "index": 0, "count": 1, "addresses": list(addresses), **DATABASES, **more}
    return {"metadata": {"name": f"peer-x-{spec['index']}", "namespace": OURS}, "spec": spec}


def fill(server: ApiServer) -> None:
    """One namespace with a pod here, a destination, and keys."""
    server.put("namespaces", {"metadata": {"name": "shop", "labels": {"env": "test"}}})
    server.put("pods", pod("web-0"))
    server.put("tapdestinations", {"metadata": {"name": "default"}, "spec": {"gre": {"address": "10.0.9.2"}}})
    server.put("tapnodes", {"metadata": {"name": NODE}, "spec": {"keyBlock": {"first": 8192, "size": 4096}}})
    server.put("tapnodes", {"metadata": {"name": "there"}, "spec": {"keyBlock": {"first": 12288, "size": 4096}}})


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        fill(made)
        yield made


@pytest.fixture
def agent(server: ApiServer, tmp_path: Path) -> Iterator[Agent]:
    with Agent(server.access, tmp_path) as made:
        yield made


def test_it_is_ready_once_everything_was_told_and_it_has_keys(server: ApiServer, agent: Agent) -> None:
    eventually(lambda: agent.source.ready)
    assert agent.source.key_block is not None and agent.source.key_block.first == 8192
    assert agent.source.contact_ages().keys() == {
        *("virtualtaps", "tapdestinations", "tappeerslices", "tapnodes", "namespaces", "pods")
    }


def test_without_a_key_block_it_waits(server: ApiServer, agent: Agent) -> None:
    server.delete("tapnodes", NODE)
    eventually(lambda: agent.source.synced and agent.source.tap_node is None)
    assert not agent.source.ready
    server.put("tapnodes", {"metadata": {"name": NODE}, "spec": {}})
    eventually(lambda: agent.source.tap_node is not None)
    assert not agent.source.ready
    server.put("tapnodes", {"metadata": {"name": NODE}, "spec": {"keyBlock": {"first": 8192}}})
    eventually(lambda: agent.source.ready)


def test_taps_come_change_and_go_with_their_generation(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", tap())
    eventually(lambda: agent.taps == ["VirtualTap shop/web"])
    assert agent.desired.generations["VirtualTap/shop/web"] == 1
    server.put("virtualtaps", tap(direction="Egress"))
    eventually(lambda: agent.desired.generations["VirtualTap/shop/web"] == 2)
    assert agent.desired.taps[0].spec.direction == "Egress"
    assert agent.cluster.namespaces == {"shop": {"env": "test"}} and agent.cluster.own_namespace == OURS
    server.delete("virtualtaps", "web", "shop")
    eventually(lambda: agent.taps == [])


def test_nothing_is_planned_anew_while_nothing_is_different(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", tap())
    eventually(lambda: agent.taps != [])
    before = agent.desired
    server.put("virtualtaps", {**tap(), "status": {"matchedPods": 1}})
    server.put("namespaces", {"metadata": {"name": "elsewhere"}})
    server.put("virtualtaps", tap("other", "elsewhere"))
    server.put("pods", {**pod("web-0"), "status": {"phase": "Running", "podIP": "10.0.0.1"}})
    server.put("virtualtaps", tap("last"))
    eventually(lambda: len(agent.taps) == 2)
    server.delete("virtualtaps", "last", "shop")
    eventually(lambda: len(agent.taps) == 1)
    assert agent.desired == before and agent.desired is agent.desired


def test_taps_of_namespaces_without_a_pod_here_are_no_burden_until_one_comes(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", tap("other", "bank"))
    server.put("virtualtaps", tap())
    eventually(lambda: agent.taps == ["VirtualTap shop/web"])
    server.put("namespaces", {"metadata": {"name": "bank"}})
    server.put("pods", pod("teller", "bank"))
    eventually(lambda: agent.taps == ["VirtualTap bank/other", "VirtualTap shop/web"])


def test_an_object_of_another_schema_is_refused_and_the_last_good_version_stays(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", tap(direction="Egress"))
    eventually(lambda: agent.taps != [])
    server.put("virtualtaps", tap(direction="Sideways"))
    server.put("virtualtaps", {**tap("new"), "spec": {"podSelector": {}, "holograms": True}})
    eventually(lambda: len(agent.source.snapshot().problems) == 2)
    new, old = agent.source.snapshot().problems
    assert "VirtualTap shop/new: spec.holograms: is not a field" in new and "it is left out" in new and "upgrade both" in new
    assert 'VirtualTap shop/web: spec.direction: "Sideways" is unknown' in old and "stays in force" in old
    assert agent.taps == ["VirtualTap shop/web"] and agent.desired.taps[0].spec.direction == "Egress"
    assert agent.desired.generations["VirtualTap/shop/web"] == 1, "what is said is said of what is in force"
    server.put("virtualtaps", tap(direction="Ingress"))
    eventually(lambda: agent.desired.taps[-1].spec.direction == "Ingress")


def test_a_bad_object_does_not_inherit_from_a_deleted_one_of_its_name(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", tap())
    eventually(lambda: agent.taps != [])
    server.delete("virtualtaps", "web", "shop")
    server.put("virtualtaps", tap(direction="Sideways"))
    eventually(lambda: bool(agent.source.snapshot().problems) and agent.taps == [])


def test_a_tap_that_is_being_deleted_copies_nothing_more(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", tap())
    eventually(lambda: agent.taps != [])
    going = tap()
    going["metadata"] |= {"deletionTimestamp": "2026-01-31T12:00:00Z", "finalizers": ["someone/else"]}
    server.put("virtualtaps", going)
    eventually(lambda: agent.taps == [])


def test_peers_are_waited_for_and_then_known(server: ApiServer, agent: Agent) -> None:
    server.put("virtualtaps", filtered())
    eventually(lambda: agent.cluster.waiting.keys() == {"shop/web"})
    server.put("tappeerslices", peers("10.0.7.1", count=2))
    server.put("tappeerslices", {**peers("10.0.7.9"), "metadata": {"name": "peer-x-0", "namespace": "evil"}})
    server.put("tappeerslices", peers("10.0.7.2", index=1, count=2))
    eventually(lambda: set(agent.cluster.peers.values()) == {frozenset({"10.0.7.1", "10.0.7.2"})})
    assert not agent.cluster.waiting


def test_where_a_collector_runs_is_in_the_destinations_status(server: ApiServer, agent: Agent) -> None:
    server.put("tapdestinations", {"metadata": {"name": "ours"}, "spec": {"collector": {}}})
    eventually(lambda: len(agent.desired.destinations) == 2)
    status = {"collector": {"address": "10.0.5.5", "port": 4754, "url": "https://vtap-collector-ours.vtap-system.svc:9471"}}
    server.put("tapdestinations", {"metadata": {"name": "ours"}, "spec": {"collector": {}}, "status": status})

    def address() -> str:
        found = agent.desired.destinations[1].status.collector
        return found.address if found else ""

    eventually(lambda: address() == "10.0.5.5")


def test_pods_that_are_over_or_elsewhere_are_none(server: ApiServer, agent: Agent) -> None:
    server.put("pods", pod("job", phase="Succeeded"))
    server.put("pods", pod("crashed", phase="Failed"))
    server.put("pods", pod("starting", phase="Pending"))
    server.put("pods", pod("far", node="there"))
    server.put("pods", pod("proxy", hostNetwork=True))
    pods = agent.source.pods
    eventually(lambda: [item.ref.name for item in pods.snapshot().pods] == ["proxy", "starting", "web-0"])
    by_name = {item.ref.name: item for item in pods.snapshot().pods}
    assert by_name["proxy"].host_network and by_name["proxy"].netns == ""
    assert by_name["starting"].netns.startswith("/proc/")
    relabelled = pod("web-0")
    relabelled["metadata"]["labels"] = {"app": "other"}
    server.put("pods", relabelled)
    eventually(lambda: {item.ref.name: item.labels for item in pods.snapshot().pods}["web-0"] == {"app": "other"})


def test_a_ttl_ends_by_itself(server: ApiServer, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1769860800.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    server.put("virtualtaps", tap(ttl="30s"))
    eventually(lambda: agent.taps != [])
    assert not agent.cluster.expired
    agent.changed.clear()
    now[0] += 29.98
    server.put("virtualtaps", tap("other"))  # Makes the keeper look at the clock again.
    eventually(lambda: len(agent.taps) == 2)
    now[0] += 1
    eventually(lambda: agent.cluster.expired == {"shop/web"})


def test_the_agent_goes_on_with_what_it_saw_when_it_starts_without_the_api_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtap_agent.sources.kubernetes.source.PATIENCE", 0.1)
    with ApiServer() as server:
        fill(server)
        server.put("tappeerslices", peers("10.0.7.1"))
        server.put("virtualtaps", filtered(direction="Egress"))
        server.put("virtualtaps", tap("second"))
        server.put("virtualtaps", tap("elsewhere", "bank"))
        access = server.access
        with Agent(access, tmp_path) as agent:
            eventually(lambda: set(agent.cluster.peers.values()) == {frozenset({"10.0.7.1"})} if agent.source.ready else False)
            server.put("virtualtaps", filtered({"podSelector": {"matchLabels": {"app": "cache"}}}))
            server.put("virtualtaps", tap("second", direction="Sideways"))
            eventually(lambda: agent.cluster.waiting.keys() == {"shop/web"} and bool(agent.source.snapshot().problems))
            seen = agent.desired
    file = tmp_path / memory.FILE
    assert file.stat().st_mode & 0o777 == 0o600 and "bank" not in file.read_text()
    with Agent(access, tmp_path) as again:
        eventually(lambda: again.source.ready)
        assert not again.source.synced
        assert again.desired == seen, "the edited tap goes on as it was, and so does the one whose last version was bad"
        assert [item.ref.name for item in again.source.pods.snapshot().pods] == ["web-0"]
        assert any("does not answer" in problem for problem in again.source.problems)
        assert again.source.contact_ages()["virtualtaps"] > 0


def test_what_was_deleted_meanwhile_goes_once_the_api_server_says_so(tmp_path: Path) -> None:
    with ApiServer() as server:
        fill(server)
        server.put("virtualtaps", tap())
        with Agent(server.access, tmp_path) as agent:
            eventually(lambda: agent.source.ready and agent.taps != [])
        server.delete("virtualtaps", "web", "shop")
        with Agent(server.access, tmp_path) as again:
            eventually(lambda: again.source.synced)
            assert again.taps == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9}', '{"format": 1, "keyBlock": {"first": -1}}'])
def test_a_damaged_memory_is_none(server: ApiServer, tmp_path: Path, content: str) -> None:
    (tmp_path / memory.FILE).write_text(content)
    with Agent(server.access, tmp_path) as agent:
        eventually(lambda: agent.source.ready)


def test_it_asks_for_nothing_that_is_not_in_the_list_of_permissions(server: ApiServer, agent: Agent) -> None:
    eventually(lambda: agent.source.ready and server.watches == 6)
    allowed = {(item.verb, item.resource) for item in PERMISSIONS}
    assert set(server.asked) == allowed - {("patch", "tapnodes/status")}
    assert {query["fieldSelector"] for kind, query in server.queries if kind == "tapnodes"} == {f"metadata.name={NODE}"}


def test_the_memory_survives_the_round_trip(tmp_path: Path) -> None:
    found = memory.Memory(namespaces={"a": {"b": "c"}}, taps={"a/b": json.dumps({"x": 1}).encode()})
    memory.save(tmp_path / "x" / memory.FILE, found)
    assert memory.load(tmp_path / "x" / memory.FILE) == found
    assert memory.load(tmp_path / memory.FILE) is None
