"""The pipeline's maps, programs and links in the kernel: adopted from their pins or made, observed, written.

Pins lie under one directory of a bpffs: ``maps/NAME_vN`` (N is the layout's version), ``programs/HASH/NAME``, ``links/DEVICE``,
and ``inners/OUTER_INDEX_NUMBER_vN`` for maps within maps: opening those by their number would take CAP_SYS_ADMIN.
A pin that exists is adopted, so that a restarted agent goes on where the last one stopped; another hash of the sources replaces
the programs and keeps the maps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.drivers import libbpf
from vtap_agent.drivers.libbpf import BpfError, Map
from vtap_agent.errors import Retry, TellUser
from vtap_agent.pipeline import compiler, encode, layout
from vtap_agent.plan.dataplane import MAX_SLOTS

BPFFS_MAGIC = 0xCAFE4A11
TICKETS_PER_CPU = 16384
MAX_TICKETS = 1 << 22
CLOCK_READINGS = 16
PROGRAMS = (
    "pick_ingress",
    "pick_egress",
    "relay_ingress",
    "relay_egress",
    "watch_ingress",
    "watch_egress",
    "enter",
    "cross",
    "send",
    "renew",
)
MAPS = (
    "sources",
    "quicks",
    "floods",
    "programs",
    "destinations",
    "peers",
    "tunnels",
    "points",
    "slots",
    "fragment_ids",
    "picked",
    "handled",
    "ports",
    "node",
    "controls",
    "cursors",
    "picks",
    "scratches",
    "rewrite_ids",
    "rewrite_works",
    "cut_scratches",
    "entrants",
    "hooks",
    "inners",
    "tickets",
)
INNER = {
    "sources": (libbpf.BPF_MAP_TYPE_HASH, layout.SourceKey, layout.Source, 8192),
    "quicks": (libbpf.BPF_MAP_TYPE_ARRAY, ctypes.c_uint32, layout.QuickBucket, layout.QUICK_BUCKETS),
    "floods": (libbpf.BPF_MAP_TYPE_HASH, layout.FloodKey, layout.Flood, 4096),
    "programs": (libbpf.BPF_MAP_TYPE_ARRAY, ctypes.c_uint32, layout.Program, 1),
    "destinations": (libbpf.BPF_MAP_TYPE_ARRAY, ctypes.c_uint32, layout.DestinationValue, 1),
}
OUTERS = ("programs", "destinations", "sources", "floods", "quicks")
"""In the order of their numbers in `inners`."""
HOOK_PIN = "hook_"
"""In front of what names a place at a device that is not ours: see hooks.py."""
XDP_PIN = "-xdp"
"""Behind a device's name: the pin of its link to XDP. bpffs takes no dots."""
CLSACT_PRIORITY = 0x7674
CLSACT_HANDLE = 1


def word(value: int) -> bytes:
    """A map's key or value of 32 bits."""
    return value.to_bytes(4, "little")


ZERO = word(0)


def tickets_per_cpu() -> int:
    """A power of two: what the pair's queues of one CPU can hold, less where there are very many CPUs."""
    per_cpu = TICKETS_PER_CPU
    while per_cpu * libbpf.possible_cpus() > MAX_TICKETS:
        per_cpu //= 2
    return per_cpu


def tai_offset() -> int:
    """CLOCK_TAI - CLOCK_MONOTONIC in ns, by the pair of readings that took the least time between them."""
    readings: list[tuple[int, int]] = []
    for _ in range(CLOCK_READINGS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        tai = time.clock_gettime_ns(time.CLOCK_TAI)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        readings.append((after - before, tai - (before + after) // 2))
    return min(readings)[1]


class _StatFs(ctypes.Structure):
    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_long * 15))


def _is_bpffs(path: Path) -> bool:
    state = _StatFs()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), ctypes.byref(state)) < 0:
        raise OSError(ctypes.get_errno(), f"{path}: {os.strerror(ctypes.get_errno())}")
    return state.type == BPFFS_MAGIC


