"""What the flows of a node's bridges leave out, by stream: read from their counters, and kept for the agent that comes next."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Set
from dataclasses import replace
from pathlib import Path

from vtap_agent.backends.group_counts import BridgeCounts, CountsMemory, SwitchCounts
from vtap_agent.plan.groups import Counted
from vtap_agent.plan.slots import Assignment

KEEP_EVERY = 60.0
"""Seconds after which counts are kept though no flow has changed: as much is forgotten where vswitchd and the agent both die."""


class LeftOut:
    """Packets that no flow copied, since each stream began. Used by one thread; kept in the file `path`, if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._memory = CountsMemory(path)
        kept = self._memory.recall()
        self._packets = dict(kept.uncopied)
        self._bridges = dict(kept.bridges)
        self._unkept = False
        """Whether flows have changed, or begun to count anew, since their counts were kept."""
        self._kept_at = -math.inf
        self.inherited = set(kept.bridges)
        """Bridges with flows of an earlier agent, which count on before this one has looked what is to be there."""

    @property
    def packets(self) -> Mapping[Assignment, int]:
        """As of the last readings; of streams that are gone until others have their slots."""
        return dict(self._packets)

    def counted(self, bridge: str) -> Mapping[int, Counted]:
        """What its flows had counted when last read, by cookie."""
        return self._of(bridge).counted

    def counted_by(self, bridge: str, pid: int | None) -> None:
        """The vswitchd that counts there, if that is known: another one than before has begun at zero."""
        before = self._of(bridge)
        if pid is not None and pid != before.pid:
            self._bridges[bridge] = replace(before, pid=pid, counted={})
            self._unkept = self._unkept or bool(before.counted)

    def read(self, bridge: str, counted: Mapping[int, Counted], wanted: Set[int]) -> None:
        """Flows have `counted` this by now; `wanted` are the cookies of those that are to be there."""
        self._bridges[bridge], packets = self._of(bridge).read(counted, wanted)
        for stream, count in packets.items():
            self._packets[stream] = self._packets.get(stream, 0) + count
        if self._unkept or time.monotonic() - self._kept_at > KEEP_EVERY:
            self.keep()

    def aim(self, bridge: str, counting: Mapping[int, tuple[int, ...]], incarnations: Mapping[int, str]) -> None:
        """Flows with these cookies are to count for these slots; those that are there until then count on.

        Kept at once: the next agent would not know for whom flows count, even where none of them has to change.
        """
        before = self._of(bridge)
        aimed = before.aimed(counting, incarnations)
        if aimed != before:
            self._bridges[bridge] = aimed
            self.keep()

    def change(self) -> None:
        """Flows are about to change: those that go take their counts along."""
        self.keep()
        self._unkept = True

    def forget(self, incarnations: Mapping[int, str]) -> None:
        """Streams whose slots others have now."""
        self._packets = {
            of: count for of, count in self._packets.items() if incarnations.get(of.slot, of.incarnation) == of.incarnation
        }

    def only(self, bridges: Collection[str]) -> None:
        """Others are gone, and count no more."""
        self._bridges = {name: counts for name, counts in self._bridges.items() if name in bridges}
        self.inherited.intersection_update(bridges)

    def keep(self) -> None:
        """For the next agent."""
        there = {name: counts for name, counts in self._bridges.items() if counts.counting}
        self._memory.keep(SwitchCounts(self.packets, there))
        self._unkept, self._kept_at = False, time.monotonic()

    def _of(self, bridge: str) -> BridgeCounts:
        return self._bridges.get(bridge, BridgeCounts())
