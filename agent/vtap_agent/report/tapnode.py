"""The TapNode's status: what this node's agent found and did, for the operator to sum up. No counters go to the API server.

`tapnode_status` is pure; `TapNodeWriter` looks once a second on a thread of its own, and writes when something is different.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Protocol

from vtap_agent.errors import VtapError
from vtap_agent.plan.inventory_model import Inventory, Switch
from vtap_agent.plan.verdicts import PointVerdict
from vtap_agent.report.ledger import Row
from vtap_agent.report.status import Condition, TapStatus, attached_pods, failed_pods
from vtap_api.meta import Condition as ApiCondition
from vtap_api.refusals import AVAILABLE_BACKENDS
from vtap_api.tapnode import (
    MAX_KEYS,
    MAX_TAPS,
    BackendStatus,
    BridgeStatus,
    PointStatus,
    TapNodeStatus,
    TapOnNode,
)
from vtap_api.virtualtap import BackendName

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between looks, and so between writes at least."""
RETRY_FIRST, RETRY_LAST = 1.0, 30.0
MAX_BYTES = 1_000_000
"""Of a status in JSON. etcd takes 1.5 MiB of a whole object; what others add to it has to fit, too."""
MAX_SENTENCE = 1024
MAX_ADDRESSES, MAX_BRIDGES = 64, 256
SWITCH_AWAY = "Open vSwitch does not answer; check ovs-vswitchd and ovsdb-server on this node"
NOT_HERE = "is not in this version"
STATE_ORDER = {"Refused": 0, "Waiting": 1, "Ready": 2}
DIRECTIONS = {"Both": ("Ingress", "Egress"), "Ingress": ("Ingress",), "Egress": ("Egress",)}

Times = Mapping[tuple[str, str, str], tuple[str, str]]
"""(tap's namespace and name, both empty for the node's own; condition) → (status, when it became so)."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What the agent knows at one moment. `trouble` is (reason, sentence) where the agent can't work, both empty else."""

    statuses: tuple[TapStatus, ...] = ()
    rows: tuple[Row, ...] = ()
    inventory: Inventory | None = None
    trouble: tuple[str, str] = ("", "")
    switch_expected: bool = True
    """Whether there is an Open vSwitch on this node that should answer."""


@dataclass(frozen=True, slots=True)
class Node:
    """Our TapNode as the API server has it."""

    uid: str
    generation: int
    status: Mapping[str, Any] = field(default_factory=dict[str, Any])


def tapnode_status(view: NodeView, generation: int, before: Times, now: str) -> TapNodeStatus:
    """The status to write. A condition that was so `before` keeps its time, others get `now` (RFC 3339)."""
    # Taps without a pod here are refused ones, of which the operator says the same by itself: they give way first.
    said = sorted(filter(_worth_saying, view.statuses), key=lambda status: not status.verdict.matched_pods)
    points = _points(said, view.rows)
    taps_listed, points_listed = min(len(said), MAX_TAPS), min(len(points), MAX_KEYS)
    while True:
        cut = tuple(
            f"{len(items)} {what}, of which only {most} are listed here"
            for items, most, what in ((said, taps_listed, "taps"), (points, points_listed, "tap points"))
            if len(items) > most
        )
        ready = _ready(view, generation, cut, before, now)
        made = _made(view, generation, said[:taps_listed], points[:points_listed], ready, before, now)
        size = len(made.model_dump_json(by_alias=True))
        if size <= MAX_BYTES or not (taps_listed or points_listed):
            return made
        here = sum(1 for status in said[:taps_listed] if status.verdict.matched_pods)
        if taps_listed > here:
            taps_listed = here + (taps_listed - here) // 2
        elif points_listed:
            points_listed = points_listed * MAX_BYTES // (size * 2)
        else:
            taps_listed //= 2


def _made(
    view: NodeView,
    generation: int,
    said: Sequence[TapStatus],
    points: Sequence[PointStatus],
    ready: ApiCondition,
    before: Times,
    now: str,
) -> TapNodeStatus:
    switch = view.inventory.switch if view.inventory is not None else None
    return TapNodeStatus(
        observed_generation=generation,
        agent_version=version("vtap-agent"),
        addresses=_addresses(view.inventory),
        switch_version=switch.version if switch is not None else "",
        bridges=_bridges(switch),
        backends=_backends(switch),
        taps=tuple(_tap(status, before, now) for status in said),
        points=tuple(points),
        conditions=(ready,),
    )


