"""What survives a restart of the agent: slots and closed ledger rows, in one JSON file that is replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtap_agent.durable import replace_file
from vtap_agent.errors import Retry, TellUser
from vtap_agent.plan.slots import SlotTable, from_json, to_json
from vtap_agent.plan.streams import StreamId, StreamSet
from vtap_agent.report import told
from vtap_agent.report.ledger import Row, row_from_json, row_to_json

FORMAT = 1


@dataclass(frozen=True, slots=True)
class AgentState:
    """`pair_dropped` is the share of the pair's device drops that closed rows already carry; each time the device was made anew,
    and so counts from zero, what it had counted is subtracted, so that it may be negative.
    """

    slots: SlotTable
    first_key: int
    closed: tuple[Row, ...] = ()
    pair_dropped: int = 0
    confirmed: frozenset[StreamId] = frozenset()
    """Live streams that their collector has acknowledged."""
    told: Mapping[str, StreamSet] = field(default_factory=dict[str, StreamSet])
    """What collectors were told last, by destination: streams that run, and those whose last word may not have been heard."""


def load(path: Path, first_key: int) -> AgentState:
    """The saved state, or an empty one for keys from `first_key` on where there is no file.

    TellUser where the file is not ours or damaged.
    """
    try:
        data: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return AgentState(SlotTable(), first_key)
    except (OSError, ValueError) as error:
        raise TellUser(f"{path}: cannot be read as the agent's state ({error}); move it away to start afresh") from error
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return AgentState(
            from_json(data["slots"]),
            int(data["firstKey"]),
            tuple(row_from_json(row) for row in data["closed"]),
            int(data["pairDropped"]),
            frozenset((int(key), str(incarnation)) for key, incarnation in data["confirmed"]),
            told.from_json(data.get("told", ())),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TellUser(f"{path}: is not state this agent wrote ({error}); move it away to start afresh") from error


def save(path: Path, state: AgentState) -> None:
    """After a crash either the old file or the new one is there, whole.

    Raises Retry where it cannot be written.
    """
    data = {
        "format": FORMAT,
        "firstKey": state.first_key,
        "slots": to_json(state.slots),
        "closed": [row_to_json(row) for row in state.closed],
        "pairDropped": state.pair_dropped,
        "confirmed": sorted(state.confirmed),
        "told": told.to_json(state.told),
    }
    # All at once: json.dump would encode piece by piece, in Python.
    text = json.dumps(data)
    try:
        replace_file(path, text)
    except OSError as error:
        raise Retry(
            f"{path}: the agent's state cannot be saved ({error.strerror or error}); make room, or let the agent write there"
        ) from error
