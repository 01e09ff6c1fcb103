"""The agent's Prometheus metrics: the ledger's numbers, and how the agent itself is doing. Base units; labels are bounded by the
node's slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from vtap_agent.plan.dataplane import NodeCounters
from vtap_agent.report.ledger import Row
from vtap_agent.report.status import TapStatus

POINT_LABELS = ("tap_namespace", "tap", "pod_namespace", "pod", "interface", "direction")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one scrape shows."""

    rows: tuple[Row, ...] = ()
    counters: NodeCounters = field(default_factory=lambda: NodeCounters({}, {}, 0))
    taps: tuple[TapStatus, ...] = ()
    map_bytes: int = 0
    purges: int = 0
    files_refused: int = 0
    age: float = 0.0
    """Seconds since rows and counters were read."""


class AgentMetrics:
    """A registry of our own, so that nothing a library registers globally is served by accident."""

    def __init__(self, reading: Callable[[], Reading]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ReadingCollector(reading))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self.pass_seconds = Histogram(
            "vtap_agent_pass_seconds",
            "Time of one observe-plan-apply-verify pass",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self._registry,
        )
        self.passes = Counter("vtap_agent_passes", "Passes by outcome", ("outcome",), registry=self._registry)
        self.failures = Counter(
            "vtap_agent_unexpected_failures",
            "Failures that nobody foresaw, by where; the log has them",
            ("where",),
            registry=self._registry,
        )
        self.steps = Counter("vtap_agent_steps", "Changes applied, by phase", ("phase",), registry=self._registry)

    def add(self, collector: Collector) -> None:
        """More to be served."""
        self._registry.register(collector)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)


class _ReadingCollector(Collector):
    def __init__(self, reading: Callable[[], Reading]) -> None:
        self._reading = reading

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        reading = self._reading()
        yield from _point_metrics(reading.rows)
        yield from _node_metrics(reading)
        yield _condition_metric(reading.taps)


def _labels(row: Row) -> list[str]:
    name = row.name
    return [name.tap_namespace, name.tap_name, name.pod_namespace, name.pod_name, name.interface, name.direction.value]


def _merged(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, int]]:
    """By label values: two incarnations of one tap point are one series, which never goes back."""
    merged: dict[tuple[str, ...], dict[str, int]] = {}
    for row in rows:
        counters = row.counters
        values = {
            "seen": counters.seen,
            "excluded": counters.excluded,
            "unsampled": counters.unsampled,
            "limited": counters.limited,
            "sent": counters.sent,
            "seen_bytes": counters.seen_bytes,
            "sent_bytes": counters.sent_bytes,
            **{f"dropped:{reason}": count for reason, count in counters.dropped.items()},
        }
        into = merged.setdefault(tuple(_labels(row)), {})
        for name, value in values.items():
            into[name] = into.get(name, 0) + value
    return merged


def _point_metrics(rows: Iterable[Row]) -> Iterable[Metric]:
    packets = CounterMetricFamily(
        "vtap_tap_point_packets", "Wire packets of a tap point, by what became of them", labels=(*POINT_LABELS, "fate")
    )
    dropped = CounterMetricFamily(
        "vtap_tap_point_dropped_packets", "Copies dropped on the node, by reason", labels=(*POINT_LABELS, "reason")
    )
    seen_bytes = CounterMetricFamily("vtap_tap_point_seen_bytes", "Bytes of the frames a tap point saw", labels=POINT_LABELS)
    sent_bytes = CounterMetricFamily("vtap_tap_point_sent_bytes", "Bytes of the outer packets sent", labels=POINT_LABELS)
    for labels, values in _merged(rows).items():
        for fate in ("seen", "excluded", "unsampled", "limited", "sent"):
            packets.add_metric([*labels, fate], values[fate])
        for name, value in values.items():
            if name.startswith("dropped:"):
                dropped.add_metric([*labels, name.removeprefix("dropped:")], value)
        seen_bytes.add_metric(labels, values["seen_bytes"])
        sent_bytes.add_metric(labels, values["sent_bytes"])
    return (packets, dropped, seen_bytes, sent_bytes)


def _node_metrics(reading: Reading) -> Iterable[Metric]:
    unattributed = CounterMetricFamily(
        "vtap_unattributed_packets", "Packets at a feed that fit no tapped source", labels=("backend", "place", "direction")
    )
    for key, count in sorted(reading.counters.unattributed.items()):
        unattributed.add_metric([key.backend.value, key.place, key.direction.value], count)
    yield unattributed
    yield CounterMetricFamily(
        "vtap_pair_dropped_packets", "Segments dropped between pick and send", value=reading.counters.pair_dropped
    )
    yield CounterMetricFamily(
        "vtap_stale_packets", "Packets out of the pair that were no copy, or nobody's any more", value=reading.counters.stale
    )
    yield CounterMetricFamily("vtap_ovs_purges", "Times all flows of vswitchd were revalidated", value=reading.purges)
    yield GaugeMetricFamily("vtap_agent_reading_age_seconds", "Since the counters shown were read", value=reading.age)
    yield GaugeMetricFamily("vtap_map_bytes", "Memory of the eBPF maps", value=reading.map_bytes)
    yield GaugeMetricFamily("vtap_files_refused", "Files whose last content was refused", value=reading.files_refused)


def _condition_metric(taps: Iterable[TapStatus]) -> Metric:
    metric = GaugeMetricFamily(
        "vtap_tap_condition", "1 where the condition is True", labels=("tap_namespace", "tap", "condition", "reason")
    )
    for status in taps:
        for condition in status.conditions:
            labels = [status.verdict.namespace, status.verdict.name, condition.type, condition.reason]
            metric.add_metric(labels, condition.status == "True")
    return metric
