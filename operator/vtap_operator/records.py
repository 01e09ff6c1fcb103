"""What the operator remembers of our own objects: small, immutable, and made of whatever the API server holds.

An object that this version cannot read gives a record with a sentence, never an exception.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from pydantic import ValidationError

from vtap_api import LabelSelector, TapDestination, VirtualTap
from vtap_api.load import load_text
from vtap_api.virtualtap import BackendName
from vtap_operator import ttl
from vtap_operator.conditions import NO_STATUS, TapStatus, conditions_from, tap_status_from
from vtap_operator.conditions import Condition as ConditionRecord
from vtap_operator.peers.selectors import PeerKey, canonical, parsed, peer_keys
from vtap_operator.wire import Wire

TapId = tuple[str, str]
"""Namespace and name."""
_ESCAPED = re.compile(r"[^\x20-\x7e\U00010000-\U0010ffff]")
_NOBODY = '{"matchLabels":{"vtap.dev/nobody":"nobody"}}'


@dataclass(frozen=True, slots=True)
class Tap:
    """A VirtualTap. `problem` is a sentence where its spec cannot be read; then the rest of the spec is not to be used."""

    namespace: str
    name: str
    uid: str
    generation: int
    version: str
    destination: str = ""
    backend: BackendName = BackendName.AUTO
    pod_selector: str = _NOBODY
    peers: frozenset[PeerKey] = frozenset()
    expiry: datetime | None = None
    problem: str = ""
    status: TapStatus = NO_STATUS

    @property
    def id(self) -> TapId:
        """Names it."""
        return (self.namespace, self.name)

    @property
    def selector(self) -> LabelSelector:
        """Whose packets are copied."""
        return parsed(self.pod_selector)


@dataclass(frozen=True, slots=True)
class Destination:
    """A TapDestination. `model` is None, and `problem` a sentence, where its spec cannot be read."""

    name: str
    uid: str
    generation: int
    version: str
    model: TapDestination | None
    problem: str = ""
    observed_generation: int = 0
    collector: tuple[str, int, str] | None = None
    """Address, port and URL as its status has them."""
    conditions: tuple[ConditionRecord, ...] = ()

    @property
    def is_run_here(self) -> bool:
        """Whether the operator runs a collector for it."""
        return self.model is not None and self.model.spec.collector is not None and self.model.spec.collector.address is None


@dataclass(frozen=True, slots=True)
class Said:
    """What a node says of one aspect of a tap."""

    status: str = "Unknown"
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a node says of a tap."""

    generation: int
    matched: int
    attached: int
    failed: int
    programmed: Said
    delivering: Said


@dataclass(frozen=True, slots=True)
class NodeReports:
    """A TapNode: its key block, (first key, number), and what its agent says of taps. `problem` is about what cannot be read."""

    name: str
    uid: str
    version: str
    block: tuple[int, int] | None = None
    reports: Mapping[TapId, Report] = field(default_factory=dict[TapId, Report])
    problem: str = ""


def _meta(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    return raw.get("metadata") or {}


def _problem(document: Mapping[str, Any]) -> str:
    """The sentence that `vtap validate` prints."""
    # Escaped as in JSON, a character beyond U+FFFF would be two to YAML, and no text any more.
    text = _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(document, ensure_ascii=False))
    try:
        problems = load_text(text).problems
    except ValueError:
        problems = ()
    return problems[0].sentence if problems else "spec: cannot be read by this version of the operator; upgrade it"


def _without_line(sentence: str) -> str:
    """Lines are those of a file that a user never saw."""
    return sentence.split(": ", 1)[1] if sentence.startswith("line ") else sentence


