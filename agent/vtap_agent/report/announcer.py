"""Tells collectors which streams to expect, and how many copies have left.

One worker thread for each collector, so that one that does not answer holds up nobody. A worker sends the whole set of
streams, then totals; on every new connection it starts again with the whole set, since another process may answer there.
See docs/architecture.md, "The control channel".
"""

from __future__ import annotations

import ipaddress
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from vtap_agent.errors import TellUser, VtapError
from vtap_agent.plan.dataplane import PointCounters
from vtap_agent.plan.streams import ControlEndpoint, Stream, StreamId, StreamSet
from vtap_agent.report.arrival import Watch, unarriving, watched
from vtap_agent.report.control import REQUEST_TIMEOUT, Client
from vtap_agent.report.identity import ClientIdentity

log = logging.getLogger(__name__)

LINGER = 2.0
"""Seconds a stream stays announced after its last copy may have left, so that copies on their way are still known; longer where
its collector has not heard its last totals by then."""
TOTALS_EVERY = 1.0
TOTALS_IDLE_EVERY = 5.0
BACKOFF_FIRST, BACKOFF_LAST = 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Totals:
    """What has left of one stream: wire packets, and the sequence number that the next copy will carry.

    `counters` are what became of all that was seen, where that is to be told too.
    """

    sent: int
    next_sequence: int
    counters: PointCounters | None = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What one collector has confirmed; `problem` is a sentence, empty while it answers."""

    streams: frozenset[StreamId] = frozenset()
    problem: str = ""
    addresses: frozenset[str] | None = None
    """Those that it says are its own; None where it has not said."""
    unarriving: frozenset[StreamId] = frozenset()
    """Streams of which nothing arrives there, though copies leave."""
    heard_at: float = field(default_factory=time.monotonic, compare=False)
    """When it answered last, or was asked first, in seconds of a monotonic clock."""


class Announcer:
    """Keeps every collector's knowledge of this node's streams up to date. Thread-safe but for `submit`, which has one caller.

    Destinations that share a collector, by its URL, are announced together: a collector takes each message as all it should know
    of the node. Where they name different token files, the first destination's counts. `identity` is shown to collectors whose
    URL is https.
    """

    def __init__(self, node: str, on_change: Callable[[], None], identity: ClientIdentity | None = None) -> None:
        self._node = node
        self._identity = identity
        self._on_change = on_change
        self._workers: dict[str, _Worker] = {}
        self._urls: dict[str, str] = {}
        self._totals: Mapping[StreamId, Totals] = {}

    def adopt(self, told: Mapping[str, StreamSet]) -> None:
        """Take over what an earlier agent has told, before the first `submit`: what that does not want is taken leave of."""
        self._urls = {destination: streams.endpoint.url for destination, streams in told.items()}
        for url, streams in _by_url(told).items():
            worker = self._worker(streams)
            worker.acknowledgement = Acknowledgement(frozenset(stream.id for stream in streams.streams))
            self._start(url, worker)

    def submit(self, wanted: Mapping[str, StreamSet], leaving: frozenset[StreamId] = frozenset()) -> None:
        """Make `wanted` (by destination) known. Returns at once; `on_change` is called when an answer changes something.

        Streams that are wanted no more stay announced for LINGER seconds, and before that as long as they are in `leaving`.
        """
        self._urls = {destination: streams.endpoint.url for destination, streams in wanted.items()}
        merged = _by_url(wanted)
        for url, worker in list(self._workers.items()):
            if url not in merged:
                worker.retire(leaving)
            if not worker.is_alive():
                del self._workers[url]
        for url, streams in merged.items():
            worker = self._workers.get(url)
            if worker is None or not worker.submit(streams, leaving):
                self._start(url, self._worker(streams))

    def _worker(self, streams: StreamSet) -> _Worker:
        return _Worker(self._node, streams, self._on_change, self._identity)

    def _start(self, url: str, worker: _Worker) -> None:
        self._workers[url] = worker
        worker.report(self._totals)
        worker.start()

    def report(self, totals: Mapping[StreamId, Totals]) -> None:
        """The newest totals of all streams, including those that ended lately. They hold until the next call."""
        self._totals = totals
        for worker in list(self._workers.values()):
            worker.report(totals)

    def drain(self, seconds: float) -> bool:
        """Wait until collectors that get nothing any more have been told so, at most `seconds`; False where some have not."""
        until = time.monotonic() + seconds
        for worker in list(self._workers.values()):
            if worker.is_retiring:
                worker.join(max(0.0, until - time.monotonic()))
        return all(worker.has_taken_leave for worker in self._workers.values() if worker.is_retiring)

    def acknowledgements(self) -> dict[str, Acknowledgement]:
        """By destination."""
        workers = {name: self._workers.get(url) for name, url in self._urls.items()}
        return {name: worker.acknowledgement for name, worker in workers.items() if worker is not None}

    def stop(self) -> None:
        """Stop all workers. Streams stay announced: copies may go on without the agent until the lease ends."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(REQUEST_TIMEOUT + 1)


