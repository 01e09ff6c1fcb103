"""Gives each Node its TapNode, with a block of stream keys, once."""

from __future__ import annotations

import logging

import msgspec

from vtap_operator import keys
from vtap_operator.client import Client
from vtap_operator.events import News, Poster, Subject
from vtap_operator.keeping import now
from vtap_operator.resources import TAP_NODES
from vtap_operator.wire import KeyedNode, Page
from vtap_operator.work import Queue
from vtap_operator.world import World

log = logging.getLogger(__name__)

ALL = "all"
PAGE = 50
"""TapNodes of one page: each may name thousands of tap points."""


class NodeKeeper:
    """One look at all nodes at a time, so that no two blocks are given away at once."""

    def __init__(self, client: Client, world: World, poster: Poster) -> None:
        self._client = client
        self._world = world
        self._poster = poster
        self._decoder = msgspec.json.Decoder(Page[KeyedNode])
        self.queue = Queue[str]("nodes", self._handle)

    def changed(self) -> None:
        """A Node or a TapNode came or went."""
        if self._lacking(self._world_blocks()):
            self.queue.mark(ALL)

    def _world_blocks(self) -> dict[str, tuple[int, int]]:
        return {name: node.block for name, node in self._world.tap_nodes.items() if node.block is not None}

    def _lacking(self, held: dict[str, tuple[int, int]]) -> set[str]:
        return self._world.nodes.keys() - held.keys()

    async def _handle(self, _: str) -> None:
        there = await self._list()
        held = {name: (block.first, block.size) for name, one in there.items() if (block := one.spec.key_block) is not None}
        for one, other in keys.shared(held):
            what = f"it has stream keys that node {one} has, too; delete this TapNode, and it gets keys of its own"
            said = News("Warning", "KeysShared", what)
            self._poster.post(Subject(TAP_NODES.api_version, "TapNode", "", other, there[other].metadata.uid), [said], now())
        given, without = keys.allocate(self._lacking(held), held)
        for node, first in given.items():
            await self._give(node, first, there.get(node))
        for node in without:
            what = (
                f"all {keys.BLOCKS} blocks of stream keys are given away, so that nothing is copied here; delete unused TapNodes"
            )
            self._poster.post(Subject("v1", "Node", "", node, self._world.nodes[node]), [News("Warning", "NoKeys", what)], now())

    async def _give(self, node: str, first: int, held: KeyedNode | None) -> None:
        body = keys.tap_node(node, self._world.nodes.get(node, ""), first)
        if held is not None:
            await self._client.merge(TAP_NODES, node, {"metadata": {"uid": held.metadata.uid}, "spec": body["spec"]})
        elif not await self._client.create(TAP_NODES, body):
            self.queue.mark(ALL)
        log.info("node %s has stream keys from %d", node, first)

    async def _list(self) -> dict[str, KeyedNode]:
        """As the API server has them now: a block that is given away twice would mix up streams."""
        found: dict[str, KeyedNode] = {}
        following = ""
        while True:
            params = {"limit": str(PAGE), **({"continue": following} if following else {})}
            page = self._decoder.decode(await self._client.page(TAP_NODES, params=params))
            found.update((one.metadata.name, one) for one in page.items or ())
            following = page.metadata.continue_
            if not following:
                return found
