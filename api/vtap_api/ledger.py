"""The ledger: what happened to every wire packet of every tap point, from both sides, and what nobody can account for.

docs/architecture.md, "The ledger", names the terms. Each is counted where it happens; here they only meet. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

StreamId = tuple[str, int, str]
"""(node, key, incarnation): names one stream for ever."""
SUMMED = "*"
"""The incarnation of a row in which an agent sums up streams that ended long ago; it belongs to no single stream."""


class LedgerError(ValueError):
    """What a daemon answers is no ledger. `str()` names the field."""


def _reasons() -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class AgentTerms:
    """Wire packets as `pick` and `send` counted them. `dropped` is by reason."""

    seen: int = 0
    excluded: int = 0
    unsampled: int = 0
    limited: int = 0
    dropped: Mapping[str, int] = field(default_factory=_reasons)
    sent: int = 0
    in_flight: int = 0

    @property
    def unaccounted(self) -> int:
        """Packets that were seen and have no fate, or have a fate and were never seen."""
        return abs(self.seen - self.excluded - self.unsampled - self.limited - sum(self.dropped.values()) - self.sent)


@dataclass(frozen=True, slots=True)
class CollectorTerms:
    """Wire packets as the collector counted them. `lost` and `dropped` are by reason; the last three stand beside."""

    received: int = 0
    lost: Mapping[str, int] = field(default_factory=_reasons)
    stored: int = 0
    dropped: Mapping[str, int] = field(default_factory=_reasons)
    duplicate: int = 0
    late: int = 0
    in_flight: int = 0

    @property
    def unaccounted(self) -> int:
        """Packets that were received and have no fate, or the other way round."""
        return abs(self.received - self.stored - sum(self.dropped.values()))


@dataclass(frozen=True, slots=True)
class PointName:
    """What a stream's tap point is called: (namespace, name) of tap and pod, interface, direction."""

    tap: tuple[str, str]
    pod: tuple[str, str]
    interface: str
    direction: str


@dataclass(frozen=True, slots=True)
class Row:
    """One stream, from both sides. `agent` or `collector` is None where that side does not know it or was not asked.

    `expected` says whether a collector should know the stream: False for other people's endpoints and where no collector
    was asked, so that nothing beyond `sent` can be known. `stale`: its agent has not spoken to the collector for a while.
    """

    id: StreamId
    name: PointName
    agent: AgentTerms | None
    collector: CollectorTerms | None
    expected: bool = True
    closed: bool = False
    stale: bool = False

    @property
    def unaccounted(self) -> int:
        """Packets without a fate, over all stages that are known of this stream."""
        agent, collector = self.agent, self.collector
        result = (agent.unaccounted if agent else 0) + (collector.unaccounted if collector else 0)
        if agent and (collector or self.expected):
            arrived = collector or CollectorTerms()
            result += abs(agent.sent - arrived.received - sum(arrived.lost.values()))
        return result


@dataclass(frozen=True, slots=True)
class AgentLedger:
    """One node's side: rows by stream, and what fits no stream."""

    node: str
    rows: tuple[Row, ...]
    unattributed: Mapping[str, int]
    pair_dropped: int


@dataclass(frozen=True, slots=True)
class CollectorLedger:
    """A collector's side: rows by stream, and datagrams that fit none. Rows have the agents' side as the collector was told it.

    `since` is when its books begin, RFC 3339 in UTC; empty where it does not say.
    """

    rows: tuple[Row, ...]
    unannounced: int
    malformed: int
    since: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over rows. `unaccounted` is the sum of the rows', so that errors of opposite sign don't cancel."""

    agent: AgentTerms
    collector: CollectorTerms
    unaccounted: int

    @property
    def dropped(self) -> int:
        """Dropped on either side, for whatever reason."""
        return sum(self.agent.dropped.values()) + sum(self.collector.dropped.values())

    def summary(self) -> str:
        """The one line that says it all."""
        agent, collector = self.agent, self.collector
        return (
            f"ledger: seen={agent.seen} excluded={agent.excluded} unsampled={agent.unsampled} sent={agent.sent} "
            f"received={collector.received} stored={collector.stored} lost={sum(collector.lost.values())} "
            f"dropped={self.dropped} unaccounted={self.unaccounted}"
        )


def join(agents: Iterable[AgentLedger], collector: CollectorLedger | None) -> tuple[Row, ...]:
    """Both sides of every stream that either knows, by tap point. Without a collector nothing beyond `sent` is known.

    Of nodes whose agent is not among `agents`, its side is as the collector was told it.
    """
    agents = tuple(agents)
    arrived = {row.id: row for row in (collector.rows if collector else ())}
    rows: list[Row] = []
    for row in (row for agent in agents for row in agent.rows):
        other = arrived.pop(row.id, None)
        expected = row.expected and collector is not None and row.id[2] != SUMMED
        terms = other.collector if other else None
        stale = other is not None and other.stale
        rows.append(Row(row.id, row.name, row.agent, terms, expected, row.closed, stale))
    # What an agent that was asked does not name stream by stream any more is in its sums.
    asked = {agent.node for agent in agents}
    told = (replace(row, agent=None) if row.id[0] in asked else row for row in arrived.values())
    return tuple(sorted((*rows, *told), key=_order))


def _order(row: Row) -> tuple[Any, ...]:
    return (row.name.tap, row.name.pod, row.name.interface, row.name.direction, row.id)


def totals(rows: Iterable[Row]) -> Totals:
    """Sums of all rows."""
    every = tuple(rows)
    agents = [row.agent for row in every if row.agent]
    collectors = [row.collector for row in every if row.collector]
    agent = AgentTerms(
        seen=sum(term.seen for term in agents),
        excluded=sum(term.excluded for term in agents),
        unsampled=sum(term.unsampled for term in agents),
        limited=sum(term.limited for term in agents),
        dropped=_by_reason(term.dropped for term in agents),
        sent=sum(term.sent for term in agents),
        in_flight=sum(term.in_flight for term in agents),
    )
    collector = CollectorTerms(
        received=sum(term.received for term in collectors),
        lost=_by_reason(term.lost for term in collectors),
        stored=sum(term.stored for term in collectors),
        dropped=_by_reason(term.dropped for term in collectors),
        duplicate=sum(term.duplicate for term in collectors),
        late=sum(term.late for term in collectors),
        in_flight=sum(term.in_flight for term in collectors),
    )
    return Totals(agent, collector, sum(row.unaccounted for row in every))


def _by_reason(counts: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def parse_agent(data: object) -> AgentLedger:
    """From the agent's ``GET /v1/ledger``. Raises `LedgerError`."""
    document = _Fields(data, "")
    node = document.text("node")
    rows = tuple(_agent_row(node, point) for point in document.children("points"))
    return AgentLedger(node, rows, document.counts("unattributed"), document.child("pair").number("dropped"))


