"""What the kernel's maps hold against what they should hold. Pure."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from vtap_agent.errors import TellUser, VtapError
from vtap_agent.pipeline import encode
from vtap_agent.pipeline.steps import (
    AddPeers,
    AttachPick,
    Deselect,
    Drain,
    DropDestination,
    DropPeers,
    DropPoint,
    DropProgram,
    MakePair,
    Park,
    PipelineStep,
    PutDestination,
    PutPoint,
    PutProgram,
    Select,
    Selection,
    TapPortDevices,
)
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    MAX_FLOOD_ENTRIES,
    MAX_FLOOD_LISTS,
    MAX_POINTS_PER_SOURCE,
    MAX_SLOTS,
    MAX_SOURCES,
    DataPlane,
    Direction,
    Feed,
    TapPoint,
    TapProgram,
)
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.steps import ordered

Place = tuple[Feed, int, bytes]
DRAIN = 0.05
"""Seconds that a packet may take at most from one feed to another: through Open vSwitch, or through a device's queue."""


@dataclass(frozen=True, slots=True)
class Observed:
    """`programs` and `destinations` by index, `points` by slot, peer sets by id as `peers_digest` of their keys."""

    programs: Mapping[int, bytes]
    destinations: Mapping[int, bytes]
    points: Mapping[int, bytes]
    peer_sets: Mapping[int, bytes]
    selections: frozenset[Selection]
    attached: frozenset[str]
    """Devices that run the current `pick`."""
    pair_ready: bool


def _name(value: bytes) -> bytes:
    return value[:16]


def assign(observed: Mapping[int, bytes], names: Iterable[str]) -> dict[str, int]:
    """An index for each name: the one it has, else the lowest that is free."""
    known = {_name(value): index for index, value in observed.items()}
    wanted = sorted(names)
    indices = {name: known[encode.digest(name)] for name in wanted if encode.digest(name) in known}
    taken = set(observed)
    free = (index for index in range(MAX_SLOTS) if index not in taken)
    for name in wanted:
        if name not in indices:
            index = next(free, None)
            if index is None:
                raise TellUser(f"a node holds at most {MAX_SLOTS} taps and destinations: {name} has no room")
            indices[name] = index
    return indices


def selections(desired: DataPlane, programs: Mapping[str, int]) -> frozenset[Selection]:
    """Every source with its entries; 0xFFFF for a program that the plan doesn't have."""
    program_of = {point.slot: programs.get(point.program, 0xFFFF) for point in desired.points}
    made: set[Selection] = set()
    for source in desired.sources:
        if len(source.slots) > MAX_POINTS_PER_SOURCE:
            raise TellUser(f"{len(source.slots)} taps select one pod interface; at most {MAX_POINTS_PER_SOURCE} can")
        entries = tuple(slot | program_of.get(slot, 0xFFFF) << 16 for slot in source.slots)
        made.add(Selection(source.feed, source.vlan, source.mac, source.strip, entries))
    return frozenset(made)


def _by_place(chosen: Iterable[Selection]) -> dict[Place, Selection]:
    return {(one.feed, one.vlan, one.mac): one for one in chosen}


def receivers(chosen: Iterable[Selection]) -> dict[tuple[Feed, int], list[tuple[bytes, bool, int]]]:
    """Whom a broadcast reaches, as (MAC, strip, entry) by Ingress mirror and VLAN."""
    every = tuple(chosen)
    # What belongs to a pod whatever its VLAN must not be found a second time under one VLAN.
    of_any_vlan = {(one.feed, one.mac) for one in every if one.vlan == ANY_VLAN}
    made: dict[tuple[Feed, int], list[tuple[bytes, bool, int]]] = defaultdict(list)
    for one in every:
        receives = one.feed.has_tap_port and one.feed.direction is Direction.INGRESS
        if receives and (one.vlan == ANY_VLAN or (one.feed, one.mac) not in of_any_vlan):
            made[one.feed, one.vlan].extend((one.mac, one.strip, entry) for entry in one.entries)
    return dict(made)


