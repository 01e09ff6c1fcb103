"""The way to remote addresses: routes, neighbours, what is noticed of their changes, and what is left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.dataplane.watched_node import DEADLINE, Watched, inside
from vtap_agent.inventory import give_back_neighbours
from vtap_agent.inventory.next_hops import BORROWED, MADE
from vtap_agent.plan.inventory_model import NextHop, NextHopState
from vtap_agent.sources.pods import PodsFile
from vtap_lab.lab import COLLECTOR_ADDRESS, COLLECTOR_ADDRESS6, NODE_ADDRESS, NODE_ADDRESS6, Lab

ROUTER, ROUTER6 = "198.18.1.1", "fd00:198:1::1"
PROBE_INTERVAL = 0.5
ADDRESSES = [(COLLECTOR_ADDRESS, ROUTER), (COLLECTOR_ADDRESS6, ROUTER6)]


@contextmanager
def following(lab: Lab) -> Iterator[Watched]:
    follower = Watched(lab, PodsFile(lab.pods_file), PROBE_INTERVAL)
    try:
        yield follower
    finally:
        follower.stop()


@pytest.fixture
def watched(shared_lab: Lab) -> Iterator[Watched]:
    flush(shared_lab)
    with following(shared_lab) as follower:
        yield follower


def flush(lab: Lab) -> None:
    for family in ("-4", "-6"):
        lab.run(lab.node, "ip", family, "neigh", "flush", "dev", "up0", "nud", "all")


def entries(lab: Lab, address: str) -> list[dict[str, object]]:
    return json.loads(lab.run(lab.node, "ip", "-j", "neigh", "show", "to", address, "dev", "up0") or "[]")


def entry_text(lab: Lab, address: str) -> str:
    return lab.run(lab.node, "ip", "-d", "neigh", "show", "to", address, "dev", "up0")


def link(lab: Lab, namespace: str, name: str) -> dict[str, object]:
    return json.loads(lab.run(namespace, "ip", "-j", "link", "show", name))[0]


def state_becomes(watched: Watched, remote: str, state: NextHopState) -> NextHop:
    watched.wait(lambda: watched.hop(remote).state is state)
    return watched.hop(remote)


@pytest.mark.parametrize(("remote", "gateway"), ADDRESSES)
def test_a_routed_remote(shared_lab: Lab, watched: Watched, remote: str, gateway: str) -> None:
    found = state_becomes(watched, remote, NextHopState.REACHABLE)
    uplink = link(shared_lab, shared_lab.node, "up0")
    assert found == NextHop(
        remote=remote,
        state=NextHopState.REACHABLE,
        ifindex=int(str(uplink["ifindex"])),
        ifname="up0",
        source=NODE_ADDRESS6 if ":" in remote else NODE_ADDRESS,
        source_mac=str(uplink["address"]),
        gateway_mac=str(link(shared_lab, shared_lab.router, "node0")["address"]),
        mtu=1500,
        gateway=gateway,
    )
    assert "managed" in entry_text(shared_lab, gateway) and f"proto {MADE}" in entry_text(shared_lab, gateway)


@pytest.mark.parametrize("remote", [ROUTER, ROUTER6])
def test_a_remote_on_the_link(watched: Watched, remote: str) -> None:
    assert state_becomes(watched, remote, NextHopState.REACHABLE).ifname == "up0"


def test_a_link_local_gateway(shared_lab: Lab, watched: Watched) -> None:
    devices = json.loads(shared_lab.run(shared_lab.router, "ip", "-j", "-6", "addr", "show", "dev", "node0"))
    known = [item for device in devices for item in device.get("addr_info", [])]
    gateway = next(item["local"] for item in known if item["scope"] == "link")
    shared_lab.ip(
        shared_lab.node,
        f"-6 route add fd00:77::/64 via {gateway} dev up0",
        f"route add 203.0.113.0/24 via inet6 {gateway} dev up0",
    )
    mac = link(shared_lab, shared_lab.router, "node0")["address"]
    watched.wait(lambda: watched.snapshot("fd00:77::1", "203.0.113.9").next_hops["203.0.113.9"].gateway_mac == mac)
    assert watched.snapshot("fd00:77::1", "203.0.113.9").next_hops["fd00:77::1"].gateway_mac == mac
    shared_lab.ip(shared_lab.node, "-6 route del fd00:77::/64", "route del 203.0.113.0/24")


@pytest.mark.parametrize("remote", [NODE_ADDRESS, NODE_ADDRESS6, "127.0.0.1", "::1"])
def test_an_address_of_the_node_itself_is_a_loop_through_no_device(watched: Watched, remote: str) -> None:
    found = watched.hop(remote)
    assert (found.state, found.ifname) == (NextHopState.LOOP, "")


def test_no_route_and_its_return(shared_lab: Lab, watched: Watched) -> None:
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.node, "route del default")
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.NO_ROUTE)
    assert entries(shared_lab, ROUTER) == [], "an entry that nobody needs any more is removed"
    shared_lab.ip(shared_lab.node, f"route add default via {ROUTER}")
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_route_that_refuses(shared_lab: Lab, watched: Watched, kind: str) -> None:
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.node, f"route add {kind} {COLLECTOR_ADDRESS}/32")
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.NO_ROUTE)
    shared_lab.ip(shared_lab.node, f"route del {kind} {COLLECTOR_ADDRESS}/32")
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)


@pytest.mark.parametrize("remote", ["198.18.1.255", "255.255.255.255", "224.0.0.9", "ff02::1", "10.0.0.0.1"])
def test_addresses_that_copies_cannot_be_sent_to(watched: Watched, remote: str) -> None:
    inventory = watched.snapshot(remote)
    assert inventory.next_hops[remote].state is NextHopState.NO_ROUTE
    (problem,) = inventory.problems
    assert remote in problem


def test_a_route_over_another_device(shared_lab: Lab, watched: Watched) -> None:
    before = state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.node, f"link add up1 type veth peer name node1 netns {shared_lab.router}")
    shared_lab.ip(shared_lab.router, "link set node1 up", "addr add 198.18.9.1/24 dev node1")
    shared_lab.ip(shared_lab.node, "link set up1 up", "addr add 198.18.9.2/24 dev up1", "route add 198.18.2.0/24 via 198.18.9.1")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS).source == "198.18.9.2")
    after = state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    assert (after.ifname, before.ifname) == ("up1", "up0") and after.gateway_mac != before.gateway_mac
    shared_lab.ip(shared_lab.node, "link del up1")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS) == before)


def test_mtu_of_device_and_route(shared_lab: Lab, watched: Watched) -> None:
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.node, "link set up0 mtu 1450")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS).mtu == 1450)
    shared_lab.ip(shared_lab.node, f"route add {COLLECTOR_ADDRESS}/32 via {ROUTER} mtu 1300")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS).mtu == 1300)
    shared_lab.ip(shared_lab.node, f"route del {COLLECTOR_ADDRESS}/32", "link set up0 mtu 1500")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS).mtu == 1500)


@pytest.mark.parametrize("remote", [COLLECTOR_ADDRESS, COLLECTOR_ADDRESS6])
def test_a_neighbour_that_falls_silent_and_returns(shared_lab: Lab, watched: Watched, remote: str) -> None:
    """Without probes the kernel would take up to a minute to notice: its reachable time alone is 15 to 45 s."""
    before = state_becomes(watched, remote, NextHopState.REACHABLE)
    drop = ["nft", "add table netdev mute { chain in { type filter hook ingress device node0 priority 0; policy drop; }; }"]
    shared_lab.run(shared_lab.router, *drop)
    begun = time.monotonic()
    state_becomes(watched, remote, NextHopState.NO_NEIGHBOUR)
    noticed = time.monotonic() - begun
    shared_lab.run(shared_lab.router, "nft", "delete table netdev mute")
    begun = time.monotonic()
    assert state_becomes(watched, remote, NextHopState.REACHABLE) == before
    print(f"{remote}: silence noticed after {noticed:.1f} s, return after {time.monotonic() - begun:.1f} s")


def test_a_gateway_replaced_by_another_machine(shared_lab: Lab, watched: Watched) -> None:
    before = state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.router, "link set node0 address 02:00:00:00:99:01")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS).gateway_mac == "02:00:00:00:99:01")
    shared_lab.ip(shared_lab.router, f"link set node0 address {before.gateway_mac}")
    watched.wait(lambda: watched.hop(COLLECTOR_ADDRESS) == before)


def test_a_flushed_entry_returns(shared_lab: Lab, watched: Watched) -> None:
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    flush(shared_lab)
    deadline = time.monotonic() + DEADLINE
    while not (entries(shared_lab, ROUTER) and watched.hop(COLLECTOR_ADDRESS).state is NextHopState.REACHABLE):
        assert time.monotonic() < deadline, entries(shared_lab, ROUTER)
        time.sleep(0.01)


def test_an_entry_of_ours_goes_when_nobody_needs_it(shared_lab: Lab, watched: Watched) -> None:
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    watched.snapshot()
    assert entries(shared_lab, ROUTER) == []


def test_an_entry_of_the_kernels_own_is_borrowed_and_given_back(shared_lab: Lab, watched: Watched) -> None:
    shared_lab.run(shared_lab.node, "ping", "-c1", "-W2", ROUTER, check=False)
    deadline = time.monotonic() + DEADLINE
    while not (entries(shared_lab, ROUTER) and "lladdr" in entries(shared_lab, ROUTER)[0]):
        assert time.monotonic() < deadline
        shared_lab.run(shared_lab.node, "bash", "-c", f"echo > /dev/udp/{ROUTER}/9")
    mac = entries(shared_lab, ROUTER)[0]["lladdr"]
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    assert f"proto {BORROWED}" in entry_text(shared_lab, ROUTER) and "managed" in entry_text(shared_lab, ROUTER)
    watched.snapshot()
    assert entries(shared_lab, ROUTER)[0]["lladdr"] == mac
    assert "managed" not in entry_text(shared_lab, ROUTER)


def test_an_administrators_entry_is_left_alone(shared_lab: Lab, watched: Watched) -> None:
    shared_lab.ip(shared_lab.node, f"neigh replace {ROUTER} dev up0 lladdr 02:00:00:00:55:01 nud permanent")
    assert state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE).gateway_mac == "02:00:00:00:55:01"
    before = entry_text(shared_lab, ROUTER)
    assert watched.has_been_quiet(2 * PROBE_INTERVAL)  # Long enough for a probe, which must not be.
    watched.snapshot()
    assert entry_text(shared_lab, ROUTER) == before and "PERMANENT" in before
    flush(shared_lab)


def test_stopping_leaves_nothing(shared_lab: Lab) -> None:
    flush(shared_lab)
    with following(shared_lab) as follower:
        state_becomes(follower, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    assert entries(shared_lab, ROUTER) == []


def test_what_a_killed_agent_left_is_swept(shared_lab: Lab) -> None:
    flush(shared_lab)
    shared_lab.ip(shared_lab.node, f"neigh add {ROUTER} dev up0 managed proto {MADE}")
    assert entries(shared_lab, ROUTER) != []
    with following(shared_lab) as follower:
        follower.snapshot()
        assert entries(shared_lab, ROUTER) == []


def test_clean_up_without_an_observer(shared_lab: Lab) -> None:
    flush(shared_lab)
    shared_lab.ip(
        shared_lab.node,
        f"neigh add {ROUTER} dev up0 managed proto {MADE}",
        f"-6 neigh add {ROUTER6} dev up0 lladdr 02:00:00:00:55:02 nud permanent",
    )
    inside(shared_lab.node, give_back_neighbours)
    assert entries(shared_lab, ROUTER) == [] and len(entries(shared_lab, ROUTER6)) == 1
    flush(shared_lab)


def test_a_device_that_goes_and_returns(shared_lab: Lab, watched: Watched) -> None:
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.node, "link set up0 down")
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.NO_ROUTE)
    shared_lab.ip(shared_lab.node, "link set up0 up", f"route add default via {ROUTER}")
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    shared_lab.ip(shared_lab.node, f"addr replace {NODE_ADDRESS6}/64 dev up0 nodad")
    shared_lab.run(shared_lab.node, "ip", "-6", "route", "replace", "default", "via", ROUTER6)


def test_quiet_when_nothing_happens(watched: Watched) -> None:
    """Probes and their answers are no news."""
    state_becomes(watched, COLLECTOR_ADDRESS, NextHopState.REACHABLE)
    assert watched.has_been_quiet(4 * PROBE_INTERVAL)
