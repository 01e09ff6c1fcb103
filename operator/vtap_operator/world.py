"""All that the operator knows of our own objects and of what they depend on. One thread; values are replaced, never changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from vtap_api import TapDestination
from vtap_operator.collectors import CollectorPod
from vtap_operator.conditions import TapStatus
from vtap_operator.records import Destination, NodeReports, Report, Tap, TapId


class World:
    """Whoever changes it tells the keepers; it tells nobody by itself."""

    def __init__(self) -> None:
        self.taps: dict[TapId, Tap] = {}
        self.destinations: dict[str, Destination] = {}
        self.namespaces: dict[str, Mapping[str, str]] = {}
        self.nodes: dict[str, str] = {}
        """UIDs by name."""
        self.tap_nodes: dict[str, NodeReports] = {}
        self.collector_pods: dict[str, CollectorPod] = {}
        """By name."""
        self.agents: frozenset[str] = frozenset()
        """Nodes whose agent is ready."""
        self._reports: dict[TapId, dict[str, Report]] = defaultdict(dict)
        self._agent_pods: dict[str, tuple[str, bool]] = {}
        self._by_namespace: dict[str, set[TapId]] = defaultdict(set)

    @property
    def usable_destinations(self) -> Mapping[str, TapDestination]:
        """Those whose spec can be read."""
        return {name: one.model for name, one in self.destinations.items() if one.model is not None}

    def put_tap(self, tap: Tap) -> Tap | None:
        """What was there before."""
        before = self.taps.get(tap.id)
        self.taps[tap.id] = tap
        self._by_namespace[tap.namespace].add(tap.id)
        return before

    def drop_tap(self, key: TapId) -> Tap | None:
        """What was there."""
        self._by_namespace[key[0]].discard(key)
        return self.taps.pop(key, None)

    def taps_of_namespace(self, name: str) -> Collection[TapId]:
        """Their names."""
        return tuple(self._by_namespace.get(name, ()))

    def status_written(self, tap: Tap, status: TapStatus) -> None:
        """It is the API server's by now, though its event is still on the way."""
        if self.taps.get(tap.id) is tap:
            self.taps[tap.id] = replace(tap, status=status)

    def put_tap_node(self, node: NodeReports) -> NodeReports | None:
        """What was there before."""
        before = self.tap_nodes.get(node.name)
        if before is not None:
            self._forget_reports(node.name, before.reports.keys() - node.reports.keys())
        for key, report in node.reports.items():
            self._reports[key][node.name] = report
        self.tap_nodes[node.name] = node
        return before

    def drop_tap_node(self, name: str) -> NodeReports | None:
        """What was there."""
        before = self.tap_nodes.pop(name, None)
        if before is not None:
            self._forget_reports(name, before.reports)
        return before

    def _forget_reports(self, node: str, keys: Iterable[TapId]) -> None:
        for key in keys:
            self._reports[key].pop(node, None)
            if not self._reports[key]:
                del self._reports[key]

    def reports_of(self, key: TapId) -> Mapping[str, Report]:
        """By node."""
        return self._reports.get(key, {})

    def put_agent_pod(self, name: str, node: str, *, ready: bool) -> set[str]:
        """Nodes whose agent came up or went down."""
        self._agent_pods[name] = (node, ready)
        return self._look_at_agents()

    def drop_agent_pod(self, name: str) -> set[str]:
        """Nodes whose agent went down."""
        return self._look_at_agents() if self._agent_pods.pop(name, None) is not None else set()

    def _look_at_agents(self) -> set[str]:
        before = self.agents
        self.agents = frozenset(node for node, ready in self._agent_pods.values() if ready)
        return set(before ^ self.agents)
