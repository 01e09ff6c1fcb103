"""What routes and neighbour entries mean for copies."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from vtap_agent.inventory.next_hops import BORROWED, MADE, is_left_alone, needs_probe, reached, way
from vtap_agent.inventory.rtnetlink import RTN_LOCAL, RTN_UNICAST, Link, Neighbour, NeighbourKey, NeighbourState, Route
from vtap_agent.plan.inventory_model import NextHop, NextHopState

UPLINK = Link(2, "up0", bytes([2, 0, 0, 0, 0, 1]), 1500, 0, None, True, False)
LINKS = {2: UPLINK, 3: replace(UPLINK, index=3, name="wg0", is_ethernet=False)}
GATEWAY, SOURCE = bytes([198, 18, 1, 1]), bytes([198, 18, 1, 2])
ROUTE = Route(RTN_UNICAST, 2, GATEWAY, SOURCE, 0)
REMOTE = "198.18.2.2"
ENTRY = Neighbour(NeighbourKey(2, GATEWAY), NeighbourState.REACHABLE, bytes([2, 0, 0, 0, 0, 9]), False, False, 0, 0.0)


def test_a_routed_remote_needs_its_gateway() -> None:
    answer = way(REMOTE, ROUTE, LINKS)
    assert answer.key == NeighbourKey(2, GATEWAY)
    assert answer.hop == NextHop(
        REMOTE,
        NextHopState.NO_NEIGHBOUR,
        2,
        "up0",
        source="198.18.1.2",
        source_mac="02:00:00:00:00:01",
        mtu=1500,
        gateway="198.18.1.1",
    )
    done = reached(answer.hop, ENTRY)
    assert (done.state, done.gateway_mac, done.mtu) == (NextHopState.REACHABLE, "02:00:00:00:00:09", 1500)


def test_a_remote_on_the_link_needs_itself() -> None:
    assert way(REMOTE, replace(ROUTE, gateway=b""), LINKS).key == NeighbourKey(2, socket.inet_aton(REMOTE))


def test_the_routes_mtu_counts_before_the_devices() -> None:
    assert way(REMOTE, replace(ROUTE, mtu=1280), LINKS).hop.mtu == 1280


def test_no_route_and_a_device_that_has_just_gone() -> None:
    assert way(REMOTE, None, LINKS).hop.state is NextHopState.NO_ROUTE
    assert way(REMOTE, replace(ROUTE, ifindex=7), LINKS).hop.state is NextHopState.NO_ROUTE


def test_the_node_itself_is_a_loop() -> None:
    answer = way(REMOTE, replace(ROUTE, type=RTN_LOCAL), LINKS)
    assert (answer.hop.state, answer.hop.ifname, answer.key) == (NextHopState.LOOP, "", None)


def test_a_device_without_ethernet_is_said() -> None:
    answer = way(REMOTE, replace(ROUTE, ifindex=3), LINKS)
    assert answer.hop.state is NextHopState.NO_ROUTE and "wg0" in answer.problem


@pytest.mark.parametrize("state", [NeighbourState.NONE, NeighbourState.INCOMPLETE, NeighbourState.FAILED])
def test_an_unresolved_neighbour_is_none(state: NeighbourState) -> None:
    hop = way(REMOTE, ROUTE, LINKS).hop
    assert reached(hop, replace(ENTRY, state=state)) == hop == reached(hop, None)


@pytest.mark.parametrize("state", [NeighbourState.STALE, NeighbourState.DELAY, NeighbourState.PROBE, NeighbourState.PERMANENT])
def test_a_neighbour_in_doubt_still_gets_packets_as_from_the_kernel(state: NeighbourState) -> None:
    assert reached(way(REMOTE, ROUTE, LINKS).hop, replace(ENTRY, state=state)).state is NextHopState.REACHABLE


def test_entries_that_others_keep_are_left_alone() -> None:
    kept = [
        replace(ENTRY, state=NeighbourState.PERMANENT),
        replace(ENTRY, state=NeighbourState.NOARP),
        replace(ENTRY, learned_elsewhere=True),
        replace(ENTRY, managed=True),
        replace(ENTRY, protocol=186),
    ]
    assert all(is_left_alone(entry) for entry in kept)
    ours = [None, ENTRY, replace(ENTRY, managed=True, protocol=MADE), replace(ENTRY, managed=True, protocol=BORROWED)]
    assert not any(is_left_alone(entry) for entry in ours)


def test_only_a_silent_resolved_neighbour_is_probed() -> None:
    assert needs_probe(replace(ENTRY, confirmed=5.0), 5.0)
    assert not needs_probe(replace(ENTRY, confirmed=4.9), 5.0)
    for state in (NeighbourState.PROBE, NeighbourState.INCOMPLETE, NeighbourState.FAILED, NeighbourState.PERMANENT):
        assert not needs_probe(replace(ENTRY, state=state, confirmed=60.0), 5.0)