def read_tap(raw: Mapping[str, Any]) -> Tap:
    """From an object as the API server sends it."""
    meta = _meta(raw)
    namespace, name = sys.intern(meta.get("namespace", "default")), meta.get("name", "")
    known: dict[str, Any] = {
        "uid": meta.get("uid", ""),
        "generation": meta.get("generation", 0),
        "version": meta.get("resourceVersion", ""),
        "status": tap_status_from(raw.get("status")),
    }
    document = {
        "apiVersion": raw.get("apiVersion"),
        "kind": "VirtualTap",
        "metadata": {"name": name, "namespace": namespace},
        "spec": raw.get("spec"),
    }
    try:
        spec = VirtualTap.model_validate(document).spec
        return Tap(
            namespace,
            name,
            destination=sys.intern(spec.destination_ref.name),
            backend=spec.backend,
            pod_selector=sys.intern(canonical(spec.pod_selector)),
            peers=peer_keys(spec, namespace),
            expiry=ttl.expiry(meta.get("creationTimestamp", ""), spec.ttl),
            **known,
        )
    except (ValidationError, ValueError):
        return Tap(namespace, name, problem=_without_line(_problem(document)), **known)


def read_destination(raw: Mapping[str, Any]) -> Destination:
    """From an object as the API server sends it."""
    meta, status = _meta(raw), raw.get("status") or {}
    name = meta.get("name", "")
    document = {
        "apiVersion": raw.get("apiVersion"),
        "kind": "TapDestination",
        "metadata": {"name": name},
        "spec": raw.get("spec"),
    }
    model, problem = None, ""
    try:
        model = TapDestination.model_validate(document)
    except ValidationError:
        problem = _without_line(_problem(document))
    return Destination(
        name,
        meta.get("uid", ""),
        meta.get("generation", 0),
        meta.get("resourceVersion", ""),
        model,
        problem,
        status.get("observedGeneration", 0) if isinstance(status, Mapping) else 0,
        _collector_address(status),
        conditions_from(status.get("conditions") if isinstance(status, Mapping) else None),
    )


def _collector_address(status: Any) -> tuple[str, int, str] | None:
    collector = status.get("collector") if isinstance(status, Mapping) else None
    if not isinstance(collector, Mapping) or not collector.get("address"):
        return None
    return (str(collector["address"]), int(collector.get("port") or 0), str(collector.get("url", "")))


class _Condition(Wire, frozen=True):
    type: str = ""
    status: str = "Unknown"
    reason: str = ""
    message: str = ""


class _TapOnNode(Wire, frozen=True):
    namespace: str
    name: str
    generation: int = 0
    matched_pods: int = 0
    attached_pods: int = 0
    failed_pods: int = 0
    conditions: list[_Condition] | None = None


def read_tap_node(raw: Mapping[str, Any]) -> NodeReports:
    """From an object as the API server sends it. An entry that cannot be read is left out and said."""
    meta, spec, status = _meta(raw), raw.get("spec") or {}, raw.get("status") or {}
    block = spec.get("keyBlock") or {}
    reports: dict[TapId, Report] = {}
    problem = ""
    for entry in status.get("taps") or () if isinstance(status, Mapping) else ():
        try:
            one = msgspec.convert(entry, _TapOnNode)
        except (msgspec.ValidationError, TypeError) as error:
            problem = (
                f"status.taps of TapNode {meta.get('name', '')} cannot be read ({error}); upgrade agents and operator together"
            )
            continue
        reports[sys.intern(one.namespace), one.name] = _report(one)
    return NodeReports(
        meta.get("name", ""),
        meta.get("uid", ""),
        meta.get("resourceVersion", ""),
        (block["first"], block.get("size", 0)) if "first" in block else None,
        reports,
        problem,
    )


def _report(one: _TapOnNode) -> Report:
    said = {condition.type: condition for condition in one.conditions or ()}

    def of(kind: str) -> Said:
        known = said.get(kind)
        return Said() if known is None else Said(sys.intern(known.status), sys.intern(known.reason), sys.intern(known.message))

    return Report(one.generation, one.matched_pods, one.attached_pods, one.failed_pods, of("Programmed"), of("Delivering"))
