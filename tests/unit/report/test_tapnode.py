"""What the operator reads of a node: complete, within bounds, written only when it is different."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.agent.waiting import eventually
from tests.unit.plan.test_planning import gre, interface, inventory, plan, pod, tap
from vtap_agent.errors import Retry
from vtap_agent.plan.dataplane import PointCounters
from vtap_agent.plan.inventory_model import Bridge, Inventory, NextHopState
from vtap_agent.plan.selection import Desired
from vtap_agent.report import tapnode as module
from vtap_agent.report.ledger import Row
from vtap_agent.report.status import Observations, tap_status
from vtap_agent.report.tapnode import Node, NodeView, TapNodeWriter, tapnode_status, times_in
from vtap_api import VirtualTap
from vtap_api.tapnode import TapNodeStatus

NOON, LATER = "2026-01-31T12:00:00Z", "2026-01-31T13:00:00Z"


def seen(pods: int = 2, **more: Any) -> Inventory:
    here = [pod(number) for number in range(1, pods + 1)]
    found = inventory(here, [interface(owner, number % 250 + 1) for number, owner in enumerate(here)])
    bridge = Bridge("br0", "b", "netdev", ("tcp:10.0.0.9:6653",), (), 3, 1)
    return replace(found, switch=replace(found.switch, bridges=(bridge,), **more))


def view(*taps: VirtualTap, at: Inventory | None = None) -> NodeView:
    at = at or seen()
    made = plan(Desired(taps, (gre(),), {f"VirtualTap/shop/{item.metadata.name}": 7 for item in taps}), at)
    rows = tuple(
        Row(point.key, point.incarnation, point.name, "default", PointCounters(), False) for point in made.dataplane.points
    )
    return NodeView(tuple(tap_status(verdict, Observations()) for verdict in made.verdicts), rows, at)


def status(found: NodeView, before: TapNodeStatus | None = None, now: str = NOON) -> TapNodeStatus:
    times = times_in(before.model_dump(mode="json", by_alias=True)) if before else {}
    return tapnode_status(found, 4, times, now)


def condition(found: Any, kind: str) -> tuple[str, str, str]:
    (one,) = [item for item in found if item.type == kind]
    return one.status.value, one.reason, one.last_transition_time


def test_taps_points_and_the_node_itself() -> None:
    found = status(view(tap()))
    (one,) = found.taps
    assert (one.namespace, one.name, one.generation) == ("shop", "web", 7)
    assert (one.matched_pods, one.attached_pods, one.failed_pods) == (2, 2, 0)
    assert condition(one.conditions, "Programmed") == ("True", "Programmed", NOON)
    assert [(point.pod_name, point.direction, point.state.value) for point in found.points] == [
        (name, direction, "Ready") for name in ("web-1", "web-2") for direction in ("Egress", "Ingress")
    ]
    assert all(point.key >= 4096 and point.pod_uid.startswith("uid-shop-web-") for point in found.points)
    assert found.addresses == ("198.18.1.2",) and found.switch_version == "3.1.0" and found.observed_generation == 4
    (bridge,) = found.bridges
    assert (bridge.name, bridge.datapath_type, bridge.mirrors, bridge.controlled) == ("br0", "netdev", 3, "tcp:10.0.0.9:6653")
    assert {backend.name.value: backend.available for backend in found.backends} == {
        "OVSMirror": True,
        "OVSGroup": True,
        "EBPF": True,
    }
    assert condition(found.conditions, "Ready") == ("True", "Works", NOON)


@pytest.mark.parametrize("hop", NextHopState)
def test_why_a_backend_copies_is_said_in_whatever_state(hop: NextHopState) -> None:
    at = seen(1)
    hops = {remote: replace(known, state=hop) for remote, known in at.next_hops.items()}
    taps = tap("left", backend="Auto"), tap("named", backend="EBPF")
    points = status(view(*taps, at=replace(at, next_hops=hops))).points
    assert len(points) == 4 and {point.state.value for point in points} <= {"Ready", "Waiting", "Refused"}
    whys = {point.tap_name: point.why for point in points}
    assert "Auto takes EBPF" in whys["left"] and "spec.backend names it" in whys["named"]


def test_a_pod_that_cannot_be_tapped_is_said_once_a_wanted_direction() -> None:
    refused = inventory([pod(1, host_network=True)], [])
    for direction, expected in (("Both", ["Ingress", "Egress"]), ("Egress", ["Egress"])):
        found = status(view(tap(direction=direction), at=refused))
        assert [(point.direction, point.reason, point.key) for point in found.points] == [
            (one, "HostNetwork", 0) for one in expected
        ]
        assert found.taps[0].failed_pods == 1


def test_taps_that_match_nothing_here_are_not_this_nodes_to_speak_of() -> None:
    assert status(view(tap(podSelector={"matchLabels": {"app": "other"}}))).taps == ()
    (refused,) = status(view(tap(destinationRef={"name": "nowhere"}))).taps
    assert condition(refused.conditions, "Accepted")[:2] == ("False", "DestinationNotFound")


def test_times_are_those_of_the_last_change_of_status() -> None:
    first = status(view(tap()))
    same = status(view(tap()), first, LATER)
    assert same == first
    worse = status(view(tap(), at=seen(reachable=False)), first, LATER)
    assert condition(worse.conditions, "Ready") == ("False", "NoSwitch", LATER)
    assert condition(worse.taps[0].conditions, "Accepted") == ("True", "Accepted", NOON)


def test_what_the_agent_waits_for_is_said_before_it_has_begun() -> None:
    found = status(NodeView(trouble=("NoKeyBlock", "this node's TapNode has no spec.keyBlock yet")))
    assert condition(found.conditions, "Ready") == ("False", "NoKeyBlock", NOON)
    assert found.taps == () and found.points == ()


def test_more_than_there_is_room_for_is_cut_and_said_and_what_is_wrong_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TAPS", 3)
    monkeypatch.setattr(module, "MAX_KEYS", 5)
    lame = replace(seen(3), interfaces=seen(3).interfaces[:2])
    found = status(view(*(tap(f"t{number}") for number in range(4)), at=lame))
    assert len(found.taps) == 3 and len(found.points) == 5
    assert {point.state.value for point in found.points} == {"Refused"}
    assert "4 taps, of which only 3 are listed here; 24 tap points, of which only 5" in found.conditions[0].message


def test_a_status_is_never_larger_than_the_api_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 20_000)
    found = status(view(tap(), at=seen(200)))
    assert len(found.model_dump_json(by_alias=True)) <= 20_000 and found.points
    assert "of which only" in found.conditions[0].message


def test_refused_taps_give_way_to_those_that_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever makes enough of them would leave nobody on the node with a status."""
    monkeypatch.setattr(module, "MAX_BYTES", 20_000)
    monkeypatch.setattr(module, "MAX_TAPS", 150)
    refused = (tap(f"a{number:03}", destinationRef={"name": "nowhere"}) for number in range(200))
    found = status(view(*refused, tap("web")))
    assert len(found.model_dump_json(by_alias=True)) <= 20_000
    assert "web" in {one.name for one in found.taps} and len(found.points) == 4 and len(found.taps) > 2
    assert "201 taps, of which only" in found.conditions[0].message