def _agent_row(node: str, point: _Fields) -> Row:
    terms, expected = _agent_terms(point), point.flag("announced", True)
    return Row(_id(node, point), _name(point), terms, None, expected, point.flag("closed", False))


def _agent_terms(fields: _Fields) -> AgentTerms:
    return AgentTerms(
        seen=fields.number("seen"),
        excluded=fields.number("excluded"),
        unsampled=fields.number("unsampled"),
        limited=fields.number("limited"),
        dropped=fields.counts("dropped"),
        sent=fields.number("sent"),
        in_flight=fields.number("inFlight", 0),
    )


def parse_collector(data: object) -> CollectorLedger:
    """From the collector's ``GET /v1/ledger``. Raises `LedgerError`."""
    document = _Fields(data, "")
    rows = tuple(_collector_row(stream) for stream in document.children("streams"))
    since = document.text("since") if document.has("since") else ""
    return CollectorLedger(rows, document.sum("unannounced"), document.sum("malformed"), since)


def _collector_row(stream: _Fields) -> Row:
    terms = CollectorTerms(
        received=stream.number("received"),
        lost=stream.counts("lost"),
        stored=stream.number("stored"),
        dropped=stream.counts("dropped"),
        duplicate=stream.number("duplicate"),
        late=stream.number("late"),
        in_flight=stream.number("inFlight", 0),
    )
    return Row(
        _id(stream.text("node"), stream),
        _name(stream),
        _agent_terms(stream.child("agent")) if stream.has("agent") else None,
        terms,
        closed=stream.flag("closed", False),
        stale=stream.flag("stale", False),
    )


def _id(node: str, row: _Fields) -> StreamId:
    return (node, row.number("key"), row.text("incarnation"))


def _name(row: _Fields) -> PointName:
    tap, pod = row.child("tap"), row.child("pod")
    return PointName(
        (tap.text("namespace"), tap.text("name")),
        (pod.text("namespace"), pod.text("name")),
        row.text("interface"),
        row.text("direction"),
    )


class _Fields:
    """A JSON object whose fields are asked for by name and type. Raises `LedgerError` naming the field."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, dict):
            raise LedgerError(f"{path or 'the answer'} is no object")
        self._data = cast("dict[str, object]", data)
        self._path = path

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}".removeprefix(".")

    def number(self, name: str, default: int | None = None) -> int:
        value = self._data.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise LedgerError(f"{self._at(name)} is no whole number")
        return value

    def has(self, name: str) -> bool:
        return self._data.get(name) is not None

    def text(self, name: str) -> str:
        value = self._data.get(name)
        if not isinstance(value, str):
            raise LedgerError(f"{self._at(name)} is no text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._data.get(name, default))

    def child(self, name: str) -> _Fields:
        return _Fields(self._data.get(name), self._at(name))

    def children(self, name: str) -> list[_Fields]:
        value = self._data.get(name)
        if not isinstance(value, list):
            raise LedgerError(f"{self._at(name)} is no list")
        return [_Fields(item, f"{self._at(name)}[{index}]") for index, item in enumerate(cast("list[object]", value))]

    def counts(self, name: str) -> Mapping[str, int]:
        child = self.child(name)
        return {key: child.number(key) for key in child._data}

    def sum(self, name: str) -> int:
        """A number, or the sum of numbers by reason."""
        return sum(self.counts(name).values()) if isinstance(self._data.get(name), dict) else self.number(name)