def _by_url(wanted: Mapping[str, StreamSet]) -> dict[str, StreamSet]:
    merged: dict[str, StreamSet] = {}
    for _destination, streams in sorted(wanted.items()):
        known = merged.get(streams.endpoint.url)
        if known is not None:
            streams = StreamSet(
                f"{known.destination}, {streams.destination}",
                known.endpoint,
                tuple(sorted({*known.addresses, *streams.addresses})),
                tuple(sorted((*known.streams, *streams.streams), key=lambda stream: stream.id)),
            )
        merged[streams.endpoint.url] = streams
    return merged


class _Worker(threading.Thread):
    def __init__(
        self, node: str, wanted: StreamSet, on_change: Callable[[], None], identity: ClientIdentity | None = None
    ) -> None:
        super().__init__(name=f"announce {wanted.destination}", daemon=True)
        self._identity = identity
        self._node = node
        self._wanted = wanted
        self._on_change = on_change
        self._totals: Mapping[StreamId, Totals] = {}
        self._heard: Mapping[StreamId, Totals] = {}
        self._watches: Mapping[StreamId, Watch] = {}
        self._lingering: dict[StreamId, tuple[Stream, float]] = {}
        self._wake = threading.Condition()
        self._stopping = False
        self._retiring = False
        self._ended = False
        self.acknowledgement = Acknowledgement()

    @property
    def is_retiring(self) -> bool:
        return self._retiring

    @property
    def has_taken_leave(self) -> bool:
        """Whether it has ended with its collector knowing that nothing comes any more."""
        return not self.is_alive() and not self.acknowledgement.streams and not self.acknowledgement.problem

    def submit(self, wanted: StreamSet, leaving: frozenset[StreamId] = frozenset()) -> bool:
        """False where the worker has ended, so that another has to take over."""
        with self._wake:
            if self._ended:
                return False
            self._retiring = False
            self._want(wanted, leaving)
            return True

    def report(self, totals: Mapping[StreamId, Totals]) -> None:
        with self._wake:
            self._totals = totals

    def retire(self, leaving: frozenset[StreamId] = frozenset()) -> None:
        """Nothing is wanted here any more: withdraw what is announced, then end."""
        with self._wake:
            self._retiring = True
            self._wake.notify()
            self._want(replace(self._wanted, streams=()), leaving)

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _want(self, wanted: StreamSet, leaving: frozenset[StreamId]) -> None:
        before = (self._wanted, self._lingering)
        self._lingering = self._lingering_beside(wanted, leaving)
        self._wanted = wanted
        if before != (self._wanted, self._lingering):
            self._wake.notify()

    def _lingering_beside(self, wanted: StreamSet, leaving: frozenset[StreamId]) -> dict[StreamId, tuple[Stream, float]]:
        """What the collector knows and is wanted no more, with the time at which it is withdrawn."""
        soon = time.monotonic() + LINGER
        known = {stream.id: (stream, math.inf) for stream in self._wanted.streams if stream.id in self.acknowledgement.streams}
        known |= self._lingering
        still = {stream.id for stream in wanted.streams}
        return {
            stream_id: (stream, math.inf if stream_id in leaving else min(until, soon))
            for stream_id, (stream, until) in known.items()
            if stream_id not in still
        }

    def run(self) -> None:
        delivery = _Delivery(self._path("streams"), self._path("totals"), self._identity)
        backoff = BACKOFF_FIRST
        while (due := self._await_work(delivery.announced)) is not None:
            problem = self._deliver(delivery, due)
            self._take(delivery, due, problem)
            if not problem:
                backoff = BACKOFF_FIRST
                continue
            if not self._pause(backoff):
                return
            backoff = min(BACKOFF_LAST, backoff * 2)

    def _take(self, delivery: _Delivery, due: StreamSet, problem: str) -> None:
        """Keep what was learnt from the answers, or from there being none."""
        known = self.acknowledgement
        heard = {"addresses": delivery.addresses, "heard_at": max(delivery.heard_at, known.heard_at)}
        if problem:
            self._watches = {}
            self._answer(replace(known, problem=problem, unarriving=frozenset(), **heard))
            return
        announced = frozenset(stream.id for stream in due.streams)
        with self._wake:
            self._heard = delivery.posted
        watches = delivery.watched(self._watches)
        self._watches = {stream: watch for stream, watch in watches.items() if stream in announced}
        self._answer(Acknowledgement(announced, unarriving=unarriving(self._watches), **heard))

    def _deliver(self, delivery: _Delivery, due: StreamSet) -> str:
        """Returns the sentence that says why it failed, empty where it did not."""
        try:
            delivery.deliver(due, self._select(due))
        except VtapError as error:
            return str(error)
        except Exception as error:
            log.exception("announcing to %s failed unexpectedly", due.endpoint.url)
            return f"the collector at {due.endpoint.url} cannot be told ({type(error).__name__}: {error}); see the agent's log"
        return ""

    def _await_work(self, announced: StreamSet | None) -> StreamSet | None:
        """What to announce now: at once where it changed, else when totals are due. None ends the worker."""
        with self._wake:
            due = self._current()
            if announced == due and not self._stopping:
                if self._retiring and not self._lingering:
                    self._ended = True
                    return None
                self._wake.wait(self._next_linger(TOTALS_EVERY))
                due = self._current()
            self._ended = self._stopping
            return None if self._stopping else due

    def _pause(self, seconds: float) -> bool:
        """After a failure; False where trying again is pointless."""
        with self._wake:
            if not self._stopping:
                self._wake.wait(seconds)
            given_up = self._retiring and not self._current().streams
            self._ended = self._stopping or given_up
            return not self._ended

    def _current(self) -> StreamSet:
        """What should be announced now: what is wanted and what still lingers."""
        now = time.monotonic()
        self._lingering = {
            stream_id: entry for stream_id, entry in self._lingering.items() if entry[1] > now or self._is_owed(stream_id)
        }
        late = tuple(stream for stream, _until in self._lingering.values())
        return replace(self._wanted, streams=tuple(sorted((*self._wanted.streams, *late), key=lambda stream: stream.id)))

    def _is_owed(self, stream_id: StreamId) -> bool:
        """Whether the collector is still to hear the last totals of a stream, as long as these are there to be told."""
        return stream_id in self._totals and self._heard.get(stream_id) != self._totals[stream_id]

    def _next_linger(self, otherwise: float) -> float:
        now = time.monotonic()
        return min([otherwise, *(until - now for _stream, until in self._lingering.values() if until > now)])

    def _select(self, due: StreamSet) -> dict[StreamId, Totals]:
        with self._wake:
            known = self._totals
        return {stream.id: known[stream.id] for stream in due.streams if stream.id in known}

    def _answer(self, acknowledgement: Acknowledgement) -> None:
        before, self.acknowledgement = self.acknowledgement, acknowledgement
        if acknowledgement == before:
            return
        if acknowledgement.problem and acknowledgement.problem != before.problem:
            log.warning("destination %s: %s", self._wanted.destination, acknowledgement.problem)
        self._on_change()

    def _path(self, what: str) -> str:
        return f"/v1/nodes/{quote(self._node, safe='')}/{what}"


