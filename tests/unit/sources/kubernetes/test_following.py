"""What is told of a resource is what the API server has, whatever happens on the way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.agent.waiting import eventually
from tests.unit.sources.kubernetes.api_server import ApiServer
from vtap_agent.errors import TellUser
from vtap_agent.sources.kubernetes.access import Access, from_kubeconfig, in_cluster
from vtap_agent.sources.kubernetes.backoff import Backoff
from vtap_agent.sources.kubernetes.client import ApiClient, ApiError
from vtap_agent.sources.kubernetes.following import Follower, Resource
from vtap_agent.sources.kubernetes.shelf import Shelf

TAPS = Resource("virtualtaps", "/apis/vtap.dev/v1alpha1/virtualtaps")
PODS = Resource("pods", "/api/v1/pods", "spec.nodeName=here", from_cache=True)
NAMESPACES = Resource("namespaces", "/api/v1/namespaces", metadata_only=True)


def quick() -> Backoff:
    return Backoff(lambda: 0.0, first=0.01, last=0.05)


def tap(name: str, value: int = 0, namespace: str = "shop") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"value": value}}


def values(shelf: Shelf[int]) -> dict[str, int]:
    return dict(shelf.items())


class Following:
    """A follower and what it has told."""

    def __init__(self, server: ApiServer, resource: Resource = TAPS, access: Access | None = None) -> None:
        self.changes = 0
        self.shelf: Shelf[int] = Shelf(lambda item: (item.get("spec") or {}).get("value", 0), self._changed)
        self.follower = Follower(access or server.access, resource, self.shelf, quick())

    def _changed(self) -> None:
        self.changes += 1

    def __enter__(self) -> Following:
        self.follower.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.follower.stop()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as made:
        yield made


def test_what_is_there_and_what_comes_changes_and_goes(server: ApiServer) -> None:
    server.put("virtualtaps", tap("one", 1))
    with Following(server) as following:
        eventually(lambda: values(following.shelf) == {"shop/one": 1})
        server.put("virtualtaps", tap("two", 2))
        server.put("virtualtaps", tap("one", 3))
        eventually(lambda: values(following.shelf) == {"shop/one": 3, "shop/two": 2})
        server.delete("virtualtaps", "one", "shop")
        eventually(lambda: values(following.shelf) == {"shop/two": 2})
        assert following.shelf.synced and following.follower.contact_age == 0.0


def test_what_changes_nothing_that_is_kept_wakes_nobody(server: ApiServer) -> None:
    server.put("virtualtaps", tap("one", 1))
    with Following(server) as following:
        eventually(lambda: server.watches == 1)
        before = following.changes
        server.put("virtualtaps", {**tap("one", 1), "status": {"matchedPods": 5}})
        server.put("virtualtaps", tap("two", 1))
        eventually(lambda: "shop/two" in following.shelf.items())
        assert following.changes == before + 1


def test_a_long_list_comes_in_pages(server: ApiServer) -> None:
    server.page_size = 7
    for number in range(50):
        server.put("virtualtaps", tap(f"t{number}", number))
    with Following(server) as following:
        eventually(lambda: len(following.shelf.items()) == 50)
    assert [query["limit"] for kind, query in server.queries if kind == "virtualtaps" and "limit" in query] == ["500"] * 8


def test_a_list_whose_pages_expired_is_asked_for_at_once(server: ApiServer) -> None:
    for number in range(9):
        server.put("virtualtaps", tap(f"t{number}", number))
    server.page_size = 4
    client = ApiClient(server.access)
    page = client.get(TAPS.path, {"limit": "4"})
    server.compact()
    with pytest.raises(ApiError, match="too old"):
        client.get(TAPS.path, {"limit": "4", "continue": page["metadata"]["continue"]})
    assert len(client.get(TAPS.path, {})["items"]) == 9
    client.close()


def test_a_watch_that_is_cut_goes_on_where_it_was(server: ApiServer) -> None:
    server.put("virtualtaps", tap("one", 1))
    with Following(server) as following:
        eventually(lambda: server.watches == 1)
        server.cut_watches()
        server.put("virtualtaps", tap("one", 2))
        eventually(lambda: values(following.shelf) == {"shop/one": 2})
    assert [verb for verb, _ in server.asked].count("list") == 1


def test_after_compaction_everything_is_listed_anew(server: ApiServer) -> None:
    server.put("virtualtaps", tap("one", 1))
    server.put("virtualtaps", tap("two", 2))
    with Following(server) as following:
        eventually(lambda: server.watches == 1)
        with server.changed:
            server.objects.pop(("virtualtaps", "shop", "one"))  # Nobody is told.
        server.compact()
        eventually(lambda: values(following.shelf) == {"shop/two": 2})


def test_only_the_pods_of_the_node_from_the_servers_memory(server: ApiServer) -> None:
    def pod(name: str, node: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "namespace": "shop"}, "spec": {"nodeName": node, "value": 1}}

    server.put("pods", pod("a", "here"))
    server.put("pods", pod("b", "there"))
    with Following(server, PODS) as following:
        eventually(lambda: values(following.shelf) == {"shop/a": 1})
        server.put("pods", pod("c", "there"))
        server.put("pods", pod("d", "here"))
        eventually(lambda: values(following.shelf) == {"shop/a": 1, "shop/d": 1})
    lists = [query for kind, query in server.queries if kind == "pods" and "watch" not in query]
    assert lists == [{"fieldSelector": "spec.nodeName=here", "limit": "500", "resourceVersion": "0"}]


def test_of_namespaces_only_metadata_is_asked_for(server: ApiServer) -> None:
    server.put("namespaces", {"metadata": {"name": "shop"}, "spec": {"value": 7}})
    with Following(server, NAMESPACES) as following:
        eventually(lambda: values(following.shelf) == {"/shop": 0})


def test_a_refusal_says_what_to_do_and_is_tried_again(server: ApiServer) -> None:
    server.put("virtualtaps", tap("one", 1))
    server.refuse = (403, 'User "system:serviceaccount:x:y" cannot list resource')
    with Following(server) as following:
        eventually(lambda: "grant it as the chart does" in following.follower.problem)
        assert not following.shelf.synced and following.follower.contact_age > 0
        server.refuse = (404, "the server could not find the requested resource")
        eventually(lambda: "are our CRDs installed?" in following.follower.problem)
        server.refuse = None
        eventually(lambda: values(following.shelf) == {"shop/one": 1} and not following.follower.problem)


def test_a_server_restored_from_a_backup_is_listed_anew(server: ApiServer) -> None:
    server.put("virtualtaps", tap("one", 1))
    with Following(server) as following:
        eventually(lambda: server.watches == 1)
        server.refuse = (504, "Too large resource version: 900, current: 3")
        server.cut_watches()
        eventually(lambda: "Too large" in following.follower.problem)
        server.refuse = None
        eventually(lambda: [verb for verb, _ in server.asked].count("list") >= 2 and not following.follower.problem)


def test_the_token_is_read_again(server: ApiServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    server.token = "first"
    access = Access("127.0.0.1", server.port, secure=False, token_file=token)
    server.put("virtualtaps", tap("one", 1))
    with Following(server, access=access) as following:
        eventually(lambda: server.watches == 1)
        server.token = "second"
        server.cut_watches()
        eventually(lambda: "check the service account's token" in following.follower.problem)
        token.write_text("second\n")
        server.put("virtualtaps", tap("one", 2))
        eventually(lambda: values(following.shelf) == {"shop/one": 2})


def test_nobody_there_is_a_sentence_and_stopping_does_not_wait() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        access = Access("127.0.0.1", taken.getsockname()[1], secure=False)
        shelf: Shelf[int] = Shelf(lambda _item: 1, lambda: None)
        follower = Follower(access, TAPS, shelf, Backoff(lambda: 0.0, first=60))
        follower.start()
        eventually(lambda: "does not answer" in follower.problem)
        started = time.monotonic()
        follower.stop()
        assert time.monotonic() - started < 2


def test_stopping_ends_a_silent_watch_at_once(server: ApiServer) -> None:
    following = Following(server)
    following.follower.start()
    eventually(lambda: server.watches == 1)
    started = time.monotonic()
    following.follower.stop()
    assert time.monotonic() - started < 2


def test_waiting_grows_with_failures_and_is_random() -> None:
    low, high = Backoff(lambda: 0.0), Backoff(lambda: 1.0)
    assert [low.next() for _ in range(8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert [high.next() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    high.reset()
    assert high.next() == 0.5


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcde"), st.integers(0, 5)),
        st.tuples(st.just("delete"), st.sampled_from("abcde"), st.just(0)),
        st.tuples(st.sampled_from(["cut", "compact", "vanish"]), st.sampled_from("abcde"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_whatever_happens_in_whatever_order_both_agree_in_the_end(steps: list[tuple[str, str, int]]) -> None:
    with ApiServer() as server, Following(server) as following:
        server.page_size = 2
        for what, name, value in steps:
            there = ("virtualtaps", "shop", name) in server.objects
            if what == "put":
                server.put("virtualtaps", tap(name, value))
            elif what == "delete" and there:
                server.delete("virtualtaps", name, "shop")
            elif what == "cut":
                server.cut_watches()
            elif what == "compact":
                server.compact()
            elif what == "vanish" and there:
                with server.changed:
                    server.objects.pop(("virtualtaps", "shop", name))
                    server.compact()
        with server.changed:
            wanted = {f"{where}/{name}": item["spec"]["value"] for (_, where, name), item in server.objects.items()}
        eventually(lambda: following.shelf.synced and values(following.shelf) == wanted)


def test_a_kubeconfig_is_taken_as_kubectl_writes_it(tmp_path: Path) -> None:
    config = tmp_path / "config"
    body = {
        "current-context": "dev",
        "contexts": [{"name": "dev", "context": {"cluster": "kind", "user": "me"}}],
        "clusters": [{"name": "kind", "cluster": {"server": "https://[::1]:6443/k8s", "tls-server-name": "kind"}}],
        "users": [{"name": "me", "user": {"token": "abc"}}],
    }
    config.write_text(json.dumps(body))
    access = from_kubeconfig(config)
    assert (access.host, access.port, access.prefix, access.server_name) == ("::1", 6443, "/k8s", "kind")
    assert access.bearer() == "abc" and access.url == "https://[::1]:6443/k8s"
    body["users"] = [{"name": "me", "user": {"exec": {"command": "aws"}}}]
    config.write_text(json.dumps(body))
    with pytest.raises(TellUser, match="use a token or a client certificate"):
        from_kubeconfig(config)
    config.write_text("{}")
    with pytest.raises(TellUser, match="has no 'current-context'"):
        from_kubeconfig(config)
    with pytest.raises(TellUser, match="cannot be read"):
        from_kubeconfig(tmp_path / "none")


def test_outside_of_a_pod_the_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(TellUser, match="give --kubeconfig FILE"):
        in_cluster({}, tmp_path)
    (tmp_path / "ca.crt").write_text("")
    access = in_cluster({"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}, tmp_path)
    assert access.url == "https://10.96.0.1:443" and access.token_file == tmp_path / "token"


def test_no_thread_is_left(server: ApiServer) -> None:
    with Following(server):
        eventually(lambda: server.watches == 1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("follow ")]
