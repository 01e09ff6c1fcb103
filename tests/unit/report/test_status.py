"""The status tells the truth, in a sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.plan.test_planning import HOP, collector, gre, interface, inventory, only, plan, pod, tap
from vtap_agent.plan.assembly import Plan
from vtap_agent.plan.dataplane import Backend, Direction, Feed
from vtap_agent.plan.inventory_model import NextHopState
from vtap_agent.plan.selection import Desired
from vtap_agent.plan.verdicts import PointState
from vtap_agent.report.rates import Rate
from vtap_agent.report.status import (
    Condition,
    Observations,
    attached_pods,
    failed_pods,
    rates_by_point,
    status_to_json,
    tap_status,
)

SEEN = inventory([pod(1)], [interface(pod(1), 1)])


def conditions(outcome: Plan, **observed: object) -> dict[str, Condition]:
    status = tap_status(only(outcome.verdicts), Observations(**observed))  # pyright: ignore[reportArgumentType]
    return {one.type: one for one in status.conditions}


def test_a_tap_that_matches_nothing_delivers_nothing() -> None:
    found = conditions(plan(Desired((tap(),), (collector(),)), inventory([], [])), told=frozenset({"default"}))
    assert (found["Programmed"].status, found["Programmed"].reason) == ("False", "NoPods")
    assert (found["Delivering"].status, found["Delivering"].reason) == ("False", "NothingProgrammed")


def test_our_collector_is_never_called_an_endpoint_that_is_not_ours() -> None:
    outcome = plan(Desired((tap(),), (collector(),)), SEEN)
    waiting = conditions(outcome, told=frozenset({"default"}))["Delivering"]
    assert (waiting.status, waiting.reason) == ("Unknown", "Confirming")
    confirmed = conditions(outcome, told=frozenset({"default"}), confirming=frozenset({"default"}))["Delivering"]
    assert (confirmed.status, confirmed.reason) == ("True", "Confirmed")
    assert conditions(plan(Desired((tap(),), (gre(),)), SEEN))["Delivering"].reason == "Sent"


def test_what_is_not_fed_is_not_programmed() -> None:
    away = replace(SEEN, next_hops={HOP.remote: replace(HOP, state=NextHopState.NO_ROUTE)})
    unfed = conditions(plan(Desired((tap(),), (collector(),)), away, announce=False))["Programmed"]
    assert (unfed.status, unfed.reason) == ("False", "NoRoute") and "nothing is copied" in unfed.message
    fed = conditions(plan(Desired((tap(),), (gre(),)), away))
    assert fed["Programmed"].status == "True"
    assert fed["Delivering"].status == "False" and "counted as noRoute" in fed["Delivering"].message


def test_a_pass_that_failed_is_said_before_anything_it_could_not_find_out() -> None:
    found = conditions(plan(Desired((tap(),), (collector(),)), SEEN), stopped="Open vSwitch does not answer")
    assert (found["Programmed"].reason, found["Programmed"].message) == ("NotApplied", "Open vSwitch does not answer")


def test_copies_that_packets_miss_by_passing_their_device_by_are_said_to_be_missing() -> None:
    wanted = Desired((tap(backend="EBPF"),), (collector(),))
    outcome = plan(wanted, SEEN)
    ingress = Feed(Backend.EBPF, "veth1", Direction.INGRESS, 101)
    status = tap_status(only(outcome.verdicts), Observations(passed_by=frozenset({ingress}), confirming=frozenset({"default"})))
    said = {point.direction: point for point in status.verdict.points}
    assert (said["Ingress"].state, said["Ingress"].reason) == (PointState.REFUSED, "PastTheDevice")
    assert "reach pod shop/web-1 past veth1" in said["Ingress"].message
    assert "bpf.hostLegacyRouting=true" in said["Ingress"].message and "Egress" in said["Ingress"].message
    assert said["Egress"].state is PointState.READY
    found = {one.type: one for one in status.conditions}
    assert (found["Programmed"].status, found["Programmed"].reason) == ("False", "PastTheDevice")
    assert found["Programmed"].message == said["Ingress"].message
    assert found["Delivering"].status == "True", "what the pod sends is copied and arrives"
    assert (attached_pods(status.verdict), failed_pods(status.verdict)) == (0, {("shop", "web-1")})


def test_copies_that_find_no_id_are_said_of_their_tap_point_with_the_cure() -> None:
    outcome = plan(Desired((tap(),), (gre(),)), SEEN)
    (egress,) = [point.name for point in outcome.dataplane.points if point.name.direction is Direction.EGRESS]
    status = tap_status(only(outcome.verdicts), Observations(unidentified=frozenset({egress})))
    said = {point.direction: point for point in status.verdict.points}
    assert (said["Egress"].state, said["Egress"].reason) == (PointState.WAITING, "NoId")
    assert "counted as noId" in said["Egress"].message and "name peers in spec.filter" in said["Egress"].message
    assert "4,096 ids, in one of two buckets of eight: from about 3,000 destinations on" in said["Egress"].message
    assert said["Ingress"].state is PointState.READY
    found = {one.type: one for one in status.conditions}
    assert (found["Delivering"].status, found["Delivering"].reason) == ("False", "NoId")
    assert found["Delivering"].message == said["Egress"].message
    assert found["Programmed"].status == "True", "this node did its part"


def test_a_tap_that_misses_all_it_wants_delivers_nothing() -> None:
    outcome = plan(Desired((tap(backend="EBPF", direction="Egress"),), (collector(),)), SEEN)
    passed = frozenset({Feed(Backend.EBPF, "veth1", Direction.EGRESS, 101)})
    found = conditions(outcome, passed_by=passed, told=frozenset({"default"}), confirming=frozenset({"default"}))
    assert found["Programmed"].reason == "PastTheDevice" and "leave pod shop/web-1 past veth1" in found["Programmed"].message
    assert (found["Delivering"].status, found["Delivering"].reason) == ("False", "NothingProgrammed")


def test_rates_stand_beside_their_tap_point() -> None:
    outcome = plan(Desired((tap(direction="Egress"),), (collector(),)), SEEN)
    status = tap_status(only(outcome.verdicts), Observations())
    from vtap_agent.plan.dataplane import PointCounters
    from vtap_agent.report.ledger import Row

    (point,) = outcome.dataplane.points
    rows = [Row(point.key, point.incarnation, point.name, "default", PointCounters())]
    rates = rates_by_point(rows, {point.incarnation: Rate(10.04, 8000.4, 5.0, 4000.0)})
    (shown,) = status_to_json("node-1", [status], [], rates)["taps"][0]["points"]
    assert shown["rates"] == {"seenPackets": 10.0, "seenBits": 8000, "sentPackets": 5.0, "sentBits": 4000}
