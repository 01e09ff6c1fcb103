"""Each node gets keys of its own, once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_api import TapNode
from vtap_api.tapnode import MAX_KEYS
from vtap_operator import keys

NODES = st.sets(st.sampled_from([f"node-{number}" for number in range(8)]))
BLOCKS = st.lists(st.integers(1, keys.BLOCKS).map(lambda number: number * MAX_KEYS), unique=True, max_size=8)


@settings(deadline=None)
@given(NODES, NODES, BLOCKS)
def test_blocks_never_overlap(nodes: set[str], holders: set[str], blocks: list[int]) -> None:
    held = {node: (first, MAX_KEYS) for node, first in zip(sorted(holders), blocks, strict=False)}
    given_, without = keys.allocate(nodes, held)
    assert given_.keys() == nodes - held.keys() and not without
    assert keys.shared({**held, **{node: (first, MAX_KEYS) for node, first in given_.items()}}) == ()


@settings(deadline=None)
@given(NODES)
def test_a_tap_node_is_valid_and_goes_with_its_node(nodes: set[str]) -> None:
    given_, _ = keys.allocate(nodes, {})
    for node, first in given_.items():
        made = TapNode.model_validate(keys.tap_node(node, "uid-of-node", first))
        assert made.spec.key_block is not None and made.spec.key_block.first == first
        assert made.metadata.owner_references[0]["uid"] == "uid-of-node"


def test_a_block_of_a_node_that_is_gone_is_not_soon_anothers() -> None:
    held = {"a": (4096, 4096), "c": (3 * 4096, 4096)}
    assert keys.allocate(["d"], held) == ({"d": 4 * 4096}, ())


def test_gaps_are_taken_when_nothing_is_left_above_and_nobody_gets_what_is_not_there() -> None:
    held = {f"n{number}": (number * MAX_KEYS, MAX_KEYS) for number in range(1, keys.BLOCKS + 1) if number != 7}
    given_, without = keys.allocate(["x", "y"], held)
    assert given_ == {"x": 7 * MAX_KEYS} and without == ("y",)


def test_blocks_of_any_size_are_respected_and_shared_ones_found() -> None:
    held = {"a": (5000, 100), "b": (5050, 10), "c": (9000, 4096)}
    given_, _ = keys.allocate(["d"], held)
    assert given_["d"] >= 9000 + 4096
    assert keys.shared(held) == (("a", "b"),)
