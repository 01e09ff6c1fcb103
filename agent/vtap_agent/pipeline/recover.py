"""The edges of this node's monitors in the kernel: one program at the egress of each host-side device, its maps and pins.

Pins lie in ``recover/`` under the pipeline's own root: ``maps/NAME_vN``, ``programs/HASH``, ``links/DEVICE``. What is pinned is
adopted, so that edges work on while the agent is away. Nothing is loaded on a node that has no monitor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.drivers import libbpf, qdiscs
from vtap_agent.drivers.libbpf import BpfError, Map
from vtap_agent.errors import TellUser, VtapError
from vtap_agent.pipeline import compiler, recover_layout
from vtap_agent.pipeline.compiler import cache_directory, compile_object, source_hash
from vtap_agent.pipeline.kernel import mount_bpffs
from vtap_agent.plan.recover import Monitor

DIRECTORY = "recover"
PROGRAM = "recover"
MAPS = ("monitors", "meanings", "counts")
CLSACT_PRIORITY, CLSACT_HANDLE = 0x7675, 1


def build_recover(directory: Path | None = None) -> Path:
    """The object file of the edges' program, compiled if it isn't there. `TellUser` when that can't be done."""
    target = (directory or cache_directory()) / f"recover-{source_hash()}.o"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        compile_object(compiler.SOURCES / "recover.bpf.c", part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


@dataclass(frozen=True, slots=True)
class EdgeCounters:
    """What one edge has met, in frames: `unknown` had an id that nobody had told the meaning of and went no further."""

    recovered: int = 0
    unknown: int = 0
    refused: int = 0
    told: int = 0
    probed: int = 0


class EdgePrograms:
    """Everything of ours at the edges of this node. One thread uses it, in the node's network namespace."""

    def __init__(self, root: Path) -> None:
        self._pins = root / DIRECTORY
        self._root = root
        self._maps: dict[str, Map] = {}
        self._program = -1
        self._program_id = 0
        self._addresses: Mapping[bytes, str] = {}

    def apply(self, monitors: Iterable[Monitor]) -> tuple[str, ...]:
        """These monitors have an edge, and no other device has one; a sentence for each that can't have one."""
        wanted = {_key(monitor): monitor for monitor in monitors}
        if not wanted and not self._pins.is_dir():
            return ()
        self._open()
        self._addresses = {key: monitor.address for key, monitor in wanted.items()}
        self._remove(set(self._maps["monitors"].walk()) - wanted.keys(), {monitor.ifindex for monitor in wanted.values()})
        problems: list[str] = []
        for monitor in wanted.values():
            try:
                self._put(monitor)
            except (VtapError, OSError) as error:
                problems.append(f"copies can't be recovered on their way to {monitor.address} ({monitor.device}): {error}")
        self._sweep({monitor.device for monitor in wanted.values()})
        return tuple(problems)

    def counters(self) -> Mapping[str, EdgeCounters]:
        """By the monitor's address."""
        if not self._maps:
            return {}
        found: dict[str, EdgeCounters] = {}
        for key in self._maps["monitors"].walk():
            raw = self._maps["counts"].lookup(key) or b""
            stride = self._maps["counts"].stride
            each = [recover_layout.RecoverCounters.from_buffer_copy(raw, at) for at in range(0, len(raw), stride)]
            names = [field.name for field in EdgeCounters.__dataclass_fields__.values()]
            address = self._addresses.get(key, "")
            found[address] = EdgeCounters(**{name: sum(getattr(one, name) for one in each) for name in names})
        return found

    def close(self) -> None:
        """Edges work on."""
        for one in self._maps.values():
            one.close()
        self._maps = {}
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    def destroy(self) -> None:
        """Nothing of ours remains at any edge."""
        if self._pins.is_dir():
            self.apply(())
            self.close()
            shutil.rmtree(self._pins)

    # --- the kernel ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self._maps:
            return
        mount_bpffs(self._root)
        for name in ("", "maps", "programs", "links", "clsact"):
            (self._pins / name).mkdir(exist_ok=True)
        adopted = {name: fd for name in MAPS if (fd := libbpf.get_pinned(self._map_path(name))) is not None}
        program = libbpf.get_pinned(self._program_path())
        if program is None or len(adopted) < len(MAPS):
            program = self._load(adopted)
        else:
            self._maps = {name: Map(fd) for name, fd in adopted.items()}
        self._program = program
        self._program_id = libbpf.program_id(program)

    def _load(self, adopted: Mapping[str, int]) -> int:
        loaded = libbpf.Object(build_recover())
        try:
            for name, fd in adopted.items():
                loaded.reuse(name, fd)
            loaded.load()
            maps = {name: Map(adopted[name] if name in adopted else loaded.map_fd(name)) for name in MAPS}
            for name in MAPS:
                if name not in adopted:
                    libbpf.pin(maps[name].fd, self._map_path(name))
            program = loaded.program_fd(PROGRAM)
        finally:
            loaded.close()
        for path in (self._pins / "programs").iterdir():
            path.unlink()
        libbpf.pin(program, self._program_path())
        self._maps = maps
        return program

    def _map_path(self, name: str) -> Path:
        return self._pins / "maps" / f"{name}_v{recover_layout.RECOVER_LAYOUT_VERSION}"

    def _program_path(self) -> Path:
        return self._pins / "programs" / source_hash()

    def _link_path(self, device: str) -> Path:
        return self._pins / "links" / device.replace(".", "!")  # bpffs takes no dots

    def _put(self, monitor: Monitor) -> None:
        """The map's entry comes first: without it the program leaves frames alone."""
        key, value = _key(monitor), recover_layout.MonitorValue()
        value.mac[:] = monitor.mac
        counts = self._maps["counts"]
        if counts.lookup(key) is None:
            counts.update(key, bytes(counts.stride * libbpf.possible_cpus()))
        if self._maps["monitors"].lookup(key) != bytes(value):
            self._maps["monitors"].update(key, bytes(value))
        if not self._runs(monitor):
            self._attach(monitor)

    def _runs(self, monitor: Monitor) -> bool:
        link = libbpf.get_pinned(self._link_path(monitor.device))
        if link is None:
            attached = libbpf.clsact_program(monitor.ifindex, CLSACT_PRIORITY, CLSACT_HANDLE, egress=True)
            return attached == self._program_id and monitor.ifindex not in qdiscs.one_sided()
        try:
            state = libbpf.link_info(link)
        finally:
            os.close(link)
        return state.ifindex == monitor.ifindex and state.program_id == self._program_id

    def _attach(self, monitor: Monitor) -> None:
        path = self._link_path(monitor.device)
        link = libbpf.get_pinned(path)
        if link is not None:
            try:
                if libbpf.link_info(link).ifindex == monitor.ifindex:
                    libbpf.update_link(link, self._program)
                    return
            finally:
                os.close(link)
            path.unlink()
        try:
            made = libbpf.attach_tcx(self._program, monitor.ifindex, egress=True)
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            self._attach_at_clsact(monitor)
            return
        try:
            libbpf.pin(made, path)
        finally:
            os.close(made)

    def _made_clsact(self, ifindex: int) -> Path:
        """A directory, which is there where the device's clsact is ours."""
        return self._pins / "clsact" / str(ifindex)

    def _attach_at_clsact(self, monitor: Monitor) -> None:
        if libbpf.make_clsact(monitor.ifindex):
            self._made_clsact(monitor.ifindex).mkdir(exist_ok=True)
        elif monitor.ifindex in qdiscs.one_sided():
            # What an older version attached there is at ingress.
            libbpf.detach_clsact(monitor.ifindex, CLSACT_PRIORITY, CLSACT_HANDLE, egress=True)
            raise TellUser(qdiscs.no_egress(monitor.device))
        libbpf.attach_clsact(self._program, monitor.ifindex, CLSACT_PRIORITY, CLSACT_HANDLE, egress=True)

    def _remove(self, keys: set[bytes], kept: set[int]) -> None:
        """Detached before the entry goes: a copy that is let through is for no stack, with or without us."""
        for index in {recover_layout.EdgeKey.from_buffer_copy(key).ifindex for key in keys} - kept:
            libbpf.detach_clsact(index, CLSACT_PRIORITY, CLSACT_HANDLE, egress=True)
            made = self._made_clsact(index)
            if made.is_dir():
                if not qdiscs.has_filters(index):
                    libbpf.remove_clsact(index)
                made.rmdir()
        for key in keys:
            for name in ("monitors", "counts"):
                if self._maps[name].lookup(key) is not None:
                    self._maps[name].delete(key)

    def _sweep(self, devices: set[str]) -> None:
        keep = {self._link_path(device).name for device in devices}
        for path in (self._pins / "links").iterdir():
            if path.name not in keep:
                path.unlink()


def _key(monitor: Monitor) -> bytes:
    made = recover_layout.EdgeKey(ifindex=monitor.ifindex)
    made.alias[:] = monitor.alias
    return bytes(made)


def message(kind: int, to: bytes, sender: bytes) -> bytes:
    """A frame between agents and edges, of 60 bytes."""
    made = recover_layout.RewriteMessage(
        type=recover_layout.REWRITE_ETHERTYPE,
        magic_high=recover_layout.REWRITE_MAGIC >> 16,
        magic_low=recover_layout.REWRITE_MAGIC & 0xFFFF,
        version=recover_layout.REWRITE_VERSION,
        kind=kind,
    )
    made.to[:] = to
    getattr(made, "from")[:] = sender
    return bytes(made)


def read_message(frame: bytes) -> recover_layout.RewriteMessage | None:
    """None for what is no such frame."""
    if len(frame) < ctypes.sizeof(recover_layout.RewriteMessage):
        return None
    made = recover_layout.RewriteMessage.from_buffer_copy(frame)
    magic = made.magic_high << 16 | made.magic_low
    known = magic == recover_layout.REWRITE_MAGIC and made.version == recover_layout.REWRITE_VERSION
    return made if known and made.type == recover_layout.REWRITE_ETHERTYPE else None
