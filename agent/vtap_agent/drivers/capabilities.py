"""What this process may do, by capabilities(7): the agent needs a list of them rather than all that root has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NUMBERS = {
    "DAC_OVERRIDE": 1,
    "NET_BROADCAST": 11,
    "NET_ADMIN": 12,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "PERFMON": 38,
    "BPF": 39,
}
"""Bits of linux/capability.h."""
STATUS = Path("/proc/self/status")


def effective(status: str) -> int:
    """The bits of CapEff in ``/proc/PID/status``. Pure. Raises ValueError where there is none."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    raise ValueError("no CapEff")


def missing(needed: Iterable[str], bits: int) -> tuple[str, ...]:
    """Of the capabilities `needed`, those that `bits` lack. SYS_ADMIN stands in for BPF and PERFMON, as in the kernel. Pure."""
    admin = bool(bits >> NUMBERS["SYS_ADMIN"] & 1)
    return tuple(name for name in needed if not (bits >> NUMBERS[name] & 1 or (admin and name in ("BPF", "PERFMON"))))
