"""Whether mirrors copy, told by counters: a row in the database proves nothing.

Open vSwitch keeps forwarding flows that it translated before a mirror changed. Before 2.17.12, 3.0.8, 3.1.6, 3.2.4 and 3.3.3
a change did not always make it translate them again, so that copies do not begin, or do not end. Every port's packets are
counted by the datapath; between two samples a mirror must have sent about as many as its selected ports moved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vtap_agent.plan.dataplane import Direction, Feed

EVIDENCE = 10
"""Packets below which nothing is concluded: the samples of two ports are not of the same instant."""
MISSING_SHARE = 10
"""Fewer copies than one in so many packets are too few."""
_FIXED = {(2, 17): 12, (3, 0): 8, (3, 1): 6, (3, 2): 4, (3, 3): 3}
STATISTICS_DELAY = 12.0
"""Seconds after which a mirror that ofproto holds has its statistics: twice the update interval, and some."""


@dataclass(frozen=True, slots=True)
class MirrorReading:
    """Packets since the ports were made. `selected` counts, by port name, those that the mirror's side of the port moved.

    `age` is the seconds that this row has been seen; `held` whether ofproto reports statistics for it.
    """

    copies: int
    selected: Mapping[str, int]
    held: bool
    age: float


@dataclass(frozen=True, slots=True)
class MirrorSample:
    """All mirrors of the node at one moment, `at` in seconds of a monotonic clock."""

    at: float
    mirrors: Mapping[Feed, MirrorReading]


class MirrorState(StrEnum):
    """What the counters say."""

    COPYING = "Copying"
    IDLE = "Idle"
    """Too few packets to tell."""
    MISSING = "Missing"
    """Packets moved and were not copied."""
    LEAKING = "Leaking"
    """More copies than packets: flows of ports that are selected no longer are still copied."""
    SHARED = "Shared"
    """Others' flows output to the tap port."""
    NOT_HELD = "NotHeld"
    """The row exists, and vswitchd has refused it; its log says why."""


@dataclass(frozen=True, slots=True)
class MirrorHealth:
    """A mirror between two samples: `copies` made, where `least` to `most` were to be made, in packets."""

    state: MirrorState
    copies: int
    least: int
    most: int
    detail: str = ""
    """SHARED: the sentence that says what to change."""

    @property
    def needs_purge(self) -> bool:
        """Whether flows that run should be translated anew."""
        return self.state in (MirrorState.MISSING, MirrorState.LEAKING)


def health(previous: MirrorSample, current: MirrorSample, seconds: float) -> dict[Feed, MirrorHealth]:
    """Each mirror of `current`, judged by what moved in the `seconds` since `previous`."""
    return {key: _judge(key, previous.mirrors.get(key), reading, seconds) for key, reading in current.mirrors.items()}


def unhealthy(mirrors: Mapping[Feed, MirrorHealth]) -> tuple[str, ...]:
    """A sentence for each mirror that does not do what its row says."""
    sentences: list[str] = []
    for key, judged in sorted(mirrors.items()):
        where = f"the mirror of {key.direction} on bridge {key.place}"
        if judged.state is MirrorState.NOT_HELD:
            sentences.append(f"{where} is in the database, but ovs-vswitchd has refused it; its log says why")
        elif judged.state is MirrorState.MISSING:
            sentences.append(f"{where} made {judged.copies} copies where {judged.least} were due; running flows are being purged")
        elif judged.state is MirrorState.SHARED:
            sentences.append(judged.detail)
        elif judged.state is MirrorState.LEAKING:
            sentences.append(f"{where} still copies ports that no tap selects; running flows are being purged")
    return tuple(sentences)


def purge_after_change(version: str) -> bool:
    """Whether this Open vSwitch (like "3.1.0") may leave running flows as they were when a mirror changes. Unknown ones may."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if found is None:
        return True
    branch, patch = (int(found[1]), int(found[2])), int(found[3] or 0)
    if branch > max(_FIXED):
        return False
    return patch < _FIXED.get(branch, patch + 1)


def _judge(key: Feed, before: MirrorReading | None, now: MirrorReading, seconds: float) -> MirrorHealth:
    if not now.held and now.age > STATISTICS_DELAY:
        return MirrorHealth(MirrorState.NOT_HELD, 0, 0, 0)
    if before is None or seconds <= 0:
        return MirrorHealth(MirrorState.IDLE, 0, 0, 0)
    copies = now.copies - before.copies
    moved = [count - before.selected[port] for port, count in now.selected.items() if port in before.selected]
    if copies < 0 or any(count < 0 for count in moved):
        return MirrorHealth(MirrorState.IDLE, 0, 0, 0)  # A port was made anew: its counters began again.
    most = sum(moved)
    # A packet that leaves to several selected ports is copied once, so only the busiest port's count is sure.
    least = most if key.direction is Direction.EGRESS else max(moved, default=0)
    return MirrorHealth(
        _state(copies, least, most, same_ports=now.selected.keys() == before.selected.keys()), copies, least, most
    )


def _state(copies: int, least: int, most: int, *, same_ports: bool) -> MirrorState:
    """Wide margins, because a purge in vain harms everybody.

    An overloaded vswitchd loses packets that the kernel has already counted as received: copies were seen to fall to 62 % of
    them, with every packet that it did handle copied. Control protocols that vswitchd itself speaks are counted and not copied.
    """
    if least >= EVIDENCE and copies < least // MISSING_SHARE:
        return MirrorState.MISSING
    if same_ports and copies > most + most // 2 + EVIDENCE:
        return MirrorState.LEAKING
    return MirrorState.COPYING if copies else MirrorState.IDLE
