"""Two pods, an agent and a collector to measure with: loads between the pods, ways to copy, and what share of copies arrived."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench import native
from bench.cores import Placement
from bench.replaceable import ReplaceableAgent
from bench.unix_http import ask
from vtap_lab.daemons import Collector
from vtap_lab.errors import LabError, wait_for
from vtap_lab.lab import BRIDGE, COLLECTOR_ADDRESS, NODE_ADDRESS, Lab
from vtap_lab.processes import LabProcess

VXLAN_KEYS = {"egress": 1, "ingress": 2}
SELECT_MIRRORED = {"egress": "select_src_port", "ingress": "select_dst_port"}
RR_PORT = "7001"
UDP_PORT = 7002
MATCHED_PORT = UDP_PORT + 1
"""Of the server: where the datagrams go that a filter is to match."""
QUIET_WAIT = 20.0
NAMESPACE, TAPPED = "bench", "client"


@dataclass(frozen=True)
class Counts:
    """Copies, all in one unit: wire packets, or what a capture sees."""

    wanted: int
    delivered: int
    seen: int = 0
    """Packets that were candidates, where that is counted."""


@dataclass(frozen=True)
class Outcome:
    """What a load says of itself; the share of the wanted copies that arrived, None where nobody receives or nothing was wanted;
    and the share of the packets that copies were wanted of, None where they aren't counted."""

    moved: float
    delivered: float | None = None
    wanted: float | None = None


class Tapped:
    """Pods `client`, which is what is tapped, and `server`, with a collector and an agent. `placement` says who runs where."""

    def __init__(self, lab: Lab, storage: Path, placement: Placement | None = None) -> None:
        self.lab, self.placement = lab, placement
        self.client = lab.add_pod(TAPPED, namespace=NAMESPACE, labels={"app": TAPPED})
        self.server = lab.add_pod("server", namespace=NAMESPACE, labels={"app": "server"})
        self.collector: Collector = lab.start_collector(storage, "--vxlan", "--retain-bytes=256Mi")
        self.agent = ReplaceableAgent(lab)
        lab.write(lab.taps / "destination.yaml", self.collector.as_destination())
        self.rr, self.udp = native.build("rr"), native.build("udp")
        self._serve("iperf3", "-s")
        self._serve(str(self.rr), "serve", self.server.ipv4, RR_PORT)
        self._serve(str(self.udp), "serve", self.server.ipv4, str(UDP_PORT))
        wait_for(self._reachable, QUIET_WAIT, "the server pod answers")

    def _placed(self, argv: Sequence[str]) -> list[str]:
        return self.placement.on_production(*argv) if self.placement else list(argv)

    def _serve(self, *argv: str) -> None:
        self.lab.spawn(self.server, *self._placed(argv), name=f"{Path(argv[0]).name}-server")

    def _reachable(self) -> bool:
        return "transactions" in self.request_response_once()

    def request_response_once(self) -> str:
        """A little traffic; what it printed, empty where the server does not answer."""
        return self.lab.run(self.client, str(self.rr), "run", self.server.ipv4, RR_PORT, "0.1", check=False)

    # --- loads -----------------------------------------------------------------------------------------------------------

    def iperf(self, seconds: float, *arguments: str) -> float:
        """Gb/s that one iperf3 TCP stream from client to server moved; in whole seconds, as less would mean no end to it."""
        whole = max(1, round(seconds))
        argv = ["iperf3", "-c", self.server.ipv4, "-t", str(whole), "-J", *arguments]
        report = json.loads(self.lab.run(self.client, *self._placed(argv), timeout=seconds + 30))
        if "error" in report:
            raise LabError(f"iperf3: {report['error']}")
        return report["end"]["sum_received"]["bits_per_second"] / 1e9

    def request_response(self, seconds: float) -> Mapping[str, float]:
        """Microseconds: mean, p50, p99."""
        argv = [str(self.rr), "run", self.server.ipv4, RR_PORT, f"{seconds:g}"]
        return json.loads(self.lab.run(self.client, *self._placed(argv), timeout=seconds + 30))

    def datagrams(self, sizes: Sequence[int], rate: float, seconds: float, matched_every: int) -> Mapping[str, float]:
        """Sent, received and seconds of UDP in frames of `sizes`, a `rate` of 0 for as many as are received."""
        argv = self._datagrams(sizes, rate, seconds, matched_every)
        return json.loads(self.lab.run(self.client, *argv, timeout=seconds + 30))

    def start_datagrams(self, sizes: Sequence[int], rate: float, seconds: float, matched_every: int) -> LabProcess:
        """The same beside another load."""
        return self.lab.spawn(self.client, *self._datagrams(sizes, rate, seconds, matched_every), name="datagrams")

    def _datagrams(self, sizes: Sequence[int], rate: float, seconds: float, matched_every: int) -> list[str]:
        listed = ",".join(map(str, sizes))
        where = [self.server.ipv4, str(UDP_PORT)]
        return self._placed([str(self.udp), "run", *where, listed, f"{rate:g}", f"{seconds:g}", str(matched_every)])

    # --- copies ----------------------------------------------------------------------------------------------------------

    def outcome(self, row: Row, load: Callable[[], float]) -> Outcome:
        """Of a load while `row` copies; returns when its copies have arrived."""
        before = row.counts(self)
        moved = load()
        after = self._settled(row)
        if before is None or after is None:
            return Outcome(moved)
        wanted, seen = after.wanted - before.wanted, after.seen - before.seen
        delivered = (after.delivered - before.delivered) / wanted if wanted else None
        return Outcome(moved, delivered, wanted / seen if seen else None)

    def _settled(self, row: Row) -> Counts | None:
        """The counts once nothing has moved for as long as the row may hold copies back."""
        seen, since = row.counts(self), time.monotonic()

        def still() -> bool:
            nonlocal seen, since
            now = row.counts(self)
            if now != seen:
                seen, since = now, time.monotonic()
            return time.monotonic() - since >= row.held_back

        wait_for(still, QUIET_WAIT, "copies on their way arrive")
        return seen


