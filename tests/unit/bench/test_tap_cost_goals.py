"""`bench.tap_cost` says of what it measured no more than its A/A run and the worst round allow."""

from __future__ import annotations

from collections.abc import Sequence

from bench.backends_goals import Verdict
from bench.measure import Figures
from bench.tap_cost import AGAIN, BASELINE, BUSY, DELIVERED, FIGURES, FULL, GOALS, judge_rows

OURS, OTHER = "ours, full", GOALS["ours, full"]
EVEN = (1.0, 1.0, 1.0)


def verdicts(ours: Sequence[float], again: Sequence[float] = EVEN, delivered: Sequence[float] = EVEN) -> dict[str, Verdict]:
    """Of the full copies, where all figures have these values and the baseline's are 1; by figure."""

    def row(values: Sequence[float]) -> Figures:
        return Figures(tuple(dict.fromkeys(FIGURES, value) for value in values))

    rows = {name: row(EVEN) for name in (BASELINE, *GOALS, *GOALS.values())}
    samples = zip(row(ours).samples, delivered, strict=True)
    rows[OURS] = Figures(tuple({**sample, **dict.fromkeys(DELIVERED.values(), share)} for sample, share in samples))
    rows[AGAIN] = row(again)
    goal = f"{OURS} no dearer than {OTHER}"
    found = [judged for judged in judge_rows(rows) if judged.goal == goal]
    return {figure: judged.verdict for figure, judged in zip(FIGURES, found, strict=True)}


def test_what_is_more_than_the_noise_over_is_missed() -> None:
    found = verdicts((1.2, 1.2, 1.2), again=(1.1, 1, 1))
    assert found.pop(FULL) is Verdict.REACHED, "more throughput is better"
    assert set(found.values()) == {Verdict.MISSED}


def test_what_is_over_by_less_than_the_noise_is_not_called_reached() -> None:
    found = verdicts((1.2, 1.2, 1.2), again=(1, 0.7, 1))
    assert found[BUSY] is Verdict.WITHIN_NOISE
    assert verdicts((0.9, 0.9, 0.9), again=(1, 1.3, 1))[FULL] is Verdict.WITHIN_NOISE


def test_one_round_that_lost_copies_is_enough() -> None:
    found = verdicts(EVEN, delivered=(1, 0.99, 1))
    assert found[FULL] is found[BUSY] is Verdict.INCOMPLETE
    assert found["p50 us"] is Verdict.REACHED, "nobody counts while latency is measured"
