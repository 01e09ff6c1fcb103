"""The cluster as this node's agent sees it: taps for the loop, pods for the observer, the node's own TapNode for the report."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from vtap_agent.errors import VtapError
from vtap_agent.sources.desired import DesiredSnapshot
from vtap_agent.sources.kubernetes import memory as memories
from vtap_agent.sources.kubernetes.access import Access
from vtap_agent.sources.kubernetes.desired import Outcome, Seen, desired_of
from vtap_agent.sources.kubernetes.following import Follower, Object, Resource, Sink
from vtap_agent.sources.kubernetes.memory import Memory
from vtap_agent.sources.kubernetes.pods import KubernetesPods
from vtap_agent.sources.kubernetes.reading import Readings, compact
from vtap_agent.sources.kubernetes.shelf import Shelf
from vtap_api import TapDestination, TapPeerSlice, VirtualTap
from vtap_api.tapnode import KeyBlock

log = logging.getLogger(__name__)

API = "/apis/vtap.dev/v1alpha1"
SAVE_EVERY = 1.0
PATIENCE = 5.0
"""Seconds that the API server has to tell of everything before the agent begins with what it remembers."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class TapNodeSeen:
    """Our own TapNode. `status` is what it was when it was first seen: later ones are our own writing."""

    uid: str
    generation: int
    key_block: KeyBlock | None
    status: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)


def tap_node_of(item: Object) -> TapNodeSeen:
    """What is kept of it. A block that can't be understood is none."""
    metadata, block = item["metadata"], (item.get("spec") or {}).get("keyBlock")
    try:
        understood = None if block is None else KeyBlock.model_validate(block)
    except ValidationError as error:
        log.warning("TapNode %s: spec.keyBlock can't be used: %s", metadata["name"], error)
        understood = None
    return TapNodeSeen(metadata["uid"], metadata.get("generation", 0), understood, item.get("status") or {})


def labels_of(item: Object) -> Mapping[str, str]:
    """What is kept of a namespace."""
    return dict(item["metadata"].get("labels") or {})


def namespaced(item: Object) -> tuple[str, bytes] | None:
    """What is kept of a slice: the namespace of the taps it is for, and its JSON."""
    raw = compact(item)
    return None if raw is None else (str((item.get("spec") or {}).get("tapNamespace", "")), raw)


def resources(node: str, namespace: str) -> dict[str, Resource]:
    """All that is followed, by name."""
    own = f"metadata.name={node}"
    found = (
        Resource("virtualtaps", f"{API}/virtualtaps"),
        Resource("tapdestinations", f"{API}/tapdestinations"),
        Resource("tappeerslices", f"{API}/namespaces/{namespace}/tappeerslices"),
        Resource("tapnodes", f"{API}/tapnodes", own),
        Resource("namespaces", "/api/v1/namespaces", metadata_only=True),
        Resource("pods", "/api/v1/pods", f"spec.nodeName={node}", from_cache=True),
    )
    return {resource.name: resource for resource in found}


class _Kept(Generic[V]):
    """The last value that was worked out, and of what: of the very same it would be the same."""

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self.value: V | None = None

    def get(self, *of: Any) -> V | None:
        return self.value if len(of) == len(self._of) and all(map(lambda a, b: a is b, of, self._of)) else None

    def put(self, value: V, *of: Any) -> V:
        self._of, self.value = of, value
        return value


