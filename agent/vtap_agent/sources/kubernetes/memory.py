"""What the agent last saw of the cluster, on disk: what it goes on with where the API server is away when it starts.

Only what matters to this node is kept. The file may name what tenants do not tell one another, so that only its owner reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtap_agent.errors import Retry
from vtap_agent.plan.cluster import InForce, PeerKey, tap_key
from vtap_agent.sources.kubernetes.pods import PodRecord
from vtap_api import LabelSelector, VirtualTap
from vtap_api.tapnode import KeyBlock

FORMAT = 1
FILE = "cluster.json"
MODE = 0o600


@dataclass(frozen=True, slots=True)
class Memory:
    """Objects as compact JSON by name; `in_force` only where it is another version than the object's."""

    key_block: KeyBlock | None = None
    taps: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    destinations: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    slices: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    pods: Mapping[str, PodRecord] = field(default_factory=dict[str, PodRecord])
    in_force: InForce = field(default_factory=InForce)


def load(path: Path) -> Memory | None:
    """What `save` wrote; None where there is no file. Raises ValueError where it is damaged: then it is of no use."""
    try:
        data: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return _memory(data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is not what this agent wrote ({error})") from error


def save(path: Path, memory: Memory) -> None:
    """Replace the file whole. Raises Retry where it can't be written."""
    text = json.dumps(_data(memory))
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise Retry(
            f"{path}: what was seen of the cluster cannot be saved ({error.strerror or error}); make room there"
        ) from error


def _data(memory: Memory) -> dict[str, Any]:
    block, force = memory.key_block, memory.in_force
    return {
        "format": FORMAT,
        "keyBlock": None if block is None else block.model_dump(by_alias=True),
        "taps": _texts(memory.taps),
        "destinations": _texts(memory.destinations),
        "slices": _texts(memory.slices),
        "namespaces": {name: dict(labels) for name, labels in memory.namespaces.items()},
        "pods": {name: record.as_json() for name, record in memory.pods.items()},
        "inForce": [_dump(tap) for tap in force.taps.values()],
        "peers": [
            {
                "tapNamespace": key.tap_namespace,
                "podSelector": _dump(key.pod_selector),
                "namespaceSelector": _dump(key.namespace_selector),
                "addresses": sorted(addresses),
            }
            for key, addresses in force.peers.items()
        ],
    }


def _memory(data: Mapping[str, Any]) -> Memory:
    block = data["keyBlock"]
    taps = [VirtualTap.model_validate(item) for item in data["inForce"]]
    return Memory(
        key_block=None if block is None else KeyBlock.model_validate(block),
        taps=_bytes(data["taps"]),
        destinations=_bytes(data["destinations"]),
        slices=_bytes(data["slices"]),
        namespaces={str(name): dict(labels) for name, labels in data["namespaces"].items()},
        pods={str(name): PodRecord.from_json(item) for name, item in data["pods"].items()},
        in_force=InForce({tap_key(tap): tap for tap in taps}, _peers(data["peers"])),
    )


def _peers(items: Iterable[Mapping[str, Any]]) -> dict[PeerKey, frozenset[str]]:
    return {
        PeerKey(str(item["tapNamespace"]), _selector(item["podSelector"]), _selector(item["namespaceSelector"])): frozenset(
            map(str, item["addresses"])
        )
        for item in items
    }


def _selector(data: Any) -> LabelSelector | None:
    return None if data is None else LabelSelector.model_validate(data)


def _dump(model: VirtualTap | LabelSelector | None) -> Any:
    return None if model is None else model.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _texts(raws: Mapping[str, bytes]) -> dict[str, str]:
    return {name: raw.decode() for name, raw in raws.items()}


def _bytes(texts: Mapping[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in texts.items()}
