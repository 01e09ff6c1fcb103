"""What the agents count, by their metrics through the API server's proxy for pods: rates, and their side of the ledger."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from vtap_cli.cluster.api import Api, Forbidden, named, of_core
from vtap_cli.cluster.objects import name_of
from vtap_cli.cluster.session import Session
from vtap_cli.errors import CliError

PORT = 9473
AT_A_TIME = 16
"""Agents that are asked at the same time."""
SECOND_LOOK = 1.0
"""Seconds between the two readings that a rate is made of."""
POINT = ("tap_namespace", "tap", "pod_namespace", "pod", "interface", "direction")
_COUNTERS = {
    "vtap_tap_point_packets_total": "fate",
    "vtap_tap_point_dropped_packets_total": "reason",
    "vtap_tap_point_seen_bytes_total": "",
    "vtap_tap_point_sent_bytes_total": "",
}

PointKey = tuple[str, str, str, str, str, str]
"""Namespace and name of tap and pod, interface, direction."""


def _nothing() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Reading:
    """One agent's counters at one time (monotonic clock, seconds).

    Of a tap point they are called ``seen``, ``sent`` and so on as the ledger's terms are, ``dropped:REASON``, ``seen_bytes`` and
    ``sent_bytes``.
    """

    at: float
    points: Mapping[PointKey, Mapping[str, int]]
    unattributed: int = 0


@dataclass(frozen=True, slots=True)
class Readings:
    """By node; `missing` are sentences about those that could not be read, by node, with one for all under ``""``."""

    by_node: Mapping[str, Reading]
    missing: Mapping[str, str] = field(default_factory=_nothing)

    def notes(self, what: str) -> list[str]:
        """Sentences that say whose numbers are left out."""
        return [
            f"{what} of {f'node {node}' if node else 'all nodes'} left out: {why}" for node, why in sorted(self.missing.items())
        ]


def read(session: Session, vtap_namespace: str, nodes: Iterable[str] | None = None) -> Readings:
    """Ask the agents of `nodes`, by default all. Raises nothing: what may not or can't be read is said."""
    wanted = None if nodes is None else set(nodes)
    try:
        pods = _agents(session.api, vtap_namespace)
    except Forbidden as error:
        return Readings({}, {"": str(error)})
    if not pods:
        return Readings({}, {"": f"no agent runs in namespace {vtap_namespace}; --vtap-namespace says where VirtualTap is"})
    asked = {node: pod for node, pod in pods.items() if wanted is None or node in wanted}
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        answers = dict(
            zip(asked, threads.map(lambda pod: _reading(session.api, vtap_namespace, pod), asked.values()), strict=True)
        )
    readings = {node: answer for node, answer in answers.items() if isinstance(answer, Reading)}
    missing = {node: answer for node, answer in answers.items() if isinstance(answer, str)}
    missing |= dict.fromkeys((wanted or set()) - pods.keys(), "no agent runs there")
    if missing and not readings and len(set(missing.values())) == 1:
        missing = {"": next(iter(missing.values()))}
    return Readings(readings, missing)


def _agents(api: Api, namespace: str) -> dict[str, str]:
    """Pod by node."""
    pods = api.list(of_core("pods", namespace), {"labelSelector": "vtap.dev/component=agent"})
    running = (pod for pod in pods if (pod.get("status") or {}).get("phase") == "Running")
    return {str(node): name_of(pod) for pod in running if (node := (pod.get("spec") or {}).get("nodeName"))}


def _reading(api: Api, namespace: str, pod: str) -> Reading | str:
    path = of_core("pods", namespace) + f"/http:{named(pod)}:{PORT}/proxy/metrics"
    try:
        text = api.text(path)
        return parse(text, time.monotonic())
    except CliError as error:
        return str(error)
    except ValueError as error:
        return f"its metrics cannot be understood ({error}); is it of another version?"


def parse(text: str, at: float) -> Reading:
    """From the text exposition format. Raises ValueError."""
    from prometheus_client.parser import text_string_to_metric_families

    points: dict[PointKey, Counter[str]] = {}
    unattributed = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "vtap_unattributed_packets_total":
                unattributed += sample.value
            if sample.name in _COUNTERS:
                key = _point_key(sample.labels)
                points.setdefault(key, Counter())[_counter_name(sample.name, sample.labels)] += int(sample.value)
    return Reading(at, points, int(unattributed))


def _point_key(labels: Mapping[str, str]) -> PointKey:
    values = [labels.get(name, "") for name in POINT]
    return (values[0], values[1], values[2], values[3], values[4], values[5])


def _counter_name(metric: str, labels: Mapping[str, str]) -> str:
    label = _COUNTERS[metric]
    if label == "reason":
        return f"dropped:{labels.get('reason', '')}"
    return labels.get(label, "") if label else metric.removeprefix("vtap_tap_point_").removesuffix("_total")


def rates(before: Readings, after: Readings) -> dict[tuple[str, PointKey], dict[str, float]]:
    """By node and tap point: seenPackets, seenBits, sentPackets and sentBits a second. Counters that went back have no rate."""
    found: dict[tuple[str, PointKey], dict[str, float]] = {}
    for node, reading in after.by_node.items():
        earlier = before.by_node.get(node)
        if earlier is None or reading.at <= earlier.at:
            continue
        for key, counts in reading.points.items():
            if key in earlier.points and (made := _rate(earlier.points[key], counts, reading.at - earlier.at)):
                found[node, key] = made
    return found


def _rate(before: Mapping[str, int], after: Mapping[str, int], seconds: float) -> dict[str, float]:
    grown = {name: after.get(name, 0) - before.get(name, 0) for name in ("seen", "sent", "seen_bytes", "sent_bytes")}
    if min(grown.values()) < 0:
        return {}
    return {
        "seenPackets": grown["seen"] / seconds,
        "seenBits": 8 * grown["seen_bytes"] / seconds,
        "sentPackets": grown["sent"] / seconds,
        "sentBits": 8 * grown["sent_bytes"] / seconds,
    }
