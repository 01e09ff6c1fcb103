"""The preprocessor as the agent's loop sees it: plan, apply, verify, count."""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

from vtap_agent.drivers import links
from vtap_agent.drivers.libbpf import possible_cpus
from vtap_agent.errors import Retry
from vtap_agent.pipeline import cuts, devices, encode, layout
from vtap_agent.pipeline.counters import SlotCounters
from vtap_agent.pipeline.diff import Observed, diff, peers_digest, receivers, shortfalls, unwritable
from vtap_agent.pipeline.handover import Handover
from vtap_agent.pipeline.hooks import PORTS, Hooks, device_name
from vtap_agent.pipeline.kernel import ZERO, Kernel, destroy_pins, tickets_per_cpu, unmount_bpffs, word
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
from vtap_agent.plan.dataplane import ANY_VLAN, Backend, DataPlane, Feed, NodeCounters
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.steps import Step

PRESENT = b"\1"


class Pipeline:
    """One node's preprocessor. Lives in the network namespace it was opened in; one thread uses it."""

    def __init__(self, root: Path, node: str, kernel: Kernel, export_cpus: frozenset[int] = frozenset()) -> None:
        self._root = root
        self._node = node
        self._kernel = kernel
        self._counters = SlotCounters(kernel)
        self._points_raw = b""
        self._points: dict[int, bytes] = {}
        self._peers_seen = b""
        self._peer_sets: Mapping[int, bytes] = {}
        self._slots = set(self._read_points())
        self._strays_of_removed: Counter[Feed] = Counter()
        """Packets that fitted no source at tap ports which have gone: a count that was told never shrinks."""
        self.hooks = Hooks(kernel, node)
        """At pods' own devices, for the backend that copies there."""
        self._handover = Handover(kernel, node, export_cpus, self.hooks)
        self._relays = bool(export_cpus)
        """Whether what is picked leaves tap ports as clones do pods' devices, and `enter` makes copies of it."""

    @staticmethod
    def open(root: Path, node: str, export_cpus: frozenset[int] = frozenset()) -> Pipeline:
        """Adopts what an earlier agent left under `root`, or loads the programs. Without sources nothing is copied.

        What is picked is worked at by `export_cpus`; by the CPU that picked it where there are none.
        `root` becomes a bpffs if it isn't on one. `TellUser` when the kernel, a privilege, a CPU or the compiler is missing.
        """
        made = Pipeline(root, node, Kernel.open(root), export_cpus)
        made._make_pair()
        made._guard_tunnels()
        made._replace_programs()
        made.hooks.renew()
        made._agree_on_sources()
        return made

    @property
    def adopted(self) -> bool:
        """Whether counters and sequence numbers go on where an earlier agent's stopped; False after a reboot."""
        return self._kernel.counters_adopted

    def close(self) -> None:
        """Everything goes on as it is, until the lease ends."""
        self._kernel.close()

    def destroy(self) -> None:
        """Nothing of ours remains: devices, programs, maps, pins, the bpffs if we mounted it."""
        for key in self._tap_ports().values():
            self.remove_tap_port(key)
        self.hooks.remove_all()
        devices.remove_handover(self._node)
        devices.remove_pair(self._node)
        self._kernel.close()
        destroy_pins(self._root)
        unmount_bpffs(self._root)

    # Tap ports

    def tap_port_devices(self, key: Feed) -> TapPortDevices:
        return devices.tap_port_devices(self._node, key)

    def ensure_tap_port(self, key: Feed, *, polled: bool = False) -> TapPortDevices:
        """Makes and silences the tap port's devices; `AttachPick`, which `plan` returns, gives them their program.

        `polled` where the bridge's packets are moved by DPDK.
        """
        return devices.ensure_tap_port(self._node, key, polled=polled)

    def remove_tap_port(self, key: Feed) -> None:
        names = self.tap_port_devices(key)
        index = links.index_of(names.ours)
        if index is not None:
            self._strays_of_removed[key] += self._strays(index)
            self._kernel.maps["ports"].delete(word(index))
        devices.remove_tap_port(self._node, key)
        self._kernel.unpin_link(names.ours)

    def tap_ports(self) -> frozenset[Feed]:
        """Those that exist."""
        return frozenset(self._tap_ports().values())

    def _tap_ports(self) -> dict[int, Feed]:
        """By ifindex of our end."""
        found: dict[int, Feed] = {}
        for state in links.stamped():
            key = devices.tap_port_of(self._node, state.alias)
            if key is not None and state.name == self.tap_port_devices(key).ours:
                found[state.index] = key
        return found

    # Plan, apply, verify

    def plan(self, desired: DataPlane, tap_ports: Mapping[Feed, TapPortDevices]) -> list[PipelineStep]:
        """The steps from what the kernel holds to `desired`. `tap_ports` are those that should exist, made or not."""
        return diff(self._observe(), desired, tap_ports)

    def verify(self, desired: DataPlane) -> list[str]:
        """What still differs, a sentence each; [] when all is as desired."""
        return [shortfall.sentence for shortfall in self.shortfalls(desired)]

    def shortfalls(self, desired: DataPlane) -> tuple[Shortfall, ...]:
        """What still differs, and whom it concerns; () when all is as desired."""
        wanted = {key: self.tap_port_devices(key) for key in desired.tap_ports}
        return shortfalls(self._observe(), desired, wanted)

    def refusals(self, desired: DataPlane) -> dict[str, str]:
        """Programs, by name, that the preprocessor cannot hold, and why."""
        return unwritable(desired.programs)

    def owns(self, step: Step) -> TypeGuard[PipelineStep]:
        """Whether a step is one of the pipeline's."""
        return isinstance(step, PipelineStep)

    def apply(self, step: PipelineStep) -> None:
        """Does one step. Steps of another plan than the last are fine too: each says all it needs."""
        kernel = self._kernel
        match step:
            case AddPeers() | DropPeers():
                self._apply_peers(step)
            case PutPoint() | DropPoint():
                self._apply_point(step)
            case PutProgram():
                kernel.swap("programs", step.index, {ZERO: step.value})
            case DropProgram():
                kernel.unset("programs", step.index)
            case PutDestination() | DropDestination():
                self._apply_destination(step)
            case MakePair():
                self._make_pair()
            case AttachPick():
                self._attach(step.feed, step.device)
            case Select() | Park() | Deselect():
                self._select(step.selections)
            case Drain():
                time.sleep(step.seconds)

    def _apply_peers(self, step: AddPeers | DropPeers) -> None:
        peers, mine = self._kernel.maps["peers"], word(step.number)
        wanted = {encode.peer_key(step.number, one) for one in step.addresses} if isinstance(step, AddPeers) else set[bytes]()
        present = {key for key in self._peer_keys() if key.startswith(mine)}
        for key in wanted - present:
            peers.update(key, PRESENT)
        for key in present - wanted:
            peers.delete(key)

    def _apply_destination(self, step: PutDestination | DropDestination) -> None:
        if isinstance(step, PutDestination):
            self._guard_tunnels(encode.tunnel_keys(step.value))
            self._kernel.swap("destinations", step.index, {ZERO: step.value})
        else:
            self._kernel.unset("destinations", step.index)
        self._guard_tunnels()

    def _guard_tunnels(self, coming: frozenset[bytes] = frozenset()) -> None:
        """What is on its way to a destination, or to one that is `coming`, is never copied; nothing else is held back."""
        tunnels = self._kernel.maps["tunnels"]
        wanted = coming.union(*(encode.tunnel_keys(value) for value in self._values("destinations").values()))
        present = set(tunnels.walk())
        for key in wanted - present:
            tunnels.update(key, PRESENT)
        for key in present - wanted:
            tunnels.delete(key)

    def _apply_point(self, step: PutPoint | DropPoint) -> None:
        points = self._kernel.maps["points"]
        old = encode.decode(layout.Point, points.lookup(word(step.slot)) or bytes(ctypes.sizeof(layout.Point)))
        if isinstance(step, DropPoint):
            # Its incarnation stays readable: where the same stream is wanted again, its numbers go on.
            old.in_use = 0
            points.update(word(step.slot), bytes(old))
            self._slots.discard(step.slot)
            return
        if old.incarnation_full != encode.decode(layout.Point, step.value).incarnation_full:
            self.reset_slots([step.slot])
        points.update(word(step.slot), step.value)
        self._slots.add(step.slot)

    def _make_pair(self) -> None:
        """The pair, and `send` on it before `pick` hears of it."""
        names = devices.ensure_pair(self._node)
        far, near = links.index_of(names.far), links.index_of(names.near)
        if far is None or near is None:
            raise Retry("the normalising pair vanished while it was made")
        if not self._kernel.runs("send", names.far, far):
            self._kernel.attach("send", names.far, far)
        if self._relays or self.hooks.noted():
            self.hooks.enter_pair(near)
        control = self._kernel.control()
        control.cut_ifindex = cuts.attach(self._kernel, self._node)
        control.near_ifindex, control.queues = near, devices.queues_per_cpu()
        control.tickets, control.cpus = tickets_per_cpu(), possible_cpus()
        self._kernel.set_control(control)
        self._handover.establish()

    def _pair_ready(self) -> bool:
        names = devices.pair_devices(self._node)
        far = links.index_of(names.far)
        return (
            far is not None
            and devices.pair_is_good(self._node)
            and self._kernel.control().near_ifindex == links.index_of(names.near)
            and self._kernel.runs("send", names.far, far)
            and cuts.is_ready(self._kernel, self._node)
            and self._handover.is_ready()
            and (self.hooks.can_enter() or not self._relays)
        )

    def _attach(self, key: Feed, device: str) -> None:
        ifindex = links.index_of(device)
        if ifindex is None:
            raise Retry(f"{device} is not there yet")
        ports, place = self._kernel.maps["ports"], word(ifindex)
        if ports.lookup(place) is None:
            ports.update(place, bytes(ports.stride * possible_cpus()))
        self._kernel.attach(self._program(key), device, ifindex)

    def _program(self, key: Feed) -> str:
        """What runs at a tap port."""
        return f"{'relay' if self._relays else 'pick'}_{key.direction.lower()}"

    def _replace_programs(self) -> None:
        """Tap ports that run older programs get the present ones in place; then the old ones' pins can go."""
        ports = self._tap_ports()
        for index, key in ports.items():
            device, program = self.tap_port_devices(key).ours, self._program(key)
            if self._kernel.runs_something(device, index) and not self._kernel.runs(program, device, index):
                self._attach(key, device)
        names = devices.pair_devices(self._node)
        cut, over = devices.cut_devices(self._node), devices.handover_devices(self._node)
        self._kernel.sweep([names.far, cut.far, over.far, *(self.tap_port_devices(key).ours for key in ports.values())])

    def _agree_on_sources(self) -> None:
        """A killed agent may have left receivers and quick ways of a change that nobody wants any more."""
        if self._kernel.occupied("sources"):
            self._select(sorted(self._read_selections(self._tap_ports())))

    def _select(self, selections: Sequence[Selection]) -> None:
        sources: list[tuple[int, int, bytes, bool, tuple[int, ...]]] = []
        ifindexes: dict[Feed, int] = {}
        for one in selections:
            if not one.feed.has_tap_port:
                sources.append((one.feed.ifindex, PORTS[one.feed.direction], bytes(6), False, one.entries))
                continue
            device = self.tap_port_devices(one.feed).ours
            ifindex = links.index_of(device)
            if ifindex is None:
                raise Retry(f"{device} is not there yet")
            ifindexes[one.feed] = ifindex
            sources.append((ifindex, one.vlan, one.mac, one.strip, one.entries))
        floods = {
            encode.flood_key(ifindexes[mirror], vlan): encode.flood(listed)
            for (mirror, vlan), listed in receivers(selections).items()
        }
        self._kernel.swap("floods", 0, floods)
        listed_sources = {
            encode.source_key(i, vlan, mac): encode.source(strip, entries) for i, vlan, mac, strip, entries in sources
        }
        self._kernel.swap("quicks", 0, {word(index): bucket for index, bucket in encode.quick_table(sources).items()})
        # Last, as it is what is observed: a change that was cut short still shows as to be done. In between a packet finds its
        # source as it was or as it will be, and whatever it finds exists: points and programs come before and go after.
        self._kernel.swap("sources", 0, listed_sources)

    # Observing

    def _observe(self) -> Observed:
        ports = self._tap_ports()
        return Observed(
            programs=self._values("programs"),
            destinations=self._values("destinations"),
            points=self._read_points(),
            peer_sets=self._read_peer_sets(),
            selections=self._read_selections(ports),
            attached=frozenset(
                self.tap_port_devices(key).ours
                for index, key in ports.items()
                if self._kernel.runs(self._program(key), self.tap_port_devices(key).ours, index)
            ),
            pair_ready=self._pair_ready(),
        )

    def _values(self, outer: str) -> dict[int, bytes]:
        return {index: self._kernel.inner(outer, index)[ZERO] for index in self._kernel.occupied(outer)}

    def _read_points(self) -> dict[int, bytes]:
        points = self._kernel.maps["points"]
        raw, size = points.read(0, points.max_entries), points.entry_size
        if raw != self._points_raw:
            self._points_raw = raw
            self._points = {at // size: raw[at : at + size] for at in range(0, len(raw), size) if raw[at]}
        return self._points

    def _peer_keys(self) -> list[bytes]:
        peers = self._kernel.maps["peers"]
        keys, size = peers.content()[0], peers.key_size
        return [keys[at : at + size] for at in range(0, len(keys), size)]

    def _read_peer_sets(self) -> Mapping[int, bytes]:
        """Digests by id, worked out anew only where the map holds something else than last time."""
        keys = self._kernel.maps["peers"].content()[0]
        seen = hashlib.sha256(keys).digest()
        if seen != self._peers_seen:
            sets: dict[int, list[bytes]] = {}
            for key in self._peer_keys():
                sets.setdefault(int.from_bytes(key[:4], "little"), []).append(key)
            self._peer_sets = {number: peers_digest(found) for number, found in sets.items()}
            self._peers_seen = seen
        return self._peer_sets

    def _read_selections(self, ports: Mapping[int, Feed]) -> frozenset[Selection]:
        found: set[Selection] = set()
        for key, value in self._kernel.inner("sources", 0).items():
            place, source = encode.decode(layout.SourceKey, key), encode.decode(layout.Source, value)
            feed = _hooked(place.ifindex, place.vlan)
            if feed is not None:
                found.add(Selection(feed, ANY_VLAN, bytes(6), False, tuple(source.entries[: source.count])))
                continue
            mirror = ports.get(place.ifindex)
            if mirror is not None:
                entries = tuple(source.entries[: source.count])
                strip = bool(source.flags & layout.SOURCE_STRIP)
                found.add(Selection(mirror, place.vlan, bytes(place.mac), strip, entries))
        return frozenset(found)

    # Counting

    def counters(self, slots: Iterable[int] = ()) -> NodeCounters:
        """Of all slots in use, and of `slots` that were until lately."""
        unattributed = Counter(self._strays_of_removed)
        for index, key in self._tap_ports().items():
            unattributed[key] += self._strays(index)
        for direction, port in PORTS.items():
            if self._kernel.maps["ports"].lookup(word(port)) is not None:
                unattributed[Feed(Backend.EBPF, "", direction)] = self._strays(port)
        points = self._counters.read(self._slots.union(slots))
        return NodeCounters(points, unattributed, devices.pair_dropped(self._node), self.stale())

    def _strays(self, port: int) -> int:
        """Packets that fitted no source, at a tap port by ifindex or at pods' devices by direction."""
        values = (encode.decode(layout.PortCounters, raw) for raw in self._kernel.per_cpu("ports", word(port)))
        return sum(value.unattributed for value in values)

    def stale(self) -> int:
        """Packets that came out of the pair without a ticket: 0 unless something else sends into it, or tickets ran out."""
        return sum(encode.decode(layout.NodeCountersValue, raw).stale for raw in self._kernel.per_cpu("node", ZERO))

    def reset_slots(self, slots: Iterable[int]) -> None:
        """Zero counters, sampler state and sequence. Only for slots that no source names."""
        cpus = possible_cpus()
        for slot in slots:
            for name in ("picked", "handled", "slots"):
                one = self._kernel.maps[name]
                one.update(word(slot), bytes(one.stride * (1 if name == "slots" else cpus)))

    def renew_lease(self, seconds: float) -> None:
        """Copies leave for that long from now; then they stop unless it is renewed."""
        self._kernel.renew_lease(seconds)

    def map_bytes(self) -> int:
        """Kernel memory of the maps, in bytes."""
        return self._kernel.map_bytes()


def _hooked(ifindex: int, vlan: int) -> Feed | None:
    """The EBPF feed that a source's key stands for."""
    for direction, mark in PORTS.items():
        if vlan == mark:
            return Feed(Backend.EBPF, device_name(ifindex), direction, ifindex)
    return None
