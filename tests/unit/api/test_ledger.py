"""The arithmetic of the ledger and the join of both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtap_api.ledger import (
    AgentLedger,
    AgentTerms,
    CollectorLedger,
    CollectorTerms,
    LedgerError,
    PointName,
    Row,
    join,
    parse_agent,
    parse_collector,
    totals,
)

NAME = PointName(("shop", "web"), ("shop", "web-0"), "eth0", "Egress")
COUNT = st.integers(0, 10**6)
REASONS = st.dictionaries(st.sampled_from(["lease", "pair", "noRoute"]), COUNT)


@st.composite
def balanced(draw: st.DrawFn) -> tuple[AgentTerms, CollectorTerms]:
    """What both sides count when nothing is wrong."""
    received_drops, lost = draw(REASONS), draw(REASONS)
    stored = draw(COUNT)
    received = stored + sum(received_drops.values())
    sent = received + sum(lost.values())
    excluded, unsampled, limited, dropped = draw(COUNT), draw(COUNT), draw(COUNT), draw(REASONS)
    seen = excluded + unsampled + limited + sum(dropped.values()) + sent
    return AgentTerms(seen, excluded, unsampled, limited, dropped, sent), CollectorTerms(received, lost, stored, received_drops)


def row(agent: AgentTerms | None, collector: CollectorTerms | None, key: int = 1, *, expected: bool = True) -> Row:
    return Row(("node-a", key, "ab"), NAME, agent, collector, expected)


def told(node: str, agent: AgentTerms | None) -> CollectorLedger:
    return CollectorLedger((Row((node, 1, "ab"), NAME, agent, CollectorTerms(received=3, stored=3), stale=True),), 0, 0)


def test_the_agents_side_is_what_it_told_the_collector_unless_it_was_asked() -> None:
    terms = AgentTerms(seen=3, sent=3)
    (alone,) = join([], told("node-a", terms))
    assert (alone.agent, alone.unaccounted, alone.stale) == (terms, 0, True)
    asked = AgentLedger("node-a", (row(AgentTerms(seen=4, sent=4), None),), {}, 0)
    (both,) = join([asked], told("node-a", terms))
    assert both.agent == AgentTerms(seen=4, sent=4) and both.unaccounted == 1
    (summed_up,) = join([AgentLedger("node-a", (), {}, 0)], told("node-a", terms))
    assert summed_up.agent is None, "it is in the agent's sums"


@given(balanced())
def test_a_balanced_stream_has_nothing_unaccounted(terms: tuple[AgentTerms, CollectorTerms]):
    assert row(*terms).unaccounted == 0


@given(
    balanced(), st.sampled_from(["seen", "excluded", "unsampled", "limited", "sent", "received", "stored"]), st.integers(1, 1000)
)
def test_any_packet_miscounted_anywhere_is_unaccounted(terms: tuple[AgentTerms, CollectorTerms], name: str, extra: int):
    agent, collector = terms
    if hasattr(agent, name):
        broken = row(replace(agent, **{name: getattr(agent, name) + extra}), collector)
    else:
        broken = row(agent, replace(collector, **{name: getattr(collector, name) + extra}))
    assert broken.unaccounted >= extra


def test_errors_of_opposite_sign_do_not_cancel_in_the_totals():
    rows = [row(AgentTerms(seen=10, sent=9), None, 1, expected=False), row(AgentTerms(seen=9, sent=10), None, 2, expected=False)]
    assert totals(rows).unaccounted == 2


def test_stream_that_the_collector_should_know_and_does_not_is_unaccounted():
    agent = AgentLedger("node-a", (row(AgentTerms(seen=5, sent=5), None),), {}, 0)
    (joined,) = join([agent], CollectorLedger((), 0, 0))
    assert joined.unaccounted == 5


def test_nothing_is_claimed_about_streams_to_other_peoples_endpoints():
    agent = AgentLedger("node-a", (row(AgentTerms(seen=5, sent=5), None, expected=False),), {}, 0)
    (joined,) = join([agent], CollectorLedger((), 0, 0))
    assert joined.unaccounted == 0


def test_nothing_is_claimed_without_a_collector():
    agent = AgentLedger("node-a", (row(AgentTerms(seen=5, sent=5), None),), {}, 0)
    assert join([agent], None)[0].unaccounted == 0


def test_streams_are_joined_by_node_key_and_incarnation():
    agent = AgentLedger("node-a", (row(AgentTerms(seen=5, sent=5), None),), {}, 0)
    same = row(None, CollectorTerms(received=5, stored=5))
    earlier = Row(("node-a", 1, "earlier"), NAME, None, CollectorTerms(received=7, stored=7))
    elsewhere = Row(("node-b", 1, "ab"), NAME, None, CollectorTerms(received=8, stored=8))
    rows = {item.id: item for item in join([agent], CollectorLedger((same, earlier, elsewhere), 0, 0))}
    assert len(rows) == 3
    joined = rows["node-a", 1, "ab"]
    assert joined.agent is not None and joined.collector is not None and joined.collector.received == 5
    assert rows["node-b", 1, "ab"].agent is None
    assert sum(item.unaccounted for item in rows.values()) == 0


def test_sums_of_streams_that_ended_long_ago_belong_to_no_single_stream():
    summed = Row(("node-a", 0, "*"), NAME, AgentTerms(seen=5, sent=5), None, closed=True)
    assert join([AgentLedger("node-a", (summed,), {}, 0)], CollectorLedger((), 0, 0))[0].unaccounted == 0


@given(st.lists(balanced(), max_size=4))
def test_totals_are_sums(streams: list[tuple[AgentTerms, CollectorTerms]]):
    total = totals(row(*terms, key=key) for key, terms in enumerate(streams))
    assert total.agent.seen == sum(agent.seen for agent, _ in streams)
    assert sum(total.collector.lost.values()) == sum(sum(collector.lost.values()) for _, collector in streams)
    assert total.dropped == sum(sum(side.dropped.values()) for terms in streams for side in terms)
    assert total.unaccounted == 0


def test_summary_names_every_term_in_its_order():
    terms = AgentTerms(100, 40, 10, 5, {"pair": 2}, 43), CollectorTerms(40, {"network": 3}, 39, {"disk": 1})
    assert totals([row(*terms)]).summary() == (
        "ledger: seen=100 excluded=40 unsampled=10 sent=43 received=40 stored=39 lost=3 dropped=3 unaccounted=0"
    )


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "the answer is no object"),
        ({}, "node is no text"),
        ({"node": "a"}, "points is no list"),
        ({"node": "a", "points": [3]}, "points[0] is no object"),
        ({"node": "a", "points": [{"seen": "3"}]}, "points[0].seen is no whole number"),
        ({"node": "a", "points": [{"seen": True}]}, "points[0].seen is no whole number"),
        ({"node": "a", "points": [], "unattributed": {"br0": None}, "pair": {}}, "unattributed.br0 is no whole number"),
    ],
)
def test_what_is_no_ledger_is_named(data: object, field: str):
    with pytest.raises(LedgerError, match=field.replace("[", r"\[").replace("]", r"\]")):
        parse_agent(data)


def test_collector_sums_are_taken_as_a_number_or_by_reason():
    assert parse_collector({"streams": [], "unannounced": 3, "malformed": 4}) == CollectorLedger((), 3, 4)
    assert parse_collector({"streams": [], "unannounced": {"key": 1, "address": 2}, "malformed": 0}).unannounced == 3
