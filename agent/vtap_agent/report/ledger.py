"""The agent's side of the ledger: counters of live tap points, and what is kept of those that are gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vtap_agent.plan.dataplane import Backend, Direction, Feed, NodeCounters, PointCounters, TapPointName
from vtap_agent.plan.slots import Assignment

MAX_CLOSED = 1000
"""Closed tap points that keep a row of their own; older ones go into one sum a tap."""
MAX_SUMS = 1000
"""Such sums; older ones go into one of all taps, so that neither rows nor labels grow without end."""
SUMMED = "*"
"""Stands for pod, interface and key in such a sum, and for the tap in the sum of all."""


@dataclass(frozen=True, slots=True)
class Row:
    """Counters of one stream. `closed` rows no longer grow; `announced` ones go to a collector of ours."""

    key: int
    incarnation: str
    name: TapPointName
    destination: str
    counters: PointCounters
    announced: bool = True
    closed: bool = False


def attribute_pair_drops(points: Mapping[int, PointCounters], pair_dropped: int) -> dict[int, PointCounters]:
    """Add the pair's device drops to the tap points that miss segments, as the reason ``pair``.

    The device counts drops of the whole node. A tap point cannot have lost more than it handed over and did not get back,
    so drops are given out up to that deficit, in slot order. What the device did not count stays unexplained: it shows up as
    unaccounted, which is the point of counting on both sides.
    """
    if pair_dropped == 0:
        return dict(points)
    left = pair_dropped
    result: dict[int, PointCounters] = {}
    for slot, counters in sorted(points.items()):
        share = min(left, max(0, counters.handed - counters.arrived))
        left -= share
        result[slot] = with_drop(counters, "pair", share)
    return result


def with_drop(counters: PointCounters, reason: str, packets: int) -> PointCounters:
    """`counters` with `packets` more dropped for `reason`."""
    if packets == 0:
        return counters
    return replace(counters, dropped={**counters.dropped, reason: counters.dropped.get(reason, 0) + packets})


def with_uncopied(counters: NodeCounters, uncopied: Mapping[Assignment, int], assigned: Iterable[Assignment]) -> NodeCounters:
    """What a switch's own flows left out was seen and excluded, if not by `pick`; bytes are not told.

    What was left out of a stream that had the slot before is none of this one's.
    """
    points = {
        one.slot: replace(point, seen=point.seen + uncopied[one], excluded=point.excluded + uncopied[one])
        for one in assigned
        if one in uncopied and (point := counters.points.get(one.slot)) is not None
    }
    return replace(counters, points={**counters.points, **points}) if points else counters


def add(left: PointCounters, right: PointCounters) -> PointCounters:
    """Field by field; `next_sequence` means nothing in a sum and stays 0."""
    reasons = left.dropped.keys() | right.dropped.keys()
    return PointCounters(
        seen=left.seen + right.seen,
        seen_bytes=left.seen_bytes + right.seen_bytes,
        excluded=left.excluded + right.excluded,
        unsampled=left.unsampled + right.unsampled,
        limited=left.limited + right.limited,
        handed=left.handed + right.handed,
        arrived=left.arrived + right.arrived,
        sent=left.sent + right.sent,
        sent_bytes=left.sent_bytes + right.sent_bytes,
        dropped={reason: left.dropped.get(reason, 0) + right.dropped.get(reason, 0) for reason in reasons},
    )


def close(closed: Iterable[Row], gone: Iterable[Row], limit: int = MAX_CLOSED, sums_limit: int = MAX_SUMS) -> tuple[Row, ...]:
    """`closed` with the rows that just ended; beyond `limit` the oldest are summed up by tap, beyond `sums_limit` altogether."""
    rows = [*closed, *(replace(row, closed=True) for row in gone)]
    singles = [row for row in rows if row.name.pod_name != SUMMED]
    oldest = singles[: max(0, len(singles) - limit)]
    by_tap = _added_up([*(row for row in rows if row.name.pod_name == SUMMED), *map(_as_sum, oldest)])
    too_many = by_tap[: max(0, len(by_tap) - sums_limit)]
    sums = _added_up([*map(_of_all_taps, too_many), *by_tap[len(too_many) :]])
    return (*sums, *singles[len(oldest) :])


def _added_up(rows: Iterable[Row]) -> list[Row]:
    """One row for each name; those that grew last come last."""
    sums: dict[tuple[TapPointName, bool], Row] = {}
    for row in rows:
        key = (row.name, row.announced)
        known = sums.pop(key, None)
        sums[key] = replace(row, counters=add(known.counters, row.counters)) if known else row
    return list(sums.values())


def _as_sum(row: Row) -> Row:
    name = replace(row.name, pod_namespace=SUMMED, pod_name=SUMMED, pod_uid=SUMMED, interface=SUMMED)
    return Row(0, SUMMED, name, SUMMED, add(PointCounters(), row.counters), row.announced, closed=True)


def _of_all_taps(row: Row) -> Row:
    return replace(row, name=replace(row.name, tap_namespace=SUMMED, tap_name=SUMMED))


def row_to_json(row: Row) -> dict[str, Any]:
    """One row of ``GET /v1/ledger``, and of the state file for closed rows."""
    name, counters = row.name, row.counters
    return {
        "key": row.key,
        "incarnation": row.incarnation,
        "tap": {"namespace": name.tap_namespace, "name": name.tap_name},
        "pod": {"namespace": name.pod_namespace, "name": name.pod_name, "uid": name.pod_uid},
        "interface": name.interface,
        "direction": name.direction.value,
        "destination": row.destination,
        "announced": row.announced,
        "closed": row.closed,
        "seen": counters.seen,
        "seenBytes": counters.seen_bytes,
        "excluded": counters.excluded,
        "unsampled": counters.unsampled,
        "limited": counters.limited,
        "handed": counters.handed,
        "arrived": counters.arrived,
        "dropped": dict(sorted(counters.dropped.items())),
        "sent": counters.sent,
        "sentBytes": counters.sent_bytes,
        "nextSequence": counters.next_sequence,
    }


def row_from_json(data: Mapping[str, Any]) -> Row:
    """The inverse of `row_to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    tap, pod = data["tap"], data["pod"]
    name = TapPointName(
        str(tap["namespace"]),
        str(tap["name"]),
        str(pod["namespace"]),
        str(pod["name"]),
        str(pod["uid"]),
        str(data["interface"]),
        Direction(data["direction"]),
    )
    counters = PointCounters(
        seen=int(data["seen"]),
        seen_bytes=int(data["seenBytes"]),
        excluded=int(data["excluded"]),
        unsampled=int(data["unsampled"]),
        limited=int(data["limited"]),
        handed=int(data["handed"]),
        arrived=int(data["arrived"]),
        sent=int(data["sent"]),
        sent_bytes=int(data["sentBytes"]),
        next_sequence=int(data["nextSequence"]),
        dropped={str(reason): int(count) for reason, count in data["dropped"].items()},
    )
    return Row(
        int(data["key"]),
        str(data["incarnation"]),
        name,
        str(data["destination"]),
        counters,
        bool(data["announced"]),
        bool(data["closed"]),
    )


def ledger_to_json(node: str, rows: Iterable[Row], counters: NodeCounters) -> dict[str, Any]:
    """The answer to ``GET /v1/ledger``."""
    return {
        "node": node,
        "points": [row_to_json(row) for row in rows],
        "unattributed": {_feed_text(feed): count for feed, count in sorted(counters.unattributed.items())},
        "pair": {
            "handed": sum(point.handed for point in counters.points.values()),
            "arrived": sum(point.arrived for point in counters.points.values()),
            "dropped": counters.pair_dropped,
        },
    }


def _feed_text(feed: Feed) -> str:
    """A mirror by its bridge alone."""
    backend = () if feed.backend is Backend.OVS_MIRROR else (feed.backend.value,)
    return " ".join(filter(None, (feed.place, feed.direction.value, *backend)))


def keys_to_json(node: str, rows: Iterable[Row]) -> dict[str, Any]:
    """The answer to ``GET /v1/keys``: what the key of each stream that runs stands for."""
    return {"node": node, "keys": [_key_to_json(row) for row in rows if not row.closed]}


def _key_to_json(row: Row) -> dict[str, Any]:
    name = row.name
    return {
        "key": row.key,
        "incarnation": row.incarnation,
        "tap": {"namespace": name.tap_namespace, "name": name.tap_name},
        "pod": {"namespace": name.pod_namespace, "name": name.pod_name, "uid": name.pod_uid},
        "interface": name.interface,
        "direction": name.direction.value,
        "destination": row.destination,
    }
