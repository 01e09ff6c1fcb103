"""What the edges of this node's monitors have met, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from vtap_agent.pipeline.recover import EdgeCounters

OUTCOMES = ("recovered", "unknown", "refused")


class EdgeMetrics(Collector):
    """`counted` tells by the monitor's address; it is called on the server's threads."""

    def __init__(self, counted: Callable[[], Mapping[str, EdgeCounters]]) -> None:
        self._counted = counted

    def collect(self) -> Iterable[Metric]:
        """One family, for which there are samples where this node has a monitor."""
        family = CounterMetricFamily(
            "vtap_agent_edge_frames", "Rewritten copies that reached a monitor's edge here", labels=("monitor", "outcome")
        )
        for monitor, counters in sorted(self._counted().items()):
            for outcome in OUTCOMES:
                family.add_metric((monitor, outcome), getattr(counters, outcome))
        yield family