def mount_bpffs(path: Path) -> None:
    """Makes `path` a bpffs unless it is on one. `TellUser` without the privilege."""
    path.mkdir(parents=True, exist_ok=True)
    if _is_bpffs(path):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"vtap", os.fsencode(path), b"bpf", 0, None) < 0:
        raise TellUser(f"{path} can't be made a bpffs ({os.strerror(ctypes.get_errno())}): run as root, or mount one there")


def unmount_bpffs(path: Path) -> None:
    """Undoes `mount_bpffs`; leaves a bpffs alone that is mounted further up."""
    libc = ctypes.CDLL(None, use_errno=True)
    if path.is_dir() and os.path.ismount(path) and _is_bpffs(path) and libc.umount2(os.fsencode(path), 2) < 0:
        raise Retry(f"{path} can't be unmounted: {os.strerror(ctypes.get_errno())}")


COUNTER_MAPS = frozenset({"slots", "picked", "handled"})
"""What a stream's numbers live in."""


@dataclass(slots=True)
class _Inner:
    number: int
    entries: dict[bytes, bytes]


class Kernel:
    """Descriptors of everything loaded. One thread uses it."""

    def __init__(self, root: Path, maps: dict[str, Map], programs: dict[str, int], counters_adopted: bool) -> None:
        self.root = root
        self.counters_adopted = counters_adopted
        self.maps = maps
        self.programs = programs
        self.program_ids = {name: libbpf.program_id(fd) for name, fd in programs.items()}
        self._inner: dict[tuple[str, int], _Inner] = {}
        self._numbers = self._read_numbers()

    @staticmethod
    def open(root: Path) -> Kernel:
        mount_bpffs(root)
        for name in ("maps", "programs", "links", "inners"):
            (root / name).mkdir(exist_ok=True)
        programs_at = root / "programs" / compiler.source_hash()
        maps = _adopted_maps(root)
        programs = _adopted_programs(programs_at)
        if len(maps) == len(MAPS) and len(programs) == len(PROGRAMS):
            return Kernel(root, maps, programs, counters_adopted=True)
        for fd in programs.values():
            os.close(fd)
        return _load(root, maps, programs_at)

    def close(self) -> None:
        for one in self.maps.values():
            one.close()
        for fd in self.programs.values():
            os.close(fd)

    # Maps that are swapped whole

    def inner(self, outer: str, index: int) -> dict[bytes, bytes]:
        """What the inner map at `index` holds; {} without one. Once in place an inner map never changes, so it is read once."""
        number = self._numbers[outer].get(index)
        if number is None:
            return {}
        known = self._inner.get((outer, index))
        if known is None or known.number != number:
            known = _Inner(number, _entries(self._inner_path(outer, index, number)))
            self._inner[outer, index] = known
        return known.entries

    def swap(self, outer: str, index: int, entries: dict[bytes, bytes]) -> None:
        """Puts a new inner map in place of the old one: readers see the whole old content or the whole new one."""
        kind, key, value, size = INNER[outer]
        flags = libbpf.BPF_F_NO_PREALLOC if kind == libbpf.BPF_MAP_TYPE_HASH else 0
        made = libbpf.create_map(kind, outer, ctypes.sizeof(key), ctypes.sizeof(value), size, flags)
        try:
            for one, content in entries.items():
                made.update(one, content)
            # In this order: a kill leaves the old map with pin and note, or a note without a pin, which counts as none.
            libbpf.pin(made.fd, self._inner_path(outer, index, made.id))
            self._unpin_inner(outer, index)
            self.maps[outer].update(word(index), word(made.fd))
            self._inner[outer, index] = _Inner(made.id, dict(entries))
            self._note(outer, index, made.id)
        finally:
            made.close()

    def unset(self, outer: str, index: int) -> None:
        """Without an inner map: readers find nothing."""
        self._unpin_inner(outer, index)
        self.maps[outer].delete(word(index))
        self._inner.pop((outer, index), None)
        self._note(outer, index, None)

    def occupied(self, outer: str) -> list[int]:
        """Indices of an outer map that hold an inner one."""
        return sorted(self._numbers[outer])

    def _note(self, outer: str, index: int, number: int | None) -> None:
        """Written after the outer map: a kill leaves a note of a map without a pin, which the next start disregards."""
        place = OUTERS.index(outer) * MAX_SLOTS + index
        self.maps["inners"].update(word(place), word(number or 0))
        if number is None:
            self._numbers[outer].pop(index, None)
        else:
            self._numbers[outer][index] = number

    def _inner_path(self, outer: str, index: int, number: int) -> Path:
        return self.root / "inners" / f"{outer}_{index}_{number}_v{layout.LAYOUT_VERSION}"

    def _unpin_inner(self, outer: str, index: int) -> None:
        number = self._numbers[outer].get(index)
        if number is not None:
            self._inner_path(outer, index, number).unlink(missing_ok=True)

    def _read_numbers(self) -> dict[str, dict[int, int]]:
        """What is noted and pinned; pins that nothing notes are removed."""
        numbers: dict[str, dict[int, int]] = {outer: {} for outer in OUTERS}
        pinned = {path.name for path in (self.root / "inners").iterdir()}
        for place, raw in enumerate(self.maps["inners"].values()):
            number, outer, index = int.from_bytes(raw, "little"), OUTERS[place // MAX_SLOTS], place % MAX_SLOTS
            if number and (name := self._inner_path(outer, index, number).name) in pinned:
                numbers[outer][index] = number
                pinned.remove(name)
        for name in pinned:
            (self.root / "inners" / name).unlink()
        return numbers

    # Attaching

    def attach(self, program: str, device: str, ifindex: int) -> None:
        """Runs `program` at the ingress of a device, in place of an older one of ours. `Retry` when the device has gone."""
        try:
            self._attach(program, device, ifindex)
        except BpfError as error:
            if error.errno == errno.ENODEV:
                raise Retry(f"{device} has gone while attaching to it") from error
            raise

    def _attach(self, program: str, device: str, ifindex: int) -> None:
        path = self.root / "links" / device
        link = libbpf.get_pinned(path)
        if link is not None:
            try:
                if libbpf.link_info(link).ifindex == ifindex:
                    libbpf.update_link(link, self.programs[program])
                    return
            finally:
                os.close(link)
            path.unlink()
        try:
            made = libbpf.attach_tcx(self.programs[program], ifindex)
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            libbpf.attach_clsact(self.programs[program], ifindex, CLSACT_PRIORITY, CLSACT_HANDLE)
            return
        try:
            libbpf.pin(made, path)
        finally:
            os.close(made)

    def attach_xdp(self, program: str, device: str, ifindex: int) -> None:
        """Runs `program` in the driver of a device. BpfError where that can't be had."""
        path = self._xdp_path(device)
        link = libbpf.get_pinned(path)
        if link is not None:
            try:
                if libbpf.link_info(link).ifindex == ifindex:
                    libbpf.update_link(link, self.programs[program])
                    return
            finally:
                os.close(link)
            path.unlink()
        made = libbpf.attach_xdp(self.programs[program], ifindex)
        try:
            libbpf.pin(made, path)
        finally:
            os.close(made)

    def runs_xdp(self, program: str, device: str, ifindex: int) -> bool:
        """Whether the device's driver runs this very program."""
        link = libbpf.get_pinned(self._xdp_path(device))
        if link is None:
            return False
        try:
            state = libbpf.link_info(link)
        finally:
            os.close(link)
        return state.ifindex == ifindex and state.program_id == self.program_ids[program]

    def _xdp_path(self, device: str) -> Path:
        return self.root / "links" / f"{device}{XDP_PIN}"

    def runs(self, program: str, device: str, ifindex: int) -> bool:
        """Whether the device's ingress runs this very program."""
        link = libbpf.get_pinned(self.root / "links" / device)
        if link is None:
            return libbpf.clsact_program(ifindex, CLSACT_PRIORITY, CLSACT_HANDLE) == self.program_ids[program]
        try:
            state = libbpf.link_info(link)
        finally:
            os.close(link)
        return state.ifindex == ifindex and state.program_id == self.program_ids[program]

    def runs_something(self, device: str, ifindex: int) -> bool:
        """Whether the device's ingress runs any program of ours, older ones included."""
        return (self.root / "links" / device).exists() or libbpf.clsact_program(
            ifindex, CLSACT_PRIORITY, CLSACT_HANDLE
        ) is not None

    def unpin_link(self, device: str) -> None:
        (self.root / "links" / device).unlink(missing_ok=True)

    def sweep(self, devices: Iterable[str]) -> None:
        """Removes pins of other versions, and links of devices not among `devices`. For when nothing runs old programs."""
        keep = {pin for device in devices for pin in (device, f"{device}{XDP_PIN}")}
        for path in (self.root / "links").iterdir():
            if path.name not in keep and not path.name.startswith(HOOK_PIN):
                path.unlink()
        for path in (self.root / "programs").iterdir():
            if path.name != compiler.source_hash():
                _remove_tree(path)
        for path in (self.root / "maps").iterdir():
            if not path.name.endswith(f"_v{layout.LAYOUT_VERSION}"):
                path.unlink()

    # Plain values

    def control(self) -> layout.Control:
        return encode.decode(layout.Control, self.maps["controls"].lookup(ZERO) or bytes(ctypes.sizeof(layout.Control)))

    def set_control(self, value: layout.Control) -> None:
        self.maps["controls"].update(ZERO, bytes(value))

    def renew_lease(self, seconds: float) -> None:
        control = self.control()
        control.lease_until = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + round(seconds * 1e9)
        control.tai_offset = tai_offset()
        self.set_control(control)

    def map_bytes(self) -> int:
        """What the kernel charges for all maps, inner ones included."""
        total = sum(one.kernel_bytes() for one in self.maps.values())
        for outer in INNER:
            for index in self.occupied(outer):
                inner = _pinned_map(self._inner_path(outer, index, self._numbers[outer][index]))
                total += inner.kernel_bytes()
                inner.close()
        return total

    def per_cpu(self, name: str, key: bytes) -> list[bytes]:
        """One value a possible CPU."""
        found = self.maps[name]
        raw = found.lookup(key) or b""
        return [raw[i : i + found.value_size] for i in range(0, len(raw), found.stride)]


def _pinned_map(path: Path) -> Map:
    fd = libbpf.get_pinned(path)
    if fd is None:
        raise Retry(f"{path} has been removed by somebody else; start the agent anew")
    return Map(fd)


def _entries(path: Path) -> dict[bytes, bytes]:
    """All that a map holds."""
    found = _pinned_map(path)
    try:
        return {key: value for key in list(found.walk()) if (value := found.lookup(key)) is not None}
    finally:
        found.close()


def _map_path(root: Path, name: str) -> Path:
    return root / "maps" / f"{name}_v{layout.LAYOUT_VERSION}"


def _adopted_maps(root: Path) -> dict[str, Map]:
    found = {name: libbpf.get_pinned(_map_path(root, name)) for name in MAPS}
    return {name: Map(fd) for name, fd in found.items() if fd is not None}


def _adopted_programs(directory: Path) -> dict[str, int]:
    found = {name: libbpf.get_pinned(directory / name) for name in PROGRAMS}
    return {name: fd for name, fd in found.items() if fd is not None}


def _load(root: Path, adopted: dict[str, Map], programs_at: Path) -> Kernel:
    loaded = libbpf.Object(compiler.build())
    try:
        for name, one in adopted.items():
            loaded.reuse(name, one.fd)
        if "tickets" not in adopted:
            loaded.resize("tickets", tickets_per_cpu() * libbpf.possible_cpus())
        loaded.load()
        maps = dict(adopted)
        for name in MAPS:
            if name not in maps:
                maps[name] = Map(loaded.map_fd(name))
                libbpf.pin(maps[name].fd, _map_path(root, name))
        programs = {name: loaded.program_fd(name) for name in PROGRAMS}
    finally:
        loaded.close()
    # Half a set of pins, left by a kill: they are of the same sources, but one whole set is simpler to trust.
    _remove_tree(programs_at)
    programs_at.mkdir()
    for name, fd in programs.items():
        libbpf.pin(fd, programs_at / name)
    return Kernel(root, maps, programs, counters_adopted=adopted.keys() >= COUNTER_MAPS)


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        for one in path.iterdir():
            one.unlink()
        path.rmdir()


def destroy_pins(root: Path) -> None:
    """Removes every pin under `root`, of any version."""
    for directory in ("links", "programs", "inners", "maps"):
        path = root / directory
        if path.is_dir():
            shutil.rmtree(path)
