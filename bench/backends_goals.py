"""What rows of bench.backends cost, and whether that reaches the goals. Pure.

A cost is the share by which a figure is worse than the baseline's of the same round: of throughput what is lost, of time what is
added. The noise is the largest such share, in either direction, between the baseline and its repetition. What is beyond a goal by
less than the noise is neither reached nor missed. Costs are judged by the median of the rounds, losses by the worst round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bench.measure import Figures, differences

BASELINE, AGAIN = "none", "none again (A/A)"
RAW = "raw mirror"
ONE_TAP = "1 tap"
FULL, SAMPLED, FILTERED = "full", "1 in 100", "1 % by filter"
VARIANTS = (FULL, SAMPLED, FILTERED)
MIRROR, GROUP, EBPF = "OVSMirror", "OVSGroup", "EBPF"
HANDED, MIRROR_HANDED = "EBPF on export CPUs", "OVSMirror on export CPUs"
"""Whose copies are worked at by cores that are set aside for that."""
MIRRED, CAPTURE, SIDECAR = "tc mirred", "AF_PACKET on the veth", "tcpdump in the pod"
PEERS = (MIRRED, CAPTURE, SIDECAR)

TCP, UDP, P50 = "tcp Gb/s", "udp kpps", "p50 us"
"""At full speed; that of UDP is the geometric mean over all sizes."""
TCP_BUSY, UDP_BUSY = "paced tcp busy", "paced udp us"
"""Of production's cores: the share of a core's time, and microseconds a packet."""
SIZES = (64, 128, 256, 512, 1024, 1500)
"""Of Ethernet frames without FCS, in bytes."""
JUDGED = (TCP, UDP, TCP_BUSY, UDP_BUSY, P50)
DELIVERED = {
    TCP: "tcp delivered",
    UDP: "udp delivered",
    TCP_BUSY: "paced tcp delivered",
    UDP_BUSY: "paced udp delivered",
}
"""Which share of the wanted copies arrived while a figure was measured. Of request/response that isn't counted."""
COMPLETE = 0.999
GROWTH = 1.2
_ROUNDING = 1e-9
"""Keeps what is a whole tenth from falling below it by the error of a multiplication."""
SMALL = 0.01
"""What "within noise" may be at most where there is less noise than that."""


class Verdict(StrEnum):
    REACHED = "reached"
    INCOMPLETE = "reached, but for the copies that were lost"
    WITHIN_NOISE = "not told apart from noise"
    MISSED = "MISSED"
    UNKNOWN = "not measured"


@dataclass(frozen=True)
class Judgement:
    """`figures` says what was compared."""

    goal: str
    figures: str
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.verdict}: {self.goal}: {self.figures}"


def udp_by_size(size: int) -> str:
    """The name of the figure for one size of frame."""
    return f"udp {size} kpps"


MORE_IS_BETTER = frozenset({TCP, UDP, *map(udp_by_size, SIZES)})


def taps(count: int) -> str:
    """The name of the row with so many taps on the node."""
    return ONE_TAP if count == 1 else f"{count} taps"


def row_name(backend: str, variant: str) -> str:
    return f"{backend}, {variant}"


OURS = (
    *(row_name(backend, variant) for variant in VARIANTS for backend in (MIRROR, GROUP, EBPF)),
    row_name(HANDED, FULL),
    row_name(MIRROR_HANDED, FULL),
)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def costs(row: Figures, against: Figures, figure: str) -> list[float]:
    """How much worse `row` is, as a share, in each round in which both have the figure."""
    pairs = zip(row.samples, against.samples, strict=True)
    values = [(one[figure], other[figure]) for one, other in pairs if one.get(figure) and other.get(figure)]
    return [1 - one / other if figure in MORE_IS_BETTER else one / other - 1 for one, other in values]


def noise(rows: Mapping[str, Figures], figure: str) -> float:
    """The largest difference between the baseline and itself; NaN where it was not measured."""
    return max((abs(cost) for cost in costs(rows[AGAIN], rows[BASELINE], figure)), default=math.nan)


def judge(cost: float, allowed: float, uncertainty: float) -> Verdict:
    """A cost, at most `allowed`, known to within `uncertainty`."""
    if math.isnan(cost) or math.isnan(allowed) or math.isnan(uncertainty):
        return Verdict.UNKNOWN
    if cost <= allowed:
        return Verdict.REACHED
    return Verdict.WITHIN_NOISE if cost <= allowed + uncertainty else Verdict.MISSED


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def in_percent(share: float) -> float:
    """Of copies that arrived, in tenths of a per cent; rounded down, so that a hundred means all of them."""
    return math.floor(share * 1000 + _ROUNDING) / 10


def with_losses(judged: Judgement, share: float, done: str = "delivered") -> Judgement:
    """What costs little because copies are missing doesn't reach its goal. `share` is the worst round's, NaN where unknown."""
    if not share < COMPLETE:
        return judged
    verdict = Verdict.INCOMPLETE if judged.verdict is Verdict.REACHED else judged.verdict
    return Judgement(judged.goal, f"{judged.figures} (at least {in_percent(share):.1f}% {done})", verdict)


