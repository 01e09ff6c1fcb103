"""The processes of pods, found by what the kernel says of their cgroups: no container runtime is asked.

Needs the node's PID namespace (`hostPID`), and CAP_SYS_PTRACE to look at the namespaces of other users' processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_POD = re.compile(rb"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./:\n]|$)")
"""The directory of a pod's cgroup: kubelet's cgroupfs driver writes ``podUID``, its systemd driver ``…-podUID.slice`` with
underscores; a static pod's UID is a hash without either."""
_MONITOR = re.compile(rb"/(?:crio-)?conmon[-/]")
"""CRI-O's monitor sits in the pod's cgroup and in the node's network."""
_READ = 4096


@dataclass(frozen=True, slots=True, order=True)
class Process:
    """A process of a pod. `start` is in clock ticks since boot; a sandbox's own is a pod's first."""

    start: int
    pid: int


def pod_uid(cgroup: bytes) -> str:
    """The UID of the pod that a process with this ``/proc/PID/cgroup`` belongs to; empty for none. Pure."""
    found = _POD.findall(cgroup)
    if not found or _MONITOR.search(cgroup):
        return ""
    return found[-1].decode().replace("_", "-")


def start_time(stat: bytes) -> int:
    """Field 22 of ``/proc/PID/stat`` (proc(5)): the command's name in field 2 may hold anything. Pure. Raises ValueError."""
    fields = stat[stat.rindex(b")") + 1 :].split()
    return int(fields[19])


def processes_of(pods: Iterable[str], proc: Path = PROC) -> dict[str, list[Process]]:
    """The processes of the pods with these UIDs, the oldest first. What ends meanwhile is left out."""
    wanted = frozenset(pods)
    found: dict[str, list[Process]] = {}
    for name in os.listdir(proc):  # noqa: PTH208  thousands of names, of which paths would be made in vain
        if name.isdigit() and (uid := uid_of(int(name), proc)) in wanted:
            try:
                process = Process(start_time(_read(f"{proc}/{name}/stat")), int(name))
            except (OSError, ValueError):
                continue  # It has ended.
            found.setdefault(uid, []).append(process)
    return {uid: sorted(processes) for uid, processes in found.items()}


def uid_of(pid: int, proc: Path = PROC) -> str:
    """The UID of the pod of a process; empty where it has none or has ended."""
    try:
        return pod_uid(_read(f"{proc}/{pid}/cgroup"))
    except OSError:
        return ""


def network_of(path: str) -> tuple[int, int]:
    """Names a network namespace: (st_dev, st_ino) of ``/proc/PID/ns/net``. Raises OSError."""
    found = os.stat(path)  # noqa: PTH116
    return found.st_dev, found.st_ino


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _READ)
    finally:
        os.close(descriptor)


def network_path(pid: int, proc: Path = PROC) -> str:
    """What setns(2) takes."""
    return f"{proc}/{pid}/ns/net"


def first_with_own_network(
    processes: Mapping[str, list[Process]], node: tuple[int, int], proc: Path = PROC
) -> tuple[dict[str, Process], OSError | None]:
    """(of each pod the oldest process outside the node's network, why some can't be looked at).

    A process that a runtime is just starting may still be in the node's network: such a pod is not found yet.
    """
    found: dict[str, Process] = {}
    refused: OSError | None = None
    for uid, candidates in processes.items():
        for process in candidates:
            try:
                if network_of(network_path(process.pid, proc)) == node:
                    continue
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has ended.
            except OSError as error:
                refused = error
                continue
            found[uid] = process
            break
    return found, refused
