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
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.cores import busy_seconds
from bench.measure import Figures, Sample, interleave, ratio, table, write_json
from bench.tapped import Counts, RawMirror, Row, Tapped, VirtualTaps, add_vxlan, delete_vxlan, vxlan_counts
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
        "full Gb/s": full.moved,
        "paced Gb/s": paced.moved,
        "paced busy s": busy,
        "p50 us": latency["p50"],
        "p99 us": latency["p99"],
    }
    if full.delivered is not None and paced.delivered is not None:
        figures |= {"full delivered": full.delivered, "paced delivered": paced.delivered}
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
FIGURES = ("full Gb/s", "paced busy s", "p50 us", "p99 us")


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
