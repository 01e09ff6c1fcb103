"""A whole product at work in a lab: collector, agent, pods, and the questions that tests ask of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vtap_agent.lease import LEASE
from vtap_lab import capture
from vtap_lab.daemons import Agent, Collector
from vtap_lab.datagrams import Datagram
from vtap_lab.errors import comes_true, wait_for
from vtap_lab.exchange import Exchange
from vtap_lab.lab import Lab, Pod

PATIENCE = 15.0
_WRITTEN_TIMEOUT = 5.0


@dataclass(frozen=True)
class Summary:
    """The last line of `vtap ledger --summary`, by term."""

    terms: Mapping[str, int]

    def __getitem__(self, term: str) -> int:
        return self.terms[term]


class Site:
    """A lab with a collector and an agent. Pods of namespace shop, labelled app: NAME.

    Tests may share a site: `new_scene` gives the names of taps and pods another meaning, and takes the last scene's away.
    """

    def __init__(self, lab: Lab, storage: Path, collector_arguments: Iterable[str] = ()) -> None:
        self.lab = lab
        self._scene = 0
        self.storage = storage
        self._collector_arguments = tuple(collector_arguments)
        self.collector: Collector = self.start_collector()
        lab.write(lab.taps / "destination.yaml", self.collector.as_destination())
        self.agent: Agent = self.start_agent()

    def start_collector(self) -> Collector:
        """The collector, on the same directory each time."""
        self.collector = self.lab.start_collector(self.storage, *self._collector_arguments)
        return self.collector

    def start_agent(self, *arguments: str) -> Agent:
        """The agent, on the same state each time."""
        self.agent = self.lab.start_agent(*arguments)
        return self.agent

    def new_scene(self) -> None:
        """Remove all taps and pods; what is made from now on has names of its own."""
        for file in self.lab.taps.glob("tap-*.yaml"):
            file.unlink()
        wait_for(lambda: not self.agent.get("/v1/status")["taps"], PATIENCE, "the last scene's taps are gone")
        for pod in list(self.lab.pods.values()):
            self.lab.delete_pod(pod)
        self._scene += 1

    def _called(self, name: str) -> str:
        return f"{name}-{self._scene}" if self._scene else name

    def pod(self, app: str, **options: Any) -> Pod:
        """One more pod that taps can select by app."""
        label = self._called(app)
        number = sum(pod.labels.get("app") == label for pod in self.lab.pods.values())
        return self.lab.add_pod(f"{label}-{number}", namespace="shop", labels={"app": label}, **options)

    # --- taps ------------------------------------------------------------------------------------------------------------

    def write_tap(self, name: str, app: str = "web", **spec: object) -> None:
        """Write a tap's file, and return at once. Copies are made by mirrors, unless `spec` says otherwise."""
        body = {
            "apiVersion": "vtap.dev/v1alpha1",
            "kind": "VirtualTap",
            "metadata": {"name": self._called(name), "namespace": "shop"},
            "spec": {"podSelector": {"matchLabels": {"app": self._called(app)}}, "backend": "OVSMirror", **spec},
        }
        self.lab.write(self.lab.taps / f"tap-{self._called(name)}.yaml", yaml.safe_dump(body))

    def tap(self, name: str, app: str = "web", **spec: object) -> None:
        """Write a tap's file, and return when this very content delivers."""
        before = self.generation(name)
        self.write_tap(name, app, **spec)
        wait_for(
            lambda: self.generation(name) > before and self.condition(name, "Delivering") == "True",
            PATIENCE,
            f"tap {name} delivers",
        )

    def remove_tap(self, name: str) -> None:
        """Remove a tap's file, and return when the tap is gone."""
        (self.lab.taps / f"tap-{self._called(name)}.yaml").unlink()
        wait_for(lambda: self.status(name) is None, PATIENCE, f"tap {name} is gone")

    def status(self, name: str) -> Mapping[str, Any] | None:
        """What the agent says of a tap; None where it knows none."""
        found = [tap for tap in self.agent.get("/v1/status")["taps"] if tap["name"] == self._called(name)]
        return found[0] if found else None

    def generation(self, name: str) -> int:
        """Of the tap as the agent knows it; 0 where it knows none."""
        status = self.status(name)
        return status["observedGeneration"] if status else 0

    def condition(self, name: str, kind: str) -> str:
        """ "True", "False", "Unknown", or "" where there is no such tap."""
        status = self.status(name)
        return next((one["status"] for one in status["conditions"] if one["type"] == kind), "") if status else ""

    def says(self, name: str, words: str) -> bool:
        """Whether some condition or tap point of the tap has a message with these words."""
        status = self.status(name)
        if status is None:
            return False
        return any(words in one["message"] for one in (*status["conditions"], *status["points"]))

    # --- what arrived ----------------------------------------------------------------------------------------------------

    def summary(self, tap: str = "") -> Summary:
        """The ledger's totals now, of one tap or of all."""
        line = self.lab.vtap("ledger", *([f"shop/{self._called(tap)}"] if tap else []), "--summary").strip().splitlines()[-1]
        return Summary({term: int(value) for term, value in re.findall(r"(\w+)=(\d+)", line)})

    def at_rest(self, tap: str = "") -> Summary:
        """The ledger's totals once everything sent has been received or given up, and stored."""
        seen: list[Summary] = []

        def rests() -> bool:
            seen.append(self.summary(tap))
            now = seen[-1]
            settled = now["sent"] == now["received"] + now["lost"] and len(seen) > 1 and now.terms == seen[-2].terms
            return settled and not self.in_flight()

        wait_for(rests, PATIENCE, "the ledger comes to rest", every=0.1)
        return seen[-1]  # And not another look: pods say something of their own accord now and then.

    def in_flight(self) -> int:
        """Copies that left and that the collector has not given up yet."""
        return sum(stream["inFlight"] for stream in self.collector.get("/v1/ledger")["streams"])

    def closes(self, tap: str = "") -> Summary:
        """The ledger at rest, of one tap or of all, which accounts for every packet.

        On a busy machine what is received may wait a while to be written, which no number tells from being lost on the way there.
        """
        seen = [self.at_rest(tap)]

        def adds_up() -> bool:
            seen.append(self.at_rest(tap))
            return seen[-1]["unaccounted"] == 0

        assert comes_true(adds_up, _WRITTEN_TIMEOUT, every=0.2), f"{seen[-1].terms}\n{self.lab.vtap('ledger')}"
        return seen[-1]

    def stored(self, tap: str) -> Counter[tuple[str, Datagram]]:
        """How often each numbered datagram is in a tap's files, by (interface name, datagram)."""
        return capture.numbered(self.files(tap))

    def files(self, tap: str) -> list[Path]:
        """A tap's captures."""
        return sorted((self.storage / "shop" / self._called(tap)).glob("*.pcapng"))


