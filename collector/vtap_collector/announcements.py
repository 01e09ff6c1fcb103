"""What agents announce (docs/architecture.md, "The control channel"), validated strictly."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from vtap_collector.errors import Refused
from vtap_collector.native import MAX_ADDRESSES

MAX_STREAMS_PER_REQUEST = 4096
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
DNS_LABEL = rf"^{_LABEL}$"
DNS_SUBDOMAIN = rf"^{_LABEL}(\.{_LABEL})*$"

Label = Annotated[str, StringConstraints(pattern=DNS_LABEL, max_length=63)]
"""An RFC 1123 label: also a safe file name."""
Subdomain = Annotated[str, StringConstraints(pattern=DNS_SUBDOMAIN, max_length=253)]
"""An RFC 1123 subdomain: also a safe file name, since no label is empty."""
Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
Uint64 = Annotated[int, Field(ge=0, lt=2**64)]


def _address(text: str) -> str:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


Address = Annotated[str, StringConstraints(max_length=45), AfterValidator(_address)]


M = TypeVar("M", bound=BaseModel)


class _Strict(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid", strict=True)


class TapName(_Strict, frozen=True):
    """Names a VirtualTap."""

    namespace: Label
    name: Subdomain

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodName(_Strict, frozen=True):
    """Names one life of a pod."""

    namespace: Label
    name: Subdomain
    uid: Annotated[str, StringConstraints(max_length=64, pattern=r"^[\x21-\x7e]*$")] = ""


class Stream(_Strict, frozen=True):
    """One stream: what one tap point sends under one key, numbered from 0. `snapLength` 0 means whole packets."""

    key: Uint32
    incarnation: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    trailer: bool
    tap: TapName
    pod: PodName
    interface: Annotated[str, StringConstraints(min_length=1, max_length=15, pattern=r"^[\x21-\x2e\x30-\x7e]+$")]
    direction: Literal["Ingress", "Egress"]
    snapLength: Uint32 = 0


class Announcement(_Strict, frozen=True):
    """All streams that a node sends here. `taiOffset` is TAI minus UTC in seconds."""

    version: Uint64
    addresses: Annotated[list[Address], Field(min_length=1, max_length=MAX_ADDRESSES)]
    taiOffset: Annotated[int, Field(ge=-3600, le=3600)]
    streams: Annotated[list[Stream], Field(max_length=MAX_STREAMS_PER_REQUEST)]

    @model_validator(mode="after")
    def _distinct(self) -> Announcement:
        repeated = [pair for pair, times in Counter((s.key, s.incarnation) for s in self.streams).items() if times > 1]
        if repeated:
            raise ValueError(f"streams: key {repeated[0][0]} with incarnation {repeated[0][1]} is there twice")
        return self


Reason = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,32}$")]


class AgentTerms(_Strict, frozen=True):
    """The agent's side of one stream's ledger but for what was sent, in wire packets; `dropped` is by reason."""

    seen: Uint64
    excluded: Uint64
    unsampled: Uint64
    limited: Uint64
    dropped: Annotated[dict[Reason, Uint64], Field(max_length=32)]


class Total(_Strict, frozen=True):
    """What has left of one stream. `nextSequence` counts modulo 2**32 or on; both are taken.

    `before` is what `nextSequence` was when the collector was told of the streams last.
    """

    key: Uint32
    incarnation: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    sent: Uint64
    nextSequence: Uint64
    before: Uint64 = 0
    terms: AgentTerms | None = None


class Totals(_Strict, frozen=True):
    """Totals of a node's streams, read before the request was made."""

    streams: Annotated[list[Total], Field(max_length=2 * MAX_STREAMS_PER_REQUEST)]


def parse_announcement(body: bytes) -> Announcement:
    """Raises Refused with `field.path: what is wrong`."""
    return _parse(Announcement, body)


def parse_totals(body: bytes) -> Totals:
    """Raises Refused with `field.path: what is wrong`."""
    return _parse(Totals, body)


def parse_node(name: str) -> str:
    """A node's name as it stands in the path. Raises Refused."""
    return _parse(_NodePath, {"node": name}).node


def parse_tap(text: str) -> TapName:
    """ "NAMESPACE/NAME". Raises Refused."""
    namespace, slash, name = text.partition("/")
    if not slash:
        raise Refused("tap: write it as NAMESPACE/NAME")
    return _parse(_TapPath, {"tap": {"namespace": namespace, "name": name}}).tap


class _NodePath(_Strict, frozen=True):
    node: Subdomain


class _TapPath(_Strict, frozen=True):
    tap: TapName


def _parse(model: type[M], body: object) -> M:
    try:
        return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        raise Refused(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
