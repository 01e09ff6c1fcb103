"""`vtap ledger`: what happened to every packet, by tap point."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtap_api.ledger import (
    AgentLedger,
    AgentTerms,
    CollectorLedger,
    CollectorTerms,
    LedgerError,
    Row,
    join,
    parse_agent,
    parse_collector,
    totals,
)
from vtap_cli.daemons import Daemon, agent, collector, get_json
from vtap_cli.errors import CliError
from vtap_cli.tables import table

PATH = "/v1/ledger"
NAMES = ("TAP", "POD", "INTERFACE", "DIRECTION")
TERMS = ("SEEN", "EXCLUDED", "UNSAMPLED", "LIMITED", "DROPPED", "SENT", "RECEIVED", "LOST", "STORED", "NOT STORED", "UNACCOUNTED")


@dataclass(frozen=True, slots=True)
class Books:
    """Both sides' ledgers, and rows that join them. A side that was not to be had is None."""

    agent: AgentLedger | None
    collector: CollectorLedger | None
    rows: tuple[Row, ...]


def read(run_dir: Path, tap: str, *, both: bool) -> Books:
    """Ask both daemons. With `both`, or where neither answers, a missing one is an error; otherwise a note on standard error."""
    missing: list[CliError] = []
    agent_side = _ask(agent(run_dir), parse_agent, missing)
    collector_side = _ask(collector(run_dir), parse_collector, missing)
    if missing and (both or len(missing) == 2):
        raise missing[0]
    told = collector_side is not None and all(row.agent for row in collector_side.rows)
    for error in missing:
        what = "what the agent counts is as it told the collector last" if told else "without one side's counts"
        print(f"vtap: {what}: {error}", file=sys.stderr)
    rows = join([agent_side] if agent_side else [], collector_side)
    return Books(agent_side, collector_side, select(rows, tap))


def _ask(daemon: Daemon, parse: Any, missing: list[CliError]) -> Any:
    try:
        answer = get_json(daemon, PATH)
    except CliError as error:
        missing.append(error)
        return None
    try:
        return parse(answer)
    except LedgerError as error:
        raise CliError(f"{daemon.name} answers {PATH} with something unexpected ({error}); is it of another version?") from error


def select(rows: Iterable[Row], tap: str) -> tuple[Row, ...]:
    """Rows of one tap, ``NAME`` or ``NAMESPACE/NAME``; all of them where it is empty. Raises CliError where there is none."""
    every = tuple(rows)
    if not tap:
        return every
    namespace, slash, name = tap.rpartition("/")
    found = tuple(row for row in every if row.name.tap[1] == name and (not slash or row.name.tap[0] == namespace))
    if not found:
        known = ", ".join(sorted({"/".join(row.name.tap) for row in every})) or "none"
        raise CliError(f"no tap {tap!r} has a tap point (those that have: {known}); see `vtap status`")
    return found


def summary(books: Books) -> str:
    """The one line that says it all."""
    return totals(books.rows).summary()


def render(books: Books) -> str:
    """The table, a row of totals, and below it what stands beside the sum."""
    lines = [[*_names(row), *_terms(row.agent, row.collector, row.unaccounted)] for row in books.rows]
    total = totals(books.rows)
    if books.rows:
        agent_total = total.agent if books.agent or any(row.agent for row in books.rows) else None
        collector_total = total.collector if books.collector else None
        lines.append(["TOTAL", "", "", "", *_terms(agent_total, collector_total, total.unaccounted)])
    beside = {
        "in flight": total.agent.in_flight + total.collector.in_flight,
        "duplicate": total.collector.duplicate,
        "late": total.collector.late,
        "unattributed": sum(books.agent.unattributed.values()) if books.agent else 0,
        "unannounced": books.collector.unannounced if books.collector else 0,
        "malformed": books.collector.malformed if books.collector else 0,
    }
    shown = table((*NAMES, *TERMS), lines, right=frozenset(TERMS)) if lines else "no tap point yet; see `vtap status`"
    return f"{shown}\n\nbeside: " + ", ".join(f"{name} {count}" for name, count in beside.items())


def _names(row: Row) -> Sequence[str]:
    ended = " (ended)" if row.closed else " (stale)" if row.stale else ""
    return ("/".join(row.name.tap), "/".join(row.name.pod), row.name.interface, row.name.direction + ended)


def _terms(sent: AgentTerms | None, got: CollectorTerms | None, unaccounted: int) -> list[str]:
    """In the order of `TERMS`; a dash stands for what cannot be known."""
    cells: list[int | str] = ["-"] * 10
    if sent:
        cells[:6] = [sent.seen, sent.excluded, sent.unsampled, sent.limited, _reasons(sent.dropped), sent.sent]
    if got:
        cells[6:] = [got.received, _reasons(got.lost), got.stored, _reasons(got.dropped)]
    return [str(cell) for cell in (*cells, unaccounted)]


def _reasons(counts: Mapping[str, int]) -> str:
    """The sum, and the reasons where there are any."""
    said = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()) if count)
    return f"{sum(counts.values())} ({said})" if said else "0"


def as_json(books: Books) -> dict[str, Any]:
    """The same for programs; `null` stands for a side that does not know a stream."""
    total = totals(books.rows)
    return {
        "rows": [_row_json(row) for row in books.rows],
        "totals": {"agent": asdict(total.agent), "collector": asdict(total.collector), "unaccounted": total.unaccounted},
        "unattributed": dict(books.agent.unattributed) if books.agent else None,
        "unannounced": books.collector.unannounced if books.collector else None,
        "malformed": books.collector.malformed if books.collector else None,
    }


def _row_json(row: Row) -> dict[str, Any]:
    node, key, incarnation = row.id
    return {
        "node": node,
        "key": key,
        "incarnation": incarnation,
        "tap": {"namespace": row.name.tap[0], "name": row.name.tap[1]},
        "pod": {"namespace": row.name.pod[0], "name": row.name.pod[1]},
        "interface": row.name.interface,
        "direction": row.name.direction,
        "agent": asdict(row.agent) if row.agent else None,
        "collector": asdict(row.collector) if row.collector else None,
        "closed": row.closed,
        "stale": row.stale,
        "unaccounted": row.unaccounted,
    }
