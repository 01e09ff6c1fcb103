"""Which Mirror rows and tap ports a node's bridges should have, and the steps from what they have.

One mirror and one tap port serve all taps of a (bridge, direction), because Open vSwitch allows 32 mirrors a bridge
(`MAX_MIRRORS` in ofproto-dpif-mirror.h). `select_src_port` copies what arrives from a port, the pod's Egress; `select_dst_port`
what leaves to it, its Ingress (ovs-vswitchd.conf.db(5), Mirror). Rows bear a stamp in `external_ids`; only rows with this node's
stamp are ever changed or deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vtap_agent.plan.dataplane import Backend, Direction, Feed, Mirror
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.stamps import Stamp, is_ours
from vtap_agent.plan.tap_ports import AddTapPort, BridgeStep, DeleteTapPort, ObservedPort, tap_port_name

MAX_MIRRORS = 32
"""That Open vSwitch holds on one bridge."""


@dataclass(frozen=True, slots=True)
class ObservedMirror:
    """A Mirror row, ours or another's. Ports are UUIDs; `output_port` is empty where it has none.

    `plain` is False where the row also selects or cuts in ways that we never ask for (all ports, VLANs, output VLAN, snaplen,
    filter).
    """

    uuid: str
    name: str
    stamp: Stamp | None
    select_src: frozenset[str]
    select_dst: frozenset[str]
    output_port: str
    plain: bool
    has_statistics: bool
    """`statistics` is not {}: ofproto holds the mirror. Filled in up to `stats-update-interval` (5 s) after the row is made."""

    def selected(self, direction: Direction) -> frozenset[str]:
        """The ports on the side that copies for `direction`."""
        return self.select_src if direction is Direction.EGRESS else self.select_dst


@dataclass(frozen=True, slots=True)
class ObservedBridge:
    """A bridge: all its ports (name by UUID), their MTUs where known (by UUID), those with a stamp, and all its mirrors."""

    name: str
    ports: Mapping[str, str]
    mtus: Mapping[str, int]
    tap_ports: tuple[ObservedPort, ...]
    mirrors: tuple[ObservedMirror, ...]


@dataclass(frozen=True, slots=True)
class ObservedMirrors:
    """What the database says now, by bridge name."""

    bridges: Mapping[str, ObservedBridge]


@dataclass(frozen=True, slots=True)
class MirrorStep(BridgeStep):
    """A change of one Mirror row. All of a pass's run in one OVSDB transaction, with those of tap ports."""

    @property
    def backend(self) -> Backend:
        return Backend.OVS_MIRROR


@dataclass(frozen=True, slots=True)
class CreateMirror(MirrorStep):
    """Make a mirror whose output is the tap port of the same name."""

    key: Feed
    name: str
    ports: frozenset[str]
    stamp: Stamp

    def __str__(self) -> str:
        return f"mirror {self.key.direction} of {_count(self.ports)} on bridge {self.bridge} to {self.name}"


@dataclass(frozen=True, slots=True)
class ChangeMirror(MirrorStep):
    """Add and remove selected ports. Where `restore`, also put back every other column that somebody changed."""

    key: Feed
    uuid: str
    name: str
    add: frozenset[str]
    remove: frozenset[str]
    restore: bool
    stamp: Stamp

    def __str__(self) -> str:
        changes = [
            *([f"add {_count(self.add)}"] if self.add else []),
            *([f"remove {_count(self.remove)}"] if self.remove else []),
            *(["put back what was changed"] if self.restore else []),
        ]
        return f"mirror {self.key.direction} on bridge {self.bridge}: {', '.join(changes)}"


@dataclass(frozen=True, slots=True)
class DeleteMirror(MirrorStep):
    """Delete a mirror of ours."""

    uuid: str
    name: str

    def __str__(self) -> str:
        return f"delete mirror {self.name} of bridge {self.bridge}"


def diff(observed: ObservedMirrors, desired: Mapping[Feed, Mirror], stamp: Stamp) -> tuple[BridgeStep, ...]:
    """The changes that make `observed` like `desired`; empty when nothing is to do.

    Deletions come first, so that what takes a name or one of the 32 places has gone when it is needed. Keys in `refusals`, keys
    of bridges that do not exist, and ports that are not on the bridge are left out.
    """
    refused = refusals(observed, desired, stamp.node)
    wanted = {key: mirror for key, mirror in desired.items() if key.place in observed.bridges and key not in refused}
    steps: list[BridgeStep] = []
    for bridge in observed.bridges.values():
        steps.extend(_sweep(bridge, wanted, stamp.node))
    for key, mirror in sorted(wanted.items()):
        steps.extend(_converge(observed.bridges[key.place], mirror, stamp))
    return tuple(steps)


def refusals(observed: ObservedMirrors, desired: Mapping[Feed, Mirror], node: str) -> dict[Feed, str]:
    """Why a wanted mirror cannot be had, in a sentence that says what to change."""
    sentences: dict[Feed, str] = {}
    by_bridge: dict[str, list[Feed]] = defaultdict(list)
    for key in sorted(desired):
        if key.place not in observed.bridges:
            continue
        taken = _name_is_taken(observed, key, node)
        if taken:
            sentences[key] = taken
        else:
            by_bridge[key.place].append(key)
    for name, keys in by_bridge.items():
        bridge = observed.bridges[name]
        for key in _beyond_limit(bridge, keys, node):
            sentences[key] = (
                f"bridge {name} can hold {MAX_MIRRORS} mirrors, Open vSwitch's limit, and others use {_foreign(bridge, node)}; "
                f"delete one of them, so that {key.direction} can be copied"
            )
    return sentences