def _worth_saying(status: TapStatus) -> bool:
    verdict = status.verdict
    return bool(verdict.matched_pods or verdict.refusal or verdict.points)


def _addresses(inventory: Inventory | None) -> tuple[str, ...]:
    hops = inventory.next_hops.values() if inventory is not None else ()
    return tuple(sorted({hop.source for hop in hops if hop.source}))[:MAX_ADDRESSES]


def _bridges(switch: Switch | None) -> tuple[BridgeStatus, ...]:
    return tuple(
        BridgeStatus(
            name=bridge.name,
            datapath_type=bridge.datapath_type,
            mirrors=min(32, bridge.mirror_count),
            controlled=", ".join(bridge.controllers)[:253],
        )
        for bridge in (switch.bridges if switch is not None else ())[:MAX_BRIDGES]
    )


def _backends(switch: Switch | None) -> tuple[BackendStatus, ...]:
    reachable = switch is not None and switch.reachable
    return tuple(_backend(name, reachable) for name in BackendName if name is not BackendName.AUTO)


def _backend(name: BackendName, reachable: bool) -> BackendStatus:
    if name not in AVAILABLE_BACKENDS:
        return BackendStatus(name=name, available=False, message=f"{name} {NOT_HERE}")
    works = reachable or name is BackendName.EBPF
    return BackendStatus(name=name, available=works, message="" if works else SWITCH_AWAY)


def _tap(status: TapStatus, before: Times, now: str) -> TapOnNode:
    verdict = status.verdict
    return TapOnNode(
        namespace=verdict.namespace,
        name=verdict.name,
        generation=verdict.generation,
        matched_pods=verdict.matched_pods,
        attached_pods=attached_pods(verdict),
        failed_pods=len(failed_pods(verdict)),
        conditions=tuple(_condition(item, (verdict.namespace, verdict.name), before, now) for item in status.conditions),
    )


def _points(statuses: Iterable[TapStatus], rows: Iterable[Row]) -> list[PointStatus]:
    """What is wrong first, so that a list that has to be cut loses the least."""
    streams = {
        (name.tap_namespace, name.tap_name, name.pod_name, name.interface, name.direction.value): (row.key, name.pod_uid)
        for row in rows
        if not row.closed and (name := row.name)
    }
    found = [
        _point(status, point, direction, streams)
        for status in statuses
        for point in status.verdict.points
        for direction in ((point.direction,) if point.direction else DIRECTIONS[status.verdict.direction])
    ]
    return sorted(found, key=lambda point: STATE_ORDER[point.state.value])


def _point(
    status: TapStatus, point: PointVerdict, direction: str, streams: Mapping[tuple[str, ...], tuple[int, str]]
) -> PointStatus:
    verdict = status.verdict
    key, uid = streams.get((verdict.namespace, verdict.name, point.pod_name, point.interface, direction), (0, ""))
    return PointStatus.model_validate(
        {
            "tapNamespace": verdict.namespace,
            "tapName": verdict.name,
            "podName": point.pod_name,
            "podUID": uid,
            "interface": point.interface,
            "direction": direction,
            "key": key,
            "backend": point.backend or BackendName.AUTO,
            "why": point.why[:MAX_SENTENCE],
            "state": point.state.value,
            "reason": point.reason,
            "message": point.message[:MAX_SENTENCE],
        }
    )


def _ready(view: NodeView, generation: int, cut: Sequence[str], before: Times, now: str) -> ApiCondition:
    reason, sentence = view.trouble
    switch = view.inventory.switch if view.inventory is not None else None
    if not reason and (switch is None or (not switch.reachable and view.switch_expected)):
        reason, sentence = "NoSwitch", SWITCH_AWAY
    if reason:
        condition = Condition("Ready", "False", reason, sentence, generation)
    else:
        listed = "; ".join(cut)
        condition = Condition("Ready", "True", "Works", "the agent works" + (f" ({listed})" if listed else ""), generation)
    return _condition(condition, ("", ""), before, now)


def _condition(condition: Condition, tap: tuple[str, str], before: Times, now: str) -> ApiCondition:
    status, since = before.get((*tap, condition.type), ("", now))
    return ApiCondition.model_validate(
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message[:MAX_SENTENCE],
            "lastTransitionTime": since if status == condition.status else now,
            "observedGeneration": condition.observed_generation,
        }
    )


