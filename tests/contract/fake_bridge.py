"""Open vSwitch's bridges at the level of packets: what leaves which port when a frame arrives, and the rows that decide it.

A packet goes through `_classify` (VLAN of the port it came from), the mirrors that select its source, `_forward` (the actions;
here what OVS calls NORMAL: learning, known destination, flood), and at each output the mirrors that select that destination.
tests/contract runs the same cases against real Open vSwitch, so that this can't drift.
"""

from __future__ import annotations

import itertools
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.contract.frames import Frame
from vtap_agent.plan.dataplane import Direction
from vtap_agent.plan.mirrors import (
    MAX_MIRRORS,
    ChangeMirror,
    CreateMirror,
    DeleteMirror,
    ObservedBridge,
    ObservedMirror,
    ObservedMirrors,
)
from vtap_agent.plan.stamps import read_stamp
from vtap_agent.plan.steps import Step
from vtap_agent.plan.tap_ports import AddTapPort, DeleteTapPort, ObservedPort

_RESERVED = "01:80:c2:00:00:0"


@dataclass
class FakePort:
    """`tag` makes it an access port; else it is a trunk of all VLANs. `as_made` is what an administrator may spoil."""

    uuid: str
    name: str
    tag: int = 0
    external_ids: Mapping[str, str] = field(default_factory=dict)
    as_made: bool = True
    mtu: int = 1500
    mtu_request: int = 0


@dataclass
class FakeMirror:
    """Ports are UUIDs."""

    uuid: str
    name: str
    select_src: set[str] = field(default_factory=set)
    select_dst: set[str] = field(default_factory=set)
    output_port: str = ""
    external_ids: Mapping[str, str] = field(default_factory=dict)
    plain: bool = True