def unlike(observed: ObservedMirrors, desired: Mapping[Feed, Mirror], stamp: Stamp) -> tuple[Shortfall, ...]:
    """What still differs, and whom it concerns; empty where every wanted mirror is there and nothing of ours is beside."""
    refused = refusals(observed, desired, stamp.node)
    by_name = {tap_port_name(stamp.node, key): key for key in desired}
    return (
        *(Shortfall(f"there is no bridge {key.place}", frozenset({key})) for key in desired if key.place not in observed.bridges),
        *(Shortfall(sentence, frozenset({key})) for key, sentence in refused.items()),
        *(_concerning(step, by_name) for step in diff(observed, desired, stamp)),
    )


def _concerning(step: BridgeStep, by_name: Mapping[str, Feed]) -> Shortfall:
    sentence = f"not done yet: {step}"
    if isinstance(step, AddTapPort):
        return Shortfall(sentence, frozenset({by_name[step.name]}))
    if isinstance(step, CreateMirror):
        return Shortfall(sentence, frozenset({step.key}), step.ports)
    if isinstance(step, ChangeMirror):
        return Shortfall(sentence, frozenset({step.key}), None if step.restore else step.add)
    return Shortfall(sentence)


def _sweep(bridge: ObservedBridge, wanted: Mapping[Feed, Mirror], node: str) -> Iterator[BridgeStep]:
    names = {tap_port_name(node, key) for key in wanted if key.place == bridge.name}
    kept: set[str] = set()
    for mirror in sorted(bridge.mirrors, key=lambda row: row.uuid):
        if not is_ours(mirror.stamp, node):
            continue
        if mirror.name in names and mirror.name not in kept:
            kept.add(mirror.name)
        else:
            yield DeleteMirror(bridge.name, mirror.uuid, mirror.name)
    for port in bridge.tap_ports:
        if is_ours(port.stamp, node) and port.name not in names:
            yield DeleteTapPort(bridge.name, port.name, port.stamp, port.uuid)


def _converge(bridge: ObservedBridge, mirror: Mirror, stamp: Stamp) -> Iterator[BridgeStep]:
    key, name = mirror.feed, tap_port_name(stamp.node, mirror.feed)
    taps = {tap.uuid for tap in bridge.tap_ports}
    ports = frozenset(uuid for uuid in mirror.ports if uuid in bridge.ports and uuid not in taps)
    port = next((port for port in bridge.tap_ports if port.name == name), None)
    mtu = _mtu(bridge, ports) or (port.mtu if port else 0)
    if port is None or not port.as_made or port.mtu != mtu:
        yield AddTapPort(bridge.name, name, stamp, mtu)
    row = _row(bridge, name, stamp.node)
    if row is None:
        yield CreateMirror(bridge.name, key, name, ports, stamp)
        return
    has = row.selected(key.direction)
    other_side = row.select_dst if key.direction is Direction.EGRESS else row.select_src
    restore = not row.plain or bool(other_side) or port is None or row.output_port != port.uuid
    if has != ports or restore:
        yield ChangeMirror(bridge.name, key, row.uuid, name, ports - has, has - ports, restore, stamp)


def _mtu(bridge: ObservedBridge, ports: frozenset[str]) -> int:
    """The largest MTU among the ports: each copy fits, and with userspace TSO super-packets are cut as their owner would.

    A bridge's own port gets the least MTU of its ports; this is never below that.
    """
    return max((bridge.mtus.get(uuid, 0) for uuid in ports), default=0)


def _row(bridge: ObservedBridge, name: str, node: str) -> ObservedMirror | None:
    rows = [row for row in bridge.mirrors if row.name == name and is_ours(row.stamp, node)]
    return min(rows, key=lambda row: row.uuid, default=None)


def _foreign(bridge: ObservedBridge, node: str) -> int:
    return sum(not is_ours(mirror.stamp, node) for mirror in bridge.mirrors)


def _beyond_limit(bridge: ObservedBridge, keys: Iterable[Feed], node: str) -> list[Feed]:
    """The keys that find no place; a mirror that exists keeps its own."""
    first_those_that_exist = sorted(keys, key=lambda key: (_row(bridge, tap_port_name(node, key), node) is None, key))
    return first_those_that_exist[max(0, MAX_MIRRORS - _foreign(bridge, node)) :]


def _name_is_taken(observed: ObservedMirrors, key: Feed, node: str) -> str:
    name = tap_port_name(node, key)
    for bridge in observed.bridges.values():
        stamped = {port.uuid for port in bridge.tap_ports if is_ours(port.stamp, node)}
        if any(other == name and uuid not in stamped for uuid, other in bridge.ports.items()):
            return (
                f"bridge {bridge.name} has a port {name} that is not ours, which is the name our tap port would have; "
                f"remove it (ovs-vsctl del-port {bridge.name} {name}), so that {key.direction} of {key.place} can be copied"
            )
    return ""


def _count(ports: frozenset[str]) -> str:
    return "1 port" if len(ports) == 1 else f"{len(ports)} ports"
