"""Copies by Open vSwitch mirrors: see what is, apply steps in one transaction, and believe counters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vtap_agent.backends import tap_ports
from vtap_agent.backends.flow_purge import FlowPurger
from vtap_agent.backends.mirror_commands import command
from vtap_agent.drivers.ovsdb import OvsdbConnection, Tables, first
from vtap_agent.drivers.unixctl import DatapathCounters
from vtap_agent.errors import VtapError, Wait
from vtap_agent.plan.dataplane import Backend, DataPlane, Direction, Feed
from vtap_agent.plan.foreign_flows import outputs_to, told
from vtap_agent.plan.mirror_health import (
    MirrorHealth,
    MirrorReading,
    MirrorSample,
    MirrorState,
    health,
    purge_after_change,
    unhealthy,
)
from vtap_agent.plan.mirrors import (
    ChangeMirror,
    CreateMirror,
    DeleteMirror,
    ObservedBridge,
    ObservedMirror,
    ObservedMirrors,
    diff,
    refusals,
    unlike,
)
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.stamps import Stamp, is_ours, read_stamp
from vtap_agent.plan.steps import Step
from vtap_agent.plan.tap_ports import BridgeStep, ObservedPort, tap_port_name

SAMPLE_INTERVAL = 1.0
"""Seconds that two samples are apart at least, so that there is something to compare."""
FLOWS_EVERY_FIRST, FLOWS_EVERY_LAST = 5.0, 300.0
"""Seconds between looks at a bridge's flows: doubling as long as nothing is found there that explains what is suspected."""
PURGE_BACKOFF_FIRST, PURGE_BACKOFF_LAST = 2.0, 300.0
"""Seconds between purges that the counters ask for, doubling: where the first did not help, more seldom will."""


