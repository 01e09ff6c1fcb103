"""What a tap costs the tapped: throughput, latency and processor time of two pods on one bridge, with and without copies.

Rows, measured in turn in every round:
    no tap, and no tap again (A/A)
    raw mirror         an Open vSwitch mirror to a port that nobody reads
    mirror → VXLAN     the same mirror, sent to the same collector by a kernel VXLAN device, segmented in software as ours is
    ours, full         · ours, 1 in 100 · ours, all excluded

Loads: iperf3 TCP as fast as it goes, the same paced so that copies can keep up, and one-byte request/response.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench import native
from bench.measure import Figures, Sample, interleave, ratio, table, write_json
from vtap_lab.daemons import Agent, Collector
from vtap_lab.errors import LabError, wait_for
from vtap_lab.lab import BRIDGE, COLLECTOR_ADDRESS, NODE_ADDRESS, Lab, LabOptions

VXLAN_KEYS = {"egress": 1, "ingress": 2}
BASELINE, AGAIN = "no tap", "no tap again (A/A)"
RR_PORT = "7001"
QUIET_WAIT = 20.0


@dataclass(frozen=True)
class Options:
    """`paced` in Mb/s; times in seconds."""

    rounds: int
    seconds: float
    paced: float
    tso: bool
    underlay_mtu: int


class Bench:
    """A lab with two pods, a collector and an agent, and the ways to copy their traffic."""

    def __init__(self, lab: Lab, storage: Path, options: Options) -> None:
        self.lab, self.options = lab, options
        self.client = lab.add_pod("client", namespace="bench", labels={"app": "client"})
        self.server = lab.add_pod("server", namespace="bench", labels={"app": "server"})
        self.collector: Collector = lab.start_collector(storage, "--vxlan", "--retain-bytes=256Mi")
        self.agent: Agent = lab.start_agent()
        lab.write(lab.taps / "destination.yaml", self.collector.as_destination())
        self.rr = native.build("rr")
        lab.spawn(self.server, "iperf3", "-s", name="iperf3-server")
        lab.spawn(self.server, str(self.rr), "serve", self.server.ipv4, RR_PORT, name="rr-server")
        wait_for(self._reachable, QUIET_WAIT, "the server pod answers")

    def _reachable(self) -> bool:
        return "transactions" in self.request_response_once()

    def request_response_once(self) -> str:
        """A little traffic; what it printed, empty where the server does not answer."""
        return self.lab.run(self.client, str(self.rr), "run", self.server.ipv4, RR_PORT, "0.1", check=False)

    # --- loads -----------------------------------------------------------------------------------------------------------

    def iperf(self, *arguments: str) -> float:
        """Gb/s that one iperf3 TCP stream from client to server moved."""
        seconds = self.options.seconds
        argv = ["iperf3", "-c", self.server.ipv4, "-t", f"{seconds:g}", "-J", *arguments]
        report = json.loads(self.lab.run(self.client, *argv, timeout=seconds + 30))
        if "error" in report:
            raise LabError(f"iperf3: {report['error']}")
        return report["end"]["sum_received"]["bits_per_second"] / 1e9

    def request_response(self) -> Mapping[str, float]:
        """Microseconds: mean, p50, p99."""
        seconds = self.options.seconds
        argv = [str(self.rr), "run", self.server.ipv4, RR_PORT, f"{seconds:g}"]
        return json.loads(self.lab.run(self.client, *argv, timeout=seconds + 30))

    def measure(self, row: Row) -> Sample:
        """All loads while `row` copies."""
        with row.copying(self):
            full, full_share = self._delivered(row, self.iperf)
            busy = _busy_seconds()
            paced, paced_share = self._delivered(row, lambda: self.iperf("-b", f"{self.options.paced:g}M"))
            busy = _busy_seconds() - busy
            latency = self.request_response()
        figures = {
            "full Gb/s": full,
            "paced Gb/s": paced,
            "paced busy s": busy,
            "p50 us": latency["p50"],
            "p99 us": latency["p99"],
        }
        if full_share is not None and paced_share is not None:
            figures |= {"full delivered": full_share, "paced delivered": paced_share}
        return figures

    def _delivered(self, row: Row, load: Callable[[], float]) -> tuple[float, float | None]:
        """(Gb/s, share of the wanted copies that reached the collector; None where nobody receives or nothing was wanted)."""
        before = row.counts(self)
        moved = load()
        after = self._settled(row)
        if before is None or after is None or after.wanted == before.wanted:
            return moved, None
        return moved, (after.delivered - before.delivered) / (after.wanted - before.wanted)

    def _settled(self, row: Row) -> Counts | None:
        """The counts once nothing moves any more."""
        seen: list[Counts | None] = [None]

        def still() -> bool:
            seen.append(row.counts(self))
            return seen[-1] == seen[-2]

        wait_for(still, QUIET_WAIT, "copies on their way arrive")
        return seen[-1]


@dataclass(frozen=True)
class Counts:
    """Wire packets."""

    wanted: int
    delivered: int


class Row:
    """A way to copy, or none."""

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        """Copies are made inside of the context."""
        yield

    def counts(self, bench: Bench) -> Counts | None:
        """How many copies were wanted and how many reached the collector; None where nobody receives."""
        return None


class RawMirror(Row):
    """Both directions of the client, each to a port of its own that nobody reads."""

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        lab, port = bench.lab, bench.client.host_name
        for direction, column in (("egress", "select_src_port"), ("ingress", "select_dst_port")):
            inside, outside = _mirror_devices(direction)
            # vswitchd allocates receive buffers by a port's MTU at each turn: a larger one would cost this row alone.
            lab.ip(
                lab.node,
                f"link add {inside} mtu {lab.options.mtu} type veth peer name {outside} mtu 65000",
                *(f"link set {device} addrgenmode none" for device in (inside, outside)),
                *(f"link set {device} arp off up" for device in (inside, outside)),
            )
            self.prepare(bench, direction, outside)
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
            for direction in VXLAN_KEYS:
                inside, _outside = _mirror_devices(direction)
                lab.switch.delete_port(BRIDGE, inside)
                lab.ip(lab.node, f"link delete {inside}")
                self.clear(bench, direction)
            lab.switch.appctl("revalidator/purge")

    def prepare(self, bench: Bench, direction: str, device: str) -> None:
        """What becomes of copies that come out of `device`; nothing."""

    def clear(self, bench: Bench, direction: str) -> None:
        """The end of what `prepare` made."""


class VxlanMirror(RawMirror):
    """The raw mirror's copies, redirected into a kernel VXLAN device that leads to the collector."""

    def prepare(self, bench: Bench, direction: str, device: str) -> None:
        lab, name = bench.lab, f"bx-{direction}"
        announce_vxlan(bench)
        lab.ip(
            lab.node,
            f"link add {name} mtu {bench.lab.options.mtu + 14} type vxlan id {VXLAN_KEYS[direction]} remote {COLLECTOR_ADDRESS}"
            f" local {NODE_ADDRESS} dstport 4789 nolearning noudpcsum",
            f"link set {name} addrgenmode none",
            f"link set {name} arp off up",
        )
        lab.run(lab.node, "ethtool", "-K", name, "tso", "off", "gso", "off", "tx", "off", "sg", "off")
        lab.run(lab.node, "tc", "qdisc", "add", "dev", device, "clsact")
        every = ["protocol", "all", "u32", "match", "u32", "0", "0"]
        redirect = ["action", "mirred", "egress", "redirect", "dev", name]
        lab.run(lab.node, "tc", "filter", "add", "dev", device, "ingress", *every, *redirect)

    def clear(self, bench: Bench, direction: str) -> None:
        bench.lab.ip(bench.lab.node, f"link delete bx-{direction}")

    def counts(self, bench: Bench) -> Counts | None:
        lab = bench.lab
        wanted = 0
        for direction in VXLAN_KEYS:
            (link,) = json.loads(lab.run(lab.node, "ip", "-j", "-s", "link", "show", f"bx-{direction}"))
            wanted += link["stats64"]["tx"]["packets"] + link["stats64"]["tx"]["dropped"]
        streams = bench.collector.get("/v1/ledger")["streams"]
        return Counts(wanted, sum(stream["received"] for stream in streams if stream["node"] == "bench-vxlan"))


