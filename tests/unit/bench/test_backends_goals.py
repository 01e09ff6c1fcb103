"""Verdicts of the measurement of backends, on rows with known figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from bench.backends import backend_rows, tables, verdicts
from bench.backends_goals import (
    AGAIN,
    BASELINE,
    CAPTURE,
    EBPF,
    FILTERED,
    FULL,
    GROUP,
    HANDED,
    JUDGED,
    MIRROR,
    ONE_TAP,
    P50,
    RAW,
    SAMPLED,
    TCP,
    TCP_BUSY,
    UDP,
    UDP_BUSY,
    Costs,
    Judgement,
    Verdict,
    costs,
    judge,
    judge_backends,
    judge_taps,
    noise,
    row_name,
    taps,
)
from bench.measure import Figures, Sample

PLAIN: Sample = {TCP: 10.0, UDP: 100.0, TCP_BUSY: 0.5, UDP_BUSY: 10.0, P50: 50.0, "p99 us": 90.0}
SLOWER = {TCP: 0.8, UDP: 0.8, TCP_BUSY: 1.2, UDP_BUSY: 1.2, P50: 1.2}
"""Costs a fifth more, whichever way the figure goes."""


def times(sample: Sample, factors: Mapping[str, float]) -> Sample:
    return {name: value * factors.get(name, 1.0) for name, value in sample.items()}


def rows(noisy: float = 0.0) -> dict[str, Figures]:
    """Every row as the baseline is, which differs from itself by `noisy` in one round of three."""
    found = {name: Figures((PLAIN,) * 3) for name in backend_rows()}
    found[AGAIN] = Figures((PLAIN, times(PLAIN, dict.fromkeys(PLAIN, 1 + noisy)), PLAIN))
    found[RAW] = Figures((times(PLAIN, SLOWER),) * 3)
    return found


def with_row(found: dict[str, Figures], name: str, factors: Mapping[str, float]) -> dict[str, Figures]:
    return found | {name: Figures((times(PLAIN, factors),) * 3)}


def of(judgements: list[Judgement], *words: str) -> list[Verdict]:
    return [one.verdict for one in judgements if all(word in f"{one.goal} {one.figures}" for word in words)]


def test_a_cost_is_a_share_of_what_is_worse() -> None:
    slow, plain = Figures((times(PLAIN, SLOWER),)), Figures((PLAIN,))
    assert [costs(slow, plain, figure) for figure in JUDGED] == [[pytest.approx(0.2)]] * len(JUDGED)


def test_rounds_in_which_a_row_failed_do_not_count() -> None:
    broken = Figures((PLAIN, {}, times(PLAIN, SLOWER)))
    assert costs(broken, Figures((PLAIN,) * 3), TCP) == [0.0, pytest.approx(0.2)]


def test_noise_is_the_largest_difference_in_either_direction() -> None:
    assert noise(rows(noisy=0.04), P50) == pytest.approx(0.04)
    assert noise(rows(noisy=-0.04), P50) == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("cost", "verdict"),
    [(-0.1, Verdict.REACHED), (0.01, Verdict.REACHED), (0.03, Verdict.WITHIN_NOISE), (0.05, Verdict.MISSED)],
)
def test_beyond_a_goal_by_less_than_the_noise_is_no_verdict(cost: float, verdict: Verdict) -> None:
    assert judge(cost, allowed=0.01, uncertainty=0.03) == verdict


@pytest.mark.parametrize("unknown", [(math.nan, 0.1, 0.1), (0.0, math.nan, 0.1), (0.0, 0.1, math.nan)])
def test_what_was_not_measured_reaches_nothing(unknown: tuple[float, float, float]) -> None:
    assert judge(*unknown) == Verdict.UNKNOWN


def test_all_is_reached_where_copies_cost_nothing() -> None:
    assert {one.verdict for one in judge_backends(rows())} == {Verdict.REACHED}


def test_a_sample_that_costs_more_than_one_per_cent_misses() -> None:
    judged = judge_backends(with_row(rows(), row_name(EBPF, SAMPLED), {TCP: 0.98}))
    assert of(judged, f"{row_name(EBPF, SAMPLED)}: ≤ 1 %", TCP) == [Verdict.MISSED]
    assert of(judged, f"{row_name(EBPF, SAMPLED)}: ≤ 1 %", P50) == [Verdict.REACHED]


def test_groups_are_judged_within_noise_for_the_filter_only() -> None:
    judged = judge_backends(rows())
    assert len(of(judged, f"{row_name(GROUP, FILTERED)}: ≤ 1 %")) == len(JUDGED)
    assert of(judged, f"{row_name(GROUP, SAMPLED)}: ≤ 1 %") == []


@pytest.mark.parametrize(("cost", "verdict"), [(0.04, Verdict.REACHED), (0.09, Verdict.MISSED)])
def test_a_full_tap_by_ebpf_with_its_export_on_other_cores(cost: float, verdict: Verdict) -> None:
    judged = judge_backends(with_row(rows(), row_name(HANDED, FULL), {TCP: 1 - cost}))
    assert of(judged, ": ≤ 5 %") == [verdict]


@pytest.mark.parametrize("backend", [EBPF, HANDED])
@pytest.mark.parametrize(("cost", "verdict"), [(0.09, Verdict.REACHED), (0.11, Verdict.MISSED)])
def test_a_full_tap_by_ebpf_against_the_raw_mirror(backend: str, cost: float, verdict: Verdict) -> None:
    judged = judge_backends(with_row(rows(), row_name(backend, FULL), {TCP: 1 - cost}))
    assert of(judged, f"{row_name(backend, FULL)}: ≤ half of the raw mirror") == [verdict]


def test_what_is_cheap_because_copies_are_missing_reaches_nothing() -> None:

    def judged(delivered: float) -> Judgement:
        sample = {**times(PLAIN, {TCP: 0.99}), "tcp delivered": delivered}
        judgements = judge_backends(rows() | {row_name(HANDED, FULL): Figures((sample,) * 3)})
        return next(one for one in judgements if ": ≤ 5 %" in one.goal)

    kept, lost = judged(0.9995), judged(0.5)
    assert (kept.verdict, kept.figures) == (Verdict.REACHED, "tcp Gb/s +1.0%")
    assert (lost.verdict, lost.figures) == (Verdict.INCOMPLETE, "tcp Gb/s +1.0% (at least 50.0% delivered)")


def losing(name: str, figure: str, *shares: float) -> dict[str, Figures]:
    """Rows of which one lost copies: such shares of them arrived, round by round."""
    return rows() | {name: Figures(tuple({**PLAIN, figure: share} for share in shares))}


def test_what_one_round_lost_is_not_made_up_for_by_the_others() -> None:
    judged = judge_backends(losing(row_name(HANDED, FULL), "tcp delivered", 1.0, 0.9948, 1.0))
    found = next(one for one in judged if ": ≤ 5 %" in one.goal)
    assert (found.verdict, found.figures) == (Verdict.INCOMPLETE, "tcp Gb/s +0.0% (at least 99.4% delivered)")


@pytest.mark.parametrize(("lowest", "verdict"), [(0.999, Verdict.REACHED), (0.9934, Verdict.MISSED)])
def test_at_a_pace_all_but_one_in_a_thousand_have_to_arrive_in_every_round(lowest: float, verdict: Verdict) -> None:
    judged = judge_backends(losing(row_name(EBPF, FULL), "paced tcp delivered", 1.0, lowest, 1.0))
    assert of(judged, f"{row_name(EBPF, FULL)}: ≥ 99.9 %") == [verdict]


def test_the_report_marks_a_row_that_lost_copies_in_one_round() -> None:
    found = losing(row_name(EBPF, FULL), "paced tcp delivered", 1.0, 0.9934, 1.0)
    assert "100.00% (99.34%) !" in tables("Backends", found)


@pytest.mark.parametrize("backend", [EBPF, HANDED])
@pytest.mark.parametrize(("factor", "verdict"), [(1.08, Verdict.REACHED), (1.12, Verdict.MISSED)])
def test_latency_is_judged_in_microseconds(backend: str, factor: float, verdict: Verdict) -> None:
    judged = judge_backends(with_row(rows(), row_name(backend, FULL), {P50: factor}))
    assert of(judged, f"{row_name(backend, FULL)}: ≤ 5 µs") == [verdict]


def test_a_cheaper_peer_and_a_dearer_group_are_named() -> None:
    found = with_row(rows(), row_name(CAPTURE, FULL), {TCP: 1.3})
    judged = judge_backends(with_row(found, row_name(GROUP, FULL), {UDP_BUSY: 1.1}))
    missed = [one for one in judged if one.verdict == Verdict.MISSED]
    assert [one.goal for one in missed] == [
        f"less than every peer: {row_name(EBPF, FULL)} to {row_name(CAPTURE, FULL)}",
        f"less than every peer: {row_name(HANDED, FULL)} to {row_name(CAPTURE, FULL)}",
        f"group never dearer than mirror: {row_name(GROUP, FULL)} to {row_name(MIRROR, FULL)}",
    ]


def test_a_row_that_failed_is_not_measured() -> None:
    found = rows() | {row_name(EBPF, FULL): Figures(({},) * 3)}
    judged = judge_backends(found)
    assert set(of(judged, f"{row_name(EBPF, FULL)}: ≤")) == {Verdict.UNKNOWN}
    assert math.isnan(Costs(found).of(row_name(EBPF, FULL), TCP))


@pytest.mark.parametrize(("many", "verdict"), [(1.11, Verdict.REACHED), (1.13, Verdict.MISSED)])
def test_a_hundred_taps_cost_a_fifth_more_than_one_at_most(many: float, verdict: Verdict) -> None:
    found = {name: Figures((PLAIN,)) for name in (BASELINE, AGAIN)}
    found |= {ONE_TAP: Figures((times(PLAIN, {P50: 1.1}),)), taps(100): Figures((times(PLAIN, {P50: many}),))}
    assert of(judge_taps(found, 100), P50) == [verdict]


def test_the_report_shows_every_row_and_every_goal() -> None:
    found = rows()
    shown = tables("Backends", found)
    assert all(shown.count(name) >= 2 for name in found)
    judged = judge_backends(found)
    said = verdicts(found, judged)
    assert all(one.goal in said for one in judged)
    assert said.count("goal:") == len({one.goal for one in judged})
