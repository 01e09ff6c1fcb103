"""What a destination is told of the streams that reach it."""

from __future__ import annotations

from dataclasses import dataclass

from vtap_agent.plan.dataplane import TapPointName

StreamId = tuple[int, str]
"""(key, incarnation): names one stream for ever."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One announced stream. `snap_length` 0 means whole packets."""

    key: int
    incarnation: str
    point: TapPointName
    snap_length: int
    trailer: bool

    @property
    def id(self) -> StreamId:
        """Its name for ever."""
        return (self.key, self.incarnation)


@dataclass(frozen=True, slots=True)
class ControlEndpoint:
    """Where a collector hears announcements: `url` is ``http://HOST:PORT`` or ``unix:PATH``; `token_file` may be empty.

    In a cluster `url` is ``https://HOST:PORT``, and our client certificate says who we are.
    """

    url: str
    token_file: str


@dataclass(frozen=True, slots=True)
class StreamSet:
    """Everything one collector should know of this node's streams."""

    destination: str
    endpoint: ControlEndpoint
    addresses: tuple[str, ...]
    """The addresses that this node's copies may come from."""
    streams: tuple[Stream, ...]
