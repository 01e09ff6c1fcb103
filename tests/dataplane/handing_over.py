"""A node whose agent has a CPU set aside for copies."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.dataplane.hooked_node import HookedNode
from tests.unit.pipeline.node import Node, libc
from vtap_agent.drivers import libbpf, steering
from vtap_agent.errors import TellUser
from vtap_agent.pipeline import encode, layout
from vtap_agent.pipeline.kernel import word

MNT_DETACH = 2
OLD = ("5.", "6.0.", "6.1.", "6.2.", "6.3.", "6.4.", "6.5.")
"""Kernels that may not tell what veth drops; some have it from later ones."""


class _WithSysfs(Node):
    """Its network namespace's sysfs is at `sysfs`, which /sys isn't."""

    def __init__(self, sysfs: Path, export_cpus: frozenset[int]) -> None:
        super().__init__(export_cpus)
        self._sysfs = sysfs

    def _build(self) -> None:
        if libc.mount(b"sysfs", os.fsencode(self._sysfs), b"sysfs", 0, None) < 0:
            raise OSError(ctypes.get_errno(), "mount sysfs")
        super()._build()

    def _leave(self) -> None:
        super()._leave()
        if os.path.ismount(self._sysfs):
            libc.umount2(os.fsencode(self._sysfs), MNT_DETACH)


N = TypeVar("N", bound=_WithSysfs)


class _PlainNode(_WithSysfs):
    """With tap ports alone."""


class _HookedNode(_WithSysfs, HookedNode):
    """With pods' devices, too."""


@contextmanager
def handing_over(monkeypatch: pytest.MonkeyPatch, folder: Path, cpus: int = 1) -> Iterator[HookedNode]:
    """The last `cpus` of the CPUs work at copies. Skips where the kernel can't do that: the agent then refuses it."""
    with _handing_over(_HookedNode, monkeypatch, folder, cpus) as made:
        yield made


@contextmanager
def node_with_copies(where: str, folder: Path) -> Iterator[Node]:
    """Copies at tap ports are worked at `here`, by the CPU that picks them, or `elsewhere`, by the last one."""
    if where == "here":
        with Node() as made:
            yield made
    else:
        with pytest.MonkeyPatch.context() as patched, _handing_over(_PlainNode, patched, folder, 1) as made:
            yield made


@contextmanager
def _handing_over(kind: type[N], monkeypatch: pytest.MonkeyPatch, folder: Path, cpus: int) -> Iterator[N]:
    monkeypatch.setattr(steering, "VIRTUAL_DEVICES", folder / "devices" / "virtual" / "net")
    with ExitStack() as stack:
        try:
            made = stack.enter_context(kind(folder, frozenset(sorted(steering.online_cpus())[-cpus:])))
        except TellUser as error:
            if "a newer one is needed" in str(error) and os.uname().release.startswith(OLD):
                pytest.skip(str(error))
            raise
        yield made


def sent_by_cpu(root: Path, slot: int) -> dict[int, int]:
    """Of the agent whose eBPF objects are pinned under `root`. Only CPUs that have sent."""
    pinned = libbpf.get_pinned(root / "maps" / f"handled_v{layout.LAYOUT_VERSION}")
    assert pinned is not None
    handled = libbpf.Map(pinned)
    try:
        raw = handled.lookup(word(slot)) or b""
    finally:
        handled.close()
    values = (raw[at : at + handled.value_size] for at in range(0, len(raw), handled.stride))
    found = {cpu: encode.decode(layout.SendCounters, one).sent for cpu, one in enumerate(values)}
    return {cpu: sent for cpu, sent in found.items() if sent}
