"""Peer selectors give the addresses that their definition says, whatever the order of events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_operator.client import Client
from vtap_operator.peer_keeper import PeerKeeper
from vtap_operator.peers.index import STALE_KINDS, PeerIndex
from vtap_operator.peers.layout import Layout, pack
from vtap_operator.peers.selectors import PeerKey, brute_force
from vtap_operator.peers.slices import slice_name
from vtap_operator.resources import Resource

NAMESPACES = ("shop", "bank", "lab")
LABELS = st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["web", "db"]), max_size=2)
ADDRESSES = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]), max_size=2)
CLUSTER_IPS = st.lists(st.sampled_from(["10.9.0.1", "10.9.0.2", "10.0.0.1"]), max_size=2)
SELECTORS = st.sampled_from([
    "{}",
    '{"matchLabels":{"app":"web"}}',
    '{"matchLabels":{"app":"db","tier":"web"}}',
    '{"matchExpressions":[{"key":"app","operator":"In","values":["db","web"]}]}',
    '{"matchExpressions":[{"key":"tier","operator":"DoesNotExist"}]}',
])  # fmt: skip
NAMESPACE_SELECTORS = st.sampled_from([
    "{}",
    '{"matchLabels":{"team":"a"}}',
    '{"matchLabels":{"kubernetes.io/metadata.name":"bank"}}',
    '{"matchExpressions":[{"key":"team","operator":"NotIn","values":["a"]}]}',
])  # fmt: skip
KEYS = st.one_of(
    st.builds(PeerKey, st.sampled_from(NAMESPACES), SELECTORS, st.none()),
    st.builds(PeerKey, st.sampled_from(NAMESPACES), st.none() | SELECTORS, NAMESPACE_SELECTORS),
)
PLACES = st.sampled_from(NAMESPACES)
NAMES = st.sampled_from(["one", "two", "three"])
EVENTS = st.one_of(
    st.tuples(st.just("pod"), PLACES, NAMES, LABELS, ADDRESSES),
    st.tuples(st.just("pod"), PLACES, NAMES, LABELS, ADDRESSES),
    st.tuples(st.just("no pod"), PLACES, NAMES),
    st.tuples(st.just("service"), PLACES, NAMES, LABELS, CLUSTER_IPS),
    st.tuples(st.just("no service"), PLACES, NAMES),
    st.tuples(st.just("namespace"), PLACES, st.dictionaries(st.just("team"), st.sampled_from(["a", "b"]))),
    st.tuples(st.just("no namespace"), PLACES),
    st.tuples(st.just("selectors"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("no selectors"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("listing"), st.sampled_from(["pods", "services"]), st.sets(NAMES)),
    st.just(("start",)),
)  # fmt: skip


@dataclass
class World:
    """What a plain reader of the events knows."""

    pods: dict[tuple[str, str], tuple[dict[str, str], list[str]]] = field(default_factory=dict)
    services: dict[tuple[str, str], tuple[dict[str, str], list[str]]] = field(default_factory=dict)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    keys: set[PeerKey] = field(default_factory=set)

    def labels(self) -> Mapping[str, Mapping[str, str]]:
        return {name: {"kubernetes.io/metadata.name": name, **self.namespaces.get(name, {})} for name in NAMESPACES}

    def addresses(self, key: PeerKey) -> frozenset[str]:
        pods = [(at[0], labels, own) for at, (labels, own) in self.pods.items()]
        services = [(at[0], selector, own) for at, (selector, own) in self.services.items()]
        return brute_force(key, pods, services, self.labels())


def happen(event: tuple, world: World, index: PeerIndex) -> None:
    name, *rest = event
    {
        "pod": _pod, "no pod": _no_pod, "service": _service, "no service": _no_service, "namespace": _namespace,
        "no namespace": _no_namespace, "selectors": _selectors, "no selectors": _no_selectors, "listing": _listing,
        "start": _start,
    }[name](world, index, *rest)  # fmt: skip


def _pod(world: World, index: PeerIndex, namespace: str, name: str, labels: dict[str, str], addresses: list[str]) -> None:
    world.pods[namespace, name] = (labels, addresses)
    index.put_pod(namespace, name, labels, addresses)


def _no_pod(world: World, index: PeerIndex, namespace: str, name: str) -> None:
    world.pods.pop((namespace, name), None)
    index.drop_pod(namespace, name)


def _service(world: World, index: PeerIndex, namespace: str, name: str, selector: dict[str, str], own: list[str]) -> None:
    world.services[namespace, name] = (selector, own)
    index.put_service(namespace, name, selector, own)


def _no_service(world: World, index: PeerIndex, namespace: str, name: str) -> None:
    world.services.pop((namespace, name), None)
    index.drop_service(namespace, name)


def _namespace(world: World, index: PeerIndex, name: str, labels: dict[str, str]) -> None:
    world.namespaces[name] = labels
    index.put_namespace(name, {"kubernetes.io/metadata.name": name, **labels})


def _no_namespace(world: World, index: PeerIndex, name: str) -> None:
    world.namespaces.pop(name, None)
    index.drop_namespace(name)


def _selectors(world: World, index: PeerIndex, keys: list[PeerKey]) -> None:
    world.keys.update(keys)
    index.add_selectors(keys)


def _no_selectors(world: World, index: PeerIndex, keys: list[PeerKey]) -> None:
    world.keys.difference_update(keys)
    index.drop_selectors(keys)


def _listing(world: World, index: PeerIndex, what: str, kept: set[str]) -> None:
    there = world.pods if what == "pods" else world.services
    put = index.put_pod if what == "pods" else index.put_service
    index.begin_listing(what)
    for namespace, name in list(there):
        if name in kept:
            put(namespace, name, *there[namespace, name])
        else:
            del there[namespace, name]
    index.end_listing(what)


def _start(_world: World, index: PeerIndex) -> None:
    if not index.started:
        index.start()


@settings(max_examples=400, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_any_order_of_events_gives_the_addresses_of_the_definition(events: list[tuple]) -> None:
    world, index = World(), PeerIndex()
    for event in events:
        happen(event, world, index)
    if not index.started:
        index.start()
    assert {key: index.resolved(key) for key in world.keys} == {key: world.addresses(key) for key in world.keys}
    held = [number for group in index.groups for one in group.layout.slices for number in one]
    assert all(index.addresses.text(number) for number in held)
    assert sum(len(group.layout) for group in index.groups) == len(held)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=20), EVENTS)
def test_slices_that_are_not_named_as_changed_are_as_they_were(events: list[tuple], last: tuple) -> None:
    world, index = World(), PeerIndex()
    for event in events:
        happen(event, world, index)
    if not index.started:
        index.start()
    before = {group: [list(one) for one in group.layout.slices] for group in index.groups}
    texts = {group: [[index.addresses.text(n) for n in one] for one in group.layout.slices] for group in index.groups}
    index.take_changes()
    happen(last, world, index)
    changed = index.take_changes()
    for group in index.groups:
        now = [[index.addresses.text(n) for n in one] for one in group.layout.slices]
        if group not in before:
            assert 0 in changed[group]
            continue
        if len(now) != len(texts[group]):
            assert changed[group] >= set(range(len(now)))
        assert {at for at, one in enumerate(now) if at >= len(texts[group]) or one != texts[group][at]} <= changed.get(
            group, set()
        )


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=6), max_size=6), st.sets(st.integers(0, 60)))
def test_packing_holds_what_is_wanted_and_moves_nothing_without_need(held: list[list[int]], wanted: set[int]) -> None:
    packed = pack(held, wanted, limit=5)
    everything = [number for one in packed.slices for number in one]
    assert sorted(everything) == sorted(wanted)
    assert all(len(one) <= 5 for one in packed.slices)
    assert pack(packed.slices, wanted, limit=5).slices == packed.slices
    for index, one in enumerate(packed.slices[: len(held)]):
        elsewhere = {number for other in held[:index] for number in other}
        assert set(held[index][:5]) & wanted - elsewhere <= set(one)


@settings(deadline=None)
@given(st.lists(st.integers(0, 30)))
def test_a_layout_changes_one_slice_for_one_address_unless_the_count_changes(toggles: list[int]) -> None:
    layout, held = Layout(limit=4), set[int]()
    for number in toggles:
        before = [list(one) for one in layout.slices]
        changed = layout.remove(number) if number in held else layout.add(number)
        held ^= {number}
        assert {n for one in layout.slices for n in one} == held
        if len(before) == len(layout.slices):
            assert len(changed) == 1
        else:
            assert changed == set(range(len(layout.slices)))
        assert {at for at, one in enumerate(layout.slices) if at >= len(before) or list(one) != before[at]} <= changed


def test_a_selector_of_namespaces_is_resolved_once_for_all_taps() -> None:
    index = PeerIndex()
    keys = [PeerKey(namespace, '{"matchLabels":{"app":"dns"}}', "{}") for namespace in ("a", "b", "c")]
    index.add_selectors(keys)
    index.start()
    index.put_pod("kube-system", "dns-0", {"app": "dns"}, ["10.0.0.53"])
    assert [index.resolved(key) for key in keys] == [frozenset({"10.0.0.53"})] * 3
    (group,) = index.groups
    assert group.selectors() == keys
    assert len({key.hash for key in keys}) == 3


def test_slices_that_are_there_already_stay_as_they_are_after_a_restart() -> None:
    key = PeerKey("shop", "{}", None)
    index = PeerIndex()
    index.add_selectors([key])
    for number in range(1500):
        index.put_pod("shop", f"pod-{number}", {}, [f"10.1.{number // 250}.{number % 250}"])
    everything = sorted(f"10.1.{number // 250}.{number % 250}" for number in range(1500))
    held = [[*everything[900:], "10.66.6.6"], everything[:900]]
    index.start({key: held})
    (group,) = index.groups
    assert [[index.addresses.text(n) for n in one] for one in group.layout.slices] == [everything[900:], everything[:900]]


def test_namespaces_that_are_gone_are_forgotten_with_what_was_in_them() -> None:
    index = PeerIndex()
    index.start()
    for number in range(50):
        name = f"ci-{number}"
        index.put_namespace(name, {"team": "a"})
        index.put_pod(name, "p", {"app": "x"}, ["10.0.0.1"])
        index.put_service(name, "s", {"app": "x"}, ["10.1.0.1"])
        index.drop_namespace(name)  # its watch may be ahead of the others
        index.drop_pod(name, "p")
        index.drop_service(name, "s")
    index.put_namespace("kept", {"team": "a"})
    index.put_pod("kept", "p", {}, ["10.0.0.1"])
    index.drop_pod("kept", "p")
    assert set(index._namespaces) == {"kept"}


def test_labels_of_pods_that_are_gone_are_forgotten() -> None:
    """Every run of a job has labels of its own."""
    index = PeerIndex()
    index.start()
    index.put_service("shop", "web", {"app": "web"}, ["10.96.0.1"])
    index.put_pod("shop", "web-0", {"app": "web", "pod": "0"}, ["10.0.0.1"])
    for number in range(3 * STALE_KINDS):
        index.put_pod("shop", f"job-{number}", {"controller-uid": str(number)}, ["10.0.0.2"])
        index.drop_pod("shop", f"job-{number}")
    assert len(index._pairs) < 2 * STALE_KINDS
    assert {("app", "web"), ("pod", "0")} <= index._pairs.keys()


def test_no_slice_is_written_before_anything_is_resolved() -> None:
    """Its addresses would be none, which a node would take for an answer."""

    class Api:
        def __init__(self) -> None:
            self.said: list[str] = []

        async def apply(self, _resource: Resource, body: Mapping[str, Any]) -> bytes:
            self.said.append(body["metadata"]["name"])
            return b'{"metadata": {"resourceVersion": "8"}}'

        async def delete(self, _resource: Resource, name: str, _namespace: str) -> None:
            self.said.append(f"no {name}")

    async def main() -> None:
        api = Api()
        keeper = PeerKeeper(cast("Client", api), "vtap-system", asyncio.Event())
        key = PeerKey("shop", '{"matchLabels":{"app":"db"}}', None)
        name = slice_name(key.hash, 0)
        keeper.change((), (key,))
        keeper.queue.mark(name)
        queue = asyncio.create_task(keeper.queue.run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert api.said == []
        keeper._start()
        for _ in range(20):
            await asyncio.sleep(0)
        assert api.said == [name]
        queue.cancel()

    asyncio.run(main())
