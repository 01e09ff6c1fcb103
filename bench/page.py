"""docs/cost.md: its tables are made of what is in bench/published. `--publish` takes over what was measured here last.

A block of the page begins with ``<!-- measured: NAME -->`` and ends with ``<!-- end -->``; all else of it is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.backends_goals import (
    BASELINE,
    P50,
    SIZES,
    TCP,
    TCP_BUSY,
    UDP,
    UDP_BUSY,
    Judgement,
    Verdict,
    costs,
    in_percent,
    judge_backends,
    judge_taps,
    udp_by_size,
)
from bench.dpdk import CYCLES, NANOSECONDS, judge_dpdk
from bench.measure import RESULTS, Figures, differences
from bench.operator_scale import GOALS as OPERATOR_GOALS
from bench.reaction import GOALS as REACTION_GOALS
from bench.reaction import percentile

PUBLISHED = Path(__file__).parent / "published"
PAGE = Path(__file__).parent.parent / "docs" / "cost.md"
_BLOCK = re.compile(r"(?P<head><!-- measured: (?P<name>[^>]+?) -->\n).*?(?P<tail><!-- end -->)", re.DOTALL)
_MINUS = "\N{MINUS SIGN}"

Result = Mapping[str, Any]
"""What `write_json` wrote."""


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows)) + "\n"


def _figures(samples: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Figures]:
    return {name: Figures(tuple(row)) for name, row in samples.items()}


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """The median, and the lowest and highest."""
    return f"{form(statistics.median(values))} ({form(min(values))} … {form(max(values))})" if values else ""


def _percent(share: float) -> str:
    return f"{share * 100:+.0f} %".replace("-", _MINUS)


def _micro(value: float) -> str:
    return f"{value:+.0f}".replace("-", _MINUS)


def _share(row: Figures, figure: str, percent: Callable[[float], float] = in_percent) -> str:
    """The median, and the lowest and highest where these differ."""
    if not (values := row.values(figure)):
        return ""
    low, middle, high = (f"{percent(share):.1f}" for share in (min(values), statistics.median(values), max(values)))
    return f"{middle} %" if low == high else f"{middle} % ({low} … {high})"


def _about(result: Result) -> str:
    about = result["about"]
    return f"{about['time'][:10]}, Linux {'.'.join(about['kernel'].split('.')[:2])}, {about['cpus']} virtual CPUs"


def _stream(rows: Mapping[str, Figures]) -> str:
    baseline = rows[BASELINE]
    head = ("", "TCP at full speed", "delivered", "500 Mb/s: core busy", "delivered", "p50, µs")
    lines = [
        [
            name,
            _spread(costs(row, baseline, TCP), _percent),
            _share(row, "tcp delivered"),
            _spread(costs(row, baseline, TCP_BUSY), _percent),
            _share(row, "paced tcp delivered"),
            _spread(differences(row, baseline, P50), _micro),
        ]
        for name, row in rows.items()
        if name != BASELINE
    ]
    untapped = [
        BASELINE,
        f"{baseline.median(TCP):.2f} Gb/s",
        "",
        f"{baseline.median(TCP_BUSY) * 100:.0f} %",
        "",
        f"{baseline.median(P50):.0f}",
    ]
    return _markdown(head, [untapped, *lines])


def _datagrams(rows: Mapping[str, Figures]) -> str:
    baseline = rows[BASELINE]
    head = ("", "full speed, all sizes", *(f"{size} B" for size in SIZES), "delivered", "5,000/s: core busy", "delivered")
    lines = [
        [
            name,
            _spread(costs(row, baseline, UDP), _percent),
            *(_percent(statistics.median(costs(row, baseline, udp_by_size(size)))) for size in SIZES),
            _share(row, "udp delivered"),
            _spread(costs(row, baseline, UDP_BUSY), _percent),
            _share(row, "paced udp delivered"),
        ]
        for name, row in rows.items()
        if name != BASELINE
    ]
    rates = (f"{baseline.median(udp_by_size(size)):.0f}" for size in SIZES)
    untapped = [BASELINE, f"{baseline.median(UDP):.0f} kpps", *rates, "", f"{baseline.median(UDP_BUSY):.0f} µs a packet", ""]
    return _markdown(head, [untapped, *lines])


def _goals(judged: Sequence[Judgement]) -> str:
    """One line for each goal: its figures by verdict."""
    verdicts = [verdict for verdict in Verdict if verdict is not Verdict.UNKNOWN]
    lines: list[list[str]] = []
    for goal, found in groupby(judged, key=lambda one: one.goal):
        parts = list(found)
        by_verdict = ([one.figures for one in parts if one.verdict is verdict] for verdict in verdicts)
        lines.append([goal, *map("; ".join, by_verdict)])
    return _markdown(("goal", *verdicts), lines).replace("--:", "---")


def _backends_goals(result: Result) -> str:
    many = judge_taps(_figures(result["taps"]), result["options"]["taps"])
    return _goals([*judge_backends(_figures(result["rows"])), *many])


def _noise(noises: Mapping[str, float]) -> str:
    return "Untapped against untapped: " + ", ".join(f"{figure} {share * 100:.0f} %" for figure, share in noises.items()) + ".\n"


def _backends_about(result: Result) -> str:
    options = result["options"]
    missing = "".join(f"Not measured: {what} ({why}).\n" for what, why in result["unavailable"].items())
    return f"{_about(result)}; {options['rounds']} rounds; {result['placement']}. {_noise(result['noise'])}{missing}"


def _taps(result: Result) -> str:
    return _stream(_figures(result["taps"])) + "\n" + _noise(result["noise of taps"])


def _copied(row: Figures) -> str:
    """To the nearest: read around the packets' counters, it isn't exact and may be more than all."""
    return _share(row, "copied", lambda share: share * 100)


def _dpdk(result: Result) -> str:
    rows = _figures(result["rows"])
    baseline = rows[BASELINE]
    lines = [
        [name, *(_spread(differences(row, baseline, figure), _micro) for figure in (CYCLES, NANOSECONDS)), _copied(row)]
        for name, row in rows.items()
        if name != BASELINE
    ]
    untapped = [BASELINE, *(f"{baseline.median(figure):.0f}" for figure in (CYCLES, NANOSECONDS)), ""]
    head = ("", *(f"{figure}, added" for figure in (CYCLES, NANOSECONDS)), "copied")
    missing = "".join(f" Not measured: {what} ({why})." for what, why in result["unavailable"].items())
    return f"{_about(result)}, one poll-mode thread.{missing}\n\n" + _markdown(head, [untapped, *lines])


def _preprocessor(result: Result) -> str:
    lines: list[list[str]] = []
    for name, samples in result["rows"].items():
        values = [sample["ns"] for sample in samples]
        goal = result["goals"].get(name)
        lines.append([name, _spread(values, lambda value: f"{value:.0f}"), f"≤ {goal}" if goal else ""])
    title = f"{_about(result)}. An empty program takes {result['empty_ns']:.0f} ns.\n\n"
    return title + _markdown(("", "ns over an empty program", "goal"), lines)


def _reaction(result: Result) -> str:
    times = sorted(result["seconds"])
    lines = [
        [
            f"file written to first copy stored, {name}",
            f"{percentile(times, int(name[1:])) * 1000:.0f} ms",
            f"≤ {goal * 1000:.0f} ms",
        ]
        for name, goal in REACTION_GOALS.items()
    ]
    lines.append(["agent, resident", f"{result['resident_bytes'] / 2**20:.0f} MiB", "≤ 64 MiB"])
    lines.append(["its maps", f"{result['map_bytes'] / 2**20:.1f} MiB", ""])
    return f"{_about(result)}; {len(times)} changes.\n\n" + _markdown(("", "measured", "goal"), lines)


def _operator(result: Result) -> str:
    changes = sorted(result["changes"])
    lines = [
        ["all taps resolved", f"{result['resolved']:.2f} s", f"≤ {OPERATOR_GOALS['resolve']:g} s"],
        ["a pod's change, p99", f"{percentile(changes, 99) * 1000:.0f} ms", f"≤ {OPERATOR_GOALS['change'] * 1000:.0f} ms"],
        ["resident, at most", f"{result['peak'] / 2**20:.0f} MiB", f"≤ {OPERATOR_GOALS['memory'] / 2**20:.0f} MiB"],
    ]
    title = f"{_about(result)}; {result['taps']:,} taps, {result['pods']:,} pods.\n\n"
    return title + _markdown(("", "measured", "goal"), lines)


BLOCKS: Mapping[str, tuple[str, Callable[[Result], str]]] = {
    "backends": ("backends", _backends_about),
    "backends, stream": ("backends", lambda result: _stream(_figures(result["rows"]))),
    "backends, datagrams": ("backends", lambda result: _datagrams(_figures(result["rows"]))),
    "backends, goals": ("backends", _backends_goals),
    "taps": ("backends", _taps),
    "dpdk": ("dpdk-1-pmd", _dpdk),
    "dpdk, goals": ("dpdk-1-pmd", lambda result: _goals(judge_dpdk(_figures(result["rows"])))),
    "preprocessor": ("preprocessor", _preprocessor),
    "reaction": ("reaction", _reaction),
    "operator": ("operator_scale", _operator),
}
"""By name of the block: what it is made of, and how."""


def rendered(page: str, read: Callable[[str], Result]) -> str:
    """The page with its blocks as `read` tells of each measurement. KeyError on a block that there is none of."""

    def block(found: re.Match[str]) -> str:
        source, render = BLOCKS[found["name"]]
        return f"{found['head']}\n{render(read(source))}\n{found['tail']}"

    return _BLOCK.sub(block, page)


def published(name: str) -> Result:
    return json.loads((PUBLISHED / f"{name}.json").read_text())


def publish(name: str, source: Path = RESULTS, target: Path = PUBLISHED) -> None:
    """Take over a result. Of the kernel its version is told; what follows names somebody's build."""
    result: dict[str, Any] = json.loads((source / f"{name}.json").read_text())
    about = result["about"]
    told = {**result, "about": {**about, "kernel": about["kernel"].partition("-")[0]}}
    (target / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


def main() -> int:
    """Write the page anew."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--publish", nargs="+", default=[], metavar="NAME", help="of bench/results, to be shown from now on")
    given = parser.parse_args()
    PUBLISHED.mkdir(exist_ok=True)
    for name in given.publish:
        publish(name)
    PAGE.write_text(rendered(PAGE.read_text(), published))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
