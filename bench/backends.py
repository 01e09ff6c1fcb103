"""What every way to copy a pod's packets costs the pod: our backends, the raw mirror, and what people use otherwise.

One lab, two pods on Open vSwitch's userspace datapath; every round measures every row once, the untapped one twice (A/A). A
row is a way to copy and what of it: all packets, 1 in 100, or those that a filter matches, which are 1 % of them: 1 in 100
datagrams goes to a port of its own, and beside a TCP stream there is a trickle of such datagrams, 1 % of the stream's
packets.

Loads: one TCP stream at full speed and paced; UDP of each size as fast as it is received, and all sizes paced; one-byte
request/response over TCP, none of which the filter matches.

Production (both pods and vswitchd, with the softirqs that they cause) has all cores but the last. The last has what becomes
of copies beyond the node, and who reads them: the router, the collector, the agent, and tcpdump. What a way to copy does in
production's own context stays there, as it does on a node that nobody has tuned: cloning, segmenting, the switch's second
output, `pick` behind the switch, encapsulation. "Busy" is production's cores only. The node's uplink hands frames to a ring
that the last core looks into every 50 µs, as a network card with interrupt moderation does (decision 0106). "On export
CPUs" copies are worked at on the last core too, which costs an interrupt between cores for many of them: dear on virtual
machines.

All copies but those of packet sockets go to the same collector over the same two hops; tcpdump writes to /dev/null. Then, on
a lab with a plain bridge: one tap on the node, and 100 of as many pods, of which one has traffic.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.backends_goals import (
    AGAIN,
    BASELINE,
    CAPTURE,
    COMPLETE,
    EBPF,
    FILTERED,
    FULL,
    GROUP,
    HANDED,
    MIRRED,
    MIRROR,
    MIRROR_HANDED,
    P50,
    RAW,
    SAMPLED,
    SIDECAR,
    SIZES,
    TCP,
    TCP_BUSY,
    UDP,
    UDP_BUSY,
    VARIANTS,
    Judgement,
    costs,
    geometric_mean,
    judge_backends,
    judge_taps,
    noises,
    row_name,
    taps,
    udp_by_size,
)
from bench.backends_peers import TcMirred, Tcpdump
from bench.cores import Placement, busy_seconds, pin, placement, receive_as_a_card, steer
from bench.measure import Figures, Sample, interleave, is_possible, table, write_json
from bench.tapped import MATCHED_PORT, NAMESPACE, TAPPED, HandedOver, Outcome, RawMirror, Row, Tapped, VirtualTaps
from vtap_lab import preflight
from vtap_lab.errors import LabError
from vtap_lab.lab import PLAIN_BRIDGE, Lab, LabOptions

UPLINK, UPLINK_PEER = "up0", "node0"
"""The node's, and its far end in the router."""
FRAME = 1514
TRICKLE_FRAME = 512
SHARE = 100
"""One in so many is sampled, and one in so many datagrams matches."""
MEMORY = Path("/dev/shm")
SPECS: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    SAMPLED: {"sampling": {"type": "OneIn", "oneIn": SHARE}},
    FILTERED: {
        "filter": {
            "defaultAction": "Exclude",
            "rules": [{"action": "Include", "protocol": "UDP", "peerPorts": [{"port": MATCHED_PORT}]}],
        }
    },
}
UNAVAILABLE = {
    row_name(CAPTURE, SAMPLED): "tcpdump's filter language has no sampling",
    row_name(SIDECAR, SAMPLED): "tcpdump's filter language has no sampling",
    f"{RAW}, {SAMPLED} or {FILTERED}": "a mirror copies every packet of a port (Open vSwitch before 3.4)",
}


@dataclass(frozen=True)
class Options:
    """`seconds` of each TCP load, from which the others' follow; paces in Mb/s and datagrams a second."""

    rounds: int
    seconds: int
    paced: float
    paced_datagrams: float
    tso: bool
    underlay_mtu: int
    taps: int
    only: str
    """A regular expression for names of rows; those without a tap are measured always."""
    quick: bool

    @property
    def size_seconds(self) -> float:
        """For each size of UDP."""
        return self.seconds / 4

    @property
    def other_seconds(self) -> float:
        """For paced UDP and for request/response."""
        return self.seconds * 3 / 4


