"""What collectors have been told of, as plain data: so that the next agent can take leave of streams that it never knew. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vtap_agent.plan.dataplane import Direction, TapPointName
from vtap_agent.plan.streams import ControlEndpoint, Stream, StreamId, StreamSet

Told = Mapping[str, StreamSet]
"""By destination."""


def merged(wanted: Told, before: Told, still: frozenset[StreamId]) -> dict[str, StreamSet]:
    """`wanted`, with those streams of `before` that are wanted no more and of which somebody is `still` to hear."""
    result = dict(wanted)
    for name, former in before.items():
        now = wanted.get(name)
        known = {stream.id for stream in now.streams} if now else set[StreamId]()
        late = tuple(stream for stream in former.streams if stream.id in still and stream.id not in known)
        if late:
            beside = now or replace(former, streams=())
            result[name] = replace(beside, streams=tuple(sorted((*beside.streams, *late), key=lambda stream: stream.id)))
    return result


def limited_to(told: Told, streams: frozenset[StreamId]) -> dict[str, StreamSet]:
    """Every destination with what it was told of these streams, be it nothing."""
    return {
        name: replace(said, streams=tuple(stream for stream in said.streams if stream.id in streams))
        for name, said in told.items()
    }


def to_json(told: Told) -> list[dict[str, Any]]:
    """For the state file."""
    return [
        {
            "destination": said.destination,
            "url": said.endpoint.url,
            "tokenFile": said.endpoint.token_file,
            "addresses": list(said.addresses),
            "streams": [_stream_to_json(stream) for stream in said.streams],
        }
        for _, said in sorted(told.items())
    ]


def from_json(data: Iterable[Mapping[str, Any]]) -> dict[str, StreamSet]:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    return {
        str(said["destination"]): StreamSet(
            str(said["destination"]),
            ControlEndpoint(str(said["url"]), str(said["tokenFile"])),
            tuple(map(str, said["addresses"])),
            tuple(map(_stream_from_json, said["streams"])),
        )
        for said in data
    }


def _stream_to_json(stream: Stream) -> dict[str, Any]:
    point = stream.point
    return {
        "key": stream.key,
        "incarnation": stream.incarnation,
        "tap": [point.tap_namespace, point.tap_name],
        "pod": [point.pod_namespace, point.pod_name, point.pod_uid],
        "interface": point.interface,
        "direction": point.direction.value,
        "snapLength": stream.snap_length,
        "trailer": stream.trailer,
    }


def _stream_from_json(data: Mapping[str, Any]) -> Stream:
    (tap_namespace, tap_name), (pod_namespace, pod_name, pod_uid) = data["tap"], data["pod"]
    names = (tap_namespace, tap_name, pod_namespace, pod_name, pod_uid, data["interface"])
    point = TapPointName(*map(str, names), direction=Direction(data["direction"]))
    return Stream(int(data["key"]), str(data["incarnation"]), point, int(data["snapLength"]), bool(data["trailer"]))
