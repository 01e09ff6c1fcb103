"""The page of measured costs says what was measured."""

from __future__ import annotations

import pytest

from bench.backends_goals import AGAIN, BASELINE, P50, TCP, TCP_BUSY
from bench.page import BLOCKS, PAGE, published, rendered


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