@dataclass
class Bench:
    """Measures rows on one scene. A row that fails is left out of the round, and said."""

    scene: Tapped
    where: Placement
    options: Options
    trickle: float = 0.0
    """Datagrams a second beside a TCP stream at full speed: one in SHARE of what this machine moves."""
    failures: list[str] = field(default_factory=list)

    def calibrate(self) -> None:
        self.trickle = _trickle(self.scene.iperf(1) * 1e9)

    def measure(self, name: str, row: Row) -> Sample:
        """All loads while `row` copies."""
        started = time.monotonic()
        try:
            with row.copying(self.scene):
                return {**self._tcp(row), **self._udp(row), **self._latency()}
        except LabError as problem:
            self.failures.append(f"{name}: {problem}")
            return {}
        finally:
            if not sys.stderr.isatty():
                sys.stderr.write(f"    {name}: {time.monotonic() - started:.0f} s\n")

    # --- loads -----------------------------------------------------------------------------------------------------------

    def _stream(self, trickle: float, *arguments: str) -> float:
        seconds = self.options.seconds
        beside = self.scene.start_datagrams([TRICKLE_FRAME], trickle, seconds + 0.5, 1)
        moved = self.scene.iperf(seconds, *arguments)
        beside.wait_ok(seconds + 10)
        return moved

    def _busy(self, load: Callable[[], float], busy: list[float]) -> float:
        """What `load` says; the share of one core that production was busy meanwhile goes to `busy`."""
        before, started = busy_seconds(self.where.production), time.monotonic()
        moved = load()
        busy.append((busy_seconds(self.where.production) - before) / (time.monotonic() - started))
        return moved

    def _tcp(self, row: Row) -> Sample:
        pace = self.options.paced * 1e6
        busy: list[float] = []
        full = self.scene.outcome(row, lambda: self._stream(self.trickle))
        paced = self.scene.outcome(row, lambda: self._busy(lambda: self._stream(_trickle(pace), "-b", f"{pace:.0f}"), busy))
        own = {TCP: full.moved, "paced tcp Gb/s": paced.moved, TCP_BUSY: busy[0]}
        return {**own, **_shares("tcp", full), **_shares("paced tcp", paced)}

    def _udp(self, row: Row) -> Sample:
        rates: dict[str, float] = {}
        busy: list[float] = []

        def at_full_speed() -> float:
            for size in SIZES:
                done = self.scene.datagrams([size], 0, self.options.size_seconds, SHARE)
                rates[udp_by_size(size)] = done["received"] / done["seconds"] / 1e3
            return geometric_mean(list(rates.values()))

        def paced() -> float:
            done = self.scene.datagrams(SIZES, self.options.paced_datagrams, self.options.other_seconds, SHARE)
            return done["received"] / done["seconds"]

        full = self.scene.outcome(row, at_full_speed)
        slow = self.scene.outcome(row, lambda: self._busy(paced, busy))
        own = {UDP: full.moved, **rates, "paced udp pps": slow.moved, UDP_BUSY: busy[0] / slow.moved * 1e6}
        return {**own, **_shares("udp", full), **_shares("paced udp", slow)}

    def _latency(self) -> Sample:
        latency = self.scene.request_response(self.options.other_seconds)
        return {P50: latency["p50"], "p99 us": latency["p99"], "mean us": latency["mean"]}


def _trickle(bits: float) -> float:
    """Datagrams a second that are one in SHARE of a TCP stream's packets."""
    return max(1.0, bits / 8 / FRAME / SHARE)


def _shares(load: str, outcome: Outcome) -> Sample:
    shares = {f"{load} delivered": outcome.delivered, f"{load} wanted": outcome.wanted}
    return {name: share for name, share in shares.items() if share is not None}


# --- rows and labs -------------------------------------------------------------------------------------------------------


def backend_rows() -> Mapping[str, Row]:
    """Those that are measured on Open vSwitch."""
    ours = {
        row_name(backend, variant): VirtualTaps(backend=backend, **SPECS[variant])
        for variant in VARIANTS
        for backend in (MIRROR, GROUP, EBPF)
    }
    peers: dict[str, Row] = {row_name(MIRRED, variant): TcMirred(variant) for variant in VARIANTS}
    for variant in (FULL, FILTERED):
        peers[row_name(CAPTURE, variant)] = Tcpdump(variant, in_pod=False)
        peers[row_name(SIDECAR, variant)] = Tcpdump(variant, in_pod=True)
    handed = {row_name(HANDED, FULL): HandedOver(backend=EBPF), row_name(MIRROR_HANDED, FULL): HandedOver(backend=MIRROR)}
    return {BASELINE: Row(), AGAIN: Row(), RAW: RawMirror(), **ours, **handed, **peers}


