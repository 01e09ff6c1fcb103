"""What a node does for its taps: which tap points, through which mirrors, and what it says of those it cannot have."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest

from vtap_agent.plan import assembly as assembly_module
from vtap_agent.plan import compile as compile_module
from vtap_agent.plan import selection as selection_module
from vtap_agent.plan.assembly import Plan, assemble
from vtap_agent.plan.compile import ResolvePeers
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    MAX_FLOOD_ENTRIES,
    MAX_POINTS_PER_SOURCE,
    Backend,
    DestinationState,
    Direction,
    Feed,
    TapProgram,
)
from vtap_agent.plan.inventory_model import (
    BridgePort,
    Inventory,
    NextHop,
    NextHopState,
    Pod,
    PodInterface,
    PodRef,
    Switch,
)
from vtap_agent.plan.selection import Desired, select
from vtap_agent.plan.slots import SlotTable, allocate
from vtap_agent.plan.verdicts import PointState, TapVerdict
from vtap_api import TapDestination, VirtualTap
from vtap_api.virtualtap import VirtualTapSpec

COLLECTOR = "198.18.2.2"
HOP = NextHop(COLLECTOR, NextHopState.REACHABLE, 7, "up0", "198.18.1.2", "02:00:00:00:00:01", "02:00:00:00:00:02", 1500)


def tap(name: str = "web", namespace: str = "shop", **spec: object) -> VirtualTap:
    """By mirrors, unless `spec` says otherwise."""
    body = {"podSelector": {"matchLabels": {"app": "web"}}, "backend": "OVSMirror", **spec}
    return VirtualTap.model_validate({"metadata": {"name": name, "namespace": namespace}, "spec": body})


def collector(name: str = "default", address: str = COLLECTOR, **spec: object) -> TapDestination:
    control = {"url": f"http://{address}:9471", "tokenFile": "/token"}
    body = {"collector": {"address": address, "control": control}, **spec}
    return TapDestination.model_validate({"metadata": {"name": name}, "spec": body})


def gre(name: str = "default", **spec: object) -> TapDestination:
    return TapDestination.model_validate({"metadata": {"name": name}, "spec": {"gre": {"address": COLLECTOR}, **spec}})


def pod(number: int, namespace: str = "shop", app: str = "web", **more: bool) -> Pod:
    return Pod(
        PodRef(namespace, f"{app}-{number}", f"uid-{namespace}-{app}-{number}"), {"app": app}, f"/run/netns/p{number}", **more
    )


def interface(
    owner: Pod, number: int, *, on_bridge: bool = True, name: str = "eth0", tag: int = 0, mode: str = ""
) -> PodInterface:
    port = BridgePort("br0", f"veth{number}", f"uuid-{number}", tag, mode) if on_bridge else None
    mac = f"02:00:00:00:01:{number:02x}"
    return PodInterface(owner.ref, name, mac, (f"10.0.0.{number}",), 1500, f"veth{number}", 100 + number, port)


def inventory(pods: Iterable[Pod], interfaces: Iterable[PodInterface], hop: NextHop = HOP) -> Inventory:
    return Inventory(tuple(pods), tuple(interfaces), Switch("3.1.0", (), True, 0), {COLLECTOR: hop})


def plan(
    desired: Desired,
    seen: Inventory,
    *,
    slots: SlotTable | None = None,
    announce: bool = True,
    refused: Mapping[Feed, str] | None = None,
) -> Plan:
    """As the loop does: the second pass, after collectors have acknowledged everything."""
    selection = select(desired, seen)
    new = map("{:016x}".format, itertools.count(1)).__next__
    table = allocate(slots or SlotTable(), [candidate.stream for candidate in selection.candidates], new).table
    first = assemble(selection, table, 4096, frozenset(), seen)
    if not announce:
        return first
    heard = frozenset(stream.id for told in first.announcements.values() for stream in told.streams)
    return assemble(selection, table, 4096, heard, seen, refused)


def only(verdicts: Iterable[TapVerdict]) -> TapVerdict:
    (verdict,) = verdicts
    return verdict


def test_a_tap_gets_two_points_a_pod_fed_by_one_mirror_a_direction() -> None:
    pods = [pod(1), pod(2), pod(3, app="other")]
    seen = inventory(pods, [interface(owner, number) for number, owner in enumerate(pods, 1)])
    outcome = plan(Desired((tap(),), (collector(),)), seen)
    assert {(point.name.pod_name, point.name.direction) for point in outcome.dataplane.points} == {
        (name, direction) for name in ("web-1", "web-2") for direction in Direction
    }
    assert {key: mirror.ports for key, mirror in outcome.dataplane.mirrors.items()} == {
        Feed(Backend.OVS_MIRROR, "br0", direction): frozenset({"uuid-1", "uuid-2"}) for direction in Direction
    }
    assert [point.key for point in outcome.dataplane.points] == [4096 + point.slot for point in outcome.dataplane.points]
    verdict = only(outcome.verdicts)
    assert verdict.matched_pods == 2 and {point.state for point in verdict.points} == {PointState.READY}


def test_no_copy_leaves_before_its_collector_knows_the_stream() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    before = plan(Desired((tap(),), (collector(),)), seen, announce=False)
    assert before.dataplane.sources == () and before.dataplane.mirrors == {}
    assert len(before.announcements["default"].streams) == 2
    assert before.announcements["default"].addresses == ("198.18.1.2",)
    assert {point.reason for point in only(before.verdicts).points} == {"Announcing"}


def test_other_peoples_endpoints_are_fed_at_once_and_told_nothing() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    outcome = plan(Desired((tap(),), (gre(),)), seen, announce=False)
    assert outcome.dataplane.sources and outcome.announcements == {}


def test_taps_on_one_pod_share_the_mirror_and_the_source() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    desired = Desired((tap("a", direction="Egress"), tap("b", direction="Egress")), (collector(),))
    outcome = plan(desired, seen)
    assert {len(source.slots) for source in outcome.dataplane.sources} == {2} and len(outcome.dataplane.mirrors) == 1


@pytest.mark.parametrize(
    ("tag", "mode", "expected"),
    [
        (0, "", {(0, False), (ANY_VLAN, False)}),
        (7, "", {(7, True)}),
        (7, "access", {(7, True)}),
        (7, "native-tagged", {(0, False), (ANY_VLAN, False)}),
        (0, "trunk", {(0, False), (ANY_VLAN, False)}),
    ],
)
def test_only_an_access_ports_tag_is_stripped(tag: int, mode: str, expected: set[tuple[int, bool]]) -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1, tag=tag, mode=mode)])
    outcome = plan(Desired((tap(direction="Ingress"),), (collector(),)), seen)
    assert {(source.vlan, source.strip) for source in outcome.dataplane.sources} == expected


REFUSALS: Mapping[str, tuple[Desired, str]] = {
    "DestinationNotFound": (Desired((tap(),)), "there is no TapDestination 'default'"),
    "DestinationNotAllowed": (
        Desired(
            (tap(),),
            (collector(allowedNamespaces={"from": "Selector", "selector": {"matchLabels": {"team": "soc"}}}),),
        ),
        "does not allow namespace 'shop'",
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_tap_that_cannot_be_had_is_refused_in_a_sentence(reason: str) -> None:
    desired, sentence = REFUSALS[reason]
    outcome = plan(desired, inventory([pod(1)], [interface(pod(1), 1)]))
    verdict = only(outcome.verdicts)
    assert verdict.reason == reason and sentence in verdict.refusal
    assert outcome.dataplane.points == ()


def test_a_refused_tap_leaves_the_others_as_they_are() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    good = tap("good")
    alone = plan(Desired((good,), (collector(),)), seen)
    beside = plan(Desired((good, tap("bad", destinationRef={"name": "nowhere"})), (collector(),)), seen)
    assert beside.dataplane == alone.dataplane


def test_pods_that_may_not_be_tapped_are_named() -> None:
    host, receiver, loose, good = pod(1, host_network=True), pod(2), pod(3), pod(4)
    own = replace(interface(receiver, 2), addresses=(COLLECTOR,))
    seen = inventory([host, receiver, loose, good], [own, interface(loose, 3, on_bridge=False), interface(good, 4)])
    verdict = only(plan(Desired((tap(),), (collector(),)), seen).verdicts)
    refused = {point.pod_name: point.reason for point in verdict.points if point.state is PointState.REFUSED}
    assert refused == {"web-1": "HostNetwork", "web-2": "IsReceiver", "web-3": "NoPort"}
    assert {point.pod_name for point in verdict.points if point.state is PointState.READY} == {"web-4"}


def test_interfaces_that_a_pod_lacks_are_named() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    verdict = only(plan(Desired((tap(interfaces=["net1"]),), (collector(),)), seen).verdicts)
    assert "has no interface net1 (it has: eth0)" in verdict.points[0].message


@pytest.mark.parametrize(
    "hop",
    [
        replace(HOP, state=NextHopState.LOOP),
        replace(HOP, ifindex=101, ifname="veth1"),
    ],
)
def test_copies_never_leave_through_what_is_tapped(hop: NextHop) -> None:
    outcome = plan(Desired((tap(),), (collector(),)), inventory([pod(1)], [interface(pod(1), 1)], hop))
    assert outcome.dataplane.sources == () and outcome.dataplane.points == ()
    assert {point.reason for point in only(outcome.verdicts).points} == {"Loop"}


@pytest.mark.parametrize(
    ("hop", "state", "reason"),
    [
        (replace(HOP, state=NextHopState.NO_NEIGHBOUR, gateway_mac=""), DestinationState.NO_NEIGHBOUR, "NoNeighbour"),
        (NextHop(COLLECTOR, NextHopState.NO_ROUTE), DestinationState.NO_ROUTE, "NoRoute"),
    ],
)
def test_an_unreachable_destination_keeps_its_points_and_says_why(hop: NextHop, state: DestinationState, reason: str) -> None:
    outcome = plan(Desired((tap(),), (gre(),)), inventory([pod(1)], [interface(pod(1), 1)], hop))
    assert len(outcome.dataplane.points) == 2 and outcome.dataplane.destinations["default"].state is state
    assert {point.reason for point in only(outcome.verdicts).points} == {reason}


def test_one_more_tap_than_a_pod_has_room_for_is_refused() -> None:
    taps = tuple(tap(f"tap-{number:03}", direction="Egress") for number in range(MAX_POINTS_PER_SOURCE + 1))
    outcome = plan(Desired(taps, (gre(),)), inventory([pod(1)], [interface(pod(1), 1)]))
    assert {len(source.slots) for source in outcome.dataplane.sources} == {MAX_POINTS_PER_SOURCE}
    assert [verdict.points[0].reason for verdict in outcome.verdicts].count("TooManyTaps") == 1


def test_more_receivers_than_a_vlan_has_room_for_are_refused() -> None:
    """1024 Ingress points share a bridge's VLANs; the one beyond is refused in a sentence, and Egress loses nothing."""
    pods = [pod(number) for number in range(1, MAX_FLOOD_ENTRIES // 16 + 2)]
    seen = inventory(pods, [interface(owner, number) for number, owner in enumerate(pods, 1)])
    taps = tuple(tap(f"tap-{number:02}") for number in range(16))
    outcome = plan(Desired(taps, (gre(),)), seen)
    slots = [
        len(source.slots) for source in outcome.dataplane.sources if source.feed.direction is Direction.INGRESS and source.vlan
    ]
    assert sum(slots) == MAX_FLOOD_ENTRIES
    refused = [point for verdict in outcome.verdicts for point in verdict.points if point.state is PointState.REFUSED]
    assert {(point.reason, point.direction) for point in refused} == {("TooManyReceivers", "Ingress")} and len(refused) == 16
    assert "br0" in refused[0].message


@pytest.mark.parametrize(
    ("own", "other", "shared"), [(0, 0, True), (10, 10, True), (10, 0, True), (0, 10, True), (10, 20, False)]
)
def test_a_pod_that_takes_anothers_address_does_not_get_its_packets(own: int, other: int, shared: bool) -> None:
    """Neither do, as nobody can tell whose address it is. In VLANs of their own they may have the same."""
    here, there = pod(1), pod(2, namespace="bank")
    impostor = replace(interface(there, 2, tag=other), mac=interface(here, 1).mac)
    seen = inventory([here, there], [interface(here, 1, tag=own), impostor])
    outcome = plan(Desired((tap(), tap(namespace="bank")), (gre(),)), seen)
    reasons = {point.reason for verdict in outcome.verdicts for point in verdict.points}
    assert reasons == ({"SharedAddress"} if shared else {"Programmed"})
    assert bool(outcome.dataplane.sources) is not shared
    assert all("bank" not in point.message for point in outcome.verdicts[1].points)


def test_pods_of_one_namespace_may_share_an_address() -> None:
    twins = [interface(pod(1), 1), replace(interface(pod(2), 2), mac=interface(pod(1), 1).mac)]
    outcome = plan(Desired((tap(),), (gre(),)), inventory([pod(1), pod(2)], twins))
    assert {point.reason for point in only(outcome.verdicts).points} == {"Programmed"}


def test_a_node_without_keys_left_says_so() -> None:
    outcome = plan(Desired((tap(),), (gre(),)), inventory([pod(1)], [interface(pod(1), 1)]), slots=SlotTable(size=1))
    assert sorted(point.reason for point in only(outcome.verdicts).points) == ["NoKey", "Programmed"]


def test_a_peer_selector_becomes_the_addresses_of_those_pods() -> None:
    rules = [{"action": "Include", "peer": {"podSelector": {"matchLabels": {"app": "db"}}}}]
    pods = [pod(1), pod(2, app="db"), pod(3, app="db", namespace="elsewhere")]
    seen = inventory(pods, [interface(owner, number) for number, owner in enumerate(pods, 1)])
    outcome = plan(Desired((tap(filter={"defaultAction": "Exclude", "rules": rules}),), (collector(),)), seen)
    assert list(outcome.dataplane.peer_sets.values()) == [frozenset({"10.0.0.2"})]
    moved = replace(seen, interfaces=(*seen.interfaces[:1], replace(seen.interfaces[1], addresses=("10.0.0.9",))))
    after = plan(Desired((tap(filter={"defaultAction": "Exclude", "rules": rules}),), (collector(),)), moved)
    assert outcome.dataplane.peer_sets.keys().isdisjoint(after.dataplane.peer_sets)


def test_a_mirror_that_cannot_be_had_refuses_its_points_and_no_others() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    refused = {Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS): "bridge br0 can hold 32 mirrors; delete one"}
    outcome = plan(Desired((tap(),), (collector(),)), seen, refused=refused)
    assert set(outcome.dataplane.mirrors) == {Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS)}
    reasons = {point.direction: (point.reason, point.message) for point in only(outcome.verdicts).points}
    cures = "delete one; or use spec.backend: Auto, which takes another way where it can"
    assert reasons["Egress"] == ("NoMirror", f"bridge br0 can hold 32 mirrors; {cures}")
    assert reasons["Ingress"][0] == "Programmed"


