"""What flows have left out, across restarts of the agent: one JSON file that is replaced whole.

It says what each flow had counted, so that it need not be written as packets pass: the next agent goes on from what the switch
says, as if it had been there all the time. `left_out.py` tells when it is written.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vtap_agent.durable import replace_file
from vtap_agent.plan.groups import Counted, uncopied
from vtap_agent.plan.slots import Assignment

FORMAT = 1
BOOT = Path("/proc/sys/kernel/random/boot_id")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BridgeCounts:
    """Our flows of a bridge, by cookie: what they had `counted` when last read, and the slots that they are `counting` for.

    `pid` is that of the vswitchd which counted, `incarnations` are those of the slots.
    """

    pid: int | None = None
    incarnations: Mapping[int, str] = field(default_factory=dict[int, str])
    counting: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    counted: Mapping[int, Counted] = field(default_factory=dict[int, Counted])

    def aimed(self, counting: Mapping[int, tuple[int, ...]], incarnations: Mapping[int, str]) -> BridgeCounts:
        """With flows that are to be there, beside those that are."""
        merged = {**self.counting, **counting}
        slots = {slot for counted_for in merged.values() for slot in counted_for}
        named = {slot: name for slot, name in {**self.incarnations, **incarnations}.items() if slot in slots}
        return replace(self, counting=merged, incarnations=named)

    def read(self, counted: Mapping[int, Counted], wanted: Set[int]) -> tuple[BridgeCounts, Mapping[Assignment, int]]:
        """Without flows that are neither there nor wanted; and the packets, by stream, not copied since the last reading."""
        packets = uncopied(self.counting, self.counted, counted)
        counting = {cookie: slots for cookie, slots in self.counting.items() if cookie in counted or cookie in wanted}
        streams = {Assignment(slot, self.incarnations.get(slot, "")): count for slot, count in packets.items()}
        return replace(self, counting=counting, counted=counted), streams


@dataclass(frozen=True, slots=True)
class SwitchCounts:
    """Packets that were not copied, as of `counted` of each bridge."""

    uncopied: Mapping[Assignment, int] = field(default_factory=dict[Assignment, int])
    bridges: Mapping[str, BridgeCounts] = field(default_factory=dict[str, BridgeCounts])


class CountsMemory:
    """Keeps counts in a file, or nowhere where it has no path. Trouble with it costs counts, not copies: it is logged."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept = SwitchCounts()

    def recall(self) -> SwitchCounts:
        """What an earlier agent kept since the node was booted."""
        if self._path is None:
            return SwitchCounts()
        try:
            data: Any = json.loads(self._path.read_bytes())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            if data["boot"] == _boot():
                self._kept = _from_json(data)
        except FileNotFoundError:
            log.debug("%s is not there: nothing was left out yet", self._path)
        except (OSError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            log.warning("%s can't be read (%s): what flows left out is counted from zero", self._path, error)
        return self._kept

    def keep(self, counts: SwitchCounts) -> None:
        """Instead of what was kept before, where it is another."""
        if self._path is None or counts == self._kept:
            return
        try:
            replace_file(self._path, json.dumps({"format": FORMAT, "boot": _boot(), **_to_json(counts)}))
        except OSError as error:
            log.warning(
                "%s can't be written (%s): the next agent will not know what flows have left out; make room, or let the agent "
                "write there",
                self._path,
                error.strerror or error,
            )
            return
        self._kept = counts


def _boot() -> str:
    return BOOT.read_text().strip()


def _to_json(counts: SwitchCounts) -> dict[str, Any]:
    return {
        "uncopied": [[of.slot, of.incarnation, count] for of, count in counts.uncopied.items()],
        "bridges": {
            name: {
                "pid": bridge.pid,
                "incarnations": list(bridge.incarnations.items()),
                "counting": [[cookie, *slots] for cookie, slots in bridge.counting.items()],
                "counted": [[cookie, *counted] for cookie, counted in bridge.counted.items()],
            }
            for name, bridge in counts.bridges.items()
        },
    }


def _from_json(data: Any) -> SwitchCounts:
    return SwitchCounts(
        {Assignment(int(slot), str(incarnation)): int(count) for slot, incarnation, count in data["uncopied"]},
        {
            str(name): BridgeCounts(
                None if bridge["pid"] is None else int(bridge["pid"]),
                {int(slot): str(incarnation) for slot, incarnation in bridge["incarnations"]},
                {int(cookie): tuple(map(int, slots)) for cookie, *slots in bridge["counting"]},
                {int(cookie): Counted(str(place), int(packets)) for cookie, place, packets in bridge["counted"]},
            )
            for name, bridge in data["bridges"].items()
        },
    )
