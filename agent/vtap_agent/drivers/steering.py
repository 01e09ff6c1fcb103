"""Receive packet steering: which CPUs work at what a device receives (Documentation/networking/scaling.rst of the kernel)."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from vtap_agent.errors import TellUser

ONLINE = Path("/sys/devices/system/cpu/online")
VIRTUAL_DEVICES = Path("/sys/devices/virtual/net")
SOFTNET = Path("/proc/net/softnet_stat")
_BITS = 32
"""In each group of a mask that the kernel writes and reads."""


def parse_cpus(text: str) -> frozenset[int]:
    """Numbers of a list as the kernel writes it, like ``2-3,6``. ValueError where it is none."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or part.endswith("-"):
            raise ValueError(f"{text!r} is no list of CPUs like 2-3,6")
        low, high = int(first), int(last or first)
        if high < low:
            raise ValueError(f"{part!r} ends before it begins")
        found.update(range(low, high + 1))
    return frozenset(found)


def online_cpus() -> frozenset[int]:
    """CPUs that are up."""
    return parse_cpus(ONLINE.read_text())


def mask_of(cpus: Iterable[int]) -> str:
    """As the kernel takes it: groups of 32 bits in hexadecimal, the highest first."""
    bits = sum(1 << cpu for cpu in cpus)
    groups = [f"{bits % (1 << _BITS):08x}"]
    while bits := bits >> _BITS:
        groups.insert(0, f"{bits % (1 << _BITS):08x}")
    return ",".join(groups)


def steered(device: str) -> frozenset[int]:
    """The CPUs that work at what a device of one queue receives; empty where each CPU works at its own, or there is no device."""
    try:
        bits = int(_file(device).read_text().replace(",", ""), 16)
    except OSError:
        return frozenset()
    return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def steer(device: str, cpus: frozenset[int]) -> None:
    """Let these CPUs work at what a device of one queue receives, flow by flow. `TellUser` where the kernel can't be told so."""
    file = _file(device)
    isolated = "CPUs that the kernel isolates (isolcpus, nohz_full) take no received packets: set others aside"
    try:
        file.write_text(mask_of(cpus))
    except FileNotFoundError as error:
        if not (VIRTUAL_DEVICES / device).is_dir():
            raise TellUser(f"{VIRTUAL_DEVICES} lacks {device}: let it show the network namespace that the agent is in") from error
        raise TellUser(f"the kernel has no receive packet steering (CONFIG_RPS): {file} is missing") from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise TellUser(f"{file} refuses {mask_of(cpus)}: {isolated}") from error
        raise TellUser(
            f"{file} can't be written ({error.strerror}): mount {VIRTUAL_DEVICES} of the node writable, as the chart does with"
            " agent.exportCPUs"
        ) from error
    if missing := cpus - steered(device):
        raise TellUser(f"{file} leaves out CPU {min(missing)}: {isolated}")


def queued(cpus: Iterable[int]) -> int:
    """Received packets that wait for these CPUs now (/proc/net/softnet_stat: the 12th column, and the CPU in the 13th)."""
    wanted = frozenset(cpus)
    rows = (line.split() for line in SOFTNET.read_text().splitlines())
    return sum(int(row[11], 16) for row in rows if int(row[12], 16) in wanted)


def _file(device: str) -> Path:
    return VIRTUAL_DEVICES / device / "queues" / "rx-0" / "rps_cpus"
