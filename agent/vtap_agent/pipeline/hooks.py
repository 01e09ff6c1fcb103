"""`watch` at pods' host-side devices, and `enter` at the near end of the pair, which makes copies of clones.

The packets there are originals, and others' programs run beside ours. We come first, since a program that lets a packet pass ends
the list for it, in tcx as in clsact: docs/decisions/0100.

A map notes which devices we are at, before we are: so that an agent that was killed, or another version of it, finds them all.
With tcx (Linux 6.6) a link is pinned for each; before, a filter with a priority and a handle of its own hangs at clsact. That is
added where there is none, and taken away only where we have added it and nobody else uses it. Where somebody has an ingress qdisc
in its place, a pod's Egress is looked at there, and its Ingress can't be.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.drivers import libbpf, links, qdiscs
from vtap_agent.drivers.libbpf import BpfError
from vtap_agent.errors import Retry
from vtap_agent.pipeline import devices, layout
from vtap_agent.pipeline.kernel import HOOK_PIN, Kernel, word
from vtap_agent.plan.dataplane import Backend, Direction, Feed

FIRST, ANYWHERE = 1, 0x7674
"""Priorities at clsact. The first is the lowest there is; where one of another kind or protocol has it, we take the other."""
HANDLE = 0x7674
"""Of our filters, at either priority."""
MADE_CLSACT = 4
BITS = {Direction.INGRESS: 1, Direction.EGRESS: 2}
PORTS = {Direction.INGRESS: layout.HOOK_INGRESS, Direction.EGRESS: layout.HOOK_EGRESS}
"""Where `watch` counts packets that fit no source, in place of a tap port's ifindex; also what its sources have for a VLAN."""
_GONE = (errno.ENODEV, errno.ENOENT)
ENTER, ENTER_HANDOVER = f"{HOOK_PIN}enter", f"{HOOK_PIN}enter_handover"


@dataclass(frozen=True, slots=True)
class _Place:
    """One side of a device. A pod's Egress arrives at its host-side device, its Ingress leaves there."""

    program: str
    pin: str
    ifindex: int
    egress: bool


def _watch(ifindex: int, direction: Direction) -> _Place:
    name = direction.lower()
    return _Place(f"watch_{name}", f"{HOOK_PIN}{ifindex}_{name}", ifindex, egress=direction is Direction.INGRESS)


