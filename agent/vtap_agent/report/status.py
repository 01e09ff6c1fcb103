"""What the agent says of each tap: conditions as Kubernetes writes them, and one sentence a tap point. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vtap_agent.plan.dataplane import Feed, TapPointName
from vtap_agent.plan.shortfalls import Shortfall, about
from vtap_agent.plan.verdicts import PointState, PointVerdict, TapVerdict, passed_by
from vtap_agent.report.ledger import Row
from vtap_agent.report.rates import Rate


@dataclass(frozen=True, slots=True)
class Condition:
    """A Kubernetes condition: positive polarity, `message` a sentence that says what to do where `status` is not True."""

    type: str
    status: str
    reason: str
    message: str
    observed_generation: int


@dataclass(frozen=True, slots=True)
class TapStatus:
    """What is known of one tap on this node."""

    verdict: TapVerdict
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Observations:
    """What planning cannot know.

    `stopped` is the sentence that says why the last pass did not come to its end, empty where it did; with `switch_away` it is
    because Open vSwitch does not answer, which is no matter to taps that it has no part in. `unverified` is
    what the kernel or OVS does not hold as wanted; `feed_problems` about feeds that do not copy as they should; `passed_by` are
    those at pods' devices that packets pass by. Of destinations, by name: `told` are those with a collector of ours, `confirming`
    those whose collector acknowledges the streams, and `collector_problems` says why others do not. `unarriving` are tap points
    whose copies leave and never arrive, `unidentified` those of which rewritten copies find no id.
    """

    stopped: str = ""
    switch_away: bool = False
    unverified: tuple[Shortfall, ...] = ()
    feed_problems: Mapping[Feed, str] = field(default_factory=dict[Feed, str])
    passed_by: frozenset[Feed] = frozenset()
    told: frozenset[str] = frozenset()
    collector_problems: Mapping[str, str] = field(default_factory=dict[str, str])
    confirming: frozenset[str] = frozenset()
    unarriving: frozenset[TapPointName] = frozenset()
    unidentified: frozenset[TapPointName] = frozenset()


NOT_ARRIVING = (
    "copies leave and none arrives, though the collector answers: something on the way drops them, or changes the address that "
    "they come from; let the collector's data port (UDP 4754, unless its TapDestination says otherwise) pass from this node, in "
    "network policies, firewalls and tunnels, without address translation"
)

NO_ID = (
    "taps of this node meet more destinations at once than ids can be given to (4,096 ids, in one of two buckets of eight: "
    "from about 3,000 destinations on): copies of what goes to the others are dropped and counted as noId; name peers in "
    "spec.filter of taps to such a monitor"
)


def tap_status(verdict: TapVerdict, observations: Observations) -> TapStatus:
    """The three conditions of one tap."""
    verdict = _with_passers_by(verdict, observations.passed_by)
    verdict = _waiting_at(verdict, observations.unarriving, "NotArriving", NOT_ARRIVING)
    verdict = _waiting_at(verdict, observations.unidentified, "NoId", NO_ID)
    return TapStatus(verdict, (_accepted(verdict), _programmed(verdict, observations), _delivering(verdict, observations)))


def _with_passers_by(verdict: TapVerdict, feeds: frozenset[Feed]) -> TapVerdict:
    """Tap points past which packets go are not ready, though some may be copied."""
    if feeds.isdisjoint(point.feed for point in verdict.points if point.feed is not None):
        return verdict
    return replace(verdict, points=tuple(passed_by(point) if point.feed in feeds else point for point in verdict.points))


def _waiting_at(verdict: TapVerdict, names: frozenset[TapPointName], reason: str, sentence: str) -> TapVerdict:
    """Tap points of which copies are missing are not ready, though this node copies at them."""
    missing = {
        (name.pod_namespace, name.pod_name, name.interface, name.direction.value)
        for name in names
        if (name.tap_namespace, name.tap_name) == (verdict.namespace, verdict.name)
    }
    if not missing:
        return verdict

    def judged(point: PointVerdict) -> PointVerdict:
        named = (point.pod_namespace, point.pod_name, point.interface, point.direction)
        if point.state is not PointState.READY or named not in missing:
            return point
        return replace(point, state=PointState.WAITING, reason=reason, message=sentence)

    return replace(verdict, points=tuple(map(judged, verdict.points)))


def _condition(verdict: TapVerdict, kind: str, status: str, reason: str, message: str) -> Condition:
    return Condition(kind, status, reason, message, verdict.generation)


def _accepted(verdict: TapVerdict) -> Condition:
    if verdict.refusal:
        return _condition(verdict, "Accepted", "False", verdict.reason, verdict.refusal)
    return _condition(verdict, "Accepted", "True", "Accepted", "the tap is valid and its destination is allowed")


def _programmed(verdict: TapVerdict, observations: Observations) -> Condition:
    reason, message = _programming_trouble(verdict, observations)
    if reason:
        return _condition(verdict, "Programmed", "False", reason, message)
    count = len(verdict.points)
    return _condition(verdict, "Programmed", "True", "Programmed", f"{count} tap points copy from {verdict.matched_pods} pods")


def _programming_trouble(verdict: TapVerdict, observations: Observations) -> tuple[str, str]:
    """(reason, sentence) why a tap is not programmed as a whole, both empty where it is."""
    if verdict.refusal:
        return "NotAccepted", "nothing is copied: " + verdict.refusal
    if observations.stopped and not (observations.switch_away and _needs_no_switch(verdict)):
        return "NotApplied", observations.stopped
    if verdict.matched_pods == 0:
        return "NoPods", "spec.podSelector: matches no pod of this namespace on this node"
    if verdict.waiting:
        return verdict.waiting_reason, verdict.waiting
    if refused := [point for point in verdict.points if point.state is PointState.REFUSED]:
        return refused[0].reason, _first_of(refused)
    if unfed := [point for point in verdict.points if not point.fed]:
        return unfed[0].reason, _first_of(unfed)
    sentences = [*about(verdict, observations.unverified), *_about_feeds(verdict, observations.feed_problems)]
    return ("NotVerified", sentences[0]) if sentences else ("", "")


def _needs_no_switch(verdict: TapVerdict) -> bool:
    feeds = [point.feed for point in verdict.points]
    return bool(feeds) and all(feed is not None and not feed.has_tap_port for feed in feeds)


def _about_feeds(verdict: TapVerdict, problems: Mapping[Feed, str]) -> list[str]:
    """Of the feeds of this very tap."""
    feeds = {point.feed for point in verdict.points if point.fed}
    return [sentence for feed, sentence in sorted(problems.items()) if feed in feeds]


def _delivering(verdict: TapVerdict, observations: Observations) -> Condition:
    ready = [point for point in verdict.points if point.state is PointState.READY]
    if verdict.waiting and not ready:
        return _condition(verdict, "Delivering", "False", verdict.waiting_reason, verdict.waiting)
    problem = observations.collector_problems.get(verdict.destination, "")
    if problem:
        stopped = [point for point in verdict.points if point.reason == "CollectorSilent"]
        why = f"{problem}; {stopped[0].message}" if stopped else problem
        return _condition(verdict, "Delivering", "False", "CollectorUnreachable", why)
    waiting = [point for point in verdict.points if point.state is PointState.WAITING]
    if waiting:
        return _condition(verdict, "Delivering", "False", waiting[0].reason, _first_of(waiting))
    if not ready:
        return _condition(verdict, "Delivering", "False", "NothingProgrammed", "no tap point is programmed, see Programmed")
    if verdict.destination in observations.confirming:
        return _condition(verdict, "Delivering", "True", "Confirmed", "the collector acknowledges these streams")
    if verdict.destination in observations.told:
        return _condition(verdict, "Delivering", "Unknown", "Confirming", "the collector has not acknowledged these streams yet")
    return _condition(
        verdict,
        "Delivering",
        "Unknown",
        "Sent",
        "copies leave toward the first hop; the endpoint is not ours, so that they arrive can only be seen there",
    )


def _first_of(points: list[PointVerdict]) -> str:
    more = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
    return points[0].message + more


def attached_pods(verdict: TapVerdict) -> int:
    """Pods of which every wanted tap point is programmed."""
    return len(_pods(verdict.points, PointState.READY) - failed_pods(verdict))


def failed_pods(verdict: TapVerdict) -> set[tuple[str, str]]:
    """Pods of which some tap point is refused."""
    return _pods(verdict.points, PointState.REFUSED)


def _pods(points: Iterable[PointVerdict], state: PointState) -> set[tuple[str, str]]:
    return {(point.pod_namespace, point.pod_name) for point in points if point.state is state}


PointId = tuple[str, str, str, str, str, str]
"""Namespace and name of tap and pod, interface, direction."""


def rates_by_point(rows: Iterable[Row], rates: Mapping[str, Rate]) -> dict[PointId, Rate]:
    """`rates` are by incarnation."""
    return {
        (name.tap_namespace, name.tap_name, name.pod_namespace, name.pod_name, name.interface, name.direction.value): rate
        for row in rows
        if (name := row.name) and (rate := rates.get(row.incarnation)) is not None
    }


def status_to_json(
    node: str, taps: Iterable[TapStatus], problems: Iterable[str], rates: Mapping[PointId, Rate]
) -> dict[str, Any]:
    """The answer to ``GET /v1/status``. Rates are a second, over the last tick; a tap point that has none yet lacks them."""
    return {"node": node, "taps": [_tap_to_json(status, rates) for status in taps], "problems": list(problems)}


def _tap_to_json(status: TapStatus, rates: Mapping[PointId, Rate]) -> dict[str, Any]:
    verdict = status.verdict
    return {
        "namespace": verdict.namespace,
        "name": verdict.name,
        "observedGeneration": verdict.generation,
        "destination": verdict.destination,
        "matchedPods": verdict.matched_pods,
        "attachedPods": attached_pods(verdict),
        "failedPods": len(failed_pods(verdict)),
        "conditions": [_condition_to_json(condition) for condition in status.conditions],
        "points": [_point_to_json(verdict, point, rates) for point in verdict.points],
    }


def _condition_to_json(condition: Condition) -> dict[str, Any]:
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.observed_generation,
    }


def _point_to_json(verdict: TapVerdict, point: PointVerdict, rates: Mapping[PointId, Rate]) -> dict[str, Any]:
    named = (verdict.namespace, verdict.name, point.pod_namespace, point.pod_name, point.interface, point.direction)
    rate = rates.get(named)
    return {
        "pod": {"namespace": point.pod_namespace, "name": point.pod_name},
        "interface": point.interface,
        "direction": point.direction,
        "backend": point.backend,
        **({"why": point.why} if point.why else {}),
        "state": point.state.value,
        "reason": point.reason,
        "message": point.message,
        **({"rates": rate.as_json()} if rate and point.fed else {}),
    }