def times_in(status: Mapping[str, Any]) -> Times:
    """Of a status as the API server gives it; what makes no sense is left out."""
    places: list[tuple[tuple[str, str], Any]] = [(("", ""), status.get("conditions"))]
    places += [((item.get("namespace", ""), item.get("name", "")), item.get("conditions")) for item in status.get("taps") or ()]
    return {
        (*tap, str(item.get("type"))): (str(item.get("status")), str(item["lastTransitionTime"]))
        for tap, conditions in places
        for item in conditions or ()
        if item.get("lastTransitionTime")
    }


def now_text() -> str:
    """RFC 3339, in seconds, as Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Patch(Protocol):
    """Merge-patches the status of our TapNode. Raises VtapError; its `status`, if any, is the HTTP status."""

    def __call__(self, status: Mapping[str, Any]) -> None: ...


class TapNodeWriter(threading.Thread):
    """Keeps the TapNode's status as it should be. `node` is None while there is no TapNode; `view` is what to tell."""

    def __init__(self, node: Callable[[], Node | None], view: Callable[[], NodeView], patch: Patch) -> None:
        super().__init__(name="tapnode", daemon=True)
        self._node = node
        self._view = view
        self._patch = patch
        self._stopping = threading.Event()
        self._written: tuple[str, dict[str, Any]] | None = None
        self._told: tuple[Any, ...] = ()
        self._times: Times = {}
        self._retry = RETRY_FIRST
        self.problem = ""
        """A sentence while the status can't be written."""

    def stop(self, last_word: tuple[str, str] = ("", "")) -> None:
        """End; with a (reason, sentence), say as the last thing that the agent does not work any more."""
        self._stopping.set()
        if self.is_alive():
            self.join()
        node = self._node()
        if last_word[0] and node is not None:
            self._write(node, NodeView(trouble=last_word))

    def run(self) -> None:
        wait = 0.0
        while not self._stopping.wait(wait):
            try:
                wait = self._look()
            except Exception as error:  # whatever it is, the thread must not end by it unnoticed
                log.exception("the TapNode's status failed unexpectedly")
                wait = self._failed(f"the TapNode's status failed unexpectedly ({type(error).__name__}: {error})", 0)

    def _look(self) -> float:
        """Returns the seconds until the next look. Cheap where all that the status is made of is as last time: nearly always."""
        node = self._node()
        if node is None:
            return LOOK_EVERY
        view = self._view()
        return LOOK_EVERY if self._told == self._made_of(node, view) else self._write(node, view)

    def _made_of(self, node: Node, view: NodeView) -> tuple[Any, ...]:
        inventory = view.inventory
        seen = (inventory.switch, _addresses(inventory)) if inventory is not None else None
        streams = tuple((row.key, row.incarnation) for row in view.rows if not row.closed)
        return (node.uid, node.generation, view.statuses, view.trouble, seen, streams)

    def _write(self, node: Node, view: NodeView) -> float:
        """Returns the seconds until the next look."""
        try:
            self._write_if_different(node, view)
        except VtapError as error:
            return self._failed(str(error), getattr(error, "status", 0))
        except Exception as error:
            log.exception("the TapNode's status failed unexpectedly")
            return self._failed(f"the TapNode's status failed unexpectedly ({type(error).__name__}: {error})", 0)
        self._told, self.problem, self._retry = self._made_of(node, view), "", RETRY_FIRST
        return LOOK_EVERY

    def _write_if_different(self, node: Node, view: NodeView) -> None:
        if self._written is None or self._written[0] != node.uid:
            self._written, self._times = (node.uid, {}), times_in(node.status)
        made = tapnode_status(view, node.generation, self._times, now_text())
        # A merge patch replaces lists whole; a field that is left out would stay, so that none is.
        data = made.model_dump(mode="json", by_alias=True)
        if data != self._written[1]:
            self._patch(data)
            self._written, self._times = (node.uid, data), times_in(data)

    def _failed(self, sentence: str, status: int) -> float:
        """After 404 the TapNode has gone, which its watch tells soon; after any other, ever more seldom."""
        if sentence != self.problem:
            log.log(logging.DEBUG if status == HTTPStatus.NOT_FOUND else logging.WARNING, "%s", sentence)
        self.problem = sentence
        wait, self._retry = self._retry * (0.5 + random.random() / 2), min(RETRY_LAST, self._retry * 2)
        return max(LOOK_EVERY, wait)
