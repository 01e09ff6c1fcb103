"""An agent killed at each single write of a pass: the next one finishes the work, and a tap that does not change loses no copy.

The agent that dies is a fork of the test, so that it dies exactly where it is told to: after so many writes to the kernel, be it
an entry of a map, a device, a program attached or a pin.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from tests.dataplane.test_preprocessor_lifecycle import PUBLIC, datagram
from tests.unit.pipeline.node import EGRESS, INGRESS, Node, point, why_not
from vtap_agent.drivers import libbpf, links
from vtap_agent.drivers.libbpf import Map
from vtap_agent.pipeline import TapPortDevices
from vtap_agent.pipeline.pipeline import Pipeline
from vtap_agent.plan.dataplane import Action, Backend, DataPlane, Direction, Feed, Match, Mirror, Source, TapProgram

OTHER = Feed(Backend.OVS_MIRROR, "br1", Direction.EGRESS)
WRITES = (
    *((Map, name) for name in ("update", "delete")),
    *((libbpf, name) for name in ("pin", "attach_tcx", "update_link")),
    *((links, name) for name in ("create_veth", "silence", "set_offloads", "set_gro_limit", "set_feature", "remove")),
)
FINISHED = 0
INTERVAL = 0.002
"""Seconds between two packets of the tap that does not change."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with Node() as made:
        yield made


def before(node: Node) -> DataPlane:
    """Tap web at pod 0, and tap old, with peers, at pod 2."""
    plane = node.plane(peer_sets={7: frozenset({"10.0.0.1", "10.0.0.2"})})
    old = Source(INGRESS, 0, bytes.fromhex("020000000009"), False, (2,))
    programs = {**plane.programs, "shop/old": TapProgram(Action.EXCLUDE, (Match(Action.INCLUDE, peer_set=7),))}
    return replace(
        plane,
        sources=(*plane.sources, old),
        points=(*plane.points, point(2, Direction.INGRESS, "shop/old")),
        programs=programs,
    )


def after(node: Node) -> DataPlane:
    """Tap old has gone; tap new is at pods 3 and, on another bridge, 4, with a destination of its own."""
    plane = node.plane(peer_sets={8: frozenset({"10.0.0.3"})})
    sources = (
        Source(INGRESS, 0, bytes.fromhex("02000000000a"), False, (3,)),
        Source(OTHER, 0, bytes.fromhex("02000000000b"), False, (4,)),
    )
    programs = {**plane.programs, "shop/new": TapProgram(Action.EXCLUDE, (Match(Action.INCLUDE, peer_set=8),))}
    return replace(
        plane,
        mirrors={**plane.mirrors, OTHER: Mirror(OTHER, frozenset())},
        sources=(*plane.sources, *sources),
        points=(
            *plane.points,
            point(3, Direction.INGRESS, "shop/new", "d"),
            point(4, Direction.EGRESS, "shop/new", "d"),
        ),
        programs=programs,
        destinations=dict(plane.destinations) | {"d": replace(node.destination(), name="d")},
    )


def one_pass(pipeline: Pipeline, desired: DataPlane) -> None:
    """The loop's part that writes to the kernel: tap ports, steps in order, then tap ports that are wanted no more."""
    ports: Mapping[Feed, TapPortDevices] = {key: pipeline.ensure_tap_port(key) for key in desired.mirrors}
    for step in pipeline.plan(desired, ports):
        pipeline.apply(step)
    for key in pipeline.tap_ports() - desired.mirrors.keys():
        pipeline.remove_tap_port(key)


def killed_before_write(number: int, work: Callable[[], None]) -> bool:
    """Do `work` in a fork that is killed before its write of that number; whether it came so far."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _die_at(number)
            work()
            status = FINISHED
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.waitstatus_to_exitcode(status) == FINISHED, "the pass failed by itself"
    return killed


def _die_at(number: int) -> None:
    left = number

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **words: object) -> object:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **words)

        return call

    for owner, name in WRITES:
        setattr(owner, name, deadly(getattr(owner, name)))


def holdings(node: Node) -> dict[str, object]:
    """Everything of ours that the kernel has, but for counters and which index a program or destination has."""
    kernel = node.pipeline._kernel
    observed = node.pipeline._observe()
    return {
        "programs": sorted(observed.programs.values()),
        "destinations": sorted(observed.destinations.values()),
        "points": sorted(observed.points),
        "peers": sorted(kernel.maps["peers"].walk()),
        "tunnels": sorted(kernel.maps["tunnels"].walk()),
        "sources": sorted((one.feed, one.mac, tuple(entry & 0xFFFF for entry in one.entries)) for one in observed.selections),
        "floods": len(kernel.inner("floods", 0)),
        "ports": len(list(kernel.maps["ports"].walk())),
        "devices": sorted(state.name for state in links.stamped()),
        "links": sorted(path.name for path in (node.root / "links").iterdir()),
        "sets of programs pinned": len(list((node.root / "programs").iterdir())),
    }


class Flow:
    """Packets at a steady pace in a thread, toward the pod of a tap that does not change."""

    def __init__(self, node: Node) -> None:
        self._writer = node.writer(INGRESS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = 0

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._writer.send(datagram(PUBLIC, self.sent))
            self.sent += 1

    def __enter__(self) -> Flow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_killed_at_each_write_of_a_pass_the_next_pass_ends_it_and_others_lose_nothing(node: Node) -> None:
    one_pass(node.pipeline, after(node))
    clean = holdings(node)
    one_pass(node.pipeline, before(node))
    deaths = 0
    with Flow(node) as flow:
        while killed_before_write(deaths, lambda: one_pass(node.pipeline, after(node))):
            node.reopen()
            node.pipeline.renew_lease(600)
            one_pass(node.pipeline, after(node))
            assert node.pipeline.verify(after(node)) == [] and holdings(node) == clean, f"killed before write {deaths}"
            one_pass(node.pipeline, before(node))
            deaths += 1
    assert deaths > 20, "a pass that changes so much writes more than that"
    counters = node.settled(0)
    assert flow.sent > 100 and counters.seen == counters.sent == flow.sent, "the tap that does not change"


def test_killed_at_each_write_of_the_first_pass_the_next_one_taps(node: Node) -> None:
    plane = node.plane()
    one_pass(node.pipeline, plane)
    clean = holdings(node)
    deaths = 0
    while True:
        one_pass(node.pipeline, DataPlane())
        if not killed_before_write(deaths, lambda: one_pass(node.pipeline, plane)):
            break
        node.reopen()
        node.pipeline.renew_lease(600)
        one_pass(node.pipeline, plane)
        assert node.pipeline.verify(plane) == [] and holdings(node) == clean, f"killed before write {deaths}"
        deaths += 1
    assert deaths > 10
    node.reopen()
    node.ports = {key: node.pipeline.ensure_tap_port(key) for key in (INGRESS, EGRESS)}
    node.forget_writers()
    node.pipeline.renew_lease(600)
    capture = node.capture()
    node.tap(INGRESS, datagram(PUBLIC, 1))
    assert len(capture.frames(1)) == 1