class _Delivery:
    """What one collector has been told on the present connection, and has answered; told afresh after any failure."""

    def __init__(self, streams_path: str, totals_path: str, identity: ClientIdentity | None = None) -> None:
        self._client = Client(identity)
        self._streams_path = streams_path
        self._totals_path = totals_path
        self._all_posted_at = 0.0
        self._tai_offset = 0
        self._sent: Mapping[StreamId, int] = {}
        self._received: Mapping[StreamId, int] = {}
        self._before: Mapping[StreamId, int] = {}
        self._takes_terms = False
        self.posted: Mapping[StreamId, Totals] = {}
        """What it has heard of each stream since it was told of them all."""
        self.announced: StreamSet | None = None
        self.addresses: frozenset[str] | None = None
        self.heard_at = -math.inf

    def deliver(self, due: StreamSet, totals: Mapping[StreamId, Totals]) -> None:
        """Totals first: a stream that is about to be withdrawn gets its last word.

        The answer before may have closed the connection, and then another process may have taken the place of the one that was
        told, so that it has to be told again.
        """
        before, self.announced, self._received = self.announced, None, {}
        offset = tai_offset()
        connected = before is not None and self._client.is_connected_to(due.endpoint)
        if not connected:
            self._before = {}
        if before is not None and not connected:
            self._announce(replace(before, endpoint=due.endpoint), offset, totals)
        if before is not None:
            self._post(due.endpoint, totals)
        if before != due or offset != self._tai_offset:
            self._announce(due, offset, totals)
        self.announced = due

    def watched(self, before: Mapping[StreamId, Watch]) -> Mapping[StreamId, Watch]:
        """`before`, and what the last answer says of copies that should have arrived."""
        if not self._received:
            return before
        return watched(before, self._sent, self._received, self.heard_at)

    def _post(self, endpoint: ControlEndpoint, totals: Mapping[StreamId, Totals]) -> None:
        """What has changed; now and then everything, so that the collector hears that we are there, and we how far it is."""
        everything = time.monotonic() - self._all_posted_at >= TOTALS_IDLE_EVERY
        changed = {stream: value for stream, value in totals.items() if everything or self.posted.get(stream) != value}
        if not changed and not everything:
            return
        body = _totals_body(changed, self._before) if self._takes_terms else _plain_totals_body(changed)
        answer = self._ask(endpoint, "POST", self._totals_path, body)
        self.posted = {**self.posted, **changed}
        self._sent = {stream: value.sent for stream, value in changed.items()}
        self._received = _received_of(answer)
        if everything:
            self._all_posted_at = time.monotonic()

    def _announce(self, streams: StreamSet, offset: int, totals: Mapping[StreamId, Totals]) -> None:
        """How far each stream is when whoever answers now hears of it: what has left before may be unknown to him."""
        left = {stream: value.next_sequence for stream, value in totals.items()}
        self._before = {stream.id: self._before.get(stream.id, left.get(stream.id, 0)) for stream in streams.streams}
        answer = self._ask(streams.endpoint, "PUT", self._streams_path, _streams_body(streams, offset))
        if "addresses" not in answer:
            self.addresses = None
        self._takes_terms = answer.get("terms") is True
        self._tai_offset = offset
        self.posted = {}  # Whoever has just been told wants to hear how far the streams are.

    def _ask(self, endpoint: ControlEndpoint, method: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raises TellUser where it refuses; then, too, it has said where it is."""
        answer = self._client.request(endpoint, method, path, body)
        self.heard_at = time.monotonic()
        if "addresses" in answer.body:
            self.addresses = _addresses_of(answer.body["addresses"], endpoint)
        if answer.problem:
            raise TellUser(answer.problem)
        return answer.body


def _addresses_of(said: object, endpoint: ControlEndpoint) -> frozenset[str]:
    try:
        if not isinstance(said, list):
            raise TypeError("no list")
        return frozenset(str(ipaddress.ip_address(str(address))) for address in said)
    except (TypeError, ValueError) as error:
        raise TellUser(f"the collector at {endpoint.url} does not say which its addresses are ({error}); upgrade it") from error


def _received_of(answer: Mapping[str, Any]) -> dict[StreamId, int]:
    """What does not look like it is passed over: nobody has to say how far streams are."""
    rows = answer.get("streams")
    return {
        (row["key"], row["incarnation"]): row["received"]
        for row in (rows if isinstance(rows, list) else ())
        if isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in _RECEIVED)
    }


_RECEIVED = (("key", int), ("incarnation", str), ("received", int))


def _streams_body(streams: StreamSet, offset: int) -> dict[str, Any]:
    return {
        "version": 1,
        "addresses": list(streams.addresses),
        "taiOffset": offset,
        "streams": [
            {
                "key": stream.key,
                "incarnation": stream.incarnation,
                "trailer": stream.trailer,
                "tap": {"namespace": stream.point.tap_namespace, "name": stream.point.tap_name},
                "pod": {
                    "namespace": stream.point.pod_namespace,
                    "name": stream.point.pod_name,
                    "uid": stream.point.pod_uid,
                },
                "interface": stream.point.interface,
                "direction": stream.point.direction.value,
                "snapLength": stream.snap_length,
            }
            for stream in streams.streams
        ],
    }


def _plain_totals_body(totals: Mapping[StreamId, Totals]) -> dict[str, Any]:
    """For collectors that take no more."""
    return {"streams": [_total(stream, value) for stream, value in _in_order(totals)]}


def _totals_body(totals: Mapping[StreamId, Totals], before: Mapping[StreamId, int]) -> dict[str, Any]:
    return {
        "streams": [
            {**_total(stream, value), "before": before.get(stream, 0), **_terms(value.counters)}
            for stream, value in _in_order(totals)
        ]
    }


def _in_order(totals: Mapping[StreamId, Totals]) -> list[tuple[StreamId, Totals]]:
    return sorted(totals.items(), key=lambda item: item[0])


def _total(stream: StreamId, value: Totals) -> dict[str, Any]:
    return {"key": stream[0], "incarnation": stream[1], "sent": value.sent, "nextSequence": value.next_sequence}


def _terms(counters: PointCounters | None) -> dict[str, Any]:
    if counters is None:
        return {}
    return {
        "terms": {
            "seen": counters.seen,
            "excluded": counters.excluded,
            "unsampled": counters.unsampled,
            "limited": counters.limited,
            "dropped": {reason: count for reason, count in sorted(counters.dropped.items()) if count},
        }
    }


def tai_offset() -> int:
    """Seconds by which this kernel's CLOCK_TAI is ahead of UTC; 0 where nobody has set it (adjtimex(2))."""
    return round(time.clock_gettime(time.CLOCK_TAI) - time.clock_gettime(time.CLOCK_REALTIME))