class FakeBridge:
    """One bridge. Names of ports are unique in a `FakeSwitch`, as in the database."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ports: dict[str, FakePort] = {}
        self.mirrors: dict[str, FakeMirror] = {}
        self.learnt: dict[tuple[int, str], str] = {}

    def send(self, port: str, frame: Frame) -> dict[str, list[Frame]]:
        """What leaves each port, by its name, when `frame` arrives from `port`."""
        left: dict[str, list[Frame]] = defaultdict(list)
        source = self.named(port)
        packet = self._classify(source, frame)
        if packet is None or self._is_reserved(source.uuid):
            return {}
        mirrored: set[str] = set()
        for output in self._copies(mirrored, source.uuid, Direction.EGRESS):
            left[output.name].append(packet)
        for target in self._forward(source, packet):
            for output in self._copies(mirrored, target.uuid, Direction.INGRESS):
                left[output.name].append(packet)
            left[target.name].append(packet if not target.tag else packet.tagged(0))
        return dict(left)

    def named(self, name: str) -> FakePort:
        return next(port for port in self.ports.values() if port.name == name)

    def delete_port(self, name: str) -> None:
        """The database empties every reference to it, without a word."""
        gone = self.named(name).uuid
        del self.ports[gone]
        for mirror in self.mirrors.values():
            mirror.select_src.discard(gone)
            mirror.select_dst.discard(gone)
            mirror.output_port = "" if mirror.output_port == gone else mirror.output_port
        self.learnt = {place: port for place, port in self.learnt.items() if port != gone}

    @property
    def held_mirrors(self) -> list[FakeMirror]:
        """Those that the switch holds: rows beyond its limit, or without an output port, are rows and nothing more."""
        usable = [mirror for mirror in self.mirrors.values() if mirror.output_port in self.ports]
        return usable[:MAX_MIRRORS]

    def _classify(self, port: FakePort, frame: Frame) -> Frame | None:
        """The frame with the VLAN that it has inside the bridge."""
        if not port.tag:
            return frame
        return None if frame.vlan else frame.tagged(port.tag)

    def _is_reserved(self, port: str) -> bool:
        return any(mirror.output_port == port for mirror in self.held_mirrors)

    def _copies(self, mirrored: set[str], port: str, direction: Direction) -> Iterator[FakePort]:
        """The output ports of mirrors that select the port; each mirror copies a packet once."""
        for mirror in self.held_mirrors:
            selected = mirror.select_src if direction is Direction.EGRESS else mirror.select_dst
            if port in selected and mirror.uuid not in mirrored:
                mirrored.add(mirror.uuid)
                yield self.ports[mirror.output_port]

    def _forward(self, source: FakePort, packet: Frame) -> list[FakePort]:
        """NORMAL: learn, then to the port that is known, else to all of the VLAN but reserved ones and the one it came from."""
        if packet.destination.startswith(_RESERVED):
            return []
        if not _is_group(packet.source):
            self.learnt[packet.vlan, packet.source] = source.uuid
        known = None if _is_group(packet.destination) else self.learnt.get((packet.vlan, packet.destination))
        candidates = self.ports.values() if known is None else [self.ports[known]]
        return [port for port in candidates if self._may_leave(port, source, packet.vlan)]

    def _may_leave(self, port: FakePort, source: FakePort, vlan: int) -> bool:
        return port.uuid != source.uuid and port.tag in (0, vlan) and not self._is_reserved(port.uuid)


class FakeSwitch:
    """Bridges and the rows of their database, changed by the steps that change real ones."""

    def __init__(self, *bridges: str) -> None:
        self.bridges = {name: FakeBridge(name) for name in bridges}
        self._numbers = itertools.count(1)

    def add_port(
        self, bridge: str, name: str, tag: int = 0, external_ids: Mapping[str, str] | None = None, mtu: int = 1500
    ) -> FakePort:
        if any(port.name == name for other in self.bridges.values() for port in other.ports.values()):
            raise ValueError(f"there is a port {name} already")
        port = FakePort(self._uuid(), name, tag, external_ids or {}, mtu=mtu)
        self.bridges[bridge].ports[port.uuid] = port
        return port

    def add_mirror(self, bridge: str, mirror: FakeMirror) -> FakeMirror:
        """A row as somebody else makes it; its uuid is assigned here."""
        mirror.uuid = self._uuid()
        self.bridges[bridge].mirrors[mirror.uuid] = mirror
        return mirror

    def observe(self) -> ObservedMirrors:
        return ObservedMirrors({bridge.name: _observed(bridge) for bridge in self.bridges.values()})

    def apply(self, steps: Iterable[Step]) -> None:
        """One transaction: names need only be unique at its end, and a row that has vanished is passed over."""
        for step in steps:
            match step:
                case AddTapPort():
                    self._add_tap_port(step)
                case CreateMirror():
                    row = FakeMirror("", step.name)
                    self._fill(row, step, step.ports)
                    self.add_mirror(step.bridge, row)
                case ChangeMirror():
                    self._change(step)
                case DeleteMirror():
                    self.bridges[step.bridge].mirrors.pop(step.uuid, None)
                case DeleteTapPort() if step.uuid in self.bridges[step.bridge].ports:
                    self.bridges[step.bridge].delete_port(step.name)
                case _:
                    pass

    def _add_tap_port(self, step: AddTapPort) -> None:
        bridge = self.bridges[step.bridge]
        port = next((port for port in bridge.ports.values() if port.name == step.name), None)
        if port is None:
            port = self.add_port(step.bridge, step.name)
        port.tag, port.as_made, port.external_ids = 0, True, step.stamp.external_ids()
        port.mtu_request = step.mtu
        port.mtu = step.mtu or port.mtu

    def _change(self, step: ChangeMirror) -> None:
        row = self.bridges[step.bridge].mirrors.get(step.uuid)
        if row is None:
            return
        ports = self.bridges[step.bridge].ports
        selected = row.select_src if step.key.direction is Direction.EGRESS else row.select_dst
        selected |= {port for port in step.add if port in ports}
        selected -= step.remove
        if step.restore:
            self._fill(row, step, frozenset(selected))

    def _fill(self, row: FakeMirror, step: CreateMirror | ChangeMirror, selected: frozenset[str]) -> None:
        bridge = self.bridges[step.bridge]
        on_bridge = {port for port in selected if port in bridge.ports}
        row.select_src, row.select_dst = (on_bridge, set()) if step.key.direction is Direction.EGRESS else (set(), on_bridge)
        row.output_port = bridge.named(step.name).uuid
        row.external_ids, row.plain = step.stamp.external_ids(), True

    def _uuid(self) -> str:
        return str(uuid.UUID(int=next(self._numbers)))


def _observed(bridge: FakeBridge) -> ObservedBridge:
    stamped = [(port, read_stamp(port.external_ids)) for port in bridge.ports.values()]
    held = {mirror.uuid for mirror in bridge.held_mirrors}
    return ObservedBridge(
        name=bridge.name,
        ports={port.uuid: port.name for port in bridge.ports.values()},
        mtus={port.uuid: port.mtu for port in bridge.ports.values()},
        tap_ports=tuple(
            ObservedPort(port.uuid, port.name, stamp, port.as_made and not port.tag, port.mtu_request)
            for port, stamp in stamped
            if stamp
        ),
        mirrors=tuple(
            ObservedMirror(
                uuid=mirror.uuid,
                name=mirror.name,
                stamp=read_stamp(mirror.external_ids),
                select_src=frozenset(mirror.select_src),
                select_dst=frozenset(mirror.select_dst),
                output_port=mirror.output_port,
                plain=mirror.plain,
                has_statistics=mirror.uuid in held,
            )
            for mirror in bridge.mirrors.values()
        ),
    )


def _is_group(mac: str) -> bool:
    return bool(int(mac[:2], 16) & 1)
