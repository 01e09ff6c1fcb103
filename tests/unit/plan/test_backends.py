"""Which backend copies, why, at which feed; and how tap points change over from one to another."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
from vtap_agent.plan.groups_filter import MAX_PEERS
from vtap_agent.plan.groups_flows import MAX_CHAIN
from vtap_agent.plan.inventory_model import Bridge, Inventory, PodInterface
from vtap_agent.plan.moves import with_old_feeds
from vtap_agent.plan.selection import Desired, select
from vtap_agent.plan.selection import Selection as Chosen
from vtap_api.virtualtap import BackendName, VirtualTap


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


def on_xdp(seen: PodInterface) -> PodInterface:
    """The same at a port of type afxdp."""
    assert seen.port is not None
    return replace(seen, port=replace(seen.port, by_xdp=True))


def chosen_by_auto(seen: PodInterface, **bridge: object) -> Choice | NoChoice:
    """With a filter of which flows can leave out something."""
    known = Bridge("br0", "uuid", "netdev", (), (), 0, 0)
    return choose(BackendName.AUTO, seen, replace(known, **bridge), lambda: True)


def test_auto_takes_ebpf_wherever_the_kernel_moves_packets_to_a_device_of_the_pod() -> None:
    for seen in (interface(pod(1), 1), interface(pod(1), 1, on_bridge=False)):
        for sifts in (True, False):
            made = choose(BackendName.AUTO, seen, None, lambda sifts=sifts: sifts)
            assert isinstance(made, Choice) and made.backend is Backend.EBPF
            assert "costs the least" in made.why and "veth1" in made.why
    outcome = plan(Desired((tap(backend="Auto"),), (gre(),)), inventory([pod(1)], [interface(pod(1), 1, on_bridge=False)]))
    assert {(point.backend, point.state.value) for point in only(outcome.verdicts).points} == {("EBPF", "Ready")}
    assert all("Auto takes EBPF" in point.message for point in only(outcome.verdicts).points)


def test_auto_leaves_it_to_open_vswitch_where_the_kernel_has_no_device_or_no_packets() -> None:
    bare = replace(interface(pod(1), 1), host_ifindex=0, host_name="")
    by_flows = chosen_by_auto(bare)
    assert isinstance(by_flows, Choice) and by_flows.backend is Backend.OVS_GROUP and "that the filter excludes" in by_flows.why
    owned = chosen_by_auto(bare, controllers=("tcp:127.0.0.1:6653",))
    assert isinstance(owned, Choice) and owned.backend is Backend.OVS_MIRROR and "belongs to a controller" in owned.why
    whole = choose(BackendName.AUTO, bare, None)
    assert isinstance(whole, Choice) and whole.backend is Backend.OVS_MIRROR
    polled = chosen_by_auto(interface(pod(1), 1), polled=True)
    assert isinstance(polled, Choice) and polled.backend is Backend.OVS_GROUP and "past the kernel" in polled.why
    by_xdp = chosen_by_auto(on_xdp(interface(pod(1), 1)))
    assert isinstance(by_xdp, Choice) and by_xdp.backend is Backend.OVS_GROUP and "past the kernel" in by_xdp.why
    nowhere = choose(BackendName.AUTO, replace(bare, port=None), None)
    assert isinstance(nowhere, NoChoice) and nowhere.reason == "NoPort"


def test_what_a_tap_names_is_not_replaced_by_something_else() -> None:
    named = choose(BackendName.OVS_GROUP, interface(pod(1), 1), Bridge("br0", "uuid", "netdev", (), (), 0, 0))
    hooked = choose(BackendName.AUTO, interface(pod(1), 1), None, lambda: True)
    assert isinstance(named, Choice) and isinstance(hooked, Choice)
    mirrored = choose(BackendName.OVS_MIRROR, interface(pod(1), 1), None)
    assert isinstance(mirrored, Choice)
    for one in (named, hooked, mirrored):
        assert next_best(one, "it snoops", "") == next_best(one, "", "it is full; delete one") == one


def test_what_a_backend_cannot_have_is_said_with_the_cure() -> None:
    bare = replace(interface(pod(1), 1, on_bridge=False), host_ifindex=0, host_name="")
    no_veth = choose(BackendName.EBPF, bare, None)
    assert isinstance(no_veth, NoChoice) and no_veth.reason == "NoVeth" and "use OVSMirror" in no_veth.sentence
    polled = choose(BackendName.EBPF, interface(pod(1), 1), Bridge("br0", "uuid", "netdev", (), (), 0, 0, polled=True))
    assert isinstance(polled, NoChoice) and polled.reason == "PastTheKernel" and "use OVSMirror or OVSGroup" in polled.sentence
    by_xdp = choose(BackendName.EBPF, on_xdp(interface(pod(1), 1)), None)
    assert isinstance(by_xdp, NoChoice) and by_xdp.reason == "PastTheKernel" and "as AF_XDP moves the packets" in by_xdp.sentence
    beside = choose(BackendName.EBPF, interface(pod(1), 1), Bridge("br0", "uuid", "netdev", (), (), 0, 0))
    assert isinstance(beside, Choice), "other ports of the bridge are as they were"
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


PEERS = {"podSelector": {"matchLabels": {"app": "db"}}}
NO_PEERS, NO_UDP = {"action": "Exclude", "peer": PEERS}, {"action": "Exclude", "protocol": "UDP"}
EXCLUDE_PEERS: dict[str, object] = {"defaultAction": "Include", "rules": [NO_PEERS]}
PEERS_AND_UDP: dict[str, object] = {"defaultAction": "Include", "rules": [NO_PEERS, NO_UDP]}


def polled_with_peers(peers: int, **port: object) -> Inventory:
    """A bridge of DPDK's, with a pod to tap and so many pods that the filter's peer selector means."""
    owner = pod(1)
    own = interface(owner, 1)
    assert own.port is not None
    others = [pod(number, app="db") for number in range(2, 2 + peers)]
    seen = inventory(
        [owner, *others],
        [replace(own, port=replace(own.port, **port)), *(interface(one, number) for number, one in enumerate(others, 2))],
    )
    bridge = Bridge("br0", "uuid", "netdev", (), (own.port,), 0, 0, polled=True)
    return replace(seen, switch=replace(seen.switch, bridges=(bridge,)))


def by_auto(wanted: dict[str, object] | None, peers: int = 0, **port: object) -> list[Choice]:
    """What `Auto` takes there."""
    made = select(Desired((tap(backend="Auto", filter=wanted),), (gre(),)), polled_with_peers(peers, **port))
    return [one.choice for one in made.candidates]


@pytest.mark.parametrize(
    ("wanted", "peers", "port"),
    [
        (None, 0, {}),
        ({}, 0, {}),
        ({"defaultAction": "Include"}, 0, {}),
        ({"defaultAction": "Include", "rules": [{"action": "Include", "protocol": "UDP"}]}, 0, {}),
        ({"defaultAction": "Include", "rules": [{"action": "Include"}, NO_UDP]}, 0, {}),
        ({"defaultAction": "Exclude", "rules": [{"action": "Include"}]}, 0, {}),
        (EXCLUDE_PEERS, MAX_PEERS + 1, {}),
        ({"defaultAction": "Include", "rules": [{"action": "Exclude", "vlan": 7}]}, 0, {"tag": 5}),
    ],
    ids=[
        "none",
        "empty",
        "includes all",
        "includes what it would",
        "includes all first",
        "only includes all",
        "too many peers",
        "a VLAN that is not seen",
    ],
)
def test_auto_takes_a_mirror_where_flows_would_leave_out_nothing(
    wanted: dict[str, object] | None, peers: int, port: dict[str, object]
) -> None:
    made = by_auto(wanted, peers, **port)
    assert [one.backend for one in made] == [Backend.OVS_MIRROR] * 2
    why = "Auto takes OVSMirror, as DPDK moves the packets of br0 past the kernel and flows would leave out nothing"
    assert {one.why for one in made} == {why}


@pytest.mark.parametrize(
    ("wanted", "peers", "port"),
    [
        ({"defaultAction": "Exclude"}, 0, {}),
        ({"defaultAction": "Exclude", "rules": [{"action": "Include", "protocol": "UDP"}]}, 0, {}),
        (EXCLUDE_PEERS, 0, {}),
        (EXCLUDE_PEERS, 1, {}),
        (EXCLUDE_PEERS, MAX_PEERS, {}),
        (
            {
                "defaultAction": "Include",
                "rules": [{"action": "Exclude", "peer": PEERS}, {"action": "Exclude", "protocol": "UDP"}],
            },
            MAX_PEERS + 1,
            {},
        ),
        ({"defaultAction": "Include", "rules": [{"action": "Exclude", "vlan": 7}]}, 0, {}),
    ],
    ids=["nothing", "UDP", "no peer yet", "a peer", "as many peers as flows may name", "half of it", "a VLAN that is seen"],
)
def test_auto_takes_a_group_where_flows_leave_out_something(
    wanted: dict[str, object], peers: int, port: dict[str, object]
) -> None:
    made = by_auto(wanted, peers, **port)
    assert [one.backend for one in made] == [Backend.OVS_GROUP] * 2
    why = "Auto takes OVSGroup, as DPDK moves the packets of br0 past the kernel and flows can leave out packets that the filter"
    assert {one.why for one in made} == {f"{why} excludes"}


def says(taps: Iterable[VirtualTap]) -> set[str]:
    """What status says of the first tap's points, with these taps of one pod."""
    outcome = plan(Desired(tuple(taps), (gre(),)), inventory([pod(1)], [interface(pod(1), 1)]))
    return {point.message for verdict in outcome.verdicts if verdict.name == "t0" for point in verdict.points}


