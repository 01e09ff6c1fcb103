"""A collector that is a pod: copies go where it says that it is, while it says so, and where none arrives, that is said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent.node import Node
from tests.unit.agent.waiting import eventually
from tests.unit.plan.test_planning import COLLECTOR, tap
from tests.unit.report.test_announcer import Collector
from vtap_agent import loop as module
from vtap_agent.plan import reception
from vtap_agent.plan.dataplane import DestinationState, PointCounters
from vtap_agent.report import announcer as announcer_module
from vtap_agent.report import arrival
from vtap_api import TapDestination

READY, NOT_READY = DestinationState.READY, DestinationState.NOT_READY


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.02)
    monkeypatch.setattr(announcer_module, "TOTALS_EVERY", 0.05)
    monkeypatch.setattr(announcer_module, "TOTALS_IDLE_EVERY", 0.1)
    monkeypatch.setattr(announcer_module, "BACKOFF_LAST", 0.2)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector(None)
    made.says = {"addresses": [COLLECTOR]}
    yield made
    made.stop()


@pytest.fixture
def node(tmp_path: Path, collector: Collector) -> Iterator[Node]:
    made = Node(tmp_path)
    status = {"collector": {"address": COLLECTOR, "port": 4754, "url": collector.url}}
    target = TapDestination.model_validate({"metadata": {"name": "default"}, "spec": {"collector": {}}, "status": status})
    made.taps.desired = type(made.taps.desired)(destinations=(target,))
    running = threading.Thread(target=made.loop.run, daemon=True)
    running.start()
    made.want(tap())
    yield made
    made.mailbox.stop()
    running.join(10)
    made.announcer.stop()
    assert not running.is_alive()


def state(node: Node) -> DestinationState | None:
    known = node.pipeline.has.destinations.get("default")
    return known.state if known is not None and node.pipeline.has.sources else None


def test_a_collector_that_answers_from_elsewhere_gets_nothing_at_the_old_address(node: Node, collector: Collector) -> None:
    eventually(lambda: state(node) is READY and node.condition("web", "Delivering")[0] == "True")
    streams = dict(collector.streams)
    collector.says = {"addresses": ["198.18.2.9"]}
    eventually(lambda: state(node) is NOT_READY)
    eventually(lambda: node.condition("web", "Delivering")[:2] == ("False", "CollectorMoved"))
    assert "198.18.2.9" in node.condition("web", "Delivering")[2] and "operator" in node.condition("web", "Delivering")[2]
    assert node.condition("web", "Programmed")[0] == "True"
    collector.says = {"addresses": [COLLECTOR]}
    eventually(lambda: state(node) is READY and node.condition("web", "Delivering")[0] == "True")
    assert collector.streams == streams, "they went on"


def test_a_collector_that_does_not_answer_gets_nothing_after_a_while(
    node: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: state(node) is READY)
    collector.stop()
    eventually(lambda: node.condition("web", "Delivering")[1] == "CollectorUnreachable")
    assert state(node) is READY, "it may come back where it was"
    monkeypatch.setattr(reception, "SILENCE", 0.3)
    eventually(lambda: state(node) is NOT_READY)
    eventually(lambda: "counted as notReady" in node.condition("web", "Delivering")[2])
    again = Collector(None, collector.server.server_address[1])
    try:
        eventually(lambda: state(node) is READY and node.condition("web", "Delivering")[0] == "True")
    finally:
        again.stop()


def test_copies_that_never_arrive_are_not_delivered(node: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "PATIENCE", 0.3)
    collector.received = {}
    eventually(lambda: node.condition("web", "Delivering")[0] == "True" and len(collector.totals) == 4)
    keys = sorted(collector.streams)
    node.pipeline.points = {key - 4096: PointCounters(seen=90, sent=90, next_sequence=90) for key in keys}
    eventually(lambda: node.condition("web", "Delivering")[:2] == ("False", "NotArriving"))
    assert "(and 3 more)" in node.condition("web", "Delivering")[2]
    assert node.condition("web", "Programmed")[0] == "True"
    points = [point for status in node.loop.view.statuses for point in status.verdict.points]
    assert {(point.state.value, point.reason) for point in points} == {("Waiting", "NotArriving")}
    collector.received = dict.fromkeys(keys, 1)
    eventually(lambda: node.condition("web", "Delivering")[:2] == ("True", "Confirmed"))
