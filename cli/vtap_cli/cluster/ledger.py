"""`kubectl vtap ledger`: the agents' counts from their metrics, the collectors' from their ledgers, joined by tap point.

Metrics name a tap point and not a stream, so that here a row is a tap point of a node with all its streams (decision 0093). Of
agents that can't be asked, a collector knows what they told it of each stream.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from vtap_api.ledger import (
    SUMMED,
    AgentLedger,
    AgentTerms,
    CollectorLedger,
    CollectorTerms,
    LedgerError,
    PointName,
    Row,
    parse_collector,
    totals,
)
from vtap_api.names import collector_name
from vtap_cli.cluster import agents
from vtap_cli.cluster.agents import Reading, Readings
from vtap_cli.cluster.collectors import Collector, destinations_of, questions
from vtap_cli.cluster.objects import Object, destination_of, identity, is_collector, made_at
from vtap_cli.cluster.session import Session
from vtap_cli.daemons import get_json
from vtap_cli.errors import CliError
from vtap_cli.ledger import PATH, Books

AT_A_TIME = 8
SETTLE_POLL = 0.5
BEFORE = "before"
"""The reason under which a collector counts what was sent before its books began."""
FATES = ("seen", "excluded", "unsampled", "limited", "sent")

Tap = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Read:
    """The books, and sentences about what is not in them."""

    books: Books
    notes: Sequence[str]


def read(session: Session, tap: str) -> Read:
    """Of the taps that are meant. Raises CliError where neither side is to be had."""
    found = session.taps(tap)
    destinations = destinations_of(session, found)
    vtap_namespace = session.vtap_namespace(destinations.values())
    taps = None if session.place.all_namespaces and not tap else {identity(item) for item in found}
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(agents.read, session, vtap_namespace)
        asked, unasked = questions(session, found, destinations, everything=taps is None)
        arrived, since, unanswered = _collected(asked)
        readings = asking.result()
    ours = {name for name, item in destinations.items() if is_collector(item)}
    expected = {identity(item) for item in found if destination_of(item) in ours}
    begun = {
        identity(item)
        for item in found
        if made_at(item) < since.get(collector_name(destination_of(item)), "") and identity(item) in expected
    }
    books = join(readings, arrived, taps, expected, begun)
    notes = [*unasked, *unanswered, *_left_out(readings, books.rows)]
    if not readings.by_node and arrived is None and notes:
        raise CliError("; ".join(notes))
    return Read(books, notes)


def _left_out(readings: Readings, rows: Iterable[Row]) -> list[str]:
    """Sentences about agents that can't be asked, where collectors were not told all of what they count."""
    told = [row.agent is not None for row in rows if row.id[0] not in readings.by_node]
    return [] if told and all(told) else readings.notes("what agents count")


def _collected(
    asked: Sequence[tuple[Collector, Mapping[str, str]]],
) -> tuple[CollectorLedger | None, Mapping[str, str], list[str]]:
    """What the collectors counted, since when by their Services' names, and sentences about those that don't say."""
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        answers = list(threads.map(lambda pair: _ask(*pair), asked))
    notes = list(dict.fromkeys(f"what collectors count left out: {answer}" for answer in answers if isinstance(answer, str)))
    by_collector: dict[tuple[str, str], list[CollectorLedger]] = {}
    for (collector, _query), answer in zip(asked, answers, strict=True):
        if isinstance(answer, CollectorLedger):
            by_collector.setdefault(collector.service, []).append(answer)
    since = {service[1]: ledgers[0].since for service, ledgers in by_collector.items()}
    return _added_up([_newest(ledgers) for ledgers in by_collector.values()]), since, notes


def _ask(collector: Collector, query: Mapping[str, str]) -> CollectorLedger | str:
    try:
        return parse_collector(get_json(collector, PATH, query))
    except CliError as error:
        return str(error)
    except LedgerError as error:
        return f"{collector.name} answers {PATH} with something unexpected ({error}); is it of another version?"


def _newest(answers: Sequence[CollectorLedger]) -> CollectorLedger:
    """What one collector said of several taps: what stands beside is in each answer, and only grows."""
    rows = {row.id: row for answer in answers for row in answer.rows}
    beside = (max(answer.unannounced for answer in answers), max(answer.malformed for answer in answers))
    return CollectorLedger(tuple(rows.values()), *beside)


