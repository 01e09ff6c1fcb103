"""Key blocks: each node has its own 4,096 stream keys, given once. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from vtap_api.base import API_VERSION
from vtap_api.tapnode import LAST_FIRST_KEY, MAX_KEYS

FIRST = MAX_KEYS
"""Key 0 is nobody's, so that the first block is left out as a whole."""
BLOCKS = LAST_FIRST_KEY // MAX_KEYS


def allocate(nodes: Iterable[str], held: Mapping[str, tuple[int, int]]) -> tuple[dict[str, int], tuple[str, ...]]:
    """(first key by node, nodes that no block is left for). `held` are blocks, (first key, number of keys), of all TapNodes.

    Blocks go up from the highest that is held, and only then into gaps, so that one which a node that is gone had is not soon
    another's.
    """
    taken = sorted(held.values())
    given: dict[str, int] = {}
    without: list[str] = []
    candidates = _free(taken)
    for node in sorted(set(nodes) - held.keys()):
        first = next(candidates, None)
        if first is None:
            without.append(node)
        else:
            given[node] = first
    return given, tuple(without)


def _free(taken: list[tuple[int, int]]) -> Iterator[int]:
    starts = range(FIRST, LAST_FIRST_KEY + 1, MAX_KEYS)
    used = {
        first // MAX_KEYS + offset for first, size in taken for offset in range(1 + (first % MAX_KEYS + size - 1) // MAX_KEYS)
    }
    highest = max((number for number in used if number <= BLOCKS), default=0)
    free = [start for start in starts if start // MAX_KEYS not in used]
    above = [start for start in free if start // MAX_KEYS > highest]
    yield from above
    yield from (start for start in free if start // MAX_KEYS < highest)


def shared(held: Mapping[str, tuple[int, int]]) -> tuple[tuple[str, str], ...]:
    """Pairs of nodes whose blocks overlap, as after a restored backup: their streams cannot be told apart."""
    ordered = sorted((first, size, node) for node, (first, size) in held.items())
    return tuple((one[2], other[2]) for one, other in pairwise(ordered) if one[0] + one[1] > other[0])


def tap_node(node: str, uid: str, first: int) -> dict[str, Any]:
    """The object for a node that has none. It goes with its Node."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    return {
        "apiVersion": API_VERSION,
        "kind": "TapNode",
        "metadata": {"name": node, "ownerReferences": [owner]},
        "spec": {"keyBlock": {"first": first, "size": MAX_KEYS}},
    }
