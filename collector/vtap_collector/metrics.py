"""Prometheus metrics: the ledger's numbers by tap, and the collector's own. Labels are bounded by the number of taps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from vtap_collector.announcements import TapName
from vtap_collector.native import CoreCounts, StreamCounts

PREFIX = "vtap_collector"
_TAP = ("tap_namespace", "tap_name")


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a scrape shows. `stored_bytes` is what the capture files take, `deleted_files` what retention removed."""

    taps: Mapping[TapName, StreamCounts]
    core: CoreCounts
    open_streams: int
    stale_streams: int
    live_consumers: int
    live_dropped: int
    stored_bytes: int
    deleted_files: int


class Exporter:
    """Renders the numbers of the moment in Prometheus' text format."""

    def __init__(self, numbers: Callable[[], Numbers]) -> None:
        self._numbers = numbers
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """What prometheus_client calls for each scrape."""
        numbers = self._numbers()
        yield from _tap_metrics(numbers.taps)
        yield from _own_counters(numbers)
        yield from _gauges(numbers)

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: registering then needs no numbers."""
        return ()

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _counter(name: str, text: str, labels: Iterable[str] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, labels=list(labels))


def _tap_metrics(taps: Mapping[TapName, StreamCounts]) -> Iterable[Metric]:
    plain = {
        "received_packets": ("Copies received, each once.", lambda c: c.received),
        "received_bytes": ("Bytes of the inner frames received.", lambda c: c.received_bytes),
        "stored_packets": ("Copies written.", lambda c: c.stored),
        "duplicate_packets": ("Copies received more than once.", lambda c: c.duplicate),
        "late_packets": ("Copies that came after they were counted as lost.", lambda c: c.late),
    }
    for name, (text, value) in plain.items():
        family = _counter(name, text, _TAP)
        for tap, counts in taps.items():
            family.add_metric([tap.namespace, tap.name], value(counts))
        yield family
    lost = _counter("lost_packets", "Copies that never came, by where they were lost.", (*_TAP, "where"))
    dropped = _counter("dropped_packets", "Copies received and not written, by reason.", (*_TAP, "reason"))
    waiting = GaugeMetricFamily(f"{PREFIX}_in_flight_packets", "Copies sent and not yet received or given up.", labels=list(_TAP))
    for tap, counts in taps.items():
        labels = [tap.namespace, tap.name]
        lost.add_metric([*labels, "network"], counts.lost_network)
        lost.add_metric([*labels, "socket"], counts.lost_socket)
        lost.add_metric([*labels, "before"], counts.lost_before)
        dropped.add_metric([*labels, "disk"], counts.dropped_disk)
        dropped.add_metric([*labels, "slow"], counts.dropped_slow)
        dropped.add_metric([*labels, "crash"], counts.dropped_crash)
        waiting.add_metric(labels, counts.in_flight)
    yield from (lost, dropped, waiting)


def _own_counters(numbers: Numbers) -> Iterable[Metric]:
    core = numbers.core
    unannounced = _counter("unannounced_packets", "Datagrams of no announced stream, by what did not fit.", ("reason",))
    unannounced.add_metric(["key"], core.unannounced_key)
    unannounced.add_metric(["address"], core.unannounced_address)
    yield unannounced
    for name, text, value in (
        ("datagrams", "Datagrams taken off the sockets.", core.datagrams),
        ("captured_datagrams", "Of these, those that came through a ring.", core.captured),
        ("ring_outages", "Times that a ring's interface went down or vanished.", core.ring_outages),
        ("receive_wakeups", "Times that the receive thread woke up from waiting for datagrams.", core.wakeups),
        ("malformed_packets", "Datagrams that are no copy.", core.malformed),
        ("socket_overflow_packets", "Datagrams the kernel dropped because a socket's buffer was full.", core.socket_overflow),
        ("write_errors", "Failed writes of capture files.", core.write_errors),
        ("opened_files", "Capture files begun.", core.files_opened),
        ("deleted_files", "Capture files deleted to keep within --retain-bytes.", numbers.deleted_files),
        ("live_dropped_packets", "Packets that live consumers were too slow for.", numbers.live_dropped),
    ):
        family = _counter(name, text)
        family.add_metric([], value)
        yield family


def _gauges(numbers: Numbers) -> Iterable[Metric]:
    for name, text, value in (
        ("open_streams", "Streams that are announced.", numbers.open_streams),
        ("stale_streams", "Of these, those whose agent is silent.", numbers.stale_streams),
        ("live_consumers", "Live consumers connected.", numbers.live_consumers),
        ("rings_down", "Rings whose interface is down or gone.", numbers.core.rings_down.bit_count()),
        ("buffer_chunks", "Chunks of the buffer in use.", numbers.core.chunks_used),
        ("stored_bytes", "Bytes that the capture files take.", numbers.stored_bytes),
        ("write_failing", "1 while the last write failed.", int(numbers.core.last_write_error != 0)),
    ):
        yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
