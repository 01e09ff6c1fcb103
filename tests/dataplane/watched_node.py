"""An observer of a lab's node that tests can wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from vtap_agent.drivers.netlink import enter_network_namespace
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.inventory import Observer, PodSource
from vtap_agent.plan.inventory_model import Inventory, NextHop, PodInterface
from vtap_lab.lab import Lab

DEADLINE = 10.0
T = TypeVar("T")


def inside(netns: str, function: Callable[[], T]) -> T:
    """Call `function` on a thread in that network namespace, which threads started there inherit."""

    def enter_and_call() -> T:
        with Path(f"/run/netns/{netns}").open() as namespace:
            enter_network_namespace(namespace.fileno())
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_call).result()


class Pods(PodSource, Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


class Watched:
    """An observer of a lab's node that can be waited for."""

    def __init__(self, lab: Lab, pods: Pods, probe_interval: float = 5.0) -> None:
        self.ovsdb = OvsdbConnection(lab.switch.db_remote)
        self.pods = pods
        self.observer = Observer(self.ovsdb, pods, probe_interval)
        self._changed = threading.Event()
        self.observer.on_change(self._changed.set)
        inside(lab.node, self._start)

    def _start(self) -> None:
        self.pods.start()
        self.observer.start()

    def stop(self) -> None:
        self.observer.stop()
        self.pods.stop()
        self.ovsdb.close()

    def snapshot(self, *remotes: str) -> Inventory:
        return self.observer.snapshot(frozenset(remotes))

    def hop(self, remote: str) -> NextHop:
        return self.snapshot(remote).next_hops[remote]

    def interfaces(self, pod: str) -> dict[str, PodInterface]:
        return {item.name: item for item in self.snapshot().interfaces if item.pod.name == pod}

    def wait(self, condition: Callable[[], bool]) -> None:
        """By change events alone: whoever misses one fails here."""
        deadline = time.monotonic() + DEADLINE
        while True:
            self._changed.clear()
            if condition():
                return
            assert self._changed.wait(deadline - time.monotonic()), self.snapshot()

    def has_been_quiet(self, seconds: float) -> bool:
        self._changed.clear()
        return not self._changed.wait(seconds)
