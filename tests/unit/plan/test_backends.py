"""Which backend copies, why, at which feed; and how tap points change over from one to another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.plan.test_planning import gre, interface, inventory, only, plan, pod, tap
from vtap_agent.pipeline.diff import moving
from vtap_agent.pipeline.steps import Selection
from vtap_agent.plan.backend_choice import Choice, NoChoice, choose, next_best
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    Backend,
    DataPlane,
    Direction,
    Feed,
    Mirror,
    Source,
)
from vtap_agent.plan.inventory_model import Bridge, PodInterface
from vtap_agent.plan.moves import with_old_feeds
from vtap_agent.plan.selection import Desired
from vtap_api.virtualtap import BackendName


def hook(number: int, direction: Direction) -> Feed:
    return Feed(Backend.EBPF, f"veth{number}", direction, 100 + number)


def test_a_tap_by_ebpf_is_fed_by_the_pods_own_devices() -> None:
    pods = [pod(1), pod(2)]
    seen = inventory(pods, [interface(pods[0], 1, tag=7), interface(pods[1], 2, on_bridge=False)])
    outcome = plan(Desired((tap(backend="EBPF"),), (gre(),)), seen)
    feeds = {hook(number, direction) for number in (1, 2) for direction in Direction}
    assert outcome.dataplane.hooks == outcome.dataplane.feeds == feeds
    assert {(one.feed, one.vlan, one.mac, one.strip, len(one.slots)) for one in outcome.dataplane.sources} == {
        (feed, ANY_VLAN, bytes(6), False, 1) for feed in feeds
    }
    points = only(outcome.verdicts).points
    assert {point.backend for point in points} == {"EBPF"} and all(point.why for point in points)
    assert {point.message for point in points} == {"cloned at veth1", "cloned at veth2"}


def test_pods_of_two_namespaces_may_share_an_address_where_each_has_its_own_device() -> None:
    mine, theirs = pod(1), pod(2, namespace="other")
    first, second = interface(mine, 1), interface(theirs, 2)
    seen = inventory([mine, theirs], [first, replace(second, mac=first.mac)])
    taps = tuple(tap(namespace=name, backend="EBPF") for name in ("shop", "other"))
    everybody = gre(allowedNamespaces={"from": "All"})
    outcome = plan(Desired(taps, (everybody,)), seen)
    assert len(outcome.dataplane.hooks) == 4


def test_two_taps_of_one_pod_by_two_backends_have_each_their_feed() -> None:
    owner = pod(1)
    seen = inventory([owner], [interface(owner, 1)])
    taps = (tap("a", backend="EBPF", direction="Egress"), tap("b", backend="OVSMirror", direction="Egress"))
    outcome = plan(Desired(taps, (gre(),)), seen)
    assert outcome.dataplane.feeds == {hook(1, Direction.EGRESS), Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS)}


@pytest.mark.parametrize("direction", Direction)
def test_a_groups_members_name_port_vlan_and_programs(direction: Direction) -> None:
    owner = pod(1)
    seen = inventory([owner], [interface(owner, 1, tag=7)])
    taps = tuple(tap(name, backend="OVSGroup", direction=direction.value) for name in ("a", "b"))
    outcome = plan(Desired(taps, (gre(),)), seen)
    ((feed, group),) = outcome.dataplane.groups.items()
    (member,) = group.members
    assert feed == Feed(Backend.OVS_GROUP, "br0", direction)
    assert (member.port_uuid, member.vlan, member.programs) == ("uuid-1", 7, ("shop/a", "shop/b"))
    slots = {point.program: point.slot for point in outcome.dataplane.points}
    assert member.slots == tuple(slots[name] for name in member.programs)


def chosen_by_auto(seen: PodInterface, **bridge: object) -> Choice | NoChoice:
    """With a filter."""
    known = Bridge("br0", "uuid", "netdev", (), (), 0, 0)
    return choose(BackendName.AUTO, seen, replace(known, **bridge), filtered=True)


def test_auto_takes_ebpf_wherever_the_kernel_moves_packets_to_a_device_of_the_pod() -> None:
    for seen in (interface(pod(1), 1), interface(pod(1), 1, on_bridge=False)):
        for filtered in (True, False):
            made = choose(BackendName.AUTO, seen, None, filtered=filtered)
            assert isinstance(made, Choice) and made.backend is Backend.EBPF
            assert "costs the least" in made.why and "veth1" in made.why
    outcome = plan(Desired((tap(backend="Auto"),), (gre(),)), inventory([pod(1)], [interface(pod(1), 1, on_bridge=False)]))
    assert {(point.backend, point.state.value) for point in only(outcome.verdicts).points} == {("EBPF", "Ready")}
    assert all("Auto takes EBPF" in point.message for point in only(outcome.verdicts).points)


def test_auto_leaves_it_to_open_vswitch_where_the_kernel_has_no_device_or_no_packets() -> None:
    bare = replace(interface(pod(1), 1), host_ifindex=0, host_name="")
    by_flows = chosen_by_auto(bare)
    assert isinstance(by_flows, Choice) and by_flows.backend is Backend.OVS_GROUP and "only what the filter wants" in by_flows.why
    owned = chosen_by_auto(bare, controllers=("tcp:127.0.0.1:6653",))
    assert isinstance(owned, Choice) and owned.backend is Backend.OVS_MIRROR and "belongs to a controller" in owned.why
    whole = choose(BackendName.AUTO, bare, None)
    assert isinstance(whole, Choice) and whole.backend is Backend.OVS_MIRROR
    polled = chosen_by_auto(interface(pod(1), 1), polled=True)
    assert isinstance(polled, Choice) and polled.backend is Backend.OVS_GROUP and "past the kernel" in polled.why
    nowhere = choose(BackendName.AUTO, replace(bare, port=None), None)
    assert isinstance(nowhere, NoChoice) and nowhere.reason == "NoPort"


def test_what_a_tap_names_is_not_replaced_by_something_else() -> None:
    named = choose(BackendName.OVS_GROUP, interface(pod(1), 1), Bridge("br0", "uuid", "netdev", (), (), 0, 0))
    hooked = choose(BackendName.AUTO, interface(pod(1), 1), None, filtered=True)
    assert isinstance(named, Choice) and isinstance(hooked, Choice)
    assert next_best(named, "it snoops") == named and next_best(hooked, "it is ours") == hooked


def test_what_a_backend_cannot_have_is_said_with_the_cure() -> None:
    bare = replace(interface(pod(1), 1, on_bridge=False), host_ifindex=0, host_name="")
    no_veth = choose(BackendName.EBPF, bare, None)
    assert isinstance(no_veth, NoChoice) and no_veth.reason == "NoVeth" and "use OVSMirror" in no_veth.sentence
    polled = choose(BackendName.EBPF, interface(pod(1), 1), Bridge("br0", "uuid", "netdev", (), (), 0, 0, polled=True))
    assert isinstance(polled, NoChoice) and polled.reason == "PastTheKernel" and "use OVSMirror or OVSGroup" in polled.sentence
    no_port = choose(BackendName.OVS_MIRROR, interface(pod(1), 1, on_bridge=False), None)
    assert isinstance(no_port, NoChoice) and no_port.reason == "NoPort" and "ovs-vsctl add-port" in no_port.sentence
    owned = Bridge("br0", "uuid", "system", ("tcp:127.0.0.1:6653",), (), 0, 0)
    controlled = choose(BackendName.OVS_GROUP, interface(pod(1), 1), owned)
    assert isinstance(controlled, NoChoice) and "tcp:127.0.0.1:6653" in controlled.sentence
    chosen = choose(BackendName.OVS_MIRROR, interface(pod(1), 1), owned)
    assert isinstance(chosen, Choice) and chosen.backend is Backend.OVS_MIRROR


MIRROR = Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS)
HOOK = hook(1, Direction.EGRESS)
MAC = bytes.fromhex("020000000101")


def by_mirror(*slots: int) -> DataPlane:
    return DataPlane(mirrors={MIRROR: Mirror(MIRROR, frozenset({"uuid-1"}))}, sources=(Source(MIRROR, 0, MAC, False, slots),))


def by_hook(*slots: int) -> DataPlane:
    return DataPlane(hooks=frozenset({HOOK}), sources=(Source(HOOK, ANY_VLAN, bytes(6), False, slots),))


@pytest.mark.parametrize(("before", "after"), [(by_mirror(1), by_hook(1)), (by_hook(1), by_mirror(1))])
def test_what_a_tap_point_leaves_stays_up_until_it_has_left(before: DataPlane, after: DataPlane) -> None:
    between = with_old_feeds(before, after)
    assert between.feeds == {MIRROR, HOOK} and between.sources == after.sources
    assert with_old_feeds(after, after) is after


def test_without_a_move_nothing_stays() -> None:
    assert with_old_feeds(by_mirror(1), by_hook(2)) == by_hook(2), "another tap's"
    assert with_old_feeds(by_mirror(1), DataPlane()) == DataPlane()
    assert with_old_feeds(DataPlane(), by_hook(1)) == by_hook(1)


def test_slots_that_move_are_those_with_no_feed_in_common() -> None:
    old = [Selection(MIRROR, 0, MAC, False, (1, 2)), Selection(MIRROR, ANY_VLAN, MAC, False, (1, 2))]
    new = [Selection(HOOK, ANY_VLAN, bytes(6), False, (1,)), Selection(MIRROR, 0, MAC, False, (2,))]
    assert moving(old, new) == {1}