class OvsMirrorBackend:
    """The mirrors and tap ports of this node. Call it from one thread."""

    def __init__(self, connection: OvsdbConnection, node: str, generation: int = 0) -> None:
        self._connection = connection
        self._stamp = Stamp(node, generation)
        self._purger = FlowPurger(connection.vswitchd)
        self._sample: MirrorSample | None = None
        self._health: dict[Feed, MirrorHealth] = {}
        self._first_seen: dict[str, float] = {}
        self._backoff: dict[Feed, tuple[float, float]] = {}
        self._owes_purge = False
        self._unflooded: dict[Feed, tuple[int | None, str, int]] = {}
        self._flood_problems: dict[Feed, str] = {}
        self._strangers: dict[Feed, str] = {}
        self._look_at_flows: dict[Feed, tuple[float, float]] = {}
        self._observed: tuple[int, ObservedMirrors] | None = None

    @property
    def backend(self) -> Backend:
        """OVSMirror."""
        return Backend.OVS_MIRROR

    @property
    def purges(self) -> int:
        """How often running flows were purged since the start."""
        return self._purger.purges

    @property
    def purge_failures(self) -> int:
        """How often vswitchd did not carry out a purge."""
        return self._purger.failures

    def tap_port_name(self, key: Feed) -> str:
        """The device that a mirror sends to. It must exist before a step adds it to the bridge."""
        return tap_port_name(self._stamp.node, key)

    def observe(self) -> ObservedMirrors:
        """What the database says. Raises Wait where it is down."""
        self._observed = self._connection.read_if_changed(_observed, self._observed)
        return self._observed[1]

    def plan(self, wanted: DataPlane) -> tuple[BridgeStep, ...]:
        """The steps from what is to `wanted`. Raises Wait where the database is down, unless no mirror is wanted."""
        return diff(self._observe_for(wanted), wanted.mirrors, self._stamp)

    def refusals(self, wanted: DataPlane) -> dict[Feed, str]:
        """The mirrors that cannot be had, and what a person has to change."""
        return refusals(self._observe_for(wanted), wanted.mirrors, self._stamp.node)

    def apply(self, steps: Iterable[Step]) -> None:
        """Apply the steps of ours among `steps` in one transaction. Raises Retry or Wait; then nothing or all was done."""
        ours = [step for step in steps if isinstance(step, BridgeStep) and step.backend is self.backend]
        if not ours:
            return
        self._owes_purge |= any(isinstance(step, CreateMirror | ChangeMirror | DeleteMirror) for step in ours)
        self._connection.transact(lambda api: [command(api, step) for step in ours])
        self._purge_after_change()

    def _purge_after_change(self) -> None:
        """Only once vswitchd has taken the change is a purge of use; after a Wait that is in a later pass."""
        if self._owes_purge:
            version = self._connection.snapshot().version
            if purge_after_change(version):
                self._purger.request(f"Open vSwitch {version} may not notice a mirror's change")
            self._owes_purge = False

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        """What still differs from `wanted` in the database, and whom it concerns. Raises as `plan`."""
        self._purge_after_change()
        self._keep_out_of_floods(wanted)
        return unlike(self._observe_for(wanted), wanted.mirrors, self._stamp)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what cannot be kept away from tap ports, which harms no tap as long as nobody's flows flood."""
        return tuple(sentence for _, sentence in sorted(self._flood_problems.items()))

    def _keep_out_of_floods(self, wanted: DataPlane) -> None:
        """NORMAL spares a mirror's output port by itself, FLOOD only as long as vswitchd remembers that we asked for it."""
        observed, pid = self._observe_for(wanted), self._connection.vswitchd.pid()
        due: dict[Feed, tuple[int | None, str, int]] = {}
        for key in wanted.mirrors:
            port = _tap_port(observed, key, self._stamp.node)
            if port is not None and port.ofport > 0:
                due[key] = (pid, port.uuid, port.ofport)
        self._unflooded = {key: done for key, done in self._unflooded.items() if due.get(key) == done}
        self._flood_problems = {}
        for key in due.keys() - self._unflooded.keys():
            try:
                self._connection.vswitchd.never_flood_to(key.place, self.tap_port_name(key))
                self._unflooded[key] = due[key]
            except VtapError as error:
                self._flood_problems[key] = str(error)

    def check_health(self, wanted: DataPlane, suspects: frozenset[Feed] = frozenset()) -> Mapping[Feed, MirrorHealth]:
        """Judge each wanted mirror by the counters since the last call, and have running flows purged where these ask for it.

        `suspects` are mirrors at whose tap ports packets arrived that fit no source: whether others' flows send them is
        looked up.

        Calls within SAMPLE_INTERVAL of the last sample return the last judgement. Raises Wait where the database or vswitchd is
        down.
        """
        if not wanted.mirrors:
            self._sample, self._health = None, {}
            return self._health
        now = time.monotonic()
        if self._sample is not None and now - self._sample.at < SAMPLE_INTERVAL:
            return self._health
        current = self._take_sample(now)
        previous, self._sample = self._sample, current
        if previous is not None:
            judged = health(previous, current, current.at - previous.at)
            self._health = {key: judged[key] for key in judged if key in wanted.mirrors}
            self._look_for_strangers(now, suspects)
            self._purge_where_needed(now)
        return self._health

    def problems(self, wanted: DataPlane, suspects: frozenset[Feed]) -> dict[Feed, str]:
        """A sentence for each wanted mirror that does not copy as it should. See `check_health`."""
        judged = self.check_health(wanted, suspects)
        return {feed: said[0] for feed, health in judged.items() if (said := unhealthy({feed: health}))}

    def settle(self, timeout: float) -> bool:
        """Wait until no purge is due or running, so that a change has reached every flow; False after `timeout` seconds."""
        return self._purger.wait_idle(timeout)

    def close(self) -> None:
        """End the purger's thread. The connection is its owner's to close; mirrors stay."""
        self._purger.close()

    def _observe_for(self, wanted: DataPlane) -> ObservedMirrors:
        """A node without Open vSwitch is in order as long as nobody wants a mirror there."""
        try:
            observed = self.observe()
        except Wait:
            if wanted.mirrors:
                raise
            return ObservedMirrors({})
        return ObservedMirrors({name: self._with_devices(bridge) for name, bridge in observed.bridges.items()})

    def _with_devices(self, bridge: ObservedBridge) -> ObservedBridge:
        ours = (port for port in bridge.tap_ports if is_ours(port.stamp, self._stamp.node))
        taps = {port.uuid: tap_ports.checked(port) for port in ours}
        return replace(bridge, tap_ports=tuple(taps.get(port.uuid, port) for port in bridge.tap_ports)) if taps else bridge

    def _take_sample(self, now: float) -> MirrorSample:
        observed = self.observe()
        counters = self._connection.vswitchd.port_counters()
        rows = {row.uuid for bridge in observed.bridges.values() for row in bridge.mirrors}
        self._first_seen = {uuid: self._first_seen.get(uuid, now) for uuid in rows}
        return sample(observed, counters, self._stamp.node, now, self._first_seen)

    def _look_for_strangers(self, now: float, suspects: frozenset[Feed]) -> None:
        """Seldom, because a dump of all flows may be long; and only where there is a reason to."""
        self._strangers = {key: sentence for key, sentence in self._strangers.items() if key in self._health}
        for key, judged in self._health.items():
            suspected = judged.state is MirrorState.LEAKING or key in suspects or key in self._strangers
            earliest, interval = self._look_at_flows.get(key, (now, FLOWS_EVERY_FIRST))
            if suspected and now >= earliest:
                self._strangers.pop(key, None)
                if sentence := self._strange_flows(key):
                    self._strangers[key], interval = sentence, FLOWS_EVERY_FIRST
                self._look_at_flows[key] = (now + interval, min(FLOWS_EVERY_LAST, 2 * interval))
            if key in self._strangers:
                self._health[key] = replace(judged, state=MirrorState.SHARED, detail=self._strangers[key])

    def _strange_flows(self, key: Feed) -> str:
        port = _tap_port(self.observe(), key, self._stamp.node)
        if port is None or port.ofport <= 0:
            return ""
        flows = outputs_to(self._connection.vswitchd.flows(key.place), port.ofport)
        return told(flows, key.place, port.name, port.ofport)

    def _purge_where_needed(self, now: float) -> None:
        for key, judged in self._health.items():
            if not judged.needs_purge:
                if judged.copies:
                    self._backoff.pop(key, None)
                continue
            earliest, interval = self._backoff.get(key, (now, PURGE_BACKOFF_FIRST))
            if now >= earliest:
                self._backoff[key] = (now + interval, min(PURGE_BACKOFF_LAST, 2 * interval))
                made = f"{judged.copies} copies where {judged.least} to {judged.most} were due"
                self._purger.request(f"mirror {key.direction} of bridge {key.place} made {made}")