def grown(observed: frozenset[Selection], desired: frozenset[Selection]) -> frozenset[Selection]:
    """Desired sources with what they are still to lose, and sources that are still to go, as far as there is room for both.

    What is desired always fits, as planning sees to. A source that would hold more entries than fit keeps the desired ones, and
    so does a mirror one of whose VLANs would hold more receivers than fit. Of all the rest, so much goes at once as has no room.
    """
    result = _by_place(observed)
    wanted_places = _by_place(desired)
    for place, wanted in wanted_places.items():
        old = result.get(place)
        slots = {entry & 0xFFFF for entry in wanted.entries}
        leaving = tuple(entry for entry in (old.entries if old else ()) if entry & 0xFFFF not in slots)
        entries = (wanted.entries + leaving)[:MAX_POINTS_PER_SOURCE]
        result[place] = Selection(wanted.feed, wanted.vlan, wanted.mac, wanted.strip, entries)
    crowded = {mirror for (mirror, _), listed in receivers(result.values()).items() if len(listed) > MAX_FLOOD_ENTRIES}
    fitting = {place: one for place, one in result.items() if one.feed not in crowded}
    fitting |= {place: one for place, one in wanted_places.items() if one.feed in crowded}
    going = sorted(fitting.keys() - wanted_places.keys(), key=lambda place: (place[0], place[1:]))
    for place in going[max(0, MAX_SOURCES - len(wanted_places)) :]:
        del fitting[place]
    if len(receivers(fitting.values())) > MAX_FLOOD_LISTS:
        return desired
    return frozenset(fitting.values())


def _feeds(chosen: Iterable[Selection]) -> dict[int, set[Feed]]:
    found: dict[int, set[Feed]] = defaultdict(set)
    for one in chosen:
        for entry in one.entries:
            found[entry & 0xFFFF].add(one.feed)
    return found


def moving(observed: Iterable[Selection], desired: Iterable[Selection]) -> frozenset[int]:
    """Slots that go over from one feed to another."""
    old, new = _feeds(observed), _feeds(desired)
    return frozenset(slot for slot in old.keys() & new.keys() if not old[slot] & new[slot])


def _only(chosen: Iterable[Selection], slots: frozenset[int]) -> frozenset[Selection]:
    """What is left with entries of these slots only."""
    kept = (replace(one, entries=tuple(entry for entry in one.entries if entry & 0xFFFF in slots)) for one in chosen)
    return frozenset(one for one in kept if one.entries)


def _source_steps(observed: frozenset[Selection], desired: frozenset[Selection]) -> list[PipelineStep]:
    """A slot that moves stays where it is until the new feed is up, is at neither for a moment, and then at the new one.

    Both feeds see the same packets, one of them later: with a slot at both, or without the moment between, some would be copied
    twice. What comes meanwhile is counted as unattributed at whichever feed it comes to.
    """
    slots = moving(observed, desired)
    all_slots = frozenset(entry & 0xFFFF for one in (*observed, *desired) for entry in one.entries)
    before = _merged(_only(desired, all_slots - slots), _only(observed, slots)) if slots else desired
    between = grown(observed, before)
    steps: list[PipelineStep] = []
    if between != observed:
        steps.append(Select(tuple(sorted(between))))
    if slots:
        steps += [Park(tuple(sorted(_only(desired, all_slots - slots)))), Drain(DRAIN)]
    if slots or between != desired:
        steps.append(Deselect(tuple(sorted(desired))))
    return steps


def _merged(one: frozenset[Selection], other: frozenset[Selection]) -> frozenset[Selection]:
    places = _by_place(one)
    for place, selection in _by_place(other).items():
        known = places.get(place)
        places[place] = replace(known, entries=known.entries + selection.entries) if known else selection
    return frozenset(places.values())


@lru_cache(maxsize=2)
def _point_values(points: tuple[TapPoint, ...], destinations: tuple[tuple[str, int], ...]) -> dict[int, tuple[str, bytes]]:
    """(name, value) by slot; most passes ask for those of the last."""
    indices = dict(destinations)
    return {point.slot: (str(point.name), encode.point(point, indices)) for point in points}


def peers_digest(keys: Iterable[bytes]) -> bytes:
    """32 bytes that stand for the addresses of a set, from its keys in the map; the set's number does not matter."""
    return hashlib.sha256(b"".join(sorted(key[4:] for key in keys))).digest()


NO_PEERS = peers_digest(())


@lru_cache(maxsize=256)
def _wanted_peers(addresses: frozenset[str]) -> bytes:
    return peers_digest(encode.peer_key(0, address) for address in addresses)


