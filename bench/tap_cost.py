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
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.backends_goals import Judgement, in_percent, judge, percent, with_losses
from bench.cores import busy_seconds
from bench.measure import Figures, Sample, interleave, is_possible, ratio, table, write_json
from bench.tapped import Counts, RawMirror, Row, Tapped, VirtualTaps, add_vxlan, delete_vxlan, vxlan_counts
from vtap_lab import preflight
from vtap_lab.lab import Lab, LabOptions

BASELINE, AGAIN = "no tap", "no tap again (A/A)"
CORES = range(os.cpu_count() or 1)


@dataclass(frozen=True)
class Options:
    """`paced` in Mb/s; times in seconds."""

    rounds: int
    seconds: float
    paced: float
    tso: bool
    underlay_mtu: int


def measure(scene: Tapped, row: Row, options: Options) -> Sample:
    """All loads while `row` copies."""
    seconds = options.seconds
    with row.copying(scene):
        full = scene.outcome(row, lambda: scene.iperf(seconds))
        busy = busy_seconds(CORES)
        paced = scene.outcome(row, lambda: scene.iperf(seconds, "-b", f"{options.paced:g}M"))
        busy = busy_seconds(CORES) - busy
        latency = scene.request_response(seconds)
    figures = {
        FULL: full.moved,
        "paced Gb/s": paced.moved,
        BUSY: busy,
        "p50 us": latency["p50"],
        "p99 us": latency["p99"],
    }
    if full.delivered is not None and paced.delivered is not None:
        figures |= {DELIVERED[FULL]: full.delivered, DELIVERED[BUSY]: paced.delivered}
    return figures


class VxlanMirror(RawMirror):
    """The raw mirror's copies, redirected into a kernel VXLAN device that leads to the collector."""

    def prepare(self, scene: Tapped, direction: str, device: str) -> None:
        lab = scene.lab
        name = add_vxlan(scene, direction)
        lab.run(lab.node, "tc", "qdisc", "add", "dev", device, "clsact")
        every = ["protocol", "all", "u32", "match", "u32", "0", "0"]
        redirect = ["action", "mirred", "egress", "redirect", "dev", name]
        lab.run(lab.node, "tc", "filter", "add", "dev", device, "ingress", *every, *redirect)

    def clear(self, scene: Tapped, direction: str) -> None:
        delete_vxlan(scene, direction)

    def counts(self, scene: Tapped) -> Counts | None:
        return vxlan_counts(scene)


ROWS: Mapping[str, Row] = {
    BASELINE: Row(),
    AGAIN: Row(),
    "raw mirror": RawMirror(),
    "mirror → VXLAN": VxlanMirror(),
    "ours, full": VirtualTaps(backend="OVSMirror"),
    "ours, 1 in 100": VirtualTaps(backend="OVSMirror", sampling={"type": "OneIn", "oneIn": 100}),
    "ours, all excluded": VirtualTaps(backend="OVSMirror", filter={"defaultAction": "Exclude"}),
}
GOALS = {
    "ours, full": "mirror → VXLAN",
    "ours, 1 in 100": "raw mirror",
    "ours, all excluded": "raw mirror",
}
FULL, BUSY = "full Gb/s", "paced busy s"
FIGURES = (FULL, BUSY, "p50 us", "p99 us")
DELIVERED = {FULL: "full delivered", BUSY: "paced delivered"}
"""Which share of the wanted copies arrived while a figure was measured."""


def run(options: Options) -> Mapping[str, Figures]:
    """Measure all rows."""
    settings = LabOptions(userspace_tso=options.tso, underlay_mtu=options.underlay_mtu)
    with tempfile.TemporaryDirectory(prefix="vtap-bench-") as storage, Lab(settings) as lab:
        scene = Tapped(lab, Path(storage))
        return interleave({name: lambda row=row: measure(scene, row, options) for name, row in ROWS.items()}, options.rounds)


def report(options: Options, rows: Mapping[str, Figures]) -> str:
    """The table: medians, and ratios to the baseline of the same round as median (lowest…highest)."""
    baseline = rows[BASELINE]
    cells: list[list[str]] = []
    for name, row in rows.items():
        line = [name]
        for figure in FIGURES:
            against = ratio(row, baseline, figure)
            line.append(f"{row.median(figure):.2f}  x{against.median:.2f} ({against.low:.2f}…{against.high:.2f})")
        line += [_shares(row.values(share)) for share in DELIVERED.values()]
        cells.append(line)
    tso = "on" if options.tso else "off"
    title = f"Tap cost, userspace TSO {tso}, paced at {options.paced:g} Mb/s, {options.rounds} rounds of {options.seconds:g} s"
    return table(title, ("", *FIGURES, *DELIVERED.values()), cells) + "".join(f"{judged}\n" for judged in judge_rows(rows))


def _shares(values: Sequence[float]) -> str:
    """The lowest and the highest."""
    return f"{in_percent(min(values)):.1f}…{in_percent(max(values)):.1f}%" if values else ""


def judge_rows(rows: Mapping[str, Figures]) -> list[Judgement]:
    """Whether our taps are as cheap as what they are compared with; an A/A run says what can be told apart."""
    return [_no_dearer(rows, ours, other, figure) for ours, other in GOALS.items() for figure in FIGURES]


def _no_dearer(rows: Mapping[str, Figures], ours: str, other: str, figure: str) -> Judgement:
    against, again = ratio(rows[ours], rows[other], figure), ratio(rows[AGAIN], rows[BASELINE], figure)
    cost = 1 - against.median if figure == FULL else against.median - 1
    noise = max(abs(again.high - 1), abs(1 - again.low))
    judged = Judgement(f"{ours} no dearer than {other}", f"{figure} {percent(cost)}", judge(cost, 0.0, noise))
    return with_losses(judged, min(rows[ours].values(DELIVERED.get(figure, "")), default=math.nan))


def main() -> int:
    """Print the tables, write bench/results/tap_cost-*.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.tap_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--underlay-mtu", type=int, default=1700)
    parser.add_argument("--tso", choices=("on", "off", "both"), default="both")
    arguments = parser.parse_args()
    if not is_possible(preflight.why_no_lab()):
        return 1
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
