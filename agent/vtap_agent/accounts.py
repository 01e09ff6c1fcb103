"""The streams of this node through time: which have slots, which are on their way out, and what the closed ones counted."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from vtap_agent import state
from vtap_agent.plan.dataplane import NodeCounters, PointCounters
from vtap_agent.plan.slots import SlotTable, StreamName, allocate
from vtap_agent.plan.streams import StreamId
from vtap_agent.report.announcer import Totals
from vtap_agent.report.ledger import Row, attribute_pair_drops, close

SETTLE = 1.0
"""Seconds between a stream's last feeding and its last reading: what was in the pair has left by then."""


class Accounts:
    """Slots, counters and closed rows, saved whenever they change. Used by the loop's thread only."""

    def __init__(self, path: Path, first_key: int) -> None:
        self._path = path
        self._first_key = first_key
        self._state = state.load(path)
        self._unwanted_since: dict[StreamName, float] = {}

    @property
    def slots(self) -> SlotTable:
        """The present table; streams on their way out still have their slots."""
        return self._state.slots

    @property
    def confirmed(self) -> frozenset[StreamId]:
        """Streams that their collector has acknowledged, be it to an earlier agent: they may be fed at once."""
        return self._state.confirmed

    def confirm(self, streams: Iterable[StreamId]) -> None:
        """Remember what collectors have acknowledged."""
        confirmed = self._state.confirmed.union(streams)
        if confirmed != self._state.confirmed:
            self._save(replace(self._state, confirmed=confirmed))

    def forget_counters(self) -> None:
        """The kernel's counters are gone (a reboot): every stream starts anew, with a new incarnation."""
        table = self._state.slots
        self._save(replace(self._state, slots=allocate(table, (), _new_incarnation).table, pair_dropped=0, confirmed=frozenset()))

    def used_slots(self) -> frozenset[int]:
        """Slots whose counters belong to some stream."""
        return frozenset(value.slot for value in self._state.slots.assigned.values())

    def admit(self, wanted: Iterable[StreamName]) -> None:
        """Give slots to new streams, on disk before they are used."""
        now = time.monotonic()
        wanted_set = frozenset(wanted)
        table = self._state.slots
        self._unwanted_since = {name: self._unwanted_since.get(name, now) for name in table.assigned if name not in wanted_set}
        allocation = allocate(table, wanted_set | table.assigned.keys(), _new_incarnation)
        if allocation.added:
            self._save(replace(self._state, slots=allocation.table))

    def due(self) -> bool:
        """Whether some stream has been unwanted long enough to be closed."""
        now = time.monotonic()
        return any(now - since >= SETTLE for since in self._unwanted_since.values())

    def settle(self, counters: NodeCounters, *, at_once: bool = False) -> None:
        """Close the rows of unwanted streams, and free their slots; only of those that have settled, unless `at_once`."""
        now = time.monotonic()
        gone = {name for name, since in self._unwanted_since.items() if at_once or now - since >= SETTLE}
        if not gone:
            return
        rows = {row.incarnation: row for row in self.live_rows(counters)}
        closing = [rows[self._state.slots.assigned[name].incarnation] for name in sorted(gone)]
        explained = sum(row.counters.dropped.get("pair", 0) for row in closing)
        table = allocate(self._state.slots, self._state.slots.assigned.keys() - gone, _new_incarnation).table
        closed = close(self._state.closed, closing)
        confirmed = self._state.confirmed & {(row.key, row.incarnation) for row in rows.values()}
        self._save(state.AgentState(table, closed, self._state.pair_dropped + explained, confirmed))
        for name in gone:
            del self._unwanted_since[name]

    def live_rows(self, counters: NodeCounters) -> tuple[Row, ...]:
        """A row for every stream that has a slot."""
        assigned = self._state.slots.assigned
        points = {value.slot: counters.points.get(value.slot, PointCounters()) for value in assigned.values()}
        explained = attribute_pair_drops(points, max(0, counters.pair_dropped - self._state.pair_dropped))
        return tuple(
            Row(
                self._first_key + value.slot,
                value.incarnation,
                name.point,
                name.receiver.split()[0],
                explained[value.slot],
                name.announced,
            )
            for name, value in sorted(assigned.items())
        )

    def rows(self, counters: NodeCounters) -> tuple[Row, ...]:
        """Live and closed rows."""
        return (*self.live_rows(counters), *self._state.closed)

    def totals(self, counters: NodeCounters) -> Mapping[StreamId, Totals]:
        """What has left of every stream that is known by key."""
        return {
            (row.key, row.incarnation): Totals(row.counters.sent, row.counters.next_sequence)
            for row in self.rows(counters)
            if row.key
        }

    def _save(self, new: state.AgentState) -> None:
        state.save(self._path, new)
        self._state = new


def _new_incarnation() -> str:
    return secrets.token_hex(8)