class Costs:
    """Medians of costs by name of row."""

    def __init__(self, rows: Mapping[str, Figures]) -> None:
        self._rows = rows

    def noise(self, figure: str) -> float:
        return noise(self._rows, figure)

    def of(self, name: str, figure: str) -> float:
        return self.between(name, BASELINE, figure)

    def between(self, name: str, other: str, figure: str) -> float:
        """NaN where one of them was not measured."""
        if name not in self._rows or other not in self._rows:
            return math.nan
        return _median(costs(self._rows[name], self._rows[other], figure))

    def delivered(self, name: str, figure: str) -> float:
        """In the worst round; NaN where nobody counts."""
        values = self._rows[name].values(DELIVERED[figure]) if name in self._rows and figure in DELIVERED else []
        return min(values, default=math.nan)

    def judgement(self, goal: str, name: str, figure: str, cost: float, allowed: float) -> Judgement:
        """Of a cost of the row `name`."""
        judged = Judgement(goal, f"{figure} {percent(cost)}", judge(cost, allowed, self.noise(figure)))
        return with_losses(judged, self.delivered(name, figure))

    def added(self, name: str, figure: str) -> float:
        """The difference of a figure to the baseline's, in the figure's unit."""
        if name not in self._rows:
            return math.nan
        return _median(differences(self._rows[name], self._rows[BASELINE], figure))

    def added_noise(self, figure: str) -> float:
        return max(map(abs, differences(self._rows[AGAIN], self._rows[BASELINE], figure)), default=math.nan)


def judge_backends(rows: Mapping[str, Figures]) -> list[Judgement]:
    """All goals of rows that were measured on one lab."""
    found = Costs(rows)
    return [
        *(_within_noise(found, row_name(EBPF, variant), figure) for variant in (FILTERED, SAMPLED) for figure in JUDGED),
        *(_within_noise(found, row_name(GROUP, FILTERED), figure) for figure in JUDGED),
        *_full_by_ebpf(found),
        *(part for name in OURS for part in _arrive(found, name)),
        *(
            _no_dearer(found, "less than every peer", ours, row_name(peer, variant), figure)
            for ours, variant in (*((row_name(EBPF, variant), variant) for variant in VARIANTS), (row_name(HANDED, FULL), FULL))
            for peer in PEERS
            if row_name(peer, variant) in rows
            for figure in JUDGED
        ),
        *(
            _no_dearer(found, "group never dearer than mirror", row_name(GROUP, variant), row_name(MIRROR, variant), figure)
            for variant in VARIANTS
            for figure in JUDGED
        ),
    ]


def judge_taps(rows: Mapping[str, Figures], count: int) -> list[Judgement]:
    """What `count` taps on a node cost over what one does."""
    found = Costs(rows)
    judgements = [
        replace(part, goal=f"{EBPF} on a plain bridge, {part.goal}")
        for name in (ONE_TAP, taps(count))
        for part in _arrive(found, name)
    ]
    for figure in JUDGED:
        one, many = found.of(ONE_TAP, figure), found.of(taps(count), figure)
        goal = f"{EBPF}: {taps(count)} on the node cost ≤ {GROWTH:g} times what 1 does"
        judged = found.judgement(goal, taps(count), figure, many, GROWTH * max(one, 0.0))
        judgements.append(replace(judged, figures=f"{judged.figures}, 1 tap {percent(one)}"))
    return judgements


def noises(rows: Mapping[str, Figures]) -> dict[str, float]:
    """By figure."""
    return {figure: noise(rows, figure) for figure in JUDGED}


def percent(cost: float) -> str:
    """A cost, for people."""
    return "?" if math.isnan(cost) else f"{cost:+.1%}"


def _within_noise(found: Costs, name: str, figure: str) -> Judgement:
    return found.judgement(f"{name}: ≤ {SMALL * 100:g} %", name, figure, found.of(name, figure), SMALL)


def _arrive(found: Costs, name: str) -> list[Judgement]:
    """At a pace, of a row that counts its copies."""
    shares = {figure: found.delivered(name, figure) for figure in (TCP_BUSY, UDP_BUSY)}
    return [
        Judgement(
            f"{name}: ≥ {COMPLETE * 100:g} % of the copies at a pace",
            f"{DELIVERED[figure]} {in_percent(share):.1f}%",
            Verdict.REACHED if share >= COMPLETE else Verdict.MISSED,
        )
        for figure, share in shares.items()
        if not math.isnan(share)
    ]


def _full_by_ebpf(found: Costs) -> list[Judgement]:
    handed = row_name(HANDED, FULL)
    with_other_cores = found.judgement(f"{handed}: ≤ 5 %", handed, TCP, found.of(handed, TCP), 0.05)
    return [with_other_cores, *(part for row in (EBPF, HANDED) for part in _full_copy(found, row_name(row, FULL)))]


def _full_copy(found: Costs, name: str) -> list[Judgement]:
    raw = found.of(RAW, TCP)
    half = found.judgement(f"{name}: ≤ half of the raw mirror's cost", name, TCP, found.of(name, TCP), raw / 2)
    latency, latency_noise = found.added(name, P50), found.added_noise(P50)
    added = "" if math.isnan(latency) else f" {latency:+.1f} µs (noise {latency_noise:.1f} µs)"
    return [
        replace(half, figures=f"{half.figures}, {RAW} {percent(raw)}"),
        Judgement(f"{name}: ≤ 5 µs", f"{P50}{added}", judge(latency, 5.0, latency_noise)),
    ]


def _no_dearer(found: Costs, goal: str, name: str, other: str, figure: str) -> Judgement:
    return found.judgement(f"{goal}: {name} to {other}", name, figure, found.between(name, other, figure), 0.0)