class Api:
    """Takes patches, or refuses them."""

    def __init__(self) -> None:
        self.node: Node | None = Node("uid-1", 4)
        self.patches: list[Mapping[str, Any]] = []
        self.trouble: Exception | None = None
        self.view = view(tap())
        self.writer = TapNodeWriter(lambda: self.node, lambda: self.view, self.patch)

    def patch(self, status: Mapping[str, Any]) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.patches.append(status)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    made = Api()
    yield made
    made.writer.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "tapnode"]


def test_it_is_written_when_it_changes_and_only_then(api: Api) -> None:
    api.writer.start()
    eventually(lambda: len(api.patches) == 1)
    looks: list[int] = []
    same, api.view = api.view, replace(api.view)
    looked = threading.Event()
    api.writer._view = lambda: (looks.append(1), looked.set() if len(looks) > 5 else None, same)[-1]  # pyright: ignore[reportPrivateUsage]
    assert looked.wait(5)
    assert len(api.patches) == 1
    api.writer._view = lambda: view(tap(), tap("second"))  # pyright: ignore[reportPrivateUsage]
    eventually(lambda: len(api.patches) == 2 and len(api.patches[-1]["taps"]) == 2)


def test_it_waits_for_its_object_and_says_everything_to_a_new_one(api: Api) -> None:
    api.node = None
    api.writer.start()
    api.node = Node("uid-1", 1)
    eventually(lambda: len(api.patches) == 1)
    api.node = Node("uid-2", 1)
    eventually(lambda: len(api.patches) == 2)
    assert api.patches[0]["taps"] == api.patches[1]["taps"]


def test_a_refusal_is_tried_again(api: Api) -> None:
    api.trouble = Retry("the API server refuses")
    api.writer.start()
    eventually(lambda: api.writer.problem == "the API server refuses")
    api.trouble = None
    eventually(lambda: len(api.patches) == 1 and not api.writer.problem)


def test_after_a_restart_times_go_on(api: Api) -> None:
    old = status(api.view).model_dump(mode="json", by_alias=True)
    api.node = Node("uid-1", 4, old)
    api.writer.start()
    eventually(lambda: len(api.patches) == 1)
    assert {item["lastTransitionTime"] for item in api.patches[0]["conditions"]} == {NOON}


def test_a_look_that_fails_is_not_the_last(api: Api) -> None:
    good, api.writer._view = api.writer._view, lambda: 1 // 0  # pyright: ignore[reportAttributeAccessIssue]
    api.writer.start()
    eventually(lambda: "ZeroDivisionError" in api.writer.problem)
    api.writer._view = good
    eventually(lambda: bool(api.patches) and not api.writer.problem)


def test_the_last_word(api: Api) -> None:
    api.writer.start()
    eventually(lambda: len(api.patches) == 1)
    api.writer.stop(("Stopped", "the agent was removed"))
    (ready,) = api.patches[-1]["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "Stopped") and api.patches[-1]["taps"] == []
