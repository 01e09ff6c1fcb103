"""Why a tap cannot be had at all, whoever says it: operator, agent and `vtap validate` give the very same sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vtap_api.selectors import matches
from vtap_api.tapdestination import TapDestination
from vtap_api.virtualtap import BackendName, VirtualTap

AVAILABLE_BACKENDS = (BackendName.AUTO, BackendName.OVS_MIRROR, BackendName.OVS_GROUP, BackendName.EBPF)
"""Backends of this version."""
ACCEPTED = "the tap is valid and its destination is allowed"
"""What is said of a tap that is not refused."""
_FIELD = "spec.destinationRef.name"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`reason` is one word for programs, `sentence` tells a person what to change."""

    reason: str
    sentence: str


def refusal(tap: VirtualTap, destinations: Mapping[str, TapDestination], namespace_labels: Mapping[str, str]) -> Refusal | None:
    """None where nothing is wrong with the tap. `destinations` by name; `namespace_labels` are those of the tap's namespace."""
    wanted = tap.spec.destination_ref.name
    refused = refusal_of(tap.metadata.namespace, wanted, tap.spec.backend, destinations, namespace_labels)
    if refused is None and destinations[wanted].spec.rewrite is not None and _cuts(tap):
        return cut_without_tunnel(wanted)
    return refused


def _cuts(tap: VirtualTap) -> bool:
    return tap.spec.packet.snap_length is not None or tap.spec.packet.headers_only


def refusal_of(
    namespace: str,
    wanted: str,
    backend: BackendName,
    destinations: Mapping[str, TapDestination],
    namespace_labels: Mapping[str, str],
) -> Refusal | None:
    """As `refusal`, by what it looks at of a tap: its namespace, the destination that it names, its backend."""
    destination = destinations.get(wanted)
    if destination is None:
        return destination_not_found(wanted, destinations)
    if not namespace_allowed(destination, namespace_labels):
        return destination_not_allowed(wanted, namespace)
    if backend not in AVAILABLE_BACKENDS:
        return backend_unavailable(backend)
    return None


def namespace_allowed(destination: TapDestination, namespace_labels: Mapping[str, str]) -> bool:
    """Whether taps of a namespace with these labels may use a destination."""
    allowed = destination.spec.allowed_namespaces
    if allowed.selector is None:
        return allowed.from_ == "All"
    return matches(allowed.selector, namespace_labels)


def destination_not_found(wanted: str, known: Iterable[str]) -> Refusal:
    """`known` are the names of all destinations."""
    there = ", ".join(sorted(known)) or "none"
    sentence = f"{_FIELD}: there is no TapDestination {wanted!r} (there is: {there}); create it or name another"
    return Refusal("DestinationNotFound", sentence)


def destination_not_allowed(wanted: str, namespace: str) -> Refusal:
    """The destination is not for taps of this namespace."""
    sentence = (
        f"{_FIELD}: TapDestination {wanted!r} does not allow namespace {namespace!r}; "
        "ask its owner to extend spec.allowedNamespaces, or name another"
    )
    return Refusal("DestinationNotAllowed", sentence)


def destination_unusable(wanted: str) -> Refusal:
    """The destination is one that no agent of this version can send to."""
    sentence = f"{_FIELD}: TapDestination {wanted!r} has no address that this agent can send to; give it one"
    return Refusal("DestinationUnusable", sentence)


def cut_without_tunnel(wanted: str) -> Refusal:
    """A cut copy that is not wrapped has an IP header that tells another length, and bridges drop such packets."""
    sentence = (
        f"spec.packet: TapDestination {wanted!r} has copies rewritten, not wrapped, so that cut ones would be broken packets on "
        "their way; remove spec.packet, or name a destination of another kind"
    )
    return Refusal("PacketCut", sentence)


def backend_unavailable(backend: str) -> Refusal:
    """The backend is not in this version."""
    known = " or ".join(AVAILABLE_BACKENDS)
    return Refusal("BackendUnavailable", f"spec.backend: {backend} is not in this version; use {known}")
