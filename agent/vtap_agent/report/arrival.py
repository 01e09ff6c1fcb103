"""Whether copies arrive: what has left of each stream against what its collector says that it has. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vtap_agent.plan.streams import StreamId

PATIENCE = 10.0
"""Seconds for which nothing has to arrive before that is said."""
ENOUGH = 20
"""Copies that have to have left meanwhile."""


@dataclass(frozen=True, slots=True)
class Watch:
    """One stream. `sent` and `received` are wire packets as of when a copy arrived last, or the stream was first looked at."""

    sent: int
    received: int
    since: float | None = None
    """When more had left for the first time than at that moment, in seconds of a monotonic clock; None while it has not."""
    missing: bool = False
    """Whether nothing arrives."""


def watched(
    before: Mapping[StreamId, Watch], sent: Mapping[StreamId, int], received: Mapping[StreamId, int], now: float
) -> dict[StreamId, Watch]:
    """`before` with one more answer: `sent` is what the collector was told, `received` what it said to that.

    A stream that one of the two lacks stays as it was.
    """
    news = {stream: _next(before.get(stream), sent[stream], got, now) for stream, got in received.items() if stream in sent}
    return {**before, **news}


def _next(before: Watch | None, sent: int, received: int, now: float) -> Watch:
    """A collector that has received less than before is another one: it is judged anew."""
    if before is None or received != before.received or sent <= before.sent:
        return Watch(sent, received)
    since = now if before.since is None else before.since
    return replace(before, since=since, missing=sent - before.sent >= ENOUGH and now - since >= PATIENCE)


def unarriving(watches: Mapping[StreamId, Watch]) -> frozenset[StreamId]:
    """The streams of which nothing arrives."""
    return frozenset(stream for stream, watch in watches.items() if watch.missing)
