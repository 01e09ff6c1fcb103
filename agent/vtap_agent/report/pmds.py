"""What Open vSwitch's poll-mode threads spend, where there are any.

Cycles per packet is the rate of busy cycles over that of packets. The counters are vswitchd's own: they begin again when it
restarts, and when somebody clears them (`dpif-netdev/pmd-stats-clear`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from vtap_agent.drivers.unixctl import PollThread
from vtap_agent.errors import VtapError

log = logging.getLogger(__name__)
_LABELS = ("numa", "core")


class PollThreadMetrics(Collector):
    """Reads at each scrape, on its thread. Nothing is served while vswitchd does not answer."""

    def __init__(self, read: Callable[[], Iterable[PollThread]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering doesn't read."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Empty on nodes without such threads."""
        try:
            threads = tuple(self._read())
        except VtapError as reason:
            log.debug("poll-mode threads: %s", reason)
            return
        if threads:
            yield _family("packets", "Packets that poll-mode threads have received", threads, lambda one: one.packets)
            yield _family("busy_cycles", "TSC cycles in which packets were processed", threads, lambda one: one.busy_cycles)
            yield _family("idle_cycles", "TSC cycles in which polls found nothing", threads, lambda one: one.idle_cycles)


def _family(name: str, text: str, threads: Iterable[PollThread], value: Callable[[PollThread], int]) -> Metric:
    metric = CounterMetricFamily(f"vtap_ovs_pmd_{name}", text, labels=_LABELS)
    for one in threads:
        metric.add_metric([str(one.numa), str(one.core)], value(one))
    return metric
