"""Which tap ports, flows and groups of ours a node's bridges should have, and the steps from what they have. Pure.

Rows bear a stamp in `external_ids`, flows a cookie, groups a number of our range; only what bears this node's is ever changed. A
flow's cookie stands for its content, so that cookies tell what is missing and what is too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vtap_agent.plan.dataplane import Backend, DataPlane, Direction, Feed, Group
from vtap_agent.plan.groups_flows import BridgeFlows, Layout, SwitchPort, Tables, Wanted, build, our_group
from vtap_agent.plan.groups_foreign import ForeignFlows
from vtap_agent.plan.stamps import Stamp, is_ours
from vtap_agent.plan.tap_ports import AddTapPort, BridgeStep, DeleteTapPort, ObservedPort, tap_port_name


@dataclass(frozen=True, slots=True)
class GroupBridge:
    """A bridge as the database tells it. `ports` are all of its ports, `names` and `mtus` (where known) are theirs, by UUID.

    `tap_ports` bear a stamp of ours. `cni` names the network plugin that programs the bridge, empty where none is known to.
    """

    name: str
    ports: tuple[SwitchPort, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    mtus: Mapping[str, int] = field(default_factory=dict[str, int])
    tap_ports: tuple[ObservedPort, ...] = ()
    controllers: tuple[str, ...] = ()
    fail_mode: str = ""
    snoops_multicast: bool = False
    cni: str = ""


Slots = tuple[int, ...]


class Counted(NamedTuple):
    """Packets that a flow has counted, and its place: table, priority and match, in the switch's words."""

    place: str
    packets: int


@dataclass(frozen=True, slots=True)
class Present:
    """What of ours a bridge holds: flows with what they have counted, by cookie, and numbers of groups."""

    flows: Mapping[int, Counted]
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class SetFlows(BridgeStep):
    """Make flows and groups what `groups` and `wanted` ask for, all at once."""

    groups: Mapping[Direction, Group]
    wanted: DataPlane

    @property
    def backend(self) -> Backend:
        return Backend.OVS_GROUP

    def __str__(self) -> str:
        if not self.groups:
            return f"remove our flows from bridge {self.bridge}"
        count = len({member.port_uuid for group in self.groups.values() for member in group.members})
        return f"copy {count} ports of bridge {self.bridge} by flows"


def groups_on(bridge: str, wanted: Mapping[Feed, Group]) -> dict[Direction, Group]:
    """The groups wanted on a bridge."""
    return {feed.direction: group for feed, group in wanted.items() if feed.place == bridge}


def port_changes(bridge: GroupBridge, groups: Mapping[Direction, Group], stamp: Stamp) -> tuple[AddTapPort | DeleteTapPort, ...]:
    """The changes of tap ports: what is to add or to restore, and what is to go."""
    names = {tap_port_name(stamp.node, group.feed): group for group in groups.values()}
    ours = {port.name: port for port in bridge.tap_ports if is_ours(port.stamp, stamp.node, Backend.OVS_GROUP)}
    changes: list[AddTapPort | DeleteTapPort] = []
    for name, group in sorted(names.items()):
        mtu = max((bridge.mtus.get(member.port_uuid, 0) for member in group.members), default=0)
        port = ours.get(name)
        if port is None or not port.as_made or port.mtu != mtu:
            changes.append(AddTapPort(bridge.name, name, stamp, mtu))
    changes.extend(
        DeleteTapPort(bridge.name, name, port.stamp, port.uuid) for name, port in sorted(ours.items()) if name not in names
    )
    return tuple(changes)


def tap_numbers(bridge: GroupBridge, groups: Mapping[Direction, Group], node: str) -> dict[Direction, int]:
    """OpenFlow numbers of the tap ports that have one."""
    numbers = {
        port.name: port.ofport for port in bridge.tap_ports if port.ofport > 0 and is_ours(port.stamp, node, Backend.OVS_GROUP)
    }
    named = {direction: tap_port_name(node, group.feed) for direction, group in groups.items()}
    return {direction: numbers[name] for direction, name in named.items() if name in numbers}


def desired(
    bridge: GroupBridge, groups: Mapping[Direction, Group], wanted: DataPlane, layout: Layout, node: str, *, hairpins: bool
) -> BridgeFlows:
    """The flows and groups that a bridge should have, as far as its ports have numbers."""
    taps = tap_numbers(bridge, groups, node)
    if not taps:
        return BridgeFlows()
    return build(Wanted(bridge.ports, groups, taps, wanted.programs, wanted.peer_sets, hairpins), layout, node)


