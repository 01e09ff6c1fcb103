"""A bpffs that others have mounted, as the node's /sys/fs/bpf is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vtap_agent.errors import TellUser

OURS = "vtap"
MOUNTS = Path("/proc/self/mountinfo")


def file_system_of(path: str, mounts: Iterable[str]) -> str:
    """The type of the file system that an absolute path without links is on, by lines of proc_pid_mountinfo(5). Pure."""
    best, kind = -1, ""
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape")
        inside = point == "/" or path == point or path.startswith(point + "/")
        if inside and len(point) >= best:
            best, kind = len(point), after.split(" ")[0]
    return kind


def pin_root(directory: Path, mounts: Path = MOUNTS) -> Path:
    """Where our pins go on an existing bpffs. Raises TellUser where `directory` is on none."""
    lines = mounts.read_text(encoding="utf-8").splitlines()
    if file_system_of(os.path.realpath(directory), lines) != "bpf":
        raise TellUser(
            f"--bpffs {directory}: is no bpffs; mount one on the node (mount -t bpf bpf {directory}), and let the pod have it "
            "as a hostPath with mountPropagation: HostToContainer"
        )
    return directory / OURS


def remove_pin_root(root: Path) -> None:
    """Undo what was made for pins, once the pins themselves are gone."""
    with suppress(FileNotFoundError):
        root.rmdir()