def tap_rows(others: Sequence[str]) -> Mapping[str, Row]:
    """One tap, and one for each other pod as well."""
    one, many = VirtualTaps(backend=EBPF), VirtualTaps((TAPPED, *others), backend=EBPF)
    return {BASELINE: Row(), AGAIN: Row(), taps(1): one, taps(len(others) + 1): many}


@contextmanager
def _bench(options: Options, settings: LabOptions, where: Placement) -> Iterator[Bench]:
    """A lab with all in its place. This process, and what it starts, is where copies are worked at."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, where.export)
    folder = MEMORY if MEMORY.is_dir() else None
    try:
        with tempfile.TemporaryDirectory(prefix="vtap-bench-", dir=folder) as storage, Lab(settings) as lab:
            if lab.has_switch and lab.switch.vswitchd_pid is not None:
                pin(lab.switch.vswitchd_pid, where.production)
            if where.apart:
                lab.run(lab.node, "ethtool", "-K", UPLINK, "tso", "off")
                receive_as_a_card(lab.router, UPLINK_PEER, where.export)
                steer(lab.router, ["col0"], where.export)
                steer(lab.collector, ["eth0"], where.export)
            bench = Bench(Tapped(lab, Path(storage), where), where, options)
            bench.calibrate()
            yield bench
    finally:
        os.sched_setaffinity(0, allowed)


def _interleaved(bench: Bench, rows: Mapping[str, Row]) -> Mapping[str, Figures]:
    only = re.compile(bench.options.only)
    wanted = {name: row for name, row in rows.items() if name in (BASELINE, AGAIN) or only.search(name)}
    measured = {name: lambda name=name, row=row: bench.measure(name, row) for name, row in wanted.items()}
    return interleave(measured, bench.options.rounds)


def measure_backends(options: Options, where: Placement) -> tuple[Mapping[str, Figures], list[str]]:
    """Rows, and what failed."""
    with _bench(options, LabOptions(userspace_tso=options.tso, underlay_mtu=options.underlay_mtu), where) as bench:
        return _interleaved(bench, backend_rows()), bench.failures


def measure_taps(options: Options, where: Placement) -> tuple[Mapping[str, Figures], list[str]]:
    """Rows, and what failed."""
    others = [f"other-{number}" for number in range(1, options.taps)]
    with _bench(options, LabOptions(datapath=PLAIN_BRIDGE, underlay_mtu=options.underlay_mtu), where) as bench:
        for name in others:
            bench.scene.lab.add_pod(name, namespace=NAMESPACE, labels={"app": name})
        return _interleaved(bench, tap_rows(others)), bench.failures


# --- report --------------------------------------------------------------------------------------------------------------


def _cell(row: Figures, baseline: Figures, figure: str, unit: float = 1.0, digits: int = 2) -> str:
    """Median, and the cost as median (lowest…highest) over the rounds."""
    found = costs(row, baseline, figure)
    if not found:
        return ""
    median = f"{row.median(figure) * unit:.{digits}f}"
    if row is baseline:
        return median
    return f"{median} {statistics.median(found):+.1%} ({min(found):+.0%}…{max(found):+.0%})"


def _plain(row: Figures, figure: str, digits: int) -> str:
    return f"{row.median(figure):.{digits}f}" if row.values(figure) else ""


def _share(row: Figures, figure: str, complete: float = 0.0) -> str:
    """Median, and that of the worst round; marked where this is not `complete`."""
    if not row.values(figure):
        return ""
    middle, worst = row.median(figure), min(row.values(figure))
    lowest = f" ({worst:.2%})" if worst < middle else ""
    return f"{middle:.2%}{lowest}{'' if worst >= complete else ' !'}"


def tables(title: str, rows: Mapping[str, Figures]) -> str:
    """One of TCP and latency, one of UDP."""
    baseline = rows[BASELINE]
    stream = [
        [
            name,
            _cell(row, baseline, TCP),
            _share(row, "tcp wanted"),
            _share(row, "tcp delivered"),
            _cell(row, baseline, TCP_BUSY, 100, 1),
            _share(row, "paced tcp delivered", COMPLETE),
            _cell(row, baseline, P50, 1, 1),
            _plain(row, "p99 us", 0),
        ]
        for name, row in rows.items()
    ]
    datagrams = [
        [
            name,
            *(_plain(row, udp_by_size(size), 1) for size in SIZES),
            _cell(row, baseline, UDP, 1, 1),
            _share(row, "udp wanted"),
            _share(row, "udp delivered"),
            _cell(row, baseline, UDP_BUSY),
            _share(row, "paced udp delivered", COMPLETE),
        ]
        for name, row in rows.items()
    ]
    head = ("", "TCP Gb/s, cost", "wanted", "delivered", "paced: busy %, cost", "delivered", "p50 µs, cost", "p99 µs")
    sizes = [f"{size} B" for size in SIZES]
    udp_head = ("UDP kpps", *sizes, "mean, cost", "wanted", "delivered", "paced: µs busy, cost", "delivered")
    return "\n".join([table(title, head, stream), table("", udp_head, datagrams).lstrip("\n")])


def verdicts(rows: Mapping[str, Figures], judgements: Sequence[Judgement]) -> str:
    """A line for the noise, and one for each goal."""
    lines = ["noise (A/A): " + ", ".join(f"{figure} {share:.1%}" for figure, share in noises(rows).items())]
    for goal, parts in groupby(judgements, key=lambda one: one.goal):
        lines.append(f"goal: {goal}: " + "; ".join(f"{part.figures} {part.verdict}" for part in parts))
    return "\n".join(lines) + "\n"


def _about(options: Options, where: Placement) -> str:
    paces = f"paced at {options.paced:g} Mb/s and {options.paced_datagrams:g} datagrams a second"
    return f"{options.rounds} rounds, TCP {options.seconds:g} s; {paces}; {where}"


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m bench.backends", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of a TCP load; the others follow")
    parser.add_argument("--paced", type=float, default=500.0, help="Mb/s of the paced TCP stream")
    parser.add_argument("--paced-datagrams", type=float, default=5000.0, help="a second")
    parser.add_argument("--taps", type=int, default=100, help="how many are compared with one; 0 leaves that out")
    parser.add_argument("--underlay-mtu", type=int, default=1700)
    parser.add_argument("--tso", choices=("on", "off"), default="on", help="super-packets through Open vSwitch")
    parser.add_argument(
        "--only", default="", help="a regular expression: rows whose names it is found in, beside those without tap"
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all rows work; says nothing of speed")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds, given.taps = 1, 1, 5
    return Options(
        rounds=given.rounds,
        seconds=given.seconds,
        paced=given.paced,
        paced_datagrams=given.paced_datagrams,
        tso=given.tso == "on",
        underlay_mtu=given.underlay_mtu,
        taps=given.taps,
        only=given.only,
        quick=given.quick,
    )


def _result_name(options: Options) -> str:
    if options.quick:
        return "backends-quick"
    return "backends-part" if options.only or not options.taps else "backends"


def main() -> int:
    """Print the tables and goals, write bench/results/backends.json. 1 where a row failed."""
    options, where = _options(), placement()
    if not is_possible(preflight.why_no_lab()):
        return 1
    started = time.monotonic()
    backends, failures = measure_backends(options, where)
    tso = "on" if options.tso else "off"
    print(tables(f"Backends on Open vSwitch in user space, TSO {tso}. {_about(options, where)}", backends))
    print("".join(f"{name}: not to be had: {why}\n" for name, why in UNAVAILABLE.items()))
    of_backends = judge_backends(backends)
    print(verdicts(backends, of_backends))
    content = {
        "options": vars(options),
        "placement": str(where),
        "rows": {name: row.samples for name, row in backends.items()},
        "noise": noises(backends),
        "unavailable": UNAVAILABLE,
    }
    if options.taps:
        many, more = measure_taps(options, where)
        failures += more
        of_taps = judge_taps(many, options.taps)
        print(tables(f"Taps on a node, EBPF on a plain bridge. {_about(options, where)}", many))
        print(verdicts(many, of_taps))
        content |= {
            "taps": {name: row.samples for name, row in many.items()},
            "noise of taps": noises(many),
        }
    print("".join(f"failed: {failure}\n" for failure in failures), end="")
    file = write_json(_result_name(options), content | {"failures": failures})
    print(f"{file}, in {(time.monotonic() - started) / 60:.0f} min")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
