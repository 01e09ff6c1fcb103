"""Rates come from two readings of what still runs."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.report.test_ledger import row
from vtap_agent.report.rates import Rate, Sample, rates


def test_rates_are_what_was_added_a_second() -> None:
    before = Sample(10.0, (row(1, seen=100, seen_bytes=10_000, sent=50, sent_bytes=6_000),))
    now = Sample(12.0, (row(1, seen=300, seen_bytes=30_000, sent=150, sent_bytes=18_000),))
    assert rates(before, now) == {before.rows[0].incarnation: Rate(100.0, 80_000.0, 50.0, 48_000.0)}


def test_new_and_closed_streams_have_none() -> None:
    closed = replace(row(1, seen=1), closed=True)
    assert rates(Sample(1.0, (closed,)), Sample(2.0, (closed, row(2, seen=5)))) == {}


def test_two_readings_at_once_give_none() -> None:
    assert rates(Sample(1.0, (row(1),)), Sample(1.0, (row(1),))) == {}
