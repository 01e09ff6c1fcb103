"""TapPeerSlices as objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from vtap_api import LabelSelector
from vtap_api.base import API_VERSION
from vtap_api.names import PEER_LABEL
from vtap_operator.peers.selectors import PeerKey, canonical
from vtap_operator.wire import PeerSlice

PREFIX = "peer-"


def slice_name(selector_hash: str, index: int) -> str:
    """An object's name."""
    return f"{PREFIX}{selector_hash}-{index}"


def parse_name(name: str) -> tuple[str, int] | None:
    """(hash of the selector, index); None for a name that we would not give."""
    selector_hash, _, index = name.removeprefix(PREFIX).rpartition("-")
    if not name.startswith(PREFIX) or not selector_hash or not index.isdecimal():
        return None
    return selector_hash, int(index)


def slice_object(
    key: PeerKey, selector_hash: str, index: int, count: int, addresses: Sequence[str], namespace: str
) -> dict[str, Any]:
    """The object. Selectors are as in the rule, so that agents compare them field by field."""
    spec: dict[str, Any] = {"tapNamespace": key.tap_namespace, "index": index, "count": count, "addresses": list(addresses)}
    if key.pod_selector is not None:
        spec["podSelector"] = json.loads(key.pod_selector)
    if key.namespace_selector is not None:
        spec["namespaceSelector"] = json.loads(key.namespace_selector)
    return {
        "apiVersion": API_VERSION,
        "kind": "TapPeerSlice",
        "metadata": {"name": slice_name(selector_hash, index), "namespace": namespace, "labels": {PEER_LABEL: selector_hash}},
        "spec": spec,
    }


def digest(key: PeerKey | None, index: int, count: int, addresses: Sequence[str]) -> int:
    """The same for slices that say the same, within this process."""
    return hash((key, index, count, tuple(addresses)))


def key_of(one: PeerSlice) -> PeerKey | None:
    """The selector that a slice is of; None where it cannot be read."""
    try:
        return PeerKey(
            one.spec.tap_namespace, _canonical(bytes(one.spec.pod_selector)), _canonical(bytes(one.spec.namespace_selector))
        )
    except ValidationError:
        return None


@lru_cache(maxsize=4096)
def _canonical(raw: bytes) -> str | None:
    return canonical(LabelSelector.model_validate_json(raw)) if raw and raw != b"null" else None