@lru_cache(maxsize=MAX_SLOTS)
def _program_value(name: str, value: TapProgram) -> bytes:
    return encode.program(name, value)


def unwritable(programs: Mapping[str, TapProgram]) -> dict[str, str]:
    """Programs that have no form in the preprocessor, by name, with the reason."""
    refused: dict[str, str] = {}
    for name, value in programs.items():
        try:
            _program_value(name, value)
        except (VtapError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            refused[name] = f"{type(error).__name__}: {error}"
    return refused


def _point_steps(observed: Observed, desired: DataPlane, destinations: Mapping[str, int]) -> list[PipelineStep]:
    wanted = _point_values(desired.points, tuple(sorted(destinations.items())))
    steps: list[PipelineStep] = [
        PutPoint(slot, name, value) for slot, (name, value) in wanted.items() if observed.points.get(slot) != value
    ]
    return steps + [DropPoint(slot) for slot in observed.points if slot not in wanted]


def diff(observed: Observed, desired: DataPlane, tap_ports: Mapping[Feed, TapPortDevices]) -> list[PipelineStep]:
    """Steps that make the maps and programs what `desired` says, in the order of their phases."""
    programs = assign(observed.programs, desired.programs)
    destinations = assign(observed.destinations, desired.destinations)
    program_values = {programs[name]: (name, _program_value(name, value)) for name, value in desired.programs.items()}
    destination_values = {destinations[name]: (name, encode.destination(value)) for name, value in desired.destinations.items()}
    steps: list[PipelineStep] = [] if observed.pair_ready else [MakePair()]
    steps += [
        AddPeers(number, addresses)
        for number, addresses in desired.peer_sets.items()
        if observed.peer_sets.get(number, NO_PEERS) != _wanted_peers(addresses)
    ]
    steps += [PutProgram(i, name, value) for i, (name, value) in program_values.items() if observed.programs.get(i) != value]
    steps += [
        PutDestination(i, name, value) for i, (name, value) in destination_values.items() if observed.destinations.get(i) != value
    ]
    steps += _point_steps(observed, desired, destinations)
    steps += [AttachPick(key, devices.ours) for key, devices in tap_ports.items() if devices.ours not in observed.attached]
    steps += _source_steps(observed.selections, selections(desired, programs))
    steps += [DropProgram(index) for index in observed.programs if index not in program_values]
    steps += [DropDestination(index) for index in observed.destinations if index not in destination_values]
    steps += [DropPeers(number) for number in observed.peer_sets if number not in desired.peer_sets]
    return ordered(steps)


def shortfalls(observed: Observed, desired: DataPlane, tap_ports: Mapping[Feed, TapPortDevices]) -> tuple[Shortfall, ...]:
    """What `diff` would still have to do, and whom it concerns."""
    programs = {point.slot: point.program for point in desired.points}
    indices = assign(observed.programs, desired.programs)
    missing = {
        programs[entry & 0xFFFF]
        for one in selections(desired, indices) - observed.selections
        for entry in one.entries
        if entry & 0xFFFF in programs
    }

    def concerning(step: PipelineStep) -> Shortfall:
        sentence = f"still to do: {step}"
        match step:
            case MakePair():
                return Shortfall(sentence, everybody=True)
            case AttachPick():
                return Shortfall(sentence, feeds=frozenset({step.feed}))
            case AddPeers():
                users = (name for name, value in desired.programs.items() if _uses(value, step.number))
                return Shortfall(sentence, taps=frozenset(users))
            case PutProgram():
                return Shortfall(sentence, taps=frozenset({step.name}))
            case PutDestination():
                senders = (point.program for point in desired.points if point.destination == step.name)
                return Shortfall(sentence, taps=frozenset(senders))
            case PutPoint():
                return Shortfall(sentence, taps=frozenset({programs[step.slot]}))
            case Select() | Park() | Drain() | Deselect():
                return Shortfall(sentence, taps=frozenset(missing))
            case DropPoint() | DropProgram() | DropDestination() | DropPeers():
                return Shortfall(sentence)

    return tuple(map(concerning, diff(observed, desired, tap_ports)))


def _uses(program: TapProgram, peer_set: int) -> bool:
    return any(match.peer_set == peer_set for match in program.matches)