def device_name(ifindex: int) -> str:
    """Of a device of this namespace; empty where the device has gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


class Hooks:
    """One thread uses it, in the network namespace of the pods' host-side devices."""

    def __init__(self, kernel: Kernel, node: str) -> None:
        self._kernel = kernel
        self._node = node
        self._one_sided = frozenset[int]()

    # What is there

    def noted(self) -> frozenset[Feed]:
        """Every side of a device that we are at, or were about to be. The device's name is empty where it has gone."""
        return frozenset(
            Feed(Backend.EBPF, device_name(ifindex), direction, ifindex)
            for ifindex, bits in self._notes().items()
            for direction, bit in BITS.items()
            if bits & bit
        )

    def running(self) -> frozenset[Feed]:
        """Those that run the present `watch`, before anybody else's program that it could come before."""
        self._look()
        places = {feed: _watch(feed.ifindex, feed.direction) for feed in self.noted() if feed.place}
        return frozenset(feed for feed, place in places.items() if self._runs(place) and not self._is_behind(place))

    def without_place(self, feeds: Iterable[Feed]) -> dict[Feed, str]:
        """Those that cannot be attached, and why: before tcx, an ingress qdisc leaves its device no egress."""
        self._look()
        lost = (feed for feed in feeds if feed.direction is Direction.INGRESS and feed.ifindex in self._one_sided)
        return {feed: f"what the pod receives can't be seen: {qdiscs.no_egress(feed.place)}, or tap Egress only" for feed in lost}

    def stay_behind(self, feeds: Iterable[Feed]) -> dict[Feed, str]:
        """Those that somebody's filter of another kind or protocol is in front of, which only tcx could pass."""
        self._look()
        behind = (feed for feed in feeds if self._stays_behind(_watch(feed.ifindex, feed.direction)))
        return {
            feed: f"what somebody's filter at {feed.place} takes is not copied: it is of another kind or protocol than ours and "
            "has priority 1, before which there is none; give it a later one, or run Linux 6.6"
            for feed in behind
        }

    def can_enter(self) -> bool:
        """Whether clones find `enter`, wherever they go first."""
        entrances = self._entrances()
        return bool(entrances) and all(self._runs(entrance) for entrance in entrances)

    def _entrances(self) -> list[_Place]:
        """The near ends of the normalising pair and, where there is one, of the handover's. Empty where the first has gone."""
        near, handover = links.index_of(devices.pair_devices(self._node).near), self._kernel.control().handover_ifindex
        if near is None:
            return []
        here = _Place("enter", ENTER, near, egress=True)
        return [here, _Place("enter", ENTER_HANDOVER, handover, egress=True)] if handover else [here]

    def own_devices(self) -> frozenset[int]:
        """The devices that copies pass, by ifindex."""
        return frozenset(state.index for state in links.stamped())

    # Changes

    def let_enter(self) -> None:
        """`enter` wherever clones go first. `Retry` where the normalising pair has gone."""
        entrances = self._entrances()
        if not entrances:
            raise Retry("the normalising pair has gone while attaching to it")
        for entrance in entrances:
            self._let_enter(entrance)

    def enter_pair(self, near: int) -> None:
        """`enter` at the near end of the normalising pair, before any clone is sent there. `Retry` where it has gone."""
        self._let_enter(_Place("enter", ENTER, near, egress=True))

    def enter_handover(self, near: int) -> None:
        """`enter` at the near end of the handover's pair, before any clone is sent there. `Retry` where it has gone."""
        self._let_enter(_Place("enter", ENTER_HANDOVER, near, egress=True))

    def _let_enter(self, place: _Place) -> None:
        try:
            self._put(place)
        except BpfError as error:
            if error.errno in _GONE:
                raise Retry("a way of clones has gone while attaching to it") from error
            raise

    def forget_handover(self) -> None:
        """When no clone is sent there any more."""
        self._pin(_Place("enter", ENTER_HANDOVER, 0, egress=True)).unlink(missing_ok=True)

    def attach(self, feed: Feed) -> None:
        """`watch` at one side of a device, in front of others' programs, in place of an older one of ours.

        `Retry` where the device has gone.
        """
        self._look()
        for port in PORTS.values():
            self._keep_port(port)
        self._note(feed.ifindex, self._notes().get(feed.ifindex, 0) | BITS[feed.direction])
        place = _watch(feed.ifindex, feed.direction)
        try:
            if self._is_behind(place):
                self._take(place)
            made_clsact = self._put(place)
        except BpfError as error:
            if error.errno in _GONE:
                raise Retry(f"{feed.place} has gone while attaching to it") from error
            raise
        if made_clsact:
            self._note(feed.ifindex, self._notes()[feed.ifindex] | MADE_CLSACT)

    def detach(self, feed: Feed) -> None:
        """Nothing of ours is at that side any more; nothing happens where it has gone."""
        self._look()
        self._take(_watch(feed.ifindex, feed.direction))
        bits = self._notes().get(feed.ifindex, 0) & ~BITS[feed.direction]
        if feed.ifindex in self._one_sided and not bits & BITS[Direction.EGRESS]:
            # An older version put filters for egress there, too.
            self._take(_watch(feed.ifindex, Direction.EGRESS))
        if bits == MADE_CLSACT and not qdiscs.has_filters(feed.ifindex):
            libbpf.remove_clsact(feed.ifindex)
        self._note(feed.ifindex, bits if bits != MADE_CLSACT else 0)

    def renew(self) -> None:
        """Older programs of ours get the present ones in their place; what was at devices that have gone is forgotten."""
        self._look()
        for feed in self.noted():
            place = _watch(feed.ifindex, feed.direction)
            if not feed.place:
                self.detach(feed)
            elif self._runs_something(place) and not self._runs(place):
                self._put(place)
        if self.noted() and not self.can_enter():
            self.let_enter()

    def remove_all(self) -> None:
        """No trace at any device."""
        for feed in self.noted():
            self.detach(feed)

    # Notes

    def _notes(self) -> dict[int, int]:
        found = self._kernel.maps["hooks"]
        keys, values = found.content()
        numbers = [int.from_bytes(keys[at : at + 4], "little") for at in range(0, len(keys), 4)]
        return {number: int.from_bytes(values[at * 4 : at * 4 + 4], "little") for at, number in enumerate(numbers)}

    def _note(self, ifindex: int, bits: int) -> None:
        if bits:
            self._kernel.maps["hooks"].update(word(ifindex), word(bits))
        else:
            self._kernel.maps["hooks"].delete(word(ifindex))

    def _keep_port(self, port: int) -> None:
        ports = self._kernel.maps["ports"]
        if ports.lookup(word(port)) is None:
            ports.update(word(port), bytes(ports.stride * libbpf.possible_cpus()))

    # One place

    def _look(self) -> None:
        self._one_sided = frozenset() if libbpf.has_tcx() else qdiscs.one_sided()

    def _pin(self, place: _Place) -> Path:
        return self._kernel.root / "links" / place.pin

    def _put(self, place: _Place) -> bool:
        """True where a clsact was made for it."""
        program = self._kernel.programs[place.program]
        link = libbpf.get_pinned(self._pin(place))
        if link is not None:
            try:
                if libbpf.link_info(link).ifindex == place.ifindex:
                    libbpf.update_link(link, program)
                    return False
            finally:
                os.close(link)
            self._pin(place).unlink()
        try:
            made = libbpf.attach_tcx(program, place.ifindex, egress=place.egress, first=True)
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            return self._put_at_clsact(program, place)
        try:
            libbpf.pin(made, self._pin(place))
        finally:
            os.close(made)
        return False

    def _put_at_clsact(self, program: int, place: _Place) -> bool:
        made = libbpf.make_clsact(place.ifindex)
        if place.egress and not made and place.ifindex in qdiscs.one_sided():
            raise Retry(qdiscs.no_egress(device_name(place.ifindex)))
        priority = next((one for one in (FIRST, ANYWHERE) if self._filter(place, one) is not None), FIRST)
        try:
            libbpf.attach_clsact(program, place.ifindex, priority, HANDLE, egress=place.egress)
        except BpfError as error:
            if priority == ANYWHERE or error.errno not in (errno.EINVAL, errno.EEXIST):
                raise
            libbpf.attach_clsact(program, place.ifindex, ANYWHERE, HANDLE, egress=place.egress)
        return made

    def _take(self, place: _Place) -> None:
        link = libbpf.get_pinned(self._pin(place))
        if link is not None:
            try:
                libbpf.detach_link(link)
            finally:
                os.close(link)
        self._pin(place).unlink(missing_ok=True)
        for priority in (FIRST, ANYWHERE):
            if self._filter(place, priority) is not None:
                libbpf.detach_clsact(place.ifindex, priority, HANDLE, egress=place.egress)

    def _filter(self, place: _Place, priority: int) -> int | None:
        if place.egress and place.ifindex in self._one_sided:
            return None  # What the kernel would tell of is at ingress.
        return libbpf.clsact_program(place.ifindex, priority, HANDLE, egress=place.egress)

    def _is_behind(self, place: _Place) -> bool:
        """Whether somebody else's program has got in front of ours, and ours could be in front of it again."""
        if self._pin(place).exists():
            ids = libbpf.tcx_programs(place.ifindex, egress=place.egress)
            return self._program_at(place) in ids[1:]
        first = qdiscs.first_filter(place.ifindex, egress=place.egress)
        if self._filter(place, FIRST) is not None:
            return first != (FIRST, HANDLE)
        # What had the first priority when ours came may have gone since.
        return self._filter(place, ANYWHERE) is not None and first is not None and FIRST < first[0] < ANYWHERE

    def _stays_behind(self, place: _Place) -> bool:
        if self._pin(place).exists() or self._filter(place, ANYWHERE) is None:
            return False
        first = qdiscs.first_filter(place.ifindex, egress=place.egress)
        return first is not None and first[0] == FIRST

    def _runs(self, place: _Place) -> bool:
        return self._program_at(place) == self._kernel.program_ids[place.program]

    def _runs_something(self, place: _Place) -> bool:
        return self._program_at(place) is not None

    def _program_at(self, place: _Place) -> int | None:
        """The number of our program there, of any version."""
        link = libbpf.get_pinned(self._pin(place))
        if link is None:
            return next((found for one in (FIRST, ANYWHERE) if (found := self._filter(place, one)) is not None), None)
        try:
            state = libbpf.link_info(link)
        finally:
            os.close(link)
        return state.program_id if state.ifindex == place.ifindex else None