class Row:
    """A way to copy, or none."""

    held_back: float = 0.02
    """Seconds for which copies may rest on their way to where they are counted."""

    @contextlib.contextmanager
    def copying(self, scene: Tapped) -> Iterator[None]:
        """Copies are made inside of the context."""
        yield

    def counts(self, scene: Tapped) -> Counts | None:
        """How many copies were wanted and how many arrived; None where nobody receives."""
        return None


class RawMirror(Row):
    """Both directions of the client, each to a port of its own that nobody reads."""

    @contextlib.contextmanager
    def copying(self, scene: Tapped) -> Iterator[None]:
        lab, port = scene.lab, scene.client.host_name
        for direction, column in SELECT_MIRRORED.items():
            inside, outside = _mirror_devices(direction)
            # vswitchd allocates receive buffers by a port's MTU at each turn: a larger one would cost this row alone.
            lab.ip(
                lab.node,
                f"link add {inside} mtu {lab.options.mtu} type veth peer name {outside} mtu 65000",
                *(f"link set {device} addrgenmode none" for device in (inside, outside)),
                *(f"link set {device} arp off up" for device in (inside, outside)),
            )
            self.prepare(scene, direction, outside)
            lab.switch.add_port(BRIDGE, inside)
            lab.switch.vsctl(
                *("--", "--id=@from", "get", "Port", port, "--", "--id=@to", "get", "Port", inside),
                *("--", "--id=@m", "create", "Mirror", f"name=bench-{direction}", f"{column}=@from", "output_port=@to"),
                *("--", "add", "Bridge", BRIDGE, "mirrors", "@m"),
            )
        lab.switch.appctl("revalidator/purge")
        try:
            yield
        finally:
            lab.switch.vsctl("clear", "Bridge", BRIDGE, "mirrors")
            for direction in SELECT_MIRRORED:
                inside, _outside = _mirror_devices(direction)
                lab.switch.delete_port(BRIDGE, inside)
                lab.ip(lab.node, f"link delete {inside}")
                self.clear(scene, direction)
            lab.switch.appctl("revalidator/purge")

    def prepare(self, scene: Tapped, direction: str, device: str) -> None:
        """What becomes of copies that come out of `device`; nothing."""

    def clear(self, scene: Tapped, direction: str) -> None:
        """The end of what `prepare` made."""


def _mirror_devices(direction: str) -> tuple[str, str]:
    return f"bm-{direction}0", f"bm-{direction}1"