def filtering(number: int, port: int) -> VirtualTap:
    rule = {"action": "Include", "protocol": "TCP", "peerPorts": [{"port": port}]}
    return tap(f"t{number}", backend="OVSGroup", filter={"defaultAction": "Exclude", "rules": [rule]})


def test_taps_with_one_same_filter_are_one_question_to_the_switch() -> None:
    """Flows hold a packet against each different filter but once, however many taps have it."""
    same = says(filtering(number, 80) for number in range(MAX_CHAIN + 1))
    assert same and all(message.endswith("filter in flows") for message in same)
    few = says(filtering(number, 80 + number) for number in range(MAX_CHAIN))
    assert few and all("filter in flows, and what the pod's other taps want comes too" in message for message in few)
    many = says(filtering(number, 80 + number) for number in range(MAX_CHAIN + 1))
    assert many and all(f"as taps with more than {MAX_CHAIN} different filters select the pod" in message for message in many)
    whole = says((filtering(0, 80), tap("t1", backend="OVSGroup")))
    assert whole and all("as another tap of the pod has everything copied" in message for message in whole)


def ports_of_peers(**more: str) -> dict[str, object]:
    """Excludes nearly all ports of peers, which takes as many masks as can be."""
    rule = {"action": "Exclude", "peer": PEERS, "peerPorts": [{"port": 1, "endPort": 65534}], **more}
    return {"defaultAction": "Include", "rules": [rule]}


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [(EXCLUDE_PEERS, MAX_PEERS), (ports_of_peers(protocol="TCP"), 17)],
    ids=["addresses", "their ports"],
)
def test_auto_stays_where_it_is_while_peers_roll(wanted: dict[str, object], fits: int) -> None:
    desired = Desired((tap(backend="Auto", filter=wanted),), (gre(),))
    made = select(desired, polled_with_peers(fits))
    assert backends_of(made) == {Backend.OVS_GROUP}
    for now in range(0, 300, 10):
        made = select(desired, polled_with_peers(fits + (now % 20 == 0)), made.leans, now)
        assert backends_of(made) == {Backend.OVS_GROUP}, "one pod more, for a moment"
        suffix = "; this has changed less than a minute ago"
        assert all(one.choice.why.endswith(suffix) == (now % 20 == 0) for one in made.candidates)
    for now in range(300, 361, 10):
        assert backends_of(made) == {Backend.OVS_GROUP}
        assert made.due == (math.inf if now == 300 else 360.0)
        made = select(desired, polled_with_peers(fits + 1), made.leans, now)
    assert backends_of(made) == {Backend.OVS_MIRROR} and made.due == math.inf, "they stay for a minute"
    for now in range(361, 421, 10):
        made = select(desired, polled_with_peers(fits), made.leans, now)
        assert backends_of(made) == {Backend.OVS_MIRROR}, "and back just so"
    assert backends_of(select(desired, polled_with_peers(fits), made.leans, 421)) == {Backend.OVS_GROUP}


def test_an_edited_filter_counts_at_once() -> None:
    seen = polled_with_peers(1)
    made = select(Desired((tap(backend="Auto", filter=EXCLUDE_PEERS),), (gre(),)), seen)
    assert backends_of(made) == {Backend.OVS_GROUP}
    assert backends_of(select(Desired((tap(backend="Auto", filter={}),), (gre(),)), seen, made.leans, 1)) == {Backend.OVS_MIRROR}


def backends_of(made: Chosen) -> set[Backend]:
    return {one.choice.backend for one in made.candidates}
