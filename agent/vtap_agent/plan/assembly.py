"""From the selected tap points and their slots to the desired data plane and what collectors are told. Pure."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vtap_agent.plan import verdicts
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    MAX_FLOOD_ENTRIES,
    MAX_POINTS_PER_SOURCE,
    MAX_TAP_PORTS,
    Backend,
    DataPlane,
    Destination,
    DestinationState,
    Direction,
    Feed,
    Group,
    GroupMember,
    Mirror,
    Source,
    TapPoint,
)
from vtap_agent.plan.destinations import ResolvedDestination
from vtap_agent.plan.groups_told import WhereItRuns
from vtap_agent.plan.inventory_model import BridgePort, Inventory, NextHop, NextHopState
from vtap_agent.plan.reception import Withheld
from vtap_agent.plan.selection import Candidate, Selection
from vtap_agent.plan.slots import SlotTable
from vtap_agent.plan.streams import Stream, StreamId, StreamSet
from vtap_agent.plan.verdicts import PointState, PointVerdict, TapVerdict

Announced = frozenset[StreamId]
"""What collectors have acknowledged."""

STATES = {
    NextHopState.REACHABLE: DestinationState.READY,
    NextHopState.NO_ROUTE: DestinationState.NO_ROUTE,
    NextHopState.NO_NEIGHBOUR: DestinationState.NO_NEIGHBOUR,
    NextHopState.LOOP: DestinationState.NOT_READY,
    NextHopState.ROUTED: DestinationState.NO_ROUTE,
    NextHopState.NO_EDGE: DestinationState.NOT_READY,
}
NOT_MADE = {Backend.OVS_MIRROR: "NoMirror", Backend.OVS_GROUP: "NoGroup", Backend.EBPF: "NoHook"}
"""Reasons of refusals that a backend gives."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of planning: the data plane, each collector's streams by destination, and a verdict for each tap."""

    dataplane: DataPlane
    announcements: Mapping[str, StreamSet]
    verdicts: tuple[TapVerdict, ...]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A candidate with its slot. `feeds` is False while its collector has not acknowledged it, or another sentence refuses it."""

    candidate: Candidate
    point: TapPoint
    stream: Stream | None
    feeds: bool
    verdict: PointVerdict


def assemble(
    selection: Selection,
    slots: SlotTable,
    first_key: int,
    announced: Announced,
    inventory: Inventory,
    refused_feeds: Mapping[Feed, str] | None = None,
    refused_programs: Mapping[str, str] | None = None,
    withheld: Mapping[str, Withheld] | None = None,
) -> Plan:
    """The data plane for the selected points that have a slot.

    A stream to a collector is fed only once the collector has acknowledged it, so that the first copy already finds its name
    there. Streams to other people's endpoints are fed at once. `first_key` is the first key of the node's block.
    `refused_feeds` says which feeds cannot be had, and why; `refused_programs` which programs, by name, the
    preprocessor cannot hold; `withheld` to which destinations nothing may be sent, by name.
    """
    withheld = withheld or {}
    hops = {name: _next_hop(item, inventory) for name, item in selection.destinations.items()}
    placed, refused = _place(selection, slots, first_key, announced, hops)
    placed, unwritable = _without(placed, refused_programs or {})
    refused += unwritable
    placed = [_unless_refused(item, refused_feeds or {}) for item in _limit_crowded(_unless_shared(placed))]
    placed = [_unless_withheld(item, withheld.get(item.candidate.destination)) for item in placed]
    fed = [item for item in placed if item.feeds]
    used = {item.point.destination for item in placed}
    dataplane = DataPlane(
        mirrors=_mirrors(fed),
        groups=_groups(fed),
        hooks=frozenset(item.candidate.feed for item in fed if not item.candidate.feed.has_tap_port),
        sources=_sources(fed),
        points=tuple(sorted((item.point for item in placed), key=lambda point: point.slot)),
        programs={item.point.program: selection.programs[item.point.program] for item in placed},
        destinations={
            name: _destination(item, hops[name], withheld=name in withheld)
            for name, item in selection.destinations.items()
            if name in used
        },
        peer_sets=selection.peer_sets,
    )
    told = _told(selection, _saying_where(placed, dataplane), refused)
    return Plan(dataplane, _announcements(selection, placed, hops), told)


def _saying_where(placed: Iterable[_Placed], dataplane: DataPlane) -> list[_Placed]:
    """Where copies are made by a switch's flows, which part of the tap's work those do."""
    where = WhereItRuns(dataplane.programs, dataplane.peer_sets)
    shared = {slot: member.programs for group in dataplane.groups.values() for member in group.members for slot in member.slots}
    said: list[_Placed] = []
    for item in placed:
        port, verdict, programs = item.candidate.port, item.verdict, shared.get(item.point.slot)
        if port is not None and programs is not None and verdict.state is PointState.READY:
            clause = where.tell(item.point.program, item.candidate.feed.direction, port, programs)
            verdict = replace(verdict, message="; ".join(filter(None, (verdict.message, clause))))
        said.append(replace(item, verdict=verdict))
    return said


def _place(
    selection: Selection, slots: SlotTable, first_key: int, announced: Announced, hops: Mapping[str, NextHop]
) -> tuple[list[_Placed], list[tuple[Candidate, PointVerdict]]]:
    tapped = frozenset(candidate.interface.host_ifindex for candidate in selection.candidates)
    placed: list[_Placed] = []
    refused: list[tuple[Candidate, PointVerdict]] = []
    for candidate in selection.candidates:
        assignment = slots.assigned.get(candidate.stream)
        destination, hop = selection.destinations[candidate.destination], hops[candidate.destination]
        if _loops(hop, tapped):
            sentence = verdicts.loop(destination.remote, hop)
            refused.append((candidate, _refusal(candidate, "Loop", sentence)))
        elif assignment is None:
            sentence = verdicts.no_key(slots.size)
            refused.append((candidate, _refusal(candidate, "NoKey", sentence)))
        else:
            key = first_key + assignment.slot
            point = TapPoint(
                candidate.name, assignment.slot, key, assignment.incarnation, candidate.program, candidate.destination
            )
            placed.append(_placed(candidate, point, destination, hop, selection, announced))
    return placed, refused


def _placed(
    candidate: Candidate,
    point: TapPoint,
    destination: ResolvedDestination,
    hop: NextHop,
    selection: Selection,
    announced: Announced,
) -> _Placed:

    def delivery(*, fed: bool) -> PointVerdict:
        return verdicts.delivery_verdict(
            candidate.name, candidate.choice, destination.remote, hop, candidate.feed, candidate.port, fed=fed
        )

    if destination.control is None:
        return _Placed(candidate, point, None, True, delivery(fed=True))
    snap_length = selection.programs[candidate.program].snap_length
    stream = Stream(point.key, point.incarnation, candidate.name, snap_length, destination.trailer)
    if stream.id in announced:
        return _Placed(candidate, point, stream, True, delivery(fed=True))
    if hop.state is not NextHopState.REACHABLE:
        return _Placed(candidate, point, stream, False, delivery(fed=False))
    sentence = verdicts.announcing(destination.name)
    waiting = verdicts.point_verdict(candidate.name, candidate.choice, PointState.WAITING, "Announcing", sentence)
    return _Placed(candidate, point, stream, False, waiting)


def _without(placed: Iterable[_Placed], refused: Mapping[str, str]) -> tuple[list[_Placed], list[tuple[Candidate, PointVerdict]]]:
    """Leave out the points of programs that cannot be written at all."""
    kept: list[_Placed] = []
    left_out: list[tuple[Candidate, PointVerdict]] = []
    for item in placed:
        sentence = refused.get(item.point.program)
        if sentence is None:
            kept.append(item)
        else:
            verdict = _refusal(item.candidate, "Unwritable", verdicts.unwritable(sentence))
            left_out.append((item.candidate, verdict))
    return kept, left_out


def _unless_shared(placed: Sequence[_Placed]) -> list[_Placed]:
    """Refuse pods of several namespaces that have one address: copies at one tap port are told apart by nothing else, so that a
    pod which takes another's address would get that one's packets copied."""
    held: dict[tuple[Feed, str], set[tuple[str, int]]] = defaultdict(set)
    for item in placed:
        if item.feeds and item.candidate.feed.has_tap_port and item.candidate.interface.mac:
            held[item.candidate.feed, item.candidate.interface.mac].add(_place_of(item.candidate))
    return [
        _refuse(item, "SharedAddress", verdicts.shared_address(item.candidate.interface, item.candidate.feed.place))
        if item.feeds and _is_shared(item.candidate, held[item.candidate.feed, item.candidate.interface.mac])
        else item
        for item in placed
    ]


def _place_of(candidate: Candidate) -> tuple[str, int]:
    """(namespace, VLAN), ANY_VLAN for every port but an access port."""
    return candidate.name.pod_namespace, _flood_vlan(candidate.port)


def _is_shared(candidate: Candidate, held: Iterable[tuple[str, int]]) -> bool:
    own, vlan = _place_of(candidate)
    return any(namespace != own and (vlan == other or ANY_VLAN in (vlan, other)) for namespace, other in held)


def _limit_crowded(placed: Iterable[_Placed]) -> list[_Placed]:
    """Refuse what a source, the receivers of a VLAN's broadcasts or the node's tap ports have no room for, newest slots first."""
    taps: dict[tuple[Feed, str], int] = defaultdict(int)
    receivers: dict[tuple[Feed, int], int] = defaultdict(int)
    tap_ports: set[Feed] = set()
    result: list[_Placed] = []
    for item in sorted(placed, key=lambda entry: entry.point.slot):
        candidate = item.candidate
        source, flood = (candidate.feed, candidate.interface.mac), (candidate.feed, _flood_vlan(candidate.port))
        receives = candidate.feed.has_tap_port and candidate.feed.direction is Direction.INGRESS
        if not item.feeds:
            result.append(item)
        elif taps[source] == MAX_POINTS_PER_SOURCE:
            result.append(_refuse(item, "TooManyTaps", verdicts.too_many(candidate.interface)))
        elif receives and receivers[flood] == MAX_FLOOD_ENTRIES:
            result.append(_refuse(item, "TooManyReceivers", verdicts.too_many_receivers(candidate.feed.place)))
        elif candidate.feed.has_tap_port and candidate.feed not in tap_ports and len(tap_ports) == MAX_TAP_PORTS:
            result.append(_refuse(item, "TooManyBridges", verdicts.too_many_tap_ports(candidate.feed.place)))
        else:
            tap_ports |= {candidate.feed} if candidate.feed.has_tap_port else set()
            taps[source] += 1
            receivers[flood] += int(receives)
            result.append(item)
    return result


def _refusal(candidate: Candidate, reason: str, sentence: str) -> PointVerdict:
    return verdicts.point_verdict(candidate.name, candidate.choice, PointState.REFUSED, reason, sentence)


def _refuse(item: _Placed, reason: str, sentence: str) -> _Placed:
    verdict = _refusal(item.candidate, reason, sentence)
    return replace(item, feeds=False, verdict=verdict)


def _unless_refused(item: _Placed, refused: Mapping[Feed, str]) -> _Placed:
    sentence = refused.get(item.candidate.feed)
    if sentence is None:
        return item
    backend, choice = item.candidate.feed.backend, item.candidate.choice
    if backend is Backend.OVS_GROUP:
        sentence = verdicts.no_group(sentence)
    elif backend is Backend.OVS_MIRROR:
        sentence = verdicts.no_mirror(sentence, choice)
    return _refuse(item, NOT_MADE[backend], sentence)


def _unless_withheld(item: _Placed, why: Withheld | None) -> _Placed:
    if why is None or item.verdict.state is not PointState.READY:
        return item
    return replace(item, verdict=replace(item.verdict, state=PointState.WAITING, reason=why.reason, message=why.sentence))


def _next_hop(destination: ResolvedDestination, inventory: Inventory) -> NextHop:
    return inventory.next_hops.get(destination.way, NextHop(destination.remote, NextHopState.NO_ROUTE))


def _loops(hop: NextHop, tapped: frozenset[int]) -> bool:
    return hop.state is NextHopState.LOOP or (hop.ifindex != 0 and hop.ifindex in tapped)


def _destination(resolved: ResolvedDestination, hop: NextHop, *, withheld: bool) -> Destination:
    remote = ipaddress.ip_address(resolved.remote).packed
    state = STATES[hop.state]
    return Destination(
        name=resolved.name,
        encapsulation=resolved.encapsulation,
        state=DestinationState.NOT_READY if withheld and state is DestinationState.READY else state,
        remote=remote,
        local=ipaddress.ip_address(hop.source).packed if hop.source else bytes(len(remote)),
        ifindex=hop.ifindex,
        source_mac=_mac(hop.source_mac),
        gateway_mac=_mac(hop.gateway_mac),
        mtu=hop.mtu,
        port=resolved.port,
        trailer=resolved.trailer,
        oversize=resolved.oversize,
        fixed_id=resolved.fixed_id,
    )


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if text else bytes(6)


def _vlans(port: BridgePort | None) -> tuple[tuple[int, bool], ...]:
    """(VLAN in the tap port's copy, whether only the bridge sees that tag), by vlan_mode of ovs-vswitchd.conf.db(5).

    An access port's frames carry its tag only inside the bridge. On every other kind the pod itself may send and receive tags,
    so any VLAN belongs to it; a native VLAN's tag is then kept, as the bridge tells it. Untagged frames, nearly all, have an
    entry of their own, which `pick` finds first. Where there is no port, all at the feed is the pod's.
    """
    if port is None:
        return ((ANY_VLAN, False),)
    if port.tag and port.vlan_mode in ("", "access"):
        return ((port.tag, True),)
    return ((0, False), (ANY_VLAN, False))


def _flood_vlan(port: BridgePort | None) -> int:
    """The VLAN under which the preprocessor lists a port's pod as a receiver of broadcasts."""
    return max(vlan for vlan, _ in _vlans(port))


def _sources(fed: Iterable[_Placed]) -> tuple[Source, ...]:
    grouped: dict[tuple[Feed, int, str, bool], list[int]] = defaultdict(list)
    for item in fed:
        for vlan, strip in _vlans(item.candidate.port):
            mac = item.candidate.interface.mac if item.candidate.feed.has_tap_port else ""
            grouped[(item.candidate.feed, vlan, mac, strip)].append(item.point.slot)
    return tuple(
        Source(feed, vlan, _mac(mac), strip, tuple(sorted(slots))) for (feed, vlan, mac, strip), slots in sorted(grouped.items())
    )


def _mirrors(fed: Iterable[_Placed]) -> dict[Feed, Mirror]:
    ports: dict[Feed, set[str]] = defaultdict(set)
    for item in fed:
        if item.candidate.feed.backend is Backend.OVS_MIRROR and item.candidate.port is not None:
            ports[item.candidate.feed].add(item.candidate.port.uuid)
    return {feed: Mirror(feed, frozenset(uuids)) for feed, uuids in sorted(ports.items())}


def _groups(fed: Iterable[_Placed]) -> dict[Feed, Group]:
    members: dict[Feed, dict[tuple[str, str, int], list[TapPoint]]] = defaultdict(lambda: defaultdict(list))
    for item in fed:
        feed, port = item.candidate.feed, item.candidate.port
        if feed.backend is Backend.OVS_GROUP and port is not None:
            tag = port.tag if port.vlan_mode in ("", "access") else 0
            members[feed][port.uuid, item.candidate.interface.mac, tag].append(item.point)
    return {
        feed: Group(feed, tuple(_member(*named, points) for named, points in sorted(found.items())))
        for feed, found in sorted(members.items())
    }


def _member(port_uuid: str, mac: str, vlan: int, points: Iterable[TapPoint]) -> GroupMember:
    ordered = sorted(points, key=lambda point: point.slot)
    return GroupMember(
        port_uuid, _mac(mac), vlan, tuple(point.slot for point in ordered), tuple(point.program for point in ordered)
    )


def _announcements(selection: Selection, placed: Iterable[_Placed], hops: Mapping[str, NextHop]) -> dict[str, StreamSet]:
    streams: dict[str, list[Stream]] = defaultdict(list)
    for item in placed:
        if item.stream is not None:
            streams[item.candidate.destination].append(item.stream)
    sets: dict[str, StreamSet] = {}
    for name, items in streams.items():
        control = selection.destinations[name].control
        source = hops[name].source
        if control is not None and source:
            sets[name] = StreamSet(name, control, (source,), tuple(sorted(items, key=lambda stream: stream.id)))
    return sets


def _told(
    selection: Selection, placed: Iterable[_Placed], refused: Iterable[tuple[Candidate, PointVerdict]]
) -> tuple[TapVerdict, ...]:
    said: dict[tuple[str, str], list[PointVerdict]] = defaultdict(list)
    for item in placed:
        said[item.candidate.tap].append(item.verdict)
    for candidate, verdict in refused:
        said[candidate.tap].append(verdict)
    return tuple(
        replace(verdict, points=_in_order((*verdict.points, *said.get((verdict.namespace, verdict.name), []))))
        for verdict in selection.verdicts
    )


def _in_order(points: Iterable[PointVerdict]) -> tuple[PointVerdict, ...]:
    return tuple(sorted(points, key=lambda point: (point.pod_namespace, point.pod_name, point.interface, point.direction)))