class VirtualTaps(Row):
    """A VirtualTap for each of `apps`, all alike, that are named by labels; only the client has traffic."""

    def __init__(self, apps: Sequence[str] = (TAPPED,), **spec: object) -> None:
        self._apps, self._spec = apps, spec

    def _tap(self, app: str) -> Mapping[str, object]:
        spec = {"podSelector": {"matchLabels": {"app": app}}, **self._spec}
        metadata = {"name": f"tap-{app}", "namespace": NAMESPACE}
        return {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": metadata, "spec": spec}

    @contextlib.contextmanager
    def copying(self, scene: Tapped) -> Iterator[None]:
        file = scene.lab.taps / "taps.yaml"
        patience = QUIET_WAIT + 0.5 * len(self._apps)
        scene.lab.write(file, yaml.safe_dump_all(map(self._tap, self._apps)))
        try:
            wait_for(lambda: self._programmed(scene), patience, "the taps are programmed")
            scene.request_response_once()
            yield
        finally:
            file.unlink()
            wait_for(lambda: not scene.agent.get("/v1/status")["taps"], patience, "the taps are gone")

    def _programmed(self, scene: Tapped) -> bool:
        taps = scene.agent.get("/v1/status")["taps"]
        states = [one["status"] for tap in taps for one in tap["conditions"] if one["type"] == "Programmed"]
        return states == ["True"] * len(self._apps)

    def counts(self, scene: Tapped) -> Counts | None:
        points = [point for point in scene.agent.get("/v1/ledger")["points"] if not point["closed"]]
        keys = {(point["key"], point["incarnation"]) for point in points}
        wanted = sum(point["seen"] - point["excluded"] - point["unsampled"] - point["limited"] for point in points)
        streams = scene.collector.get("/v1/ledger")["streams"]
        received = sum(row["received"] for row in streams if (row["key"], row["incarnation"]) in keys)
        return Counts(wanted, received, sum(point["seen"] for point in points))


class HandedOver(VirtualTaps):
    """Its copies are worked at on the cores of export (--export-cpus)."""

    @contextlib.contextmanager
    def copying(self, scene: Tapped) -> Iterator[None]:
        if not scene.placement:
            raise LabError("no core is set aside for copies")
        with scene.agent.with_options(f"--export-cpus={','.join(map(str, scene.placement.export))}"), super().copying(scene):
            yield


# --- to the same collector by the kernel's VXLAN -------------------------------------------------------------------------


def vxlan_device(direction: str) -> str:
    return f"bx-{direction}"


def add_vxlan(scene: Tapped, direction: str) -> str:
    """A device that sends what it is given to the collector, segmented in software as ours is; its name."""
    lab, name = scene.lab, vxlan_device(direction)
    _announce_vxlan(scene)
    lab.ip(
        lab.node,
        f"link add {name} mtu {lab.options.mtu + 14} type vxlan id {VXLAN_KEYS[direction]} remote {COLLECTOR_ADDRESS}"
        f" local {NODE_ADDRESS} dstport 4789 nolearning noudpcsum",
        f"link set {name} addrgenmode none",
        f"link set {name} arp off up",
    )
    lab.run(lab.node, "ethtool", "-K", name, "tso", "off", "gso", "off", "tx", "off", "sg", "off")
    return name


def delete_vxlan(scene: Tapped, direction: str) -> None:
    scene.lab.ip(scene.lab.node, f"link delete {vxlan_device(direction)}")


def vxlan_counts(scene: Tapped) -> Counts:
    """What the devices were given, and what the collector has of it."""
    lab = scene.lab
    wanted = 0
    for direction in VXLAN_KEYS:
        (link,) = json.loads(lab.run(lab.node, "ip", "-j", "-s", "link", "show", vxlan_device(direction)))
        wanted += link["stats64"]["tx"]["packets"] + link["stats64"]["tx"]["dropped"]
    streams = scene.collector.get("/v1/ledger")["streams"]
    return Counts(wanted, sum(stream["received"] for stream in streams if stream["node"] == "bench-vxlan"))


def _announce_vxlan(scene: Tapped) -> None:
    """Name these streams to the collector, so that it stores them as it stores ours."""
    streams = [
        {
            "key": key,
            "incarnation": f"{key:016x}",
            "trailer": False,
            "tap": {"namespace": NAMESPACE, "name": "vxlan"},
            "pod": {"namespace": NAMESPACE, "name": TAPPED, "uid": "bench"},
            "interface": "eth0",
            "direction": direction.capitalize(),
            "snapLength": 0,
        }
        for direction, key in VXLAN_KEYS.items()
    ]
    body = {"version": 1, "addresses": [NODE_ADDRESS], "taiOffset": 0, "streams": streams}
    collector = scene.collector
    ask(collector.socket, "PUT", "/v1/nodes/bench-vxlan/streams", body, collector.token.read_text().strip())
