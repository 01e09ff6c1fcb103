"""What survives a restart of the agent: slots and closed ledger rows, in one JSON file that is replaced whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtap_agent.errors import TellUser
from vtap_agent.plan.slots import SlotTable, from_json, to_json
from vtap_agent.plan.streams import StreamId
from vtap_agent.report.ledger import Row, row_from_json, row_to_json

FORMAT = 1


@dataclass(frozen=True, slots=True)
class AgentState:
    """`pair_dropped` is the share of the pair's device drops that closed rows already carry."""

    slots: SlotTable
    closed: tuple[Row, ...] = ()
    pair_dropped: int = 0
    confirmed: frozenset[StreamId] = frozenset()
    """Live streams that their collector has acknowledged."""


def load(path: Path) -> AgentState:
    """The saved state, or an empty one where there is no file. TellUser where the file is not ours or damaged."""
    try:
        data: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return AgentState(SlotTable())
    except (OSError, ValueError) as error:
        raise TellUser(f"{path}: cannot be read as the agent's state ({error}); move it away to start afresh") from error
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return AgentState(
            from_json(data["slots"]),
            tuple(row_from_json(row) for row in data["closed"]),
            int(data["pairDropped"]),
            frozenset((int(key), str(incarnation)) for key, incarnation in data["confirmed"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TellUser(f"{path}: is not state this agent wrote ({error}); move it away to start afresh") from error


def save(path: Path, state: AgentState) -> None:
    """Write and sync beside the old file, then rename over it: after a crash either the old or the new one is there."""
    data = {
        "format": FORMAT,
        "slots": to_json(state.slots),
        "closed": [row_to_json(row) for row in state.closed],
        "pairDropped": state.pair_dropped,
        "confirmed": sorted(state.confirmed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