class Ours(Row):
    """A VirtualTap on the client."""

    def __init__(self, **spec: object) -> None:
        self._spec = {"podSelector": {"matchLabels": {"app": "client"}}, **spec}

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        file = bench.lab.taps / "tap.yaml"
        tap = {
            "apiVersion": "vtap.dev/v1alpha1",
            "kind": "VirtualTap",
            "metadata": {"name": "cost", "namespace": "bench"},
            "spec": self._spec,
        }
        bench.lab.write(file, yaml.safe_dump(tap))
        wait_for(lambda: _programmed(bench.agent), QUIET_WAIT, "the tap is programmed")
        bench.request_response_once()
        try:
            yield
        finally:
            file.unlink()
            wait_for(lambda: not bench.agent.get("/v1/status")["taps"], QUIET_WAIT, "the tap is gone")

    def counts(self, bench: Bench) -> Counts | None:
        points = [point for point in bench.agent.get("/v1/ledger")["points"] if not point["closed"]]
        keys = {(point["key"], point["incarnation"]) for point in points}
        wanted = sum(point["seen"] - point["excluded"] - point["unsampled"] - point["limited"] for point in points)
        streams = bench.collector.get("/v1/ledger")["streams"]
        return Counts(wanted, sum(row["received"] for row in streams if (row["key"], row["incarnation"]) in keys))


def _programmed(agent: Agent) -> bool:
    taps = agent.get("/v1/status")["taps"]
    conditions = {condition["type"]: condition["status"] for tap in taps for condition in tap["conditions"]}
    return conditions.get("Programmed") == "True"


def _mirror_devices(direction: str) -> tuple[str, str]:
    return f"bm-{direction}0", f"bm-{direction}1"