def bundle(target: BridgeFlows, present: Present) -> tuple[str, ...]:
    """The changes that make `present` the `target`, in the order of one bundle; empty where nothing is to do.

    Additions come first: one with the match of an old flow takes its place, and what is left of the old goes by its cookie.
    """
    new = [flow for flow in target.flows if flow.cookie not in present.flows]
    wanted = {flow.cookie for flow in target.flows}
    old = sorted(present.flows.keys() - wanted)
    numbers = {group.number for group in target.groups}
    renewed = [group for group in target.groups if new or group.number not in present.groups]
    return (
        *(f"group add_or_mod {group}" for group in renewed),
        *(f"flow add {flow}" for flow in new),
        *(f"flow delete cookie={cookie:#x}/-1" for cookie in old),
        *(f"group delete group_id={number}" for number in sorted(present.groups - numbers)),
    )


def our_groups(node: str) -> frozenset[int]:
    """All that this node may have."""
    return frozenset(our_group(node, direction) for direction in Direction)


def layout_for(foreign: ForeignFlows, known: Layout | None) -> Layout | None:
    """Tables and a register that nobody else uses: those we have, where they are free; None where there are not enough."""
    if known is not None and not foreign.tables & set(known.tables) and known.register not in foreign.registers:
        return known
    tables, register = foreign.free_tables(len(Tables._fields)), foreign.free_register()
    if len(tables) < len(Tables._fields) or register is None:
        return None
    return Layout(Tables(*tables), register)


def uncopied(counting: Mapping[int, Slots], before: Mapping[int, Counted], now: Mapping[int, Counted]) -> dict[int, int]:
    """Packets, by slot, that the switch did not copy between two readings of its flows' counters.

    `counting` are the slots that flows count for, by cookie. A flow that takes another's place goes on from its count, and the
    switch adds to it what it learns late of packets that met the old one: so a count belongs to a place, not to a cookie. One
    that is less than before began at zero meanwhile.
    """
    known = {counted.place: counted.packets for counted in before.values()}
    counts: dict[int, int] = {}
    for cookie in counting.keys() & now.keys():
        packets = now[cookie].packets
        earlier = before[cookie].packets if cookie in before else known.get(now[cookie].place, 0)
        count = packets - earlier if packets >= earlier else packets
        for slot in counting[cookie] if count > 0 else ():
            counts[slot] = counts.get(slot, 0) + count
    return counts


def refusals(
    bridge: GroupBridge, groups: Mapping[Direction, Group], foreign: ForeignFlows, layout: Layout | None, node: str
) -> dict[Feed, str]:
    """Why what is wanted on a bridge cannot be had, to be read after "OVSGroup can't be had:"."""
    whole = _bridge_refusal(bridge, foreign, layout)
    sentences: dict[Feed, str] = {}
    for direction, group in sorted(groups.items()):
        name = tap_port_name(node, group.feed)
        stamped = {port.uuid for port in bridge.tap_ports if is_ours(port.stamp, node, Backend.OVS_GROUP)}
        taken = any(other == name and uuid not in stamped for uuid, other in bridge.names.items())
        if whole:
            sentences[group.feed] = whole
        elif taken:
            sentences[group.feed] = (
                f"bridge {bridge.name} has a port {name} that is not ours, which is the name our tap port would have; "
                f"remove it (ovs-vsctl del-port {bridge.name} {name}), so that {direction} can be copied"
            )
        elif direction is Direction.INGRESS and (sentence := _ingress_refusal(bridge, foreign)):
            sentences[group.feed] = sentence
    return sentences


def _bridge_refusal(bridge: GroupBridge, foreign: ForeignFlows, layout: Layout | None) -> str:
    where = f"bridge {bridge.name}"
    if bridge.controllers:
        owner = ", ".join(bridge.controllers)
        return f"it needs flows of its own in {where}, which belongs to the controller {owner}"
    if bridge.cni:
        return f"it needs flows of its own in {where}, which {bridge.cni} programs and may wipe"
    if bridge.fail_mode == "secure" and foreign.programmed:
        return (
            f"it needs flows of its own in {where}, which forwards only what some program's flows say "
            f"(fail_mode secure; {foreign.programmed}), and that may delete what it does not know"
        )
    if foreign.overriding:
        return (
            f"it needs the highest priorities of table 0 in {where}, where another flow has one, which would have to be lowered "
            f"({foreign.overriding})"
        )
    if layout is None:
        return (
            f"it needs {len(Tables._fields)} tables and a register that no other flow of {where} uses, and there are not as many"
        )
    return ""


def _ingress_refusal(bridge: GroupBridge, foreign: ForeignFlows) -> str:
    if foreign.rewriting:
        return (
            f"flows of bridge {bridge.name} rewrite packets ({foreign.rewriting}), so that what reaches a pod (Ingress) can't be "
            "told before they have"
        )
    if bridge.snoops_multicast:
        return (
            f"bridge {bridge.name} learns which pod wants which multicast (mcast_snooping_enable), so that flows can't tell what "
            "reaches a pod (Ingress)"
        )
    return ""
