"""What an agent that starts makes of what the one before it left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.agent.node import Node
from tests.unit.agent.waiting import eventually
from tests.unit.plan.test_planning import tap
from tests.unit.report.test_announcer import Collector
from vtap_agent import accounts as accounts_module
from vtap_agent import loop as module
from vtap_agent.plan.dataplane import PointCounters
from vtap_agent.report import announcer as announcer_module
from vtap_api import TapDestination, VirtualTap


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.02)
    monkeypatch.setattr(announcer_module, "LINGER", 0.3)
    monkeypatch.setattr(announcer_module, "TOTALS_EVERY", 0.05)
    monkeypatch.setattr(accounts_module, "SETTLE", 0.1)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector("secret")
    yield made
    made.stop()


def destination(collector: Collector, tmp_path: Path) -> TapDestination:
    token = tmp_path / "token"
    token.write_text("secret")
    target = {"address": "198.18.2.2", "control": {"url": collector.url, "tokenFile": str(token)}}
    return TapDestination.model_validate({"metadata": {"name": "default"}, "spec": {"collector": target}})


def agent(state: Path, target: TapDestination, before: Node | None = None) -> Node:
    """A node of the same state, and of the kernel's maps that the agent before has left."""
    made = Node(state)
    made.taps.desired = type(made.taps.desired)(destinations=(target,))
    if before is not None:
        made.pipeline.has, made.pipeline.devices = before.pipeline.has, before.pipeline.devices
        made.pipeline.points, made.mirrors.has = before.pipeline.points, before.mirrors.has
    return made


@contextmanager
def running(node: Node, *taps: VirtualTap, and_then: Callable[[], None] = lambda: None) -> Iterator[Node]:
    node.want(*taps)
    thread = threading.Thread(target=node.loop.run, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        node.mailbox.stop()
        thread.join(10)
        assert not thread.is_alive()
        and_then()
        node.announcer.stop()


def delivers(node: Node, name: str = "web") -> bool:
    return node.condition(name, "Delivering")[0] == "True"


@pytest.mark.parametrize("others", [0, 1])
def test_a_tap_deleted_while_the_agent_was_down_gets_its_last_word(tmp_path: Path, collector: Collector, others: int) -> None:
    """Whether or not another tap still sends to the same collector."""
    target = destination(collector, tmp_path)
    stay = [tap("stay")][:others]
    with running(agent(tmp_path, target), tap("gone", direction="Egress"), *stay) as first:
        eventually(lambda: delivers(first, "gone") and all(delivers(first, one.metadata.name) for one in stay))
        gone = {4096 + value.slot for name, value in first.accounts.slots.assigned.items() if name.point.tap_name == "gone"}
    kept = set(collector.streams) - gone
    assert gone and len(kept) == 4 * others
    first.pipeline.points = {key - 4096: PointCounters(seen=9, sent=9, next_sequence=9) for key in gone}
    collector.heard.clear()
    with running(agent(tmp_path, target, first), *stay) as second:
        eventually(lambda: set(collector.streams) == kept)
        assert {key: collector.totals.get(key) for key in gone} == dict.fromkeys(gone, 9)
        eventually(lambda: len([row for row in second.loop.view.rows if row.closed]) == len(gone))
        assert second.copied() == {(one.metadata.name, pod) for one in stay for pod in ("web-1", "web-2")}
    assert collector.heard.index("totals") < len(collector.heard) - 1 - collector.heard[::-1].index("streams")


def test_a_tap_whose_last_word_was_cut_off_gets_it_from_the_next_agent(tmp_path: Path, collector: Collector) -> None:
    target = destination(collector, tmp_path)
    with running(agent(tmp_path, target), tap("gone")) as first:
        eventually(lambda: delivers(first, "gone"))
        keys = {row.key for row in first.loop.view.rows}
        first.pipeline.points = {key - 4096: PointCounters(seen=3, sent=3, next_sequence=3) for key in keys}
        first.announcer.stop()  # As if killed: nothing reaches the collector any more.
        first.want()
        eventually(lambda: not first.accounts.used_slots())
    with running(agent(tmp_path, target, first)):
        eventually(lambda: collector.totals == dict.fromkeys(keys, 3) and collector.streams == {})


def test_after_an_orderly_end_nobody_is_told_again(tmp_path: Path, collector: Collector) -> None:
    target = destination(collector, tmp_path)
    first = agent(tmp_path, target)
    with running(first, tap("gone"), and_then=first.loop.remove_everything):
        eventually(lambda: delivers(first, "gone"))
    assert collector.streams == {}
    collector.heard.clear()
    with running(agent(tmp_path, target, first)) as second:
        eventually(lambda: second.passes() > 0)
        assert collector.heard == [] and second.accounts.told == {}
