"""A node in memory: a pipeline and mirrors that hold what they are given, and a world that can be changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.unit.plan.test_planning import gre, interface, inventory, pod
from vtap_agent.accounts import Accounts
from vtap_agent.errors import Wait
from vtap_agent.events import Mailbox
from vtap_agent.loop import Loop, Parts
from vtap_agent.plan.dataplane import MAX_SLOTS, Backend, DataPlane, Feed, Group, NodeCounters, PointCounters
from vtap_agent.plan.inventory_model import Bridge, Inventory
from vtap_agent.plan.mirror_health import MirrorHealth, unhealthy
from vtap_agent.plan.mirrors import MirrorStep
from vtap_agent.plan.selection import Desired
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.slots import Assignment
from vtap_agent.plan.steps import Phase
from vtap_agent.plan.tap_ports import BridgeStep
from vtap_agent.report.announcer import Announcer
from vtap_api import VirtualTap


@dataclass(frozen=True, slots=True)
class Become:
    """The pipeline becomes what is wanted."""

    wanted: DataPlane

    @property
    def phase(self) -> Phase:
        return Phase.SELECT


@dataclass(frozen=True, slots=True)
class Mirrored(MirrorStep):
    """The mirrors become what is wanted."""

    wanted: Mapping[Feed, Any] = field(default_factory=dict)


class MemoryPipeline:
    """Holds a data plane; `trouble` is called before each step and may raise."""

    def __init__(self) -> None:
        self.has = DataPlane()
        self.devices: set[Feed] = set()
        self.trouble: Callable[[], None] = lambda: None
        self.points: dict[int, PointCounters] = {}
        self.leases = 0
        self.unmakeable: Mapping[Feed, Exception] = {}
        self.unwritable: Mapping[str, str] = {}

    def plan(self, wanted: DataPlane, _tap_ports: Mapping[Feed, object]) -> list[Become]:
        return [] if wanted == self.has else [Become(wanted)]

    def shortfalls(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        return tuple(Shortfall(f"still to do: {step}", everybody=True) for step in self.plan(wanted, {}))

    def refusals(self, wanted: DataPlane) -> dict[str, str]:
        return {name: self.unwritable[name] for name in wanted.programs if name in self.unwritable}

    def owns(self, step: object) -> bool:
        return isinstance(step, Become)

    def apply(self, step: Become) -> None:
        self.trouble()
        ported = {source.feed for source in step.wanted.sources if source.feed.has_tap_port}
        assert ported <= self.devices, "a source without a tap port"
        self.has = step.wanted

    def tap_ports(self) -> frozenset[Feed]:
        return frozenset(self.devices)

    def tap_port_devices(self, key: Feed) -> Feed:
        return key

    def ensure_tap_port(self, key: Feed, *, polled: bool = False) -> None:
        if key in self.unmakeable:
            raise self.unmakeable[key]
        self.devices.add(key)

    def remove_tap_port(self, key: Feed) -> None:
        self.devices.discard(key)

    def counters(self, slots: Iterable[int] = ()) -> NodeCounters:
        return NodeCounters({slot: self.points.get(slot, PointCounters()) for slot in slots}, {}, 0)

    def renew_lease(self, _seconds: float) -> None:
        self.leases += 1

    def map_bytes(self) -> int:
        return 4096


class MemoryMirrors:
    """Holds mirrors while it is not away, as the database does."""

    backend = Backend.OVS_MIRROR
    purges = 0
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.has: Mapping[Feed, Any] = {}
        self.away = False
        self.refused: Mapping[Feed, str] = {}
        self.unlike: tuple[Shortfall, ...] = ()
        self.health: Mapping[Feed, MirrorHealth] = {}
        self.looked_at: list[float] = []
        """When somebody asked whether they copy, in seconds of a monotonic clock."""

    def _look(self) -> None:
        if self.away:
            raise Wait("no Open vSwitch database answers")

    def plan(self, wanted: DataPlane) -> tuple[MirrorStep, ...]:
        if wanted.mirrors or self.has:
            self._look()
        return () if wanted.mirrors == self.has else (Mirrored("br0", wanted.mirrors),)

    def refusals(self, wanted: DataPlane) -> dict[Feed, str]:
        self._look()
        return {key: self.refused[key] for key in wanted.mirrors if key in self.refused}

    def apply(self, steps: Iterable[object]) -> None:
        for step in steps:
            if isinstance(step, Mirrored):
                self._look()
                self.has = step.wanted

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        if wanted.mirrors or self.has:
            self._look()
        return self.unlike + (() if wanted.mirrors == self.has else (Shortfall("not done yet", everybody=True),))

    def problems(self, _wanted: DataPlane, _suspects: frozenset[Feed]) -> Mapping[Feed, str]:
        self._look()
        self.looked_at.append(time.monotonic())
        return {feed: said[0] for feed, health in self.health.items() if (said := unhealthy({feed: health}))}


@dataclass(frozen=True, slots=True)
class Grouped(BridgeStep):
    """The groups become what is wanted."""

    wanted: Mapping[Feed, Group]

    @property
    def backend(self) -> Backend:
        return Backend.OVS_GROUP


class MemoryGroups:
    """Holds groups while vswitchd answers; `refused` says where the bridge allows none."""

    backend = Backend.OVS_GROUP
    purges = 0
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.has: Mapping[Feed, Group] = {}
        self.away = False
        self.refused: Mapping[Feed, str] = {}

    def _look(self, wanted: DataPlane) -> None:
        if self.away and (wanted.groups or self.has):
            raise Wait("bridge br0 cannot be reached")

    def plan(self, wanted: DataPlane) -> tuple[Grouped, ...]:
        self._look(wanted)
        new = wanted.groups.keys() - self.has.keys()
        assert not new & self.refused.keys(), "a group that the bridge refuses; what was there may stay until it has been left"
        return () if wanted.groups == self.has else (Grouped("br0", wanted.groups),)

    def refusals(self, wanted: DataPlane) -> dict[Feed, str]:
        self._look(wanted)
        return {feed: self.refused[feed] for feed in wanted.groups if feed in self.refused}

    def apply(self, steps: Iterable[object]) -> None:
        for step in steps:
            if isinstance(step, Grouped):
                self.has = step.wanted

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        self._look(wanted)
        return () if wanted.groups == self.has else (Shortfall("not done yet", everybody=True),)

    def problems(self, _wanted: DataPlane, _suspects: frozenset[Feed]) -> Mapping[Feed, str]:
        return {}


@dataclass(frozen=True, slots=True)
class Hooked:
    """The devices at which eBPF looks become those."""

    hooks: frozenset[Feed]
    phase: Phase


class MemoryHooks:
    """Holds the devices at which eBPF looks; Open vSwitch is no matter to it."""

    backend = Backend.EBPF
    purges = 0
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.has: frozenset[Feed] = frozenset()
        self.at_once: list[frozenset[Feed]] = []
        """What it held after each change."""
        self.refused: dict[Feed, str] = {}
        """Where there is no place, and why."""

    def plan(self, wanted: DataPlane) -> tuple[Hooked, ...]:
        grown, shrunk = self.has | wanted.hooks, wanted.hooks
        steps = (Hooked(grown, Phase.ATTACH), Hooked(shrunk, Phase.RETIRE))
        return tuple(step for step, before in zip(steps, (self.has, grown), strict=True) if step.hooks != before)

    def refusals(self, wanted: DataPlane) -> dict[Feed, str]:
        return self.without_place(wanted.hooks)

    def without_place(self, hooks: frozenset[Feed]) -> dict[Feed, str]:
        return {feed: sentence for feed, sentence in self.refused.items() if feed in hooks}

    def apply(self, steps: Iterable[object]) -> None:
        for step in steps:
            if isinstance(step, Hooked):
                self.has = step.hooks
                self.at_once.append(step.hooks)

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        return () if wanted.hooks == self.has else (Shortfall("not attached", everybody=True),)

    def problems(self, _wanted: DataPlane, _suspects: frozenset[Feed]) -> Mapping[Feed, str]:
        return {}


@dataclass
class Taps:
    """The taps that are wanted."""

    desired: Desired = field(default_factory=lambda: Desired(destinations=(gre(),)))
    problems: tuple[str, ...] = ()

    def snapshot(self) -> Taps:
        return self


@dataclass
class World:
    """What the observer sees."""

    inventory: Inventory

    def snapshot(self, _remotes: frozenset[str]) -> Inventory:
        return self.inventory


class Node:
    """Two pods on bridge br0, no tap, and a loop that has not run yet."""

    def __init__(self, state: Path, slots: int = MAX_SLOTS) -> None:
        pods = [pod(1), pod(2)]
        interfaces = [interface(owner, number) for number, owner in enumerate(pods, 1)]
        ports = tuple(item.port for item in interfaces if item.port is not None)
        seen = inventory(pods, interfaces)
        bridge = Bridge("br0", "uuid-br0", "netdev", (), ports, 0, 0)
        self.world = World(replace(seen, switch=replace(seen.switch, bridges=(bridge,))))
        self.taps, self.pipeline, self.mirrors, self.mailbox = Taps(), MemoryPipeline(), MemoryMirrors(), Mailbox()
        self.accounts = Accounts(state / "agent.json", 4096, slots)
        self.announcer = Announcer("node-1", self.mailbox.changed)
        self.hooks, self.groups, self.switch_expected = MemoryHooks(), MemoryGroups(), True
        self.passed_by = frozenset[Feed]()
        backends = (self.mirrors, self.groups, self.hooks)
        parts: Any = (self.taps, self.world, backends, self.pipeline, self.announcer, self.accounts, self.mailbox)
        self.uncopied: Mapping[Assignment, int] = {}
        look: Any = {
            "switch_expected": lambda: self.switch_expected,
            "passed_by": lambda hooks: self.passed_by & hooks,
            "uncopied": lambda: self.uncopied,
            "without_place": self.hooks.without_place,
        }
        self.loop = Loop(Parts(*parts, **look), 4096)

    def want(self, *taps: VirtualTap) -> None:
        self.taps.desired = replace(self.taps.desired, taps=taps)
        self.mailbox.changed()

    def polled(self) -> None:
        """From now on DPDK moves the packets of the bridge."""
        seen = self.world.inventory
        bridges = tuple(replace(bridge, polled=True) for bridge in seen.switch.bridges)
        self.world.inventory = replace(seen, switch=replace(seen.switch, bridges=bridges))
        self.mailbox.changed()

    def switch_away(self, away: bool) -> None:
        """As the observer tells it: without the database nobody knows which port a device is."""
        self.mirrors.away = self.groups.away = away
        if away:
            self.there = self.world.inventory
            gone = replace(self.there.switch, reachable=False, bridges=())
            bare = tuple(replace(item, port=None) for item in self.there.interfaces)
            self.world.inventory = replace(self.there, switch=gone, interfaces=bare)
        else:
            self.world.inventory = self.there
        self.mailbox.changed()

    def copied(self) -> set[tuple[str, str]]:
        """(tap, pod) of every point that the pipeline feeds."""
        fed = {slot for source in self.pipeline.has.sources for slot in source.slots}
        return {(point.name.tap_name, point.name.pod_name) for point in self.pipeline.has.points if point.slot in fed}

    def backends(self, tap: str) -> set[tuple[str, str]]:
        """(direction, backend) of a tap's points."""
        verdicts = (status.verdict for status in self.loop.view.statuses if status.verdict.name == tap)
        return {(point.direction, point.backend) for verdict in verdicts for point in verdict.points}

    def passes(self) -> float:
        """That have come to their end, however."""
        metric = next(iter(self.loop.metrics.passes.collect()))
        return sum(sample.value for sample in metric.samples if sample.name.endswith("_total"))

    def condition(self, tap: str, kind: str) -> tuple[str, str, str]:
        """(status, reason, message); empty texts where there is no such tap."""
        for status in self.loop.view.statuses:
            for one in status.conditions:
                if (status.verdict.name, one.type) == (tap, kind):
                    return one.status, one.reason, one.message
        return "", "", ""
