"""From what the API server tells to typed objects, or to a sentence; what was understood last stays in force."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from vtap_agent.sources.kubernetes.following import Object
from vtap_api import TapDestination, TapPeerSlice, VirtualTap
from vtap_api.load import load_text

M = TypeVar("M", VirtualTap, TapDestination, TapPeerSlice)

API_VERSION = "vtap.dev/v1alpha1"
_METADATA = ("name", "namespace", "uid", "generation", "creationTimestamp")
NEWER = "; the version read before stays in force"
NONE = "; it is left out"
CURE = " (if its CRD is newer or older than this agent: upgrade both)"


def compact(item: Object) -> bytes | None:
    """What we need of an object of ours, as JSON that is equal where it says the same. None while it is being deleted."""
    metadata = item["metadata"]
    if "deletionTimestamp" in metadata:
        return None
    kept = {"metadata": {name: metadata[name] for name in _METADATA if name in metadata}, "spec": item.get("spec")}
    if runs := (item.get("status") or {}).get("collector"):
        kept["status"] = {"collector": runs}
    return json.dumps(kept, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class Reading(Generic[M]):
    """An object as it came, and what is in force of it with the JSON that was made of; `problem` is a sentence or empty."""

    raw: bytes
    good: M | None
    good_raw: bytes
    problem: str = ""


def read(model: type[M], raw: bytes, before: Reading[M] | None = None) -> Reading[M]:
    """What an object says; where it is not understood, what it said `before` (if it is the same object). Pure."""
    data = json.loads(raw)
    try:
        return Reading(raw, model.model_validate(data, by_alias=True, by_name=False), raw)
    except ValidationError:
        wrong = _sentence(model, data)
    good = before.good if before is not None else None
    if before is None or good is None or good.metadata.uid != data["metadata"].get("uid", ""):
        return Reading(raw, None, b"", wrong + NONE + CURE)
    return Reading(raw, good, before.good_raw, wrong + NEWER + CURE)


def _sentence(model: type[M], data: Mapping[str, object]) -> str:
    """The first mistake, said as `vtap validate` says it."""
    document = {"apiVersion": API_VERSION, "kind": model.__name__, **data}
    try:
        problems = load_text(json.dumps(document)).problems
    except ValueError:  # such as characters that YAML has no text for: one object's mistake must not be the node's
        problems = ()
    metadata = data["metadata"]
    assert isinstance(metadata, dict)
    name = "/".join(str(metadata[part]) for part in ("namespace", "name") if part in metadata)
    said = f"{problems[0].path}: {problems[0].wrong}" if problems else "can't be understood"
    return f"{model.__name__} {name}: {said}"


class Readings(Generic[M]):
    """Reads each object once; used by one thread. Objects that are asked for no more are forgotten."""

    def __init__(self, model: type[M]) -> None:
        self._model = model
        self._known: dict[str, Reading[M]] = {}

    def restore(self, good: Mapping[str, bytes]) -> None:
        """What was in force when the agent last ran."""
        self._known = {name: found for name, raw in good.items() if (found := read(self._model, raw)).good is not None}

    def read(self, raws: Mapping[str, bytes]) -> None:
        """These are the objects now."""
        known = self._known
        self._known = {
            name: before if (before := known.get(name)) is not None and before.raw == raw else read(self._model, raw, before)
            for name, raw in sorted(raws.items())
        }

    @property
    def models(self) -> tuple[M, ...]:
        """What is in force, by name."""
        return tuple(reading.good for reading in self._known.values() if reading.good is not None)

    @property
    def good(self) -> dict[str, bytes]:
        """The JSON of what is in force, by name."""
        return {name: reading.good_raw for name, reading in self._known.items() if reading.good is not None}

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each object that is not in force as it stands."""
        return tuple(reading.problem for reading in self._known.values() if reading.problem)
