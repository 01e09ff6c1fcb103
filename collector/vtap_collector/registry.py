"""Which streams there are: what agents announced, the slots their counts live in, and what is remembered of closed ones.

The registry is changed by the event loop alone. It survives restarts as one JSON file; the counts themselves lie in the core's
mapped file, by slot, so that they survive a kill as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vtap_collector.announcements import AgentTerms, Announcement, Stream, TapName, Total, Totals
from vtap_collector.errors import Refused
from vtap_collector.native import Core, CoreSettings, Direction, StreamCounts, StreamInfo
from vtap_collector.storage import Storage

log = logging.getLogger(__name__)

MAX_CLOSED = 1024
STALE_SECONDS = 60.0
"""An agent says something every 5 s; the streams of one that has been silent for this long are stale."""
STATE_FILE = "announcements.json"

StreamKey = tuple[str, int, str]
"""(node, key, incarnation)"""


@dataclass(slots=True)
class Node:
    """An agent's node; `number` is the core's."""

    number: int
    addresses: list[str]
    tai_offset: int
    version: int
    heard: float = 0.0
    """When its agent last said something, or the collector started."""


@dataclass(slots=True)
class Entry:
    """A stream and the slot of its counts."""

    node: str
    stream: Stream
    slot: int
    open: bool
    before: int | None = None
    """Copies that had left before this collector was told of the stream; None until the agent has said how many."""
    sent: int = 0
    agent: AgentTerms | None = None
    """The agent's side, with `sent`, as it said last; None where it has not."""

    @property
    def key(self) -> StreamKey:
        return self.node, self.stream.key, self.stream.incarnation


@dataclass(slots=True)
class Tap:
    """A tap that has or had streams; `number` is the core's."""

    number: int
    past: StreamCounts = field(default_factory=StreamCounts)
    """Of closed streams that are no longer kept one by one."""


