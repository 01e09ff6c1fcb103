"""What a bridge does with a packet when pods on it are tapped: which ports it leaves, and how often."""

from __future__ import annotations

import pytest

from tests.contract.frames import BROADCAST, LINK_LOCAL, MULTICAST, Frame, frame
from tests.contract.networks import EGRESS_TAP, INGRESS_TAP, NODE, STAMP, Network, converge, tap, want
from vtap_agent.plan.mirrors import MAX_MIRRORS, diff


def leaves(network: Network, sender: str, sent: Frame, **ports: Frame) -> None:
    """The packet leaves exactly these ports, once each, as these frames. `egress` and `ingress` are the tap ports."""
    names = {"egress": EGRESS_TAP, "ingress": INGRESS_TAP}
    expected = {names.get(name, name): [wanted] for name, wanted in ports.items()}
    assert network.exchange(sender, sent, len(expected)) == expected


def introduce(network: Network, **pods: str) -> None:
    """Let the bridge learn where the pods are: each says something to a group that bridges forward."""
    for name, mac in pods.items():
        network.exchange(name, frame(BROADCAST, mac), 1)


def test_without_a_tap_no_port_gets_a_copy(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    packet = frame(b, a)
    leaves(network, "a", packet, b=packet)


def test_what_a_pod_sends_is_copied_once_to_the_egress_tap(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, egress=["a"])
    there, back = frame(b, a), frame(a, b)
    leaves(network, "a", there, b=there, egress=there)
    leaves(network, "b", back, a=back)


def test_what_goes_to_a_pod_is_copied_once_to_the_ingress_tap(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, ingress=["a"])
    there, back = frame(b, a), frame(a, b)
    leaves(network, "a", there, b=there)
    leaves(network, "b", back, a=back, ingress=back)


def test_between_two_tapped_pods_each_direction_is_copied_once(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, egress=["a", "b"], ingress=["a", "b"])
    there, back = frame(b, a), frame(a, b)
    leaves(network, "a", there, b=there, egress=there, ingress=there)
    leaves(network, "b", back, a=back, egress=back, ingress=back)


def test_a_bystander_is_never_copied(network: Network) -> None:
    a, b, c = network.add_pod("a"), network.add_pod("b"), network.add_pod("c")
    introduce(network, a=a, b=b, c=c)
    tap(network, egress=["a"], ingress=["a"])
    between_others = frame(c, b)
    leaves(network, "b", between_others, c=between_others)


def test_copies_of_an_access_port_carry_its_tag(network: Network) -> None:
    a, b = network.add_pod("a", vlan=10), network.add_pod("b", vlan=10)
    introduce(network, a=a, b=b)
    tap(network, egress=["a"], ingress=["a"])
    there, back = frame(b, a), frame(a, b)
    leaves(network, "a", there, b=there, egress=there.tagged(10))
    leaves(network, "b", back, a=back, ingress=back.tagged(10))


def test_tags_that_a_trunk_pod_sends_stay_in_the_copies(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b", vlan=10)
    network.exchange("b", frame(BROADCAST, b), 1)
    tap(network, egress=["a"], ingress=["a"])
    there, back = frame(b, a, vlan=10), frame(a, b)
    leaves(network, "a", there, b=there.tagged(0), egress=there)
    leaves(network, "b", back, a=back.tagged(10), ingress=back.tagged(10))


def test_the_same_mac_in_two_vlans_is_told_apart_by_the_tag(network: Network) -> None:
    a, _ = network.add_pod("a", vlan=10), network.add_pod("b", vlan=20)
    other, another = network.add_pod("c", vlan=10), network.add_pod("d", vlan=20)
    introduce(network, c=other, d=another)
    tap(network, egress=["a", "b"])
    first, second = frame(other, a), frame(another, a)
    leaves(network, "a", first, c=first, egress=first.tagged(10))
    leaves(network, "b", second, d=second, egress=second.tagged(20))


@pytest.mark.parametrize("group", [BROADCAST, MULTICAST])
def test_a_packet_for_several_tapped_receivers_is_copied_once(network: Network, group: str) -> None:
    a, _, _, _ = (network.add_pod(name) for name in "abcd")
    tap(network, ingress=["b", "c"])
    packet = frame(group, a)
    leaves(network, "a", packet, b=packet, c=packet, d=packet, ingress=packet)


def test_a_broadcast_of_another_vlan_is_not_copied(network: Network) -> None:
    a = network.add_pod("a", vlan=10)
    network.add_pod("b", vlan=10)
    network.add_pod("c", vlan=20)
    tap(network, ingress=["c"])
    packet = frame(BROADCAST, a)
    leaves(network, "a", packet, b=packet)


def test_unknown_unicast_is_flooded_and_copied_once_but_never_to_a_tap_port_as_an_original(network: Network) -> None:
    a, _, _ = (network.add_pod(name) for name in "abc")
    tap(network, egress=["a"], ingress=["b", "c"])
    packet = frame("02:00:00:00:be:ef", a)
    leaves(network, "a", packet, b=packet, c=packet, egress=packet, ingress=packet)


def test_what_the_bridge_drops_is_still_copied_as_egress(network: Network) -> None:
    a = network.add_pod("a")
    network.add_pod("b")
    tap(network, egress=["a"], ingress=["b"])
    packet = frame(LINK_LOCAL, a)
    leaves(network, "a", packet, egress=packet)


def test_removing_a_tap_ends_the_copies_and_leaves_nothing(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, egress=["a"], ingress=["a"])
    converge(network, {})
    packet = frame(b, a)
    leaves(network, "a", packet, b=packet)
    bridge = next(iter(network.observe().bridges.values()))
    assert (bridge.tap_ports, bridge.mirrors) == ((), ())


def test_a_tap_may_grow_and_shrink(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, egress=["a"])
    tap(network, egress=["a", "b"])
    packet = frame(a, b)
    leaves(network, "b", packet, a=packet, egress=packet)
    tap(network, egress=["b"])
    there, back = frame(b, a), frame(a, b)
    leaves(network, "a", there, b=there)
    leaves(network, "b", back, a=back, egress=back)


def test_a_pod_that_is_made_again_is_copied_again(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    tap(network, egress=["a"], ingress=["a"])
    network.delete_pod("a")
    bridge = next(iter(network.observe().bridges.values()))
    assert not any(row.select_src or row.select_dst for row in bridge.mirrors), "the database empties references without a word"
    a = network.add_pod("a")
    introduce(network, a=a, b=b)
    tap(network, egress=["a"], ingress=["a"])
    there, back = frame(b, a), frame(a, b)
    leaves(network, "a", there, b=there, egress=there)
    leaves(network, "b", back, a=back, ingress=back)


def test_a_mirror_that_somebody_deleted_is_made_again(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, egress=["a"])
    network.delete_mirror(EGRESS_TAP)
    tap(network, egress=["a"])
    packet = frame(b, a)
    leaves(network, "a", packet, b=packet, egress=packet)


def test_the_33rd_mirror_is_refused_in_a_sentence_and_those_of_others_are_left_alone(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    for number in range(MAX_MIRRORS - 1):
        network.add_foreign_mirror(f"span{number}")
    before = foreign(network)
    refused = tap(network, egress=["a"], ingress=["a"])
    assert [str(key.direction) for key in refused] == ["Ingress"]
    assert "bridge br0 can hold 32 mirrors" in next(iter(refused.values()))
    packet = frame(b, a)
    leaves(network, "a", packet, b=packet, egress=packet)
    converge(network, {})
    assert foreign(network) == before


def test_another_nodes_stamp_is_somebody_elses(network: Network) -> None:
    a, b = network.add_pod("a"), network.add_pod("b")
    introduce(network, a=a, b=b)
    tap(network, egress=["a"])
    elsewhere = type(STAMP)("node-b", 1)
    assert [str(step) for step in diff(network.observe(), {}, elsewhere)] == []
    assert len(diff(network.observe(), {}, STAMP)) == 2


def test_planning_twice_changes_nothing(network: Network) -> None:
    network.add_pod("a")
    wanted = want(network, egress=["a"], ingress=["a"])
    converge(network, wanted)
    assert diff(network.observe(), wanted, type(STAMP)(NODE, 2)) == ()


def foreign(network: Network) -> set[str]:
    return {row.name for bridge in network.observe().bridges.values() for row in bridge.mirrors if row.stamp is None}
