"""Which cores do what while something is measured, and how long they were busy."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_lab.errors import LabError
from vtap_lab.processes import run_in


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