def _added_up(ledgers: Sequence[CollectorLedger]) -> CollectorLedger | None:
    """Of all collectors."""
    if not ledgers:
        return None
    rows = tuple(row for ledger in ledgers for row in ledger.rows)
    return CollectorLedger(rows, sum(ledger.unannounced for ledger in ledgers), sum(ledger.malformed for ledger in ledgers))


def join(
    readings: Readings,
    arrived: CollectorLedger | None,
    taps: set[Tap] | None,
    expected: set[Tap],
    begun: Collection[Tap] = (),
) -> Books:
    """A row for each tap point of each node. `taps` are those that are meant, None for all; `expected` those whose copies a
    collector of ours should have; `begun` those which are older than that collector's books. Pure."""

    def meant(row: Row) -> bool:
        return taps is None or row.name.tap in taps

    sent = {_point(row): row for node, reading in readings.by_node.items() for row in agent_rows(node, reading) if meant(row)}
    got = by_point(row for row in (arrived.rows if arrived else ()) if meant(row))
    rows: list[Row] = []
    for point in sorted(sent.keys() | got.keys()):
        ours, theirs = sent.get(point), got.get(point)
        some = ours or theirs
        assert some is not None
        judged = arrived is not None and some.name.tap in expected
        rows.append(
            replace(
                some,
                agent=ours.agent if ours else theirs.agent if theirs and theirs.id[0] not in readings.by_node else None,
                collector=_with_past(ours, theirs) if some.name.tap in begun else theirs.collector if theirs else None,
                expected=judged,
                closed=theirs.closed if theirs else False,
                stale=theirs.stale if theirs else False,
            )
        )
    unattributed = {node: reading.unattributed for node, reading in readings.by_node.items()}
    agent_side = AgentLedger("", (), unattributed, 0) if readings.by_node else None
    return Books(agent_side, arrived, tuple(rows))


def _with_past(ours: Row | None, theirs: Row | None) -> CollectorTerms | None:
    """What a collector counted whose books are younger than the tap: of streams that it was never told of it can't know more than
    that they are missing, which is said as a loss of its own."""
    got = theirs.collector if theirs else None
    if ours is None or ours.agent is None or (theirs is not None and theirs.agent is None):
        return got
    known = theirs.agent.sent if theirs is not None and theirs.agent is not None else 0
    counted = got or CollectorTerms()
    missing = ours.agent.sent - counted.received - sum(counted.lost.values())
    unknown = min(ours.agent.sent - known, missing)
    if unknown <= 0:
        return got
    return replace(counted, lost={**counted.lost, BEFORE: counted.lost.get(BEFORE, 0) + unknown})


def agent_rows(node: str, reading: Reading) -> Iterable[Row]:
    """One agent's side."""
    for (tap_namespace, tap, pod_namespace, pod, interface, direction), counts in reading.points.items():
        dropped = {name.removeprefix("dropped:"): count for name, count in counts.items() if name.startswith("dropped:")}
        terms = AgentTerms(**{fate: counts.get(fate, 0) for fate in FATES}, dropped=dropped)
        name = PointName((tap_namespace, tap), (pod_namespace, pod), interface, direction)
        yield Row((node, 0, SUMMED), name, terms, None)


def by_point(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """A collector's streams, those of one tap point of one node as one row."""
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(_point(row), []).append(row)
    return {
        point: Row(
            (group[0].id[0], 0, SUMMED),
            group[0].name,
            totals(group).agent if all(row.agent for row in group) else None,
            totals(group).collector,
            closed=all(row.closed for row in group),
            stale=any(row.stale for row in group),
        )
        for point, group in grouped.items()
    }


def _point(row: Row) -> tuple[str, ...]:
    return (*row.name.tap, *row.name.pod, row.name.interface, row.name.direction, row.id[0])


def settled(session: Session, tap: Object, collector: Collector, seconds: float) -> Read:
    """The books of one tap, which may be gone by now, once they close, or as they are after `seconds`. Raises CliError."""
    until = time.monotonic() + seconds
    taps = {identity(tap)}
    while True:
        readings = agents.read(session, collector.service[0])
        answer = _ask(collector, {"tap": "/".join(identity(tap))})
        arrived = answer if isinstance(answer, CollectorLedger) else None
        notes = [*readings.notes("what agents count"), *([answer] if isinstance(answer, str) else [])]
        found = join(readings, arrived, taps, taps)
        ended = all(row.closed for row in found.rows if row.collector) and totals(found.rows).unaccounted == 0
        if ended or arrived is None or time.monotonic() >= until:
            return Read(found, notes)
        time.sleep(SETTLE_POLL)
