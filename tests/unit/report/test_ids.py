"""Copies that find no id are noticed while there are more of them, and for a while after."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

from tests.unit.report.test_ledger import row
from vtap_agent.pipeline import recover_layout
from vtap_agent.report.ids import QUIET, lacking_ids
from vtap_agent.report.ledger import Row
from vtap_agent.report.rates import Sample
from vtap_agent.report.status import NO_ID


def without_id(number: int, count: int) -> Row:
    return row(number, dropped={"noId": count, "oversize": 7})


def after(*readings: tuple[float, tuple[Row, ...]]) -> set[str]:
    """Who lacks ids after these readings."""
    known: Mapping[str, float] = {}
    samples = [Sample(at, rows) for at, rows in readings]
    for before, now in itertools.pairwise(samples):
        known = lacking_ids(known, before, now)
    return set(known)


FIRST, SECOND = row(1), row(2)


def test_what_grows_between_readings_is_noticed_of_the_stream_that_it_grows_of() -> None:
    assert after((1, (FIRST, without_id(2, 3))), (2, (without_id(1, 1), without_id(2, 3)))) == {FIRST.incarnation}


def test_drops_for_another_reason_are_no_matter() -> None:
    assert after((1, (FIRST,)), (2, (row(1, dropped={"oversize": 9}),))) == set()


def test_what_was_counted_before_the_first_reading_is_history() -> None:
    """As of an agent that starts again."""
    assert after((0, ()), (1, (without_id(1, 500),)), (2, (without_id(1, 500),))) == set()
    assert after((0, ()), (1, (without_id(1, 500),)), (2, (without_id(1, 501),))) == {FIRST.incarnation}


def test_it_is_over_when_it_has_not_grown_for_a_while() -> None:
    grown = ((1, (FIRST,)), (2, (without_id(1, 5),)))
    assert after(*grown, (2 + QUIET - 1, (without_id(1, 5),))) == {FIRST.incarnation}
    assert after(*grown, (2 + QUIET, (without_id(1, 5),))) == set()
    again = (2 + QUIET - 1, (without_id(1, 6),)), (2 + QUIET, (without_id(1, 6),))
    assert after(*grown, *again) == {FIRST.incarnation}, "any more begins it anew"


def test_a_flow_that_sends_seldom_is_lacking_an_id_all_the_time() -> None:
    """Buckets that are full stay so for as long as an id stays taken after its last copy, and a flow meets them when it sends."""
    readings = [(float(at), (without_id(1, 1 + at // 15),)) for at in range(200)]
    said = [after(*readings[: until + 1]) for until in range(15, 200)]
    assert said == [{FIRST.incarnation}] * len(said)
    assert QUIET >= 2 * recover_layout.REWRITE_IDLE


def test_ids_run_out_at_about_as_many_destinations_as_the_status_says() -> None:
    """With hashes like chance: what counts is how many buckets there are, how many ids are in each, and how one is chosen."""
    chance = random.Random(1)
    half = recover_layout.REWRITE_BUCKETS // 2

    def places() -> int:
        """Destinations that get ids before the first one that gets none."""
        taken = [0] * recover_layout.REWRITE_BUCKETS
        for met in itertools.count():
            bucket = min(chance.randrange(half), half + chance.randrange(half), key=taken.__getitem__)
            if taken[bucket] == recover_layout.REWRITE_WAYS:
                return met
            taken[bucket] += 1
        raise AssertionError

    found = sorted(places() for _ in range(100))
    assert 3000 < found[2] < found[90] < 3600, found
    assert recover_layout.REWRITE_BUCKETS * recover_layout.REWRITE_WAYS == 4096 and recover_layout.REWRITE_WAYS == 8
    assert "4,096 ids, in one of two buckets of eight: from about 3,000 destinations on" in NO_ID


def test_it_ends_with_its_stream() -> None:
    grown = ((1, (FIRST, SECOND)), (2, (without_id(1, 5), without_id(2, 5))))
    assert after(*grown, (3, (replace(without_id(1, 9), closed=True),))) == set()