class _SavedNode(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int
    addresses: list[str]
    tai_offset: int
    version: int


class _SavedStream(BaseModel):
    model_config = ConfigDict(extra="forbid")
    node: str
    stream: Stream
    slot: int
    open: bool
    before: int | None = 0
    sent: int = 0
    agent: AgentTerms | None = None


class _SavedTap(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tap: TapName
    number: int
    past: dict[str, int]


class _Saved(BaseModel):
    model_config = ConfigDict(extra="forbid")
    nodes: dict[str, _SavedNode]
    taps: list[_SavedTap]
    streams: list[_SavedStream]
    forgotten: dict[str, int] = {}
    since: str = ""


class Registry:
    """Knows every stream; tells the core."""

    def __init__(self, core: Core, settings: CoreSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._core = core
        self._clock = clock
        self._settings = settings
        self._nodes: dict[str, Node] = {}
        self._taps: dict[TapName, Tap] = {}
        self._entries: dict[StreamKey, Entry] = {}
        """Closed ones in the order in which they closed, oldest first."""
        self._free_slots = list(reversed(range(settings.max_streams)))
        self._free_taps = list(reversed(range(settings.max_taps)))
        self._free_nodes = list(reversed(range(settings.max_nodes)))
        self.forgotten = StreamCounts()
        """Of taps that made room for others."""
        self.since = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        """When these books were begun, RFC 3339; empty where that is not known."""
        self.changed = False
        """Something has to be saved."""

    # ---- what is there ----

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def taps(self) -> Mapping[TapName, Tap]:
        return self._taps

    def counts(self, entry: Entry) -> StreamCounts:
        counts = self._core.stream_counts(entry.slot)
        unknown = min(entry.before or 0, counts.lost_network)
        return replace(counts, lost_network=counts.lost_network - unknown, lost_before=unknown) if unknown else counts

    def is_stale(self, entry: Entry) -> bool:
        """Open, of an agent that has been silent for STALE_SECONDS: it may have ended meanwhile."""
        return entry.open and self.silence(entry.node) >= STALE_SECONDS

    def silence(self, node: str) -> float:
        """Seconds since the node's agent last said something, or since the collector started."""
        return self._clock() - self._nodes[node].heard

    # ---- what agents say ----

    def announce(self, name: str, announcement: Announcement) -> None:
        """All streams of a node; those missing are closed. Raises Refused, then nothing has changed."""
        wanted = {(name, stream.key, stream.incarnation): stream for stream in announcement.streams}
        fresh = [key for key in wanted if key not in self._entries]
        self._check_room(name, len(fresh), {stream.tap for stream in announcement.streams})
        node = self._set_node(name, announcement)
        for key, stream in wanted.items():
            self._announce_stream(node, key, stream)
        for entry in [entry for key, entry in self._entries.items() if key[0] == name and entry.open and key not in wanted]:
            self._close(entry)

    def totals(self, name: str, totals: Totals) -> None:
        """Of closed streams too: theirs is the last word. Totals of unknown streams are passed over: the agent announces them
        when it connects again."""
        if name in self._nodes:
            self._nodes[name].heard = self._clock()
        for total in totals.streams:
            entry = self._entries.get((name, total.key, total.incarnation))
            if entry is not None:
                self._core.totals(entry.slot, total.sent, total.nextSequence)
                self._take(entry, total)

    def _take(self, entry: Entry, total: Total) -> None:
        """What is said of an open stream is said again after a restart: only a last word has to be saved."""
        last_word = not entry.open and (entry.sent, entry.agent) != (total.sent, total.terms)
        self.changed = self.changed or entry.before is None or last_word
        if entry.before is None:
            entry.before = total.before
        entry.sent, entry.agent = total.sent, total.terms or entry.agent

    def received(self, name: str, totals: Totals) -> list[dict[str, Any]]:
        """What has arrived of these streams, as far as they are known: for the answer."""
        known = [entry for total in totals.streams if (entry := self._entries.get((name, total.key, total.incarnation)))]
        return [
            {"key": e.stream.key, "incarnation": e.stream.incarnation, "received": self._core.stream_counts(e.slot).received}
            for e in known
        ]

    def _check_room(self, node: str, streams: int, taps: set[TapName]) -> None:
        if node not in self._nodes and not self._free_nodes:
            self.sweep()
        if streams > len(self._free_slots):
            self.sweep(keep=0)
        fresh_taps = len(taps - self._taps.keys())
        if fresh_taps > len(self._free_taps):
            self._forget_taps(fresh_taps, taps)
        no_room = self._no_room(node not in self._nodes, streams, fresh_taps)
        if no_room:
            self._close_stale(node)
            raise Refused(no_room, 507)

    def _no_room(self, fresh_node: bool, streams: int, taps: int) -> str:
        if fresh_node and not self._free_nodes:
            return f"node: this collector serves at most {self._settings.max_nodes} nodes"
        if streams > len(self._free_slots):
            return f"streams: this collector has room for {len(self._free_slots)} more; raise --max-streams"
        if taps > len(self._free_taps):
            return f"streams: this collector has room for {len(self._free_taps)} more taps; raise --max-taps"
        return ""

    def _close_stale(self, but_of: str) -> None:
        """What may have ended makes room for the next try; its agent opens it again should it come back."""
        for entry in [entry for entry in self._entries.values() if entry.node != but_of and self.is_stale(entry)]:
            self._close(entry)

    def _set_node(self, name: str, announcement: Announcement) -> Node:
        known = self._nodes.get(name)
        number = known.number if known else self._free_nodes.pop()
        heard = self._clock()
        node = Node(number, list(announcement.addresses), announcement.taiOffset, announcement.version, heard)
        if known is not None:
            known.heard = heard
        if node != known:
            self._nodes[name] = node
            self._core.set_node(number, node.addresses, node.tai_offset)
            self.changed = True
        return node

    def _tap_number(self, name: TapName) -> int:
        tap = self._taps.get(name)
        if tap is None:
            tap = self._taps[name] = Tap(self._free_taps.pop())
            self._core.open_tap(tap.number, name.namespace, name.name)
        return tap.number

    def _announce_stream(self, node: Node, key: StreamKey, stream: Stream) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.open and entry.stream == stream:
            return
        known = entry if entry is not None else Entry(key[0], stream, self._free_slots.pop(), open=True)
        self._entries.pop(key, None)
        self._entries[key] = replace(known, stream=stream, open=True)
        self._open(node, self._entries[key])
        self.changed = True

    def _open(self, node: Node, entry: Entry) -> None:
        stream, pod = entry.stream, entry.stream.pod
        self._core.open_stream(
            entry.slot,
            StreamInfo(
                key=stream.key,
                node=node.number,
                tap=self._tap_number(stream.tap),
                direction=Direction[stream.direction],
                incarnation=int(stream.incarnation, 16),
                snap_length=stream.snapLength,
                trailer=stream.trailer,
                name=f"{pod.namespace}/{pod.name}/{stream.interface} {stream.direction.lower()}",
                description=(
                    f"tap {stream.tap}, pod {pod.namespace}/{pod.name}, interface {stream.interface}, {stream.direction}, "
                    f"node {entry.node}, key {stream.key}, incarnation {stream.incarnation}"
                ),
            ),
        )

    def _close(self, entry: Entry) -> None:
        entry.open = False
        del self._entries[entry.key]
        self._entries[entry.key] = entry
        self._core.close_stream(entry.slot)
        self.changed = True

    # ---- housekeeping ----

    def sweep(self, keep: int = MAX_CLOSED) -> None:
        """Sum up the oldest closed streams beyond `keep`, and let go of taps that have neither streams nor files open."""
        closed = [entry for entry in self._entries.values() if not entry.open]
        for entry in closed[: max(0, len(closed) - keep)]:
            self._sum_up(entry)
        self._let_go(self._unused_taps(), max(1, self._settings.max_taps // 8), set())
        if len(self._free_nodes) < max(1, self._settings.max_nodes // 8):
            self._sweep_nodes()

    def _sum_up(self, entry: Entry) -> None:
        """Unless copies of it are still on their way."""
        counts = self.counts(entry)
        if not counts.closed or not self._core.release_stream(entry.slot):
            return
        tap = self._taps[entry.stream.tap]
        tap.past = tap.past + counts
        del self._entries[entry.key]
        self._free_slots.append(entry.slot)
        self.changed = True

    def _sweep_nodes(self) -> None:
        used = {entry.node for entry in self._entries.values()}
        for name in [name for name in self._nodes if name not in used]:
            self._free_nodes.append(self._nodes.pop(name).number)
            self.changed = True

    def _forget_taps(self, room: int, wanted: set[TapName]) -> None:
        """Until there is room for so many: those whose streams have been summed up, then those whose streams have all closed, the
        longest closed first."""
        self._let_go(self._unused_taps(), room, wanted)
        in_use = {entry.stream.tap for entry in self._entries.values() if entry.open}
        closed = list(dict.fromkeys(e.stream.tap for e in self._entries.values() if e.stream.tap not in in_use))
        self._let_go(closed, room, wanted)

    def _unused_taps(self) -> list[TapName]:
        used = {entry.stream.tap for entry in self._entries.values()}
        return [name for name in self._taps if name not in used]

    def _let_go(self, names: list[TapName], room: int, wanted: set[TapName]) -> None:
        for name in names:
            if room <= len(self._free_taps):
                return
            if name in wanted:
                continue
            for entry in [entry for entry in self._entries.values() if entry.stream.tap == name]:
                self._sum_up(entry)
            if self._core.release_tap(self._taps[name].number):
                self._forget(name)

    def _forget(self, name: TapName) -> None:
        tap = self._taps.pop(name)
        self.forgotten = self.forgotten + tap.past
        self._free_taps.append(tap.number)
        self.changed = True

    # ---- across restarts ----

    def saved(self) -> bytes:
        """What `restore` reads."""
        state = _Saved(
            nodes={
                name: _SavedNode(number=n.number, addresses=n.addresses, tai_offset=n.tai_offset, version=n.version)
                for name, n in self._nodes.items()
            },
            taps=[_SavedTap(tap=name, number=tap.number, past=_plain(tap.past)) for name, tap in self._taps.items()],
            streams=[
                _SavedStream(node=e.node, stream=e.stream, slot=e.slot, open=e.open, before=e.before, sent=e.sent, agent=e.agent)
                for e in self._entries.values()
            ],
            forgotten=_plain(self.forgotten),
            since=self.since,
        )
        return state.model_dump_json().encode()

    def restore(self, storage: Storage) -> None:
        """Take up what the last process knew. A file that can't be read is put aside: agents announce again by themselves."""
        text = storage.read_state(STATE_FILE)
        if text is None:
            return
        try:
            saved = _Saved.model_validate_json(text)
            self._check_saved(saved)
        except (ValidationError, ValueError) as error:
            log.warning("%s is not readable, it is kept as %s.bad: %s", STATE_FILE, STATE_FILE, str(error).splitlines()[0])
            storage.put_aside(STATE_FILE)
            return
        self._restore(saved)

    def _check_saved(self, saved: _Saved) -> None:
        numbered = (
            ([stream.slot for stream in saved.streams], self._settings.max_streams),
            ([tap.number for tap in saved.taps], self._settings.max_taps),
            ([node.number for node in saved.nodes.values()], self._settings.max_nodes),
        )
        for numbers, limit in numbered:
            if len(set(numbers)) != len(numbers) or any(not 0 <= number < limit for number in numbers):
                raise ValueError("a number is used twice or out of range")
        sums = [saved.forgotten, *(tap.past for tap in saved.taps)]
        if any(not counts.keys() <= set(StreamCounts.__slots__) for counts in sums):
            raise ValueError("a count is not known")
        known = {tap.tap for tap in saved.taps}
        if any(stream.stream.tap not in known or stream.node not in saved.nodes for stream in saved.streams):
            raise ValueError("a stream's tap or node is missing")

    def _restore(self, saved: _Saved) -> None:
        used_taps = {tap.number for tap in saved.taps}
        used_slots = {stream.slot for stream in saved.streams}
        used_nodes = {node.number for node in saved.nodes.values()}
        self._free_nodes = [number for number in self._free_nodes if number not in used_nodes]
        self._free_taps = [number for number in self._free_taps if number not in used_taps]
        self._free_slots = [slot for slot in self._free_slots if slot not in used_slots]
        for name, node in saved.nodes.items():
            self._nodes[name] = Node(node.number, node.addresses, node.tai_offset, node.version, self._clock())
            self._core.set_node(node.number, node.addresses, node.tai_offset)
        for tap in saved.taps:
            self._taps[tap.tap] = Tap(tap.number, StreamCounts(**tap.past))
            self._core.open_tap(tap.number, tap.tap.namespace, tap.tap.name)
        for item in saved.streams:
            entry = Entry(item.node, item.stream, item.slot, item.open, item.before, item.sent, item.agent)
            self._entries[entry.key] = entry
            if entry.open:
                self._open(self._nodes[item.node], entry)
            elif self.counts(entry).in_flight:  # the last process ended before it had given up what was missing
                self._core.totals(entry.slot, 0, 0)
        self.forgotten = StreamCounts(**saved.forgotten)
        self.since = saved.since


def _plain(counts: StreamCounts) -> dict[str, Any]:
    return {name: getattr(counts, name) for name in StreamCounts.__slots__}