def announce_vxlan(bench: Bench) -> None:
    """Name the VXLAN row's streams to the collector, so that it stores them as it stores ours."""
    streams = [
        {
            "key": key,
            "incarnation": f"{key:016x}",
            "trailer": False,
            "tap": {"namespace": "bench", "name": "vxlan"},
            "pod": {"namespace": "bench", "name": "client", "uid": "bench"},
            "interface": "eth0",
            "direction": direction.capitalize(),
            "snapLength": 0,
        }
        for direction, key in VXLAN_KEYS.items()
    ]
    body = {"version": 1, "addresses": [NODE_ADDRESS], "taiOffset": 0, "streams": streams}
    bench.lab.run(
        bench.lab.collector,
        *("curl", "-sSf", "-X", "PUT", f"{bench.collector.url}/v1/nodes/bench-vxlan/streams"),
        *("-H", f"Authorization: Bearer {bench.collector.token.read_text().strip()}", "-d", json.dumps(body)),
        *("-H", "Content-Type: application/json"),
    )


def _busy_seconds() -> float:
    """Processor seconds of all cores that were not idle, up to a constant.

    From idle time (proc(5), uptime), which tickless kernels measure; busy time is sampled by the tick, and a paced load that
    keeps step with the tick hides from it.
    """
    idle = float(Path("/proc/uptime").read_text().split()[1])
    return (os.cpu_count() or 1) * time.monotonic() - idle


ROWS: Mapping[str, Row] = {
    BASELINE: Row(),
    AGAIN: Row(),
    "raw mirror": RawMirror(),
    "mirror → VXLAN": VxlanMirror(),
    "ours, full": Ours(),
    "ours, 1 in 100": Ours(sampling={"type": "OneIn", "oneIn": 100}),
    "ours, all excluded": Ours(filter={"defaultAction": "Exclude"}),
}
GOALS = {
    "ours, full": "mirror → VXLAN",
    "ours, 1 in 100": "raw mirror",
    "ours, all excluded": "raw mirror",
}
FIGURES = ("full Gb/s", "paced busy s", "p50 us", "p99 us")


def run(options: Options) -> Mapping[str, Figures]:
    """Measure all rows."""
    settings = LabOptions(userspace_tso=options.tso, underlay_mtu=options.underlay_mtu)
    with tempfile.TemporaryDirectory(prefix="vtap-bench-") as storage, Lab(settings) as lab:
        bench = Bench(lab, Path(storage), options)
        return interleave({name: lambda row=row: bench.measure(row) for name, row in ROWS.items()}, options.rounds)


def report(options: Options, rows: Mapping[str, Figures]) -> str:
    """The table: medians, and ratios to the baseline of the same round as median (lowest…highest)."""
    baseline = rows[BASELINE]
    cells: list[list[str]] = []
    for name, row in rows.items():
        line = [name]
        for figure in FIGURES:
            against = ratio(row, baseline, figure)
            line.append(f"{row.median(figure):.2f}  x{against.median:.2f} ({against.low:.2f}…{against.high:.2f})")
        for figure in ("full delivered", "paced delivered"):
            line.append(f"{row.median(figure):.2%}" if row.values(figure) else "")
        cells.append(line)
    tso = "on" if options.tso else "off"
    title = f"Tap cost, userspace TSO {tso}, paced at {options.paced:g} Mb/s, {options.rounds} rounds of {options.seconds:g} s"
    return table(title, ("", *FIGURES, "full delivered", "paced delivered"), cells) + _verdicts(rows)


def _verdicts(rows: Mapping[str, Figures]) -> str:
    lines: list[str] = []
    for ours, other in GOALS.items():
        against = {figure: ratio(rows[ours], rows[other], figure).median for figure in FIGURES}
        noise = {figure: ratio(rows[AGAIN], rows[BASELINE], figure) for figure in FIGURES}
        parts: list[str] = []
        for figure in FIGURES:
            worse = 1 - against[figure] if figure == "full Gb/s" else against[figure] - 1
            allowed = max(noise[figure].high - 1, 1 - noise[figure].low, 0)
            parts.append(f"{figure} x{against[figure]:.2f} {'reached' if worse <= allowed else 'MISSED'}")
        lines.append(f"goal: {ours} no dearer than {other}: " + ", ".join(parts))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the tables, write bench/results/tap_cost-*.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.tap_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--underlay-mtu", type=int, default=1700)
    parser.add_argument("--tso", choices=("on", "off", "both"), default="both")
    arguments = parser.parse_args()
    for tso in (True, False):
        if arguments.tso != "both" and tso != (arguments.tso == "on"):
            continue
        paced = 1000.0 if tso else 150.0
        options = Options(arguments.rounds, arguments.seconds, paced, tso, arguments.underlay_mtu)
        rows = run(options)
        print(report(options, rows))
        name = f"tap_cost-tso-{'on' if tso else 'off'}"
        write_json(name, {"options": vars(arguments), "paced": paced, "rows": {key: row.samples for key, row in rows.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
