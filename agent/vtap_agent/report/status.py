"""What the agent says of each tap: conditions as Kubernetes writes them, and one sentence a tap point. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vtap_agent.plan.verdicts import PointState, PointVerdict, TapVerdict


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

    `unverified` are sentences about what the kernel or OVS does not hold as wanted; `collector_problems` by destination.
    `delivering` names the destinations that confirm receipt.
    """

    unverified: tuple[str, ...] = ()
    collector_problems: Mapping[str, str] | None = None
    confirming: frozenset[str] = frozenset()


def tap_status(verdict: TapVerdict, observations: Observations) -> TapStatus:
    """The three conditions of one tap."""
    return TapStatus(
        verdict, (_accepted(verdict), _programmed(verdict, observations.unverified), _delivering(verdict, observations))
    )


def _condition(verdict: TapVerdict, kind: str, status: str, reason: str, message: str) -> Condition:
    return Condition(kind, status, reason, message, verdict.generation)


def _accepted(verdict: TapVerdict) -> Condition:
    if verdict.refusal:
        return _condition(verdict, "Accepted", "False", verdict.reason, verdict.refusal)
    return _condition(verdict, "Accepted", "True", "Accepted", "the tap is valid and its destination is allowed")


def _programmed(verdict: TapVerdict, unverified: tuple[str, ...]) -> Condition:
    if verdict.refusal:
        return _condition(verdict, "Programmed", "False", "NotAccepted", "nothing is copied: " + verdict.refusal)
    if verdict.matched_pods == 0:
        return _condition(
            verdict, "Programmed", "False", "NoPods", "spec.podSelector: matches no pod of this namespace on this node"
        )
    if refused := [point for point in verdict.points if point.state is PointState.REFUSED]:
        return _condition(verdict, "Programmed", "False", refused[0].reason, _first_of(refused))
    if unverified:
        return _condition(verdict, "Programmed", "False", "NotVerified", unverified[0])
    waiting = [point for point in verdict.points if point.reason == "Announcing"]
    if waiting:
        return _condition(verdict, "Programmed", "False", "Announcing", _first_of(waiting))
    count = len(verdict.points)
    return _condition(verdict, "Programmed", "True", "Programmed", f"{count} tap points copy from {verdict.matched_pods} pods")


def _delivering(verdict: TapVerdict, observations: Observations) -> Condition:
    ready = [point for point in verdict.points if point.state is PointState.READY]
    problem = (observations.collector_problems or {}).get(verdict.destination, "")
    if problem:
        return _condition(verdict, "Delivering", "False", "CollectorUnreachable", problem)
    waiting = [point for point in verdict.points if point.state is PointState.WAITING]
    if waiting:
        return _condition(verdict, "Delivering", "False", waiting[0].reason, _first_of(waiting))
    if not ready:
        return _condition(verdict, "Delivering", "False", "NothingProgrammed", "no tap point is programmed, see Programmed")
    if verdict.destination in observations.confirming:
        return _condition(verdict, "Delivering", "True", "Confirmed", "the collector acknowledges these streams")
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


def status_to_json(node: str, taps: Iterable[TapStatus], problems: Iterable[str]) -> dict[str, Any]:
    """The answer to ``GET /v1/status``."""
    return {"node": node, "taps": [_tap_to_json(status) for status in taps], "problems": list(problems)}


def _tap_to_json(status: TapStatus) -> dict[str, Any]:
    verdict = status.verdict
    return {
        "namespace": verdict.namespace,
        "name": verdict.name,
        "observedGeneration": verdict.generation,
        "destination": verdict.destination,
        "matchedPods": verdict.matched_pods,
        "attachedPods": attached_pods(verdict),
        "failedPods": len(failed_pods(verdict)),
        "conditions": [
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "observedGeneration": condition.observed_generation,
            }
            for condition in status.conditions
        ],
        "points": [
            {
                "pod": {"namespace": point.pod_namespace, "name": point.pod_name},
                "interface": point.interface,
                "direction": point.direction,
                "backend": point.backend,
                "state": point.state.value,
                "reason": point.reason,
                "message": point.message,
            }
            for point in verdict.points
        ],
    }
