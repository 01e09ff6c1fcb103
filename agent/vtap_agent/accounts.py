"""The streams of this node through time: which have slots, which are on their way out, and what the closed ones counted."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vtap_agent import state
from vtap_agent.errors import TellUser
from vtap_agent.plan.dataplane import MAX_SLOTS, NodeCounters, PointCounters
from vtap_agent.plan.slots import Assignment, SlotTable, StreamName, allocate
from vtap_agent.plan.streams import StreamId
from vtap_agent.report.announcer import Totals
from vtap_agent.report.ledger import Row, attribute_pair_drops, close
from vtap_agent.report.told import Told, limited_to, merged

SETTLE = 1.0
"""Seconds between a stream's last feeding and its last reading: what was in the pair has left by then."""
SETTLE_AT_LAST = 5.0
"""Seconds after which it is read as it is: copies that wait for CPUs set aside for them may take longer than SETTLE."""
LAST_WORD = 120.0
"""Seconds that totals of a closed stream are still told to its collector, which may have to be started again meanwhile."""


def _is_crossing(row: Row) -> bool:
    """Whether copies of a stream are between `pick` and `send`, or were dropped there and nobody knows."""
    return row.counters.handed > row.counters.arrived + row.counters.dropped.get("pair", 0)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows, and what they were made of."""

    state: state.AgentState
    counters: NodeCounters
    rows: tuple[Row, ...]


class Accounts:
    """Slots, counters and closed rows, saved whenever they change. Used by the loop's thread only."""

    def __init__(self, path: Path, first_key: int, size: int = MAX_SLOTS, *, move: bool = False) -> None:
        """Keys are `first_key` and the `size` - 1 that follow. With `move` streams that had other keys begin anew under these."""
        self._path = path
        self._first_key = first_key
        self._state = state.load(path, first_key)
        if move and self._state.first_key != first_key:
            self.forget_counters()
        self._state = replace(self._state, slots=replace(self._state.slots, size=size))
        if self._state.first_key != first_key and self._state.slots.assigned:
            raise TellUser(
                f"--first-key: {path} holds streams with keys from {self._state.first_key} on; "
                f"give --first-key {self._state.first_key}, or move the file away to start afresh"
            )
        self._state = replace(self._state, first_key=first_key)
        self._wanted: frozenset[StreamName] = frozenset()
        self._unfed_since: dict[StreamName, float] = {}
        self._closed_at: dict[StreamId, float] = {}
        self._pair_seen = 0
        self._last_rows: _Rows | None = None
        # Whether their collectors have heard how these ended is not known: an agent may have been killed before it said so.
        unheard = {stream.id for said in self._state.told.values() for stream in said.streams}
        now = time.monotonic()
        self._closed_at |= {row_id: now for row in self._state.closed if (row_id := (row.key, row.incarnation)) in unheard}

    @property
    def slots(self) -> SlotTable:
        """The present table; streams on their way out still have their slots."""
        return self._state.slots

    @property
    def confirmed(self) -> frozenset[StreamId]:
        """Streams that their collector has acknowledged, be it to an earlier agent: they may be fed at once."""
        return self._state.confirmed

    @property
    def leaving(self) -> frozenset[StreamId]:
        """Streams that are wanted no more and have not come to rest yet."""
        assigned = self._state.slots.assigned
        return frozenset(self._id(name) for name in assigned if name not in self._wanted)

    @property
    def told(self) -> Told:
        """What collectors were told last, by destination, of streams about which something may still have to be said.

        At a start this is what an earlier agent has told. Destinations to which nothing is left to say are there without streams.
        """
        return limited_to(self._state.told, self._spoken_of())

    def tell(self, wanted: Told) -> None:
        """Remember what collectors are about to be told, on disk before they are."""
        said = merged(wanted, self._state.told, self._spoken_of())
        if said != self._state.told:
            self._save(replace(self._state, told=said))

    def all_heard(self) -> None:
        """Every collector has had the last word about every stream."""
        self._closed_at = {}
        self._save(replace(self._state, told={}))

    def _spoken_of(self) -> frozenset[StreamId]:
        """Streams that run, or whose totals are still told."""
        return frozenset(map(self._id, self._state.slots.assigned)) | self._closed_at.keys()

    def confirm(self, streams: Iterable[StreamId]) -> None:
        """Remember what collectors have acknowledged of the streams that there are."""
        streams = frozenset(streams)
        if streams <= self._state.confirmed:
            return
        live = {self._id(name) for name in self._state.slots.assigned}
        confirmed = self._state.confirmed | (live & streams)
        if confirmed != self._state.confirmed:
            self._save(replace(self._state, confirmed=confirmed))

    def _id(self, name: StreamName) -> StreamId:
        assignment = self._state.slots.assigned[name]
        return (self._first_key + assignment.slot, assignment.incarnation)

    def forget_counters(self) -> None:
        """The kernel's counters are gone (a reboot): every stream starts anew, with a new incarnation."""
        table = self._state.slots
        self._save(replace(self._state, slots=allocate(table, (), _new_incarnation).table, pair_dropped=0, confirmed=frozenset()))

    def used_slots(self) -> frozenset[int]:
        """Slots whose counters belong to some stream."""
        return frozenset(value.slot for value in self._state.slots.assigned.values())

    def admit(self, wanted: Iterable[StreamName]) -> None:
        """Give slots to new streams, on disk before they are used. Those wanted no more keep theirs until `settle`."""
        self._wanted = frozenset(wanted)
        table = self._state.slots
        self._unfed_since = {name: since for name, since in self._unfed_since.items() if name not in self._wanted}
        allocation = allocate(table, self._wanted | table.assigned.keys(), _new_incarnation)
        if allocation.added:
            self._save(replace(self._state, slots=allocation.table))

    def unfed(self) -> None:
        """Nothing feeds the unwanted streams any more: say so when the data plane is as wanted, never before."""
        now = time.monotonic()
        for name in self._state.slots.assigned.keys() - self._wanted:
            self._unfed_since.setdefault(name, now)

    def due(self) -> bool:
        """Whether some stream has been unfed long enough to be closed."""
        now = time.monotonic()
        return any(now - since >= SETTLE for since in self._unfed_since.values())

    def settle(self, counters: NodeCounters, *, at_once: bool = False) -> None:
        """Close the rows of unfed streams, and free their slots; only of those that have settled, unless `at_once`."""
        now = time.monotonic()
        gone = {name for name, since in self._unfed_since.items() if at_once or now - since >= SETTLE}
        known = self._state
        # What they miss they will miss for ever, so theirs are the first drops to be explained.
        drops = max(0, counters.pair_dropped - known.pair_dropped)
        if not at_once:
            rows = zip(sorted(gone), self._rows_of(sorted(gone), counters, drops), strict=True)
            gone -= {name for name, row in rows if _is_crossing(row) and now - self._unfed_since[name] < SETTLE_AT_LAST}
        if not gone:
            return
        closing = self._rows_of(sorted(gone), counters, drops)
        explained = sum(row.counters.dropped.get("pair", 0) for row in closing)
        table = allocate(known.slots, known.slots.assigned.keys() - gone, _new_incarnation).table
        ended = {(row.key, row.incarnation) for row in closing}
        self._save(
            replace(
                known,
                slots=table,
                closed=close(known.closed, closing),
                pair_dropped=known.pair_dropped + explained,
                confirmed=known.confirmed - ended,
            )
        )
        self._unfed_since = {name: since for name, since in self._unfed_since.items() if name not in gone}
        recent = {stream: at for stream, at in self._closed_at.items() if now - at < LAST_WORD}
        self._closed_at = recent | dict.fromkeys(ended, now)

    def observe(self, counters: NodeCounters) -> None:
        """Notice that the pair was made anew: its device counts from zero again."""
        if counters.pair_dropped < self._pair_seen:
            self._save(replace(self._state, pair_dropped=self._state.pair_dropped - self._pair_seen))
        self._pair_seen = counters.pair_dropped

    def live_rows(self, counters: NodeCounters) -> tuple[Row, ...]:
        """A row for every stream that has a slot."""
        names = sorted(self._state.slots.assigned)
        return self._rows_of(names, counters, max(0, counters.pair_dropped - self._state.pair_dropped))

    def _rows_of(self, names: Sequence[StreamName], counters: NodeCounters, pair_dropped: int) -> tuple[Row, ...]:
        assigned = self._state.slots.assigned
        points = {assigned[name].slot: counters.points.get(assigned[name].slot, PointCounters()) for name in names}
        explained = attribute_pair_drops(points, pair_dropped)
        return tuple(self._row(name, assigned[name], explained[assigned[name].slot]) for name in names)

    def _row(self, name: StreamName, assignment: Assignment, counters: PointCounters) -> Row:
        key = self._first_key + assignment.slot
        return Row(key, assignment.incarnation, name.point, name.destination, counters, name.announced)

    def rows(self, counters: NodeCounters) -> tuple[Row, ...]:
        """Live and closed rows. The very same as last time where nothing has moved."""
        last = self._last_rows
        if last is None or last.state is not self._state or last.counters != counters:
            last = self._last_rows = _Rows(self._state, counters, (*self.live_rows(counters), *self._state.closed))
        return last.rows

    def totals(self, rows: Iterable[Row]) -> Mapping[StreamId, Totals]:
        """What has left of every stream that its collector may still ask about: live, or closed lately."""
        return {
            (row.key, row.incarnation): Totals(row.counters.sent, row.counters.next_sequence, row.counters)
            for row in rows
            if not row.closed or (row.key, row.incarnation) in self._closed_at
        }

    def _save(self, new: state.AgentState) -> None:
        state.save(self._path, new)
        self._state = new


def _new_incarnation() -> str:
    return secrets.token_hex(8)