def test_a_tap_whose_planning_fails_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = compile_module.compile_tap

    def compile_tap(spec: VirtualTapSpec, resolve: ResolvePeers) -> TapProgram:
        if spec.packet.snap_length == 77:
            raise KeyError("surprise")
        return real(spec, resolve)

    monkeypatch.setattr(selection_module, "compile_tap", compile_tap)
    desired = Desired((tap("bad", packet={"snapLength": 77}), tap("good")), (gre(),))
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    outcome = plan(desired, seen)
    assert {point.program for point in outcome.dataplane.points} == {"shop/good"}
    said = {verdict.name: (verdict.reason, verdict.refusal) for verdict in outcome.verdicts}
    assert said["good"] == ("Accepted", "")
    assert said["bad"][0] == "InternalError" and "KeyError: 'surprise'" in said["bad"][1]
    assert [(failure.tap, str(failure.error)) for failure in select(desired, seen).failures] == [("shop/bad", "'surprise'")]


def test_peers_beyond_what_the_node_holds_refuse_the_tap_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_module, "MAX_PEER_ADDRESSES", 2)

    def peers_of(app: str) -> dict[str, object]:
        return {
            "defaultAction": "Exclude",
            "rules": [{"action": "Include", "peer": {"podSelector": {"matchLabels": {"app": app}}}}],
        }

    pods = [pod(1), pod(2, app="db"), pod(3, app="db"), pod(4, app="cache")]
    seen = inventory(pods, [interface(owner, number) for number, owner in enumerate(pods, 1)])
    taps = tuple(tap(name, filter=peers_of(app)) for name, app in (("a", "db"), ("b", "cache"), ("c", "db")))
    outcome = plan(Desired(taps, (gre(),)), seen)
    assert {verdict.name: verdict.reason for verdict in outcome.verdicts} == {
        "a": "Accepted",
        "b": "TooManyPeers",
        "c": "Accepted",
    }
    assert "3 addresses with this tap's" in outcome.verdicts[1].refusal
    assert list(outcome.dataplane.peer_sets.values()) == [frozenset({"10.0.0.2", "10.0.0.3"})]
    assert {point.program for point in outcome.dataplane.points} == {"shop/a", "shop/c"}