class ClusterSource:
    """Use: construct; `on_change`; `start`; wait until `ready`; `snapshot` from one thread; `stop`. `pods` is for the observer.

    Callbacks come from other threads and must return at once, as `Mailbox.changed` does.
    """

    def __init__(self, access: Access, node: str, namespace: str, state: Path, pods: KubernetesPods | None = None) -> None:
        self._namespace = namespace
        self._path = state / memories.FILE
        self._callbacks: list[Callable[[], None]] = []
        self.pods = pods or KubernetesPods()
        self._taps = Shelf(compact, self._notify)
        self._destinations = Shelf(compact, self._notify)
        self._slices = Shelf(namespaced, self._notify)
        self._namespaces = Shelf(labels_of, self._notify)
        self._node = Shelf(tap_node_of, self._notify)
        self._node_name = f"/{node}"
        self._tap_readings = Readings(VirtualTap)
        self._destination_readings = Readings(TapDestination)
        self._slice_readings = Readings(TapPeerSlice)
        sinks: dict[str, Sink] = {
            "virtualtaps": self._taps,
            "tapdestinations": self._destinations,
            "tappeerslices": self._slices,
            "tapnodes": self._node,
            "namespaces": self._namespaces,
            "pods": self.pods.shelf,
        }
        self._followers = [Follower(access, item, sinks[name]) for name, item in resources(node, namespace).items()]
        self._outcome: Outcome | None = None
        self._kept: _Kept[DesiredSnapshot] = _Kept()
        self._began = 0.0
        self._remembered = Memory()
        self._keeper = _Keeper(self._path, self._notify)
        self.pods.on_change(self._notify)

    # --- life ------------------------------------------------------------------------------------------------------------

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register before `start`."""
        self._callbacks.append(callback)

    def start(self) -> None:
        """Take up what is remembered, and follow the API server."""
        self._began = time.monotonic()
        self._remember()
        self.pods.sandboxes.start()
        self._keeper.start()
        for follower in self._followers:
            follower.start()

    def stop(self) -> None:
        """End all threads, and save what there is to be saved."""
        for follower in self._followers:
            follower.stop()
        self.pods.sandboxes.stop()
        self._keeper.stop()

    def _remember(self) -> None:
        try:
            found = memories.load(self._path)
        except ValueError as error:
            log.warning("%s; waiting for the API server instead", error)
            return
        if found is None:
            return
        self._remembered = found
        self._taps.restore(found.taps)
        self._destinations.restore(found.destinations)
        self._slices.restore({name: (_tap_namespace(raw), raw) for name, raw in found.slices.items()})
        self._namespaces.restore({f"/{name}": labels for name, labels in found.namespaces.items()})
        self.pods.shelf.restore(found.pods)
        self.pods.look_for_all()
        self._tap_readings.restore(found.taps)
        self._destination_readings.restore(found.destinations)
        self._slice_readings.restore(found.slices)

    @property
    def ready(self) -> bool:
        """Whether enough is known to change the data plane: all of the cluster's word, or else what is remembered."""
        if self.key_block is None or not self.pods.sandboxes.settled:
            return False
        return self.synced or (self._remembered.key_block is not None and time.monotonic() - self._began >= PATIENCE)

    @property
    def synced(self) -> bool:
        """Whether the API server has told of everything since the agent started."""
        shelves = (self._taps, self._destinations, self._slices, self._namespaces, self._node, self.pods.shelf)
        return all(shelf.synced for shelf in shelves)

    # --- what is known ---------------------------------------------------------------------------------------------------

    @property
    def tap_node(self) -> TapNodeSeen | None:
        """Our own TapNode; None where there is none (yet)."""
        return self._node.items().get(self._node_name)

    @property
    def key_block(self) -> KeyBlock | None:
        """The cluster's word, else what is remembered."""
        seen = self.tap_node
        return seen.key_block if seen is not None and seen.key_block is not None else self._remembered.key_block

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the API server can't be followed: one sentence each, none twice."""
        return tuple(dict.fromkeys(follower.problem for follower in self._followers if follower.problem))

    def contact_ages(self) -> dict[str, float]:
        """Seconds since the API server was last known to tell of each resource."""
        return {follower.resource.name: follower.contact_age for follower in self._followers}

    def snapshot(self) -> DesiredSnapshot:
        """What is desired now. The same object as long as nothing has changed."""
        now, pods = time.time(), self.pods.shelf.items()
        inputs = (self._taps.items(), self._destinations.items(), self._slices.items(), self._namespaces.items(), pods)
        node, problems = self.tap_node, self.problems
        outcome = self._outcome
        due = outcome is not None and outcome.until is not None and now >= outcome.until
        known = None if due else self._kept.get(*inputs, node)
        if known is not None and known.problems == (*self._object_problems, *problems):
            return known
        here = frozenset(record.namespace for record in pods.values())
        made = self._worked_out(here, now)
        same = known_desired(outcome, made)
        self._outcome = Outcome(same, made.in_force, made.until)
        self._keeper.keep(self._memory(here), made.until)
        found = DesiredSnapshot(same, (*self._object_problems, *problems))
        return self._kept.put(found, *inputs, node)

    @property
    def _object_problems(self) -> tuple[str, ...]:
        readings = (self._tap_readings, self._destination_readings, self._slice_readings)
        return tuple(problem for reading in readings for problem in reading.problems)

    def _worked_out(self, here: frozenset[str], now: float) -> Outcome:
        """Of the namespaces that have a pod here only: others' taps match nothing on this node."""
        self._tap_readings.read(_inside(self._taps.items(), here))
        self._destination_readings.read(self._destinations.items())
        self._slice_readings.read({name: raw for name, (of, raw) in self._slices.items().items() if of in here})
        seen = Seen(
            taps=self._tap_readings.models,
            destinations=self._destination_readings.models,
            slices=self._slice_readings.models,
            namespaces=self._labels(here),
            own_namespace=self._namespace,
        )
        before = self._outcome.in_force if self._outcome is not None else self._remembered.in_force
        return desired_of(seen, before, now)

    def _labels(self, here: Iterable[str]) -> dict[str, Mapping[str, str]]:
        known = self._namespaces.items()
        return {name: labels for name in sorted(here) if (labels := known.get(f"/{name}")) is not None}

    def _memory(self, here: frozenset[str]) -> Memory:
        return Memory(
            key_block=self.key_block,
            taps=self._tap_readings.good,
            destinations=self._destination_readings.good,
            slices=self._slice_readings.good,
            namespaces=self._labels(here),
            pods=dict(self.pods.shelf.items()),
            in_force=self._outcome.in_force if self._outcome is not None else self._remembered.in_force,
        )

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()


