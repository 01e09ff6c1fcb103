"""What one case is made of: a namespace, pods, taps, and the questions asked of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.cases.installation import Installation, is_true
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.exchange import Exchanged, RunningExchange, start_exchange
from tests.e2e.cluster.kubectl import Resource
from tests.e2e.cluster.pods import PodSpec, RunningPod
from vtap_lab import capture
from vtap_lab.datagrams import Datagram
from vtap_lab.errors import wait_for

DELIVERS_TIMEOUT = 120.0
RATE = 200.0
"""Datagrams a second: enough that a gap shows, few enough for a busy machine."""

Found = Counter[tuple[str, Datagram]]
"""How often each numbered datagram is in files, by (name of the tap point, datagram)."""


@dataclass(frozen=True)
class Scene:
    """A namespace of the case's own on the shared installation. Pods are labelled app: NAME-BEFORE-THE-DASH unless said."""

    product: Installation
    namespace: str
    folder: Path
    """Where files of collectors are copied to."""
    unclosed: set[str] = field(default_factory=set[str])
    """Taps whose ledger need not close at the end, each with its reason in the case."""
    closed: set[str] = field(default_factory=set[str])
    """Taps whose ledger has been seen closed since anything last happened here."""

    # --- pods

    def specs(self, **places: int | str) -> list[PodSpec]:
        """Pods by name, each on a worker by its number or a node by its name; `a_1` is the pod a-1, labelled app: a."""
        workers = self.product.cluster.workers
        return [
            PodSpec(
                name.replace("_", "-"),
                self.namespace,
                workers[place].name if isinstance(place, int) else place,
                labels={"app": name.partition("_")[0]},
            )
            for name, place in places.items()
        ]

    def pods(self, **places: int | str) -> list[RunningPod]:
        """Start them, and return once all are Ready."""
        self.closed.clear()
        return self.product.cluster.start_pods(*self.specs(**places))

    def exchange(self, source: RunningPod, target: RunningPod, count: int = 0, **options: Any) -> RunningExchange:
        """Numbered datagrams over net1; until `stop()` when no count is given."""
        self.closed.clear()
        return start_exchange(self.product.cluster.kubectl, source, target, count=count, **{"rate": RATE, **options})

    # --- taps

    def manifest(self, name: str, app: str = "web", **spec: object) -> Resource:
        """Of a tap on all that is labelled so; of the second interface, as the pod network has no Open vSwitch."""
        return {
            "apiVersion": "vtap.dev/v1alpha1",
            "kind": "VirtualTap",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "interfaces": ["net1"], **spec},
        }

    def write_tap(self, name: str, app: str = "web", **spec: object) -> None:
        """Make or change it, and return at once."""
        self.closed.clear()
        self.product.cluster.kubectl.apply(self.manifest(name, app, **spec))

    def tap(self, name: str, app: str = "web", *, pods: int = 0, **spec: object) -> Resource:
        """Make or change it, and return once it delivers as it is now, of at least so many pods."""
        self.write_tap(name, app, **spec)
        return self.delivers(name, pods)

    def delivers(self, name: str, pods: int = 0, timeout: float = DELIVERS_TIMEOUT) -> Resource:
        """Return once every matching pod's copies arrive, and it is at least so many pods."""
        in_order = is_true("Accepted", "Programmed", "Delivering")

        def holds(tap: Resource) -> bool:
            status = tap.get("status", {})
            counts = status.get("matchedPods", 0), status.get("attachedPods", 0)
            return in_order(tap) and counts[0] == counts[1] >= pods

        return self.product.cluster.kubectl.until(
            "vtap", name, holds, "all pods' copies arrive", namespace=self.namespace, timeout=timeout
        )

    def taps(self) -> list[str]:
        """Names of the taps that are there."""
        return [one["metadata"]["name"] for one in self.product.cluster.kubectl.list("vtap", self.namespace)]

    def remove_tap(self, name: str) -> None:
        """Gone when it returns."""
        self.closed.clear()
        self.product.cluster.kubectl.delete("vtap", name, namespace=self.namespace)

    # --- what arrived

    def summary(self, tap: str) -> Mapping[str, int]:
        """The last line of `kubectl vtap ledger TAP --summary`, by term."""
        line = self.product.vtap("ledger", tap, "--summary", namespace=self.namespace).strip().splitlines()[-1]
        return {term: int(value) for term, value in re.findall(r"(\w+)=(\d+)", line)}

    def closes(self, tap: str) -> Mapping[str, int]:
        """The ledger of a tap once it is at rest, which accounts for every packet."""
        seen: list[Mapping[str, int]] = [{}]

        def rests() -> bool:
            try:
                seen.append(self.summary(tap))
            except ClusterError as error:  # An agent or collector that is just coming back.
                seen.append({"error": hash(str(error))})
                return False
            now = seen[-1]
            return now == seen[-2] and now["unaccounted"] == 0 and now["sent"] == now["received"] + now["lost"]

        try:
            wait_for(rests, 60, "the ledger closes", every=0.5)
        except Exception as error:
            books = self.product.vtap("ledger", tap, namespace=self.namespace)
            raise AssertionError(f"{tap}: {error}; last {dict(seen[-1])}\n{books}") from error
        self.closed.add(tap)
        return seen[-1]

    def files(self, tap: str, destination: str = "default") -> list[Path]:
        """Those that the collector has of it by now."""
        return self.product.files(self.folder, self.namespace, tap, destination)

    def stored(self, tap: str, destination: str = "default") -> Found:
        """How often each numbered datagram is in the tap's files."""
        return capture.numbered(self.files(tap, destination))


def point(pod: RunningPod, direction: str, interface: str = "net1") -> str:
    """What a tap point's interface is called in a capture."""
    return f"{pod.namespace}/{pod.name}/{interface} {direction}"


def expect_each_once(found: Found, datagrams: Iterable[Datagram], *points: str) -> None:
    """Every datagram is found exactly once at each of the tap points, and there were some."""
    expected = list(datagrams)
    assert expected, "nothing was sent"
    for name in points:
        wrong = [datagram for datagram in expected if found.get((name, datagram), 0) != 1]
        assert not wrong, (
            f"{name}: {len(wrong)} of {len(expected)} not exactly once: "
            f"{[(datagram.sequence, found.get((name, datagram), 0)) for datagram in wrong[:5]]}; "
            f"the files have {sorted({where for where, _ in found})}"
        )


def expect_none(found: Found, exchanged: Exchanged, *points: str) -> None:
    """No datagram of the exchange is found at any of the tap points; nowhere at all when none is named."""
    wrong = [(name, one) for name, one in found if one.sender == exchanged.sender and (not points or name in points)]
    assert not wrong, f"{len(wrong)} copies that nobody wanted, first {wrong[:3]}"


def flows_on(exchange: RunningExchange, datagrams: int = 200, timeout: float = 90) -> None:
    """Return once the target has logged so many more."""
    before = exchange.received_so_far()
    wait_for(lambda: exchange.received_so_far() >= before + datagrams, timeout, "traffic flows on", every=0.3)
