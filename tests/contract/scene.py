"""A product at work on one column of the matrix, which all cases share: a tap for each case, the same pods for most."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.contract import captured, traffic
from tests.contract.captured import Stored
from tests.contract.columns import Column
from tests.contract.traffic import InPod
from tests.dataplane.attached import tcx_programs
from tests.dataplane.site import PATIENCE, Site, Summary, expect_each_once
from vtap_api import ledger
from vtap_lab.daemons import joint_ledger
from vtap_lab.datagrams import Datagram
from vtap_lab.errors import comes_true, wait_for
from vtap_lab.exchange import Exchange
from vtap_lab.lab import BRIDGE, Lab, Pod

NAMESPACE = "shop"
CUTTING = "cutting"
"""A destination that cuts copies which do not fit the underlay."""
_SNAPSHOT = """
echo "== links"; ip -o link show | sed 's/^[0-9]*: //; s/[@:].*//'
echo "== clsact"
for device in $(tc qdisc show | sed -n 's/^qdisc clsact .* dev \\([^ ]*\\) .*/\\1/p'); do
  for side in ingress egress; do echo "$device $side"; tc filter show dev "$device" "$side" | sed "s/^/$device $side /"; done
done
"""


class Scene(Site):
    """Pods `web` and `client`, and `left` and `right` of one app, are there for every case."""

    def __init__(self, column: Column, lab: Lab, storage: Path) -> None:
        self.column = column
        self.web, self.client = _pod(lab, "web"), _pod(lab, "client")
        self.left, self.right = _pod(lab, "left", app="pair"), _pod(lab, "right", app="pair")
        self._standing = set(lab.pods)
        self.before_the_agent = snapshot(lab)
        super().__init__(lab, storage)
        lab.write(lab.taps / "cutting.yaml", self.collector.as_destination(CUTTING, oversize="Truncate"))

    def begin(self) -> None:
        """Names of taps mean new taps from now on."""
        self._scene += 1

    def end(self) -> None:
        """What a case made goes; what it ended is started again. Returns when no tap is left."""
        traffic.end_all()
        for file in (*self.lab.taps.glob("tap-*.yaml"), *self.lab.taps.glob("extra-*.yaml")):
            file.unlink()
        if not self.agent.process.is_running:
            self.start_agent()
        wait_for(lambda: not self.agent.get("/v1/status")["taps"], PATIENCE, "the case's taps are gone")
        for pod in [pod for name, pod in self.lab.pods.items() if name not in self._standing]:
            self.lab.delete_pod(pod)

    # --- pods and taps ---------------------------------------------------------------------------------------------------

    def new_pod(self, name: str, app: str, **options: Any) -> Pod:
        """A pod of this case alone."""
        return _pod(self.lab, f"{name}-{self._scene}", app=app, **options)

    def write_tap(self, name: str, app: str = "web", **spec: object) -> None:
        """Write a tap's file with the column's backend, and return at once. An empty `app` selects every pod."""
        body = {
            "apiVersion": "vtap.dev/v1alpha1",
            "kind": "VirtualTap",
            "metadata": {"name": self._called(name), "namespace": NAMESPACE},
            "spec": {"podSelector": {"matchLabels": {"app": app} if app else {}}, "backend": self.column.backend, **spec},
        }
        self.lab.write(self.lab.taps / f"tap-{self._called(name)}.yaml", yaml.safe_dump(body))

    def write_destination(self, name: str, **spec: object) -> str:
        """A TapDestination of this case alone; its name."""
        called = self._called(name)
        body = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": called}, "spec": spec}
        self.lab.write(self.lab.taps / f"extra-{called}.yaml", yaml.safe_dump(body))
        return called

    def delivers(self, name: str) -> bool:
        return self.condition(name, "Delivering") == "True"

    def points(self, name: str) -> list[Mapping[str, Any]]:
        """A tap's points, as the agent says."""
        status = self.status(name)
        return status["points"] if status else []

    # --- what arrived ----------------------------------------------------------------------------------------------------

    def summary(self, tap: str = "") -> Summary:
        """As `vtap ledger --summary`, without starting a program."""
        rows = [row for row in joint_ledger(self.agent, self.collector) if not tap or row.name.tap[1] == self._called(tap)]
        total = ledger.totals(rows)
        terms = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", total.summary())}
        return Summary({**terms, "limited": total.agent.limited, "duplicate": total.collector.duplicate})

    def closes(self, tap: str = "") -> Summary:
        """The ledger in which all that was sent has arrived and is stored, and every packet is accounted for.

        One reading, as the next may already hold a packet that is on its way: pods ask for neighbours whenever they like.
        """
        readings: list[Summary] = []

        def closed() -> bool:
            readings.append(self.summary(tap))
            now = readings[-1]
            return now["unaccounted"] == 0 and readings[-2:-1] == [now] and not self.in_flight()

        assert comes_true(closed, PATIENCE, every=0.05), f"{readings[-1].terms}\n{self.lab.vtap('ledger')}"
        return readings[-1]

    def packets(self, tap: str) -> list[Stored]:
        return captured.stored(self.files(tap))

    def stored(self, tap: str) -> Counter[tuple[str, Datagram]]:
        return captured.numbered(self.packets(tap))

    def judge(self, tap: str, exchange: Exchange, *points: str) -> Summary:
        """Each original arrived once, each datagram is stored once at each of these points and at no other, the ledger closes."""
        expect_originals(exchange)
        summary = self.closes(tap)
        found = self.stored(tap)
        expect_each_once(found, exchange, *points)
        wrong = [name for name, datagram in found if datagram.sender == exchange.sender and name not in points]
        assert not wrong, f"{len(wrong)} copies at tap points that did not see the packet, first {wrong[:3]}"
        assert summary["lost"] == 0 and summary["dropped"] == 0 and summary["duplicate"] == 0, summary.terms
        return summary


def expect_originals(exchange: Exchange) -> None:
    """Every receiver got every datagram once: whatever is copied, production fares as without a tap."""
    for receiver, datagrams in exchange.received.items():
        assert Counter(datagrams) == Counter(exchange.sent), f"originals at {receiver}: {len(datagrams)} of {len(exchange.sent)}"


def snapshot(lab: Lab) -> frozenset[str]:
    """Devices, programs, and the switch's ports, mirrors, flows and groups of a lab's node."""
    lines = lab.run(lab.node, "sh", "-c", _SNAPSHOT).splitlines()
    InPod(lab.node, lambda: lines.extend(tcx_programs())).join()
    if lab.has_switch:
        lines += [f"port {name}" for name in lab.switch.vsctl("list-ports", BRIDGE).split()]
        lines += [f"mirror {name}" for name in lab.switch.vsctl("--bare", "--columns=name", "list", "Mirror").split()]
        lines += [f"bridge {name}" for name in lab.switch.vsctl("list-br").split()]
        lines += [f"flow {line.strip()}" for line in lab.switch.ofctl("--no-stats", "dump-flows", BRIDGE).splitlines()]
        groups = lab.switch.ofctl("-O", "OpenFlow13", "dump-groups", BRIDGE).splitlines()
        lines += [f"group {line.strip()}" for line in groups if "group_id" in line]
    return frozenset(line for line in lines if line.strip())


def _pod(lab: Lab, name: str, app: str = "", **options: Any) -> Pod:
    return lab.add_pod(name, namespace=NAMESPACE, labels={"app": app or name}, **options)