def _tap_port(observed: ObservedMirrors, key: Feed, node: str) -> ObservedPort | None:
    bridge, name = observed.bridges.get(key.place), tap_port_name(node, key)
    ports = bridge.tap_ports if bridge is not None else ()
    return next((port for port in ports if port.name == name and is_ours(port.stamp, node)), None)


def sample(
    observed: ObservedMirrors,
    counters: Mapping[str, DatapathCounters],
    node: str,
    now: float,
    first_seen: Mapping[str, float],
) -> MirrorSample:
    """Join the rows of our mirrors with the datapath's counters. A tap port without counters is no device of the datapath."""
    readings: dict[Feed, MirrorReading] = {}
    for bridge in observed.bridges.values():
        for direction in Direction:
            key = Feed(Backend.OVS_MIRROR, bridge.name, direction)
            name = tap_port_name(node, key)
            row = next((row for row in bridge.mirrors if row.name == name and is_ours(row.stamp, node)), None)
            if row is not None:
                tap = counters.get(name)
                readings[key] = MirrorReading(
                    copies=0 if tap is None else tap.transmitted + tap.transmit_dropped,
                    selected=_selected(bridge, row, direction, counters),
                    held=row.has_statistics,
                    age=now - first_seen.get(row.uuid, now),
                )
    return MirrorSample(now, readings)


def _selected(
    bridge: ObservedBridge, row: ObservedMirror, direction: Direction, counters: Mapping[str, DatapathCounters]
) -> dict[str, int]:
    names = sorted(bridge.ports[uuid] for uuid in row.selected(direction) if uuid in bridge.ports)
    known = {name: counters[name] for name in names if name in counters}
    return {name: _moved(count, direction) for name, count in known.items()}


def _moved(count: DatapathCounters, direction: Direction) -> int:
    """What the mirror had before it: a packet that its receiver's device then refused was copied nevertheless."""
    return count.received if direction is Direction.EGRESS else count.transmitted + count.transmit_dropped


def _observed(tables: Tables) -> ObservedMirrors:
    return ObservedMirrors({row.name: _bridge(row) for row in tables["Bridge"].rows.values()})


def _bridge(row: Any) -> ObservedBridge:
    return ObservedBridge(
        name=row.name,
        ports=tap_ports.names(row),
        mtus=tap_ports.mtus(row),
        tap_ports=tap_ports.stamped(row),
        mirrors=tuple(_mirror(mirror) for mirror in row.mirrors),
    )


def _mirror(row: Any) -> ObservedMirror:
    special = (row.select_all, row.select_vlan, row.output_vlan, row.snaplen, getattr(row, "filter", []))
    return ObservedMirror(
        uuid=str(row.uuid),
        name=row.name,
        stamp=read_stamp(row.external_ids),
        select_src=frozenset(str(port.uuid) for port in row.select_src_port),
        select_dst=frozenset(str(port.uuid) for port in row.select_dst_port),
        output_port=first([str(port.uuid) for port in row.output_port], ""),
        plain=not any(special),
        has_statistics=bool(row.statistics),
    )
