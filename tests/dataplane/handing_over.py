"""A node whose agent has a CPU set aside for copies."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dataplane.hooked_node import HookedNode
from tests.unit.pipeline.node import libc
from vtap_agent.drivers import steering

MNT_DETACH = 2
TELLS_DROPS = (6, 6)
"""The Linux from which on veth tells its sender what was dropped."""


def is_before(version: tuple[int, int]) -> bool:
    """Whether this kernel is older."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor.split("-")[0])) < version


class NodeWithSysfs(HookedNode):
    """As `HookedNode`, with its network namespace's sysfs at `sysfs`, which /sys isn't."""

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


@contextmanager
def handing_over(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HookedNode]:
    """The last CPU works at copies. Skips where the kernel is too old for that: the agent then refuses it."""
    if is_before(TELLS_DROPS):
        pytest.skip(f"Linux {os.uname().release} doesn't tell what a full queue drops")
    monkeypatch.setattr(steering, "VIRTUAL_DEVICES", folder / "devices" / "virtual" / "net")
    with NodeWithSysfs(folder, frozenset({max(steering.online_cpus())})) as made:
        yield made
