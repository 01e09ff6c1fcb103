"""Copies without a tunnel as the loop sees them: the edges of this node's monitors, and whether those that it sends to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vtap_agent.errors import VtapError
from vtap_agent.pipeline.recover import EdgeCounters, EdgePrograms
from vtap_agent.pipeline.recover_probe import EdgeProber
from vtap_agent.plan import recover
from vtap_agent.plan.destinations import resolve_destination
from vtap_agent.plan.inventory_model import Inventory
from vtap_api import TapDestination


class Edges:
    """`look` once a pass; one thread uses it. `root` is the pipeline's; `changed` is called when an edge comes or goes."""

    def __init__(self, root: Path, changed: Callable[[], None]) -> None:
        self._programs = EdgePrograms(root)
        self._prober = EdgeProber(changed)
        self.counted: Mapping[str, EdgeCounters] = {}
        """What this node's edges had met when last looked, by monitor; replaced whole."""

    def look(self, destinations: Iterable[TapDestination], inventory: Inventory) -> Inventory:
        """Serve the monitors among this node's pods; the inventory with the ways of copies without a tunnel."""
        resolved = [known for item in destinations if (known := resolve_destination(item)) is not None]
        addresses = recover.with_edge(resolved)
        problems = recover.out_of_reach(addresses, inventory.interfaces)
        try:
            problems += self._programs.apply(recover.monitors(addresses, inventory.interfaces))
        except (VtapError, OSError) as error:
            problems += (f"copies can't be recovered on their way to this node's monitors: {error}",)
        answering = self._prober.watch(recover.targets(resolved, inventory.next_hops))
        problems += (self._prober.problem,) if self._prober.problem else ()
        self.counted = self._programs.counters()
        return recover.with_ways(inventory, resolved, answering, problems)

    def close(self) -> None:
        """Edges work on without us."""
        self._prober.stop()
        self._programs.close()

    def destroy(self) -> None:
        """Nothing of ours remains at any edge."""
        self._prober.stop()
        self._programs.destroy()