def known_desired(before: Outcome | None, now: Outcome) -> Any:
    """The very same object as before where nothing is different, so that nothing is planned anew."""
    return before.desired if before is not None and before.desired == now.desired else now.desired


def _inside(raws: Mapping[str, bytes], namespaces: frozenset[str]) -> dict[str, bytes]:
    return {name: raw for name, raw in raws.items() if name.partition("/")[0] in namespaces}


def _tap_namespace(raw: bytes) -> str:
    return str((json.loads(raw).get("spec") or {}).get("tapNamespace", ""))


class _Keeper(threading.Thread):
    """Saves what was seen, at most once in SAVE_EVERY seconds, and tells when time alone changes something."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        super().__init__(name="cluster-memory", daemon=True)
        self._path = path
        self._changed = changed
        self._condition = threading.Condition()
        self._due: Memory | None = None
        self._saved: Memory | None = None
        self._until: float | None = None
        self._stopping = False

    def keep(self, memory: Memory, until: float | None) -> None:
        """Save this soon, and call `changed` at `until` (seconds since 1970)."""
        with self._condition:
            self._due, self._until = memory, until
            self._condition.notify()

    def stop(self) -> None:
        """Save what is left, and end."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        while True:
            with self._condition:
                if self._due is None and not self._stopping:
                    self._condition.wait(None if self._until is None else max(0.0, self._until - time.time()))
                due, self._due, stopping = self._due, None, self._stopping
                over = self._until is not None and time.time() >= self._until
                self._until = None if over else self._until
            self._save(due)
            if over:
                self._changed()
            if stopping:
                return
            if due is not None:
                with self._condition:
                    self._condition.wait_for(lambda: self._stopping, SAVE_EVERY)

    def _save(self, due: Memory | None) -> None:
        if due is None or due == self._saved:
            return
        try:
            memories.save(self._path, due)
            self._saved = due
        except VtapError as error:
            log.warning("%s", error)
        except Exception:  # the thread must go on whatever it is: it also tells when a tap's time is over
            log.exception("what was seen of the cluster could not be saved")
