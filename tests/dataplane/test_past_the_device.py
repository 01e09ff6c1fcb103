"""Packets that a network plugin puts right into a pod, past the device where copies are made: not seen, and said to be so."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dataplane.hooked_node import MACS, PEER, POD, Beside, HookedNode
from tests.dataplane.site import Site, expect_each_once, expect_none, point
from tests.dataplane.watched_node import inside
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import Inside, why_not
from vtap_agent.drivers import links
from vtap_agent.inventory.pod_ends import LOOK_EVERY, PodEnds
from vtap_agent.plan.dataplane import Direction, Feed
from vtap_agent.plan.passers_by import ENOUGH, QUIET
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import PLAIN_BRIDGE, Lab, LabOptions

FEW = 4 * ENOUGH
OUT = frames.ethernet(
    MACS[PEER], MACS[POD], 0x0800, frames.ip(frames.POD4, frames.PEER4, 17, frames.udp(frames.POD4, frames.PEER4, 9, 80, b"out"))
)
BACK = frames.ethernet(
    MACS[POD], MACS[PEER], 0x0800, frames.ip(frames.PEER4, frames.POD4, 17, frames.udp(frames.PEER4, frames.POD4, 80, 9, b"in"))
)


class Clock:
    """Goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def node() -> Iterator[HookedNode]:
    if reason := why_not():
        pytest.skip(reason)
    with HookedNode() as made:
        yield made


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    made = Beside(tmp_path)
    yield made
    made.close()


@pytest.fixture
def looks(node: HookedNode) -> Callable[[float], set[Direction]]:
    """The directions of the tapped pod that packets pass by, after so many seconds more."""
    clock = Clock()
    ends = PodEnds(clock)

    def look(seconds: float = LOOK_EVERY) -> set[Direction]:
        clock.now += seconds
        return {feed.direction for feed in ends.passed_by(node.plane().hooks)}

    assert look() == set()
    return look


def sends(node: HookedNode, source: str, frame: bytes, target: str) -> None:
    """FEW frames, all of which arrive."""
    arrived, sender = node.receiver(target), node.sender(source)
    for _ in range(FEW):
        sender.send(frame)
    assert arrived.frames(FEW) == [frame] * FEW


Looks = Callable[..., set[Direction]]


def test_what_is_delivered_past_the_device_has_no_copy_and_is_noticed(node: HookedNode, beside: Beside, looks: Looks) -> None:
    node.apply(node.plane())
    sends(node, PEER, BACK, POD)
    assert node.settled(0).seen == FEW
    assert looks() == set()
    beside.deliver(socket.if_nametoindex(PEER), socket.if_nametoindex(POD))
    sends(node, PEER, BACK, POD)
    assert beside.note(0) == FEW
    assert node.settled(0).seen == FEW, "the tap has seen nothing of it"
    assert looks() == {Direction.INGRESS}
    sends(node, POD, OUT, PEER)
    assert node.settled(1).seen == FEW, "what the pod sends is seen as ever"
    assert looks() == {Direction.INGRESS}


def test_it_is_over_when_the_packets_have_taken_the_usual_way_for_a_while(node: HookedNode, beside: Beside, looks: Looks) -> None:
    beside.deliver(socket.if_nametoindex(PEER), socket.if_nametoindex(POD))
    sends(node, PEER, BACK, POD)
    assert looks() == {Direction.INGRESS}
    beside.deliver_to(0)
    sends(node, PEER, BACK, POD)
    assert looks() == {Direction.INGRESS}
    assert looks(QUIET) == set()


def test_what_a_plugin_delivers_past_the_device_of_another_pod_is_no_matter(
    node: HookedNode, beside: Beside, looks: Looks
) -> None:
    """The tapped pod sends; what it sends is seen before the plugin takes it."""
    node.apply(node.plane())
    beside.deliver(socket.if_nametoindex(POD), socket.if_nametoindex(PEER))
    sends(node, POD, OUT, PEER)
    assert node.settled(1).seen == FEW
    assert looks() == set()


@pytest.mark.parametrize("queued", ["pod", "node", "both"])
def test_no_alarm_where_ends_have_queues_and_count_otherwise(node: HookedNode, looks: Looks, queued: str) -> None:
    """With GRO on, veth counts in the receiving end's own queue."""
    for end in ("pod", "node"):
        if queued in (end, "both"):
            with Inside(node.pods[POD] if end == "pod" else node.namespace):
                links.set_offloads("eth0" if end == "pod" else POD, gro=True)
    for _ in range(3):
        sends(node, PEER, BACK, POD)
        sends(node, POD, OUT, PEER)
        assert looks() == set()


def test_a_device_that_goes_is_no_trouble(node: HookedNode) -> None:
    clock = Clock()
    ends = PodEnds(clock)
    hooks = node.plane().hooks
    assert ends.passed_by(hooks) == frozenset()
    node.remove_pod(POD)
    clock.now = LOOK_EVERY
    assert ends.passed_by(hooks) == frozenset()
    node.add_pod(POD)
    anew = frozenset[Feed](node.plane().hooks)
    assert anew.isdisjoint(hooks)
    clock.now = 2 * LOOK_EVERY
    assert ends.passed_by(anew) == frozenset()


@pytest.mark.slow
@pytest.mark.parametrize("shared_lab", [LabOptions(datapath=PLAIN_BRIDGE)], indirect=True)
def test_the_status_says_that_copies_are_missing(shared_lab: Lab, tmp_path: Path, beside: Beside) -> None:
    lab, site = shared_lab, Site(shared_lab, tmp_path / "captures")
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", backend="Auto")
    usual = start_exchange(lab, client, web, count=100).finish()

    def take_over() -> None:
        beside.deliver(socket.if_nametoindex(client.host_name), socket.if_nametoindex(web.host_name))

    inside(lab.node, take_over)
    passing = start_exchange(lab, client, web, count=0, rate=50)
    answers = start_exchange(lab, web, client, count=100).finish()
    wait_for(lambda: site.condition("web", "Programmed") == "False", 3 * LOOK_EVERY, "the status says that copies are missing")
    past = passing.stop()
    assert past.sent == past.received[str(web)], "the pod gets them"
    assert site.says("web", f"packets reach pod {web} past {web.host_name}")
    assert site.condition("web", "Delivering") == "True", "what the pod sends arrives"
    status = site.status("web")
    assert status is not None and status["failedPods"] == 1
    states = {(one["direction"], one["state"], one["reason"]) for one in status["points"]}
    assert states == {("Ingress", "Refused", "PastTheDevice"), ("Egress", "Ready", "Programmed")}
    site.closes("web")
    found = site.stored("web")
    expect_each_once(found, usual, point(web, "ingress"))
    expect_each_once(found, answers, point(web, "egress"))
    expect_none(found, past, point(web, "ingress"))
