"""The page of measured costs says what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.backends_goals import AGAIN, BASELINE, P50, TCP, TCP_BUSY
from bench.dpdk import CYCLES, NANOSECONDS
from bench.page import BLOCKS, PAGE, PUBLISHED, publish, published, rendered

UNTAPPED = {TCP: 10.0, TCP_BUSY: 0.5, P50: 50.0}


def stream(*delivered: float) -> str:
    """The line of a row of which such shares arrived, round by round."""
    taps = [UNTAPPED | {"tcp delivered": share, "paced tcp delivered": 1.0} for share in delivered]
    untapped = [UNTAPPED] * len(delivered)
    rows = {BASELINE: untapped, AGAIN: untapped, "EBPF, full": taps}
    page = rendered("<!-- measured: backends, stream -->\n<!-- end -->\n", lambda _: {"rows": rows})
    return next(line for line in page.splitlines() if line.startswith("| EBPF, full"))


def test_its_tables_are_those_of_the_published_results() -> None:
    page = PAGE.read_text()
    assert rendered(page, published) == page


def test_everything_published_is_on_it() -> None:
    page = PAGE.read_text()
    assert all(f"<!-- measured: {name} -->" in page for name in BLOCKS)


def test_costs_are_of_the_same_round() -> None:
    fast = {TCP: 10.0, TCP_BUSY: 0.5, P50: 50.0}
    slow = {TCP: 5.0, TCP_BUSY: 1.0, P50: 100.0}
    tapped = {"tcp delivered": 0.5, "paced tcp delivered": 1.0}
    rows = {BASELINE: [fast, slow], AGAIN: [fast, slow], "EBPF, full": [fast | tapped, slow | tapped | {TCP: 2.5}]}
    page = rendered("a\n<!-- measured: backends, stream -->\nold\n<!-- end -->\nb\n", lambda _: {"rows": rows})
    assert "| EBPF, full | +25 % (+0 % … +50 %) | 50.0 % | +0 % (+0 % … +0 %) | 100.0 % | +0 (+0 … +0) |" in page
    assert page.startswith("a\n") and page.endswith("<!-- end -->\nb\n") and "old" not in page


def test_a_block_that_nothing_measures_is_refused() -> None:
    with pytest.raises(KeyError, match="speed of light"):
        rendered("<!-- measured: speed of light -->\n<!-- end -->", published)


def test_what_one_round_lost_is_shown() -> None:
    assert "| 99.9 % (88.1 … 100.0) |" in stream(0.88112, 1.0, 0.99956)


def test_a_hundred_per_cent_is_all() -> None:
    assert "| 100.0 % |" in stream(1.0, 1.0, 1.0)
    assert "| 99.9 % |" in stream(0.99999, 0.99956, 0.9995)


def test_goals_are_judged_by_what_was_measured() -> None:
    told = published("backends")
    verdicts = {"goals": [{"goal": "all", "figures": "well", "verdict": "reached"}]}
    page = rendered("<!-- measured: backends, goals -->\n<!-- end -->\n", lambda _: {**told, **verdicts})
    assert "| all |" not in page
    assert "EBPF, full: ≥ 99.9 % of the copies at a pace |" in page


def test_of_few_that_are_wanted_few_are_copied() -> None:
    rows = {name: [{CYCLES: 200.0, NANOSECONDS: 80.0}] * 2 for name in (BASELINE, AGAIN)}
    rows["1 in 100"] = [{CYCLES: 300.0, NANOSECONDS: 120.0, "copied": share} for share in (0.0099, 0.0101)]
    told = {**published("dpdk-1-pmd"), "rows": rows}
    assert "| +40 (+40 … +40) | 1.0 % |" in rendered("<!-- measured: dpdk -->\n<!-- end -->\n", lambda _: told)


def dpdk(group: tuple[float, ...]) -> str:
    """What the page says of a group of so many cycles more than a mirror, which itself takes 500."""

    def row(*cycles: float) -> list[dict[str, float]]:
        return [{CYCLES: value, NANOSECONDS: value / 2, "copied": 1.0} for value in cycles]

    rows = {
        BASELINE: row(200, 200, 200),
        AGAIN: row(200, 210, 200),
        "raw mirror": row(700, 700, 700),
        "raw group": row(*(700 + more for more in group)),
    }
    page = rendered("<!-- measured: dpdk, goals -->\n<!-- end -->\n", lambda _: {"rows": rows})
    return next(line for line in page.splitlines() if "raw group to raw mirror" in line)


def test_a_group_that_is_dearer_for_poll_mode_threads_misses_its_goal() -> None:
    missed = dpdk((74, 86, 36))
    assert missed.endswith("| cycles/packet +74 (+36 … +86), noise 10; ns/packet +37 (+18 … +43), noise 5 |")
    assert dpdk((9, 8, -3)).endswith("noise 5 |  |")
    assert "| cycles/packet -40 (-50 … -30), noise 10;" in dpdk((-40, -50, -30))


def test_publishing_keeps_of_the_kernel_what_its_version_is(tmp_path: Path) -> None:
    result = {"about": {"kernel": "6.18.44-host-17", "cpus": 2}, "rows": {"none": [{"µs": 1.5}]}}
    source, target = tmp_path / "results", tmp_path / "published"
    source.mkdir()
    target.mkdir()
    (source / "reaction.json").write_text(json.dumps(result))
    publish("reaction", source, target)
    told: dict[str, Any] = json.loads((target / "reaction.json").read_text())
    assert told == {**result, "about": {"kernel": "6.18.44", "cpus": 2}}


def test_no_published_result_names_the_build_of_a_kernel() -> None:
    kernels = {file.name: json.loads(file.read_text())["about"]["kernel"] for file in PUBLISHED.glob("*.json")}
    assert kernels
    assert [name for name, kernel in kernels.items() if "-" in kernel] == []
