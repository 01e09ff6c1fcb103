"""Copies without a tunnel: which way they have, who serves which monitor, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vtap_agent.pipeline import encode, layout
from vtap_agent.plan import recover
from vtap_agent.plan.dataplane import Destination, DestinationState, Encapsulation, Oversize
from vtap_agent.plan.destinations import ResolvedDestination, resolve_destination
from vtap_agent.plan.inventory_model import Inventory, NextHop, NextHopState, PodInterface, PodRef, Switch
from vtap_api import TapDestination, VirtualTap
from vtap_api.refusals import refusal

ADDRESS = "10.10.0.9"
UPLINK_MAC = "02:00:00:00:00:01"
SWITCH = Switch("3.1.0", (), True, 0)
POD = PodRef("soc", "monitor", "u1")


def destination(**rewrite: str) -> TapDestination:
    spec = {"rewrite": {"address": ADDRESS, **rewrite}}
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "default"}}
    return TapDestination.model_validate({**head, "spec": spec})


def resolved(**rewrite: str) -> ResolvedDestination:
    made = resolve_destination(destination(**rewrite))
    assert made is not None
    return made


def tap(**spec: Any) -> VirtualTap:
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "web", "namespace": "shop"}}
    return VirtualTap.model_validate({**head, "spec": {"podSelector": {}, **spec}})


def hop(state: NextHopState = NextHopState.REACHABLE, gateway: str = "") -> NextHop:
    return NextHop(ADDRESS, state, 7, "br0", "10.10.0.1", UPLINK_MAC, "02:00:00:00:00:99", 1500, gateway)


def interface(address: str = ADDRESS, host_ifindex: int = 5) -> PodInterface:
    return PodInterface(POD, "eth0", "02:00:00:00:00:99", (address, "fd00::9"), 1500, "veth5", host_ifindex, None)


def test_copies_go_from_an_id_of_the_node_to_the_edges_own_address() -> None:
    way = recover.hop_of(resolved(), hop(), frozenset({ADDRESS}))
    assert way.state is NextHopState.REACHABLE
    assert bytes.fromhex(way.gateway_mac.replace(":", "")) == recover.alias_of(ADDRESS)
    assert way.source_mac == recover.ids_of(bytes.fromhex(UPLINK_MAC.replace(":", ""))).hex(":")


def test_addresses_of_ours_are_locally_administered_unicast() -> None:
    for made in (recover.alias_of(ADDRESS), recover.alias_of("fd00::9"), recover.ids_of(b"\2\0\0\0\0\1")):
        assert len(made) == 6 and made[0] & 0b11 == 0b10
    assert recover.alias_of(ADDRESS) != recover.alias_of("10.10.0.8")
    assert recover.ids_of(b"\2\0\0\0\0\1")[:4] != recover.ids_of(b"\2\0\0\0\0\2")[:4]
    assert recover.alias_of("fd00::9") == recover.alias_of("fd00:0::9")


@pytest.mark.parametrize(
    ("before", "edges", "state"),
    [
        (hop(), frozenset[str](), NextHopState.NO_EDGE),
        (hop(NextHopState.NO_NEIGHBOUR), frozenset({ADDRESS}), NextHopState.REACHABLE),
        (hop(gateway="10.10.0.254"), frozenset({ADDRESS}), NextHopState.ROUTED),
        (hop(NextHopState.NO_ROUTE), frozenset({ADDRESS}), NextHopState.NO_ROUTE),
        (hop(NextHopState.LOOP), frozenset({ADDRESS}), NextHopState.LOOP),
    ],
)
def test_copies_leave_only_where_an_edge_in_the_same_domain_answers(
    before: NextHop, edges: frozenset[str], state: NextHopState
) -> None:
    assert recover.hop_of(resolved(), before, edges).state is state


def test_a_mac_address_of_ones_own_needs_no_edge_of_ours() -> None:
    mine = resolved(macAddress="02:00:00:00:00:77")
    way = recover.hop_of(mine, hop(NextHopState.NO_NEIGHBOUR), frozenset())
    assert (way.state, way.gateway_mac) == (NextHopState.REACHABLE, "02:00:00:00:00:77")
    assert recover.with_edge([mine]) == frozenset() and recover.targets([mine], {ADDRESS: hop()}) == frozenset()


def test_the_way_of_rewritten_copies_is_apart_from_the_stacks_own() -> None:
    """A GRE endpoint of the same address keeps the neighbour's MAC address."""
    seen = Inventory((), (), SWITCH, {ADDRESS: hop()})
    looked = recover.with_ways(seen, [resolved()], frozenset({ADDRESS}), ("a problem",))
    assert looked.next_hops[ADDRESS] == hop() and looked.problems == ("a problem",)
    assert looked.next_hops[resolved().way].gateway_mac == recover.alias_of(ADDRESS).hex(":")
    assert recover.with_ways(seen, [], frozenset(), ()) is seen


def test_who_is_asked() -> None:
    (asked,) = recover.targets([resolved()], {ADDRESS: hop()})
    assert (asked.ifindex, asked.alias) == (7, recover.alias_of(ADDRESS))
    assert recover.targets([resolved()], {}) == frozenset()
    assert recover.targets([resolved()], {ADDRESS: hop(gateway="10.10.0.254")}) == frozenset()


def test_the_agent_serves_its_own_pods() -> None:
    (served,) = recover.monitors(frozenset({ADDRESS}), [interface(), interface("10.10.0.8")])
    assert (served.ifindex, served.device, served.address) == (5, "veth5", ADDRESS)
    assert served.mac == bytes.fromhex("020000000099")
    assert recover.monitors(frozenset({ADDRESS}), [interface(host_ifindex=0)]) == ()
    (sentence,) = recover.out_of_reach(frozenset({ADDRESS}), [interface(host_ifindex=0)])
    assert "pod soc/monitor has 10.10.0.9" in sentence


@pytest.mark.parametrize("packet", [{"snapLength": 64}, {"headersOnly": True}])
def test_a_cut_is_refused_with_the_field_and_a_cure(packet: dict[str, Any]) -> None:
    refused = refusal(tap(packet=packet), {"default": destination()}, {})
    assert refused is not None and refused.reason == "PacketCut"
    assert refused.sentence.startswith("spec.packet: ") and "remove spec.packet" in refused.sentence
    assert refusal(tap(), {"default": destination()}, {}) is None


@pytest.mark.parametrize(("local", "remote", "at"), [("0a0a0001", "0a0a0009", 16), ("fd" * 16, "fe" * 16, 24)])
def test_the_kernel_gets_the_monitors_addresses_and_no_tunnel(local: str, remote: str, at: int) -> None:
    made = encode.destination(
        Destination(
            name="default",
            encapsulation=Encapsulation.REWRITE,
            state=DestinationState.READY,
            remote=bytes.fromhex(remote),
            local=bytes.fromhex(local),
            ifindex=7,
            source_mac=recover.ids_of(b"\2\0\0\0\0\1"),
            gateway_mac=recover.alias_of(ADDRESS),
            mtu=1500,
            port=0,
            trailer=False,
            oversize=Oversize.TRUNCATE,
        )
    )
    value = encode.decode(layout.DestinationValue, made)
    header = bytes(value.header)
    assert header[:6] == recover.alias_of(ADDRESS) and header[6:12] == recover.ids_of(b"\2\0\0\0\0\1")
    assert header[14 + at :][: len(remote) // 2] == bytes.fromhex(remote)
    assert value.header_length == 14 + value.ip_length
    assert encode.tunnel_keys(made) == frozenset()
