"""What the agent is made of in a cluster, beside what it always is: the source, the TapNode's writer, and metrics of both."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vtap_agent.errors import Wait
from vtap_agent.report.tapnode import Node, NodeView, TapNodeWriter
from vtap_agent.sources.kubernetes.access import Access, from_kubeconfig, in_cluster
from vtap_agent.sources.kubernetes.client import ApiClient
from vtap_agent.sources.kubernetes.source import API, ClusterSource

NO_KEYS = "NoKeyBlock"
STOPPED = ("Stopped", "the agent was removed from this node; no tap is in force here")


def access_of(kubeconfig: Path | None) -> Access:
    """Raises TellUser where there is no way to the API server."""
    return from_kubeconfig(kubeconfig) if kubeconfig is not None else in_cluster(os.environ)


def waiting_for(source: ClusterSource) -> tuple[str, str]:
    """(reason, sentence) of what the agent waits for before it begins, both empty where it need not."""
    if source.ready:
        return "", ""
    if source.key_block is not None:
        return "Starting", "; ".join(source.problems) or "waiting for the API server to tell of taps, destinations and pods"
    if source.problems:
        return "NoApiServer", "; ".join(source.problems)
    what = "has no spec.keyBlock" if source.tap_node is not None else "does not exist"
    return NO_KEYS, f"this node's TapNode {what} yet: nothing is copied without keys; check that vtap-operator runs"


def writer_of(source: ClusterSource, access: Access, node: str, view: Callable[[], NodeView]) -> TapNodeWriter:
    """Writes the status of this node's TapNode."""
    client = ApiClient(access)

    def seen() -> Node | None:
        found = source.tap_node
        return None if found is None else Node(found.uid, found.generation, found.status)

    def patch(status: Mapping[str, Any]) -> None:
        client.patch(f"{API}/tapnodes/{node}/status", {"status": status})

    return TapNodeWriter(seen, view, patch)


class ClusterMetrics(Collector):
    """How the agent gets on with the API server."""

    def __init__(self, source: ClusterSource, writer: TapNodeWriter) -> None:
        self._source = source
        self._writer = writer

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        ages = GaugeMetricFamily(
            "vtap_agent_api_contact_age_seconds",
            "Time since the API server was last known to tell of a resource; 0 while a watch stands",
            labels=("resource",),
        )
        for resource, age in sorted(self._source.contact_ages().items()):
            ages.add_metric([resource], age)
        yield ages
        remembered = not self._source.synced
        yield GaugeMetricFamily(
            "vtap_agent_api_remembered", "1 while the agent works with what it remembers of an earlier run", value=remembered
        )
        failing = bool(self._writer.problem)
        yield GaugeMetricFamily("vtap_agent_tapnode_unwritten", "1 while the TapNode's status cannot be written", value=failing)


def starting(sentence: str) -> Wait:
    """What is answered to those who ask before there is anything to tell."""
    return Wait(f"the agent has not begun: {sentence}")
