"""Which cores do what while something is measured, and how long they were busy."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_lab.errors import LabError
from vtap_lab.processes import run_in

MODERATION = 50_000
"""Nanoseconds between two looks into the ring while there is traffic: as cards' drivers moderate interrupts by default."""
IDLE_LOOKS = 20
"""In vain, after which the next packet wakes the thread."""
FIRST = os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO))
"""A card doesn't wait for its turn: whatever else its cores do, the ring is emptied."""


@dataclass(frozen=True)
class Placement:
    """Cores of what is tapped, and of what becomes of copies. The same ones where the machine has but one."""

    production: tuple[int, ...]
    export: tuple[int, ...]

    @property
    def apart(self) -> bool:
        return self.production != self.export

    def on_production(self, *argv: str) -> list[str]:
        """The command line that runs `argv` on production's cores."""
        return ["taskset", "--cpu-list", ",".join(map(str, self.production)), *argv]

    def __str__(self) -> str:
        if not self.apart:
            return "everything on one core"
        cores = [f"core{'s' if len(group) > 1 else ''} {','.join(map(str, group))}" for group in (self.production, self.export)]
        return f"production on {cores[0]}, export on {cores[1]}"


def placement() -> Placement:
    """The last of the cores that this process may use is for copies."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Placement(cores[:-1], cores[-1:]) if len(cores) > 1 else Placement(cores, cores)


def pin(pid: int, cores: Sequence[int]) -> None:
    """All threads that a process has, and those that they will start."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def steer(namespace: str, devices: Sequence[str], cores: Sequence[int]) -> None:
    """What a device receives is worked at by these cores (receive packet steering): all of its queues, where it exists."""
    mask = f"{sum(1 << core for core in cores):x}"
    loop = f'for queue in /sys/class/net/"$device"/queues/rx-*/rps_cpus; do [ ! -e "$queue" ] || echo {mask} > "$queue"; done'
    script = f"mount -t sysfs none /sys && for device in {' '.join(devices)}; do {loop}; done"
    run_in(namespace, ["unshare", "--mount", "sh", "-ec", script])


def receive_as_a_card(namespace: str, device: str, cores: Sequence[int]) -> None:
    """What the veth `device` receives is fetched by a kernel thread on these cores, as by a card with interrupt moderation.

    Whoever sends to it writes a descriptor to a ring and goes on; without this, each packet interrupts another core, which no
    network card asks of a sender and which costs a virtual machine more than all else that becomes of a copy. The other end
    must be without TSO, or the kernel passes this thread by.
    """
    before = _napi_threads(device)
    settings = {"gro_flush_timeout": MODERATION, "napi_defer_hard_irqs": IDLE_LOOKS, "threaded": 1}
    writes = "; ".join(f"echo {value} > /sys/class/net/{device}/{setting}" for setting, value in settings.items())
    run_in(namespace, ["ethtool", "-K", device, "gro", "on"])
    run_in(namespace, ["unshare", "--mount", "sh", "-ec", f"mount -t sysfs none /sys; {writes}"])
    threads = _napi_threads(device) - before
    if not threads:
        raise LabError(f"{device} of {namespace} has no thread that receives")
    for thread in threads:
        os.sched_setaffinity(thread, cores)
        os.sched_setscheduler(thread, os.SCHED_FIFO, FIRST)


def _napi_threads(device: str) -> set[int]:
    """Process ids of the kernel's threads that receive for devices of this name, in any namespace (Linux: dev_set_threaded)."""
    name = re.compile(rf"napi/{re.escape(device)}-\d+")
    found: set[int] = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and name.fullmatch(_comm(process)):
            found.add(int(process.name))
    return found


def _comm(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:  # It has ended.
        return ""


def busy_seconds(cores: Sequence[int]) -> float:
    """Seconds that these cores were not idle, up to a constant.

    By idle time (proc(5), stat), which tickless kernels measure; busy time is sampled by the tick, and a paced load that keeps
    step with the tick hides from it.
    """
    now, idle = time.monotonic(), 0
    found = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            idle += int(fields[3]) + int(fields[4])
            found += 1
    if found != len(cores):
        raise LabError(f"/proc/stat lacks some of the cores {', '.join(map(str, cores))}")
    return len(cores) * now - idle / os.sysconf("SC_CLK_TCK")