def point(pod: Pod, direction: str) -> str:
    """What a tap point's interface is called in a capture."""
    return f"{pod}/{pod.interface} {direction}"


def expect_each_once(found: Mapping[tuple[str, Datagram], int], exchange: Exchange, *points: str) -> None:
    """Every datagram of the exchange is found exactly once at each of the tap points, by the pods' own logs."""
    for name in points:
        wrong = [datagram for datagram in exchange.sent if found.get((name, datagram), 0) != 1]
        assert not wrong, f"{name}: {len(wrong)} of {len(exchange.sent)} not exactly once, first {wrong[:3]}"


def expect_none_missing_within_the_lease(
    found: Mapping[tuple[str, Datagram], int], sent: Iterable[Datagram], name: str, dropped: int, away: float
) -> None:
    """Copies went on for as long as the lease lasts; where the agent was away for longer, what is missing is counted."""
    counts = [found.get((name, datagram), 0) for datagram in sent]
    assert max(counts) == 1, f"{name}: nothing is there, or some twice"
    missing = counts.count(0)
    assert missing <= dropped, f"{name}: {missing} of {len(counts)} are missing, and {dropped} counted"
    assert not missing or away > LEASE, f"{name}: {missing} are missing, though the agent was away for {away:.1f} s only"


def expect_none(found: Mapping[tuple[str, Datagram], int], exchange: Exchange, *points: str) -> None:
    """No datagram of the exchange is found at any of the tap points."""
    wrong = [(name, datagram) for name, datagram in found if datagram.sender == exchange.sender and name in points]
    assert not wrong, f"{len(wrong)} copies that nobody wanted, first {wrong[:3]}"