def test_more_bridges_than_there_can_be_tap_ports_refuse_the_newest_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly_module, "MAX_TAP_PORTS", 2)
    pods = [pod(1), pod(2)]
    seen = inventory(pods, [interface(owner, number) for number, owner in enumerate(pods, 1)])
    port = seen.interfaces[1].port
    assert port is not None
    moved = replace(seen.interfaces[1], port=replace(port, bridge="br1"))
    outcome = plan(Desired((tap(),), (gre(),)), replace(seen, interfaces=(seen.interfaces[0], moved)))
    assert {key.place for key in outcome.dataplane.mirrors} == {"br0"} and len(outcome.dataplane.mirrors) == 2
    refused = [point for point in only(outcome.verdicts).points if point.state is PointState.REFUSED]
    assert {(point.pod_name, point.reason) for point in refused} == {("web-2", "TooManyBridges")}
    assert "br1 finds room" in refused[0].message


def test_a_program_that_cannot_be_written_refuses_its_tap_alone() -> None:
    seen = inventory([pod(1)], [interface(pod(1), 1)])
    selection = select(Desired((tap("odd"), tap("plain")), (gre(),)), seen)
    table = allocate(SlotTable(), [one.stream for one in selection.candidates], lambda: "0" * 16).table
    outcome = assemble(selection, table, 4096, frozenset(), seen, refused_programs={"shop/odd": "OverflowError: too large"})
    assert {point.program for point in outcome.dataplane.points} == {"shop/plain"}
    odd, plain = outcome.verdicts
    assert {point.reason for point in odd.points} == {"Unwritable"} and "too large" in odd.points[0].message
    assert {point.reason for point in plain.points} == {"Programmed"}
