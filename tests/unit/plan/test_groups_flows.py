"""What leaves which port of a bridge with our flows: originals as without them, and each copy once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.unit.plan.flow_tables import Packet, Pipeline
from vtap_agent.plan.dataplane import Action, Backend, Direction, Feed, Group, GroupMember, Match, PortRange, TapProgram
from vtap_agent.plan.groups import Counted, Present, bundle, layout_for, uncopied
from vtap_agent.plan.groups_flows import MAX_CHAIN, BridgeFlows, Flow, Layout, SwitchPort, Tables, Wanted, build, our_cookies
from vtap_agent.plan.groups_foreign import ForeignFlows

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
TAP_OUT, TAP_IN = 90, 91
MACS = {name: f"02:00:00:00:00:{number:02x}" for number, name in enumerate("abcde", 1)}
PORTS = {name: number for number, name in enumerate("abcde", 1)}
TAGS = {"d": 7, "e": 7}
BROADCAST = "ff:ff:ff:ff:ff:ff"
LAYOUT = Layout(Tables(*range(246, 254)), 15)
ALL = TapProgram(Action.INCLUDE, ())
DNS = TapProgram(Action.EXCLUDE, (Match(Action.INCLUDE, protocol=17, peer_ports=PortRange(53, 53)),))
WEB = TapProgram(Action.EXCLUDE, (Match(Action.INCLUDE, protocol=6, peer_ports=PortRange(80, 81)),))
DEFAULT = Flow(0, 0, "", "NORMAL", 0)


def switch_ports(tags: Mapping[str, int] = TAGS) -> tuple[SwitchPort, ...]:
    return tuple(SwitchPort(name, (number,), tags.get(name, 0)) for name, number in PORTS.items())


def vlan_of(packet: Packet, port: int) -> int | None:
    """Inside the bridge; None where its port takes no such frame."""
    tag = next((TAGS[name] for name, number in PORTS.items() if number == port and name in TAGS), 0)
    if not tag:
        return packet.vlan or 0
    return None if packet.vlan else tag


def normal(packet: Packet, port: int) -> list[int]:
    """A bridge that has learnt every pod."""
    vlan = vlan_of(packet, port)
    if vlan is None:
        return []
    inside = {name: number for name, number in PORTS.items() if number != port and TAGS.get(name, 0) in (0, vlan)}
    known = next((name for name, mac in MACS.items() if mac == packet.destination), None)
    if known is None:
        return sorted(inside.values())
    return [inside[known]] if known in inside and TAGS.get(known, 0) == vlan else []


def members(names: str, programs: Mapping[str, tuple[str, ...]]) -> tuple[GroupMember, ...]:
    return tuple(
        GroupMember(
            name, bytes.fromhex(MACS[name].replace(":", "")), TAGS.get(name, 0), (PORTS[name],), programs.get(name, ("all",))
        )
        for name in names
    )


def flows(
    egress: str = "", ingress: str = "", programs: Mapping[str, tuple[str, ...]] | None = None, *, hairpins: bool = False
) -> BridgeFlows:
    groups = {
        direction: Group(Feed(Backend.OVS_GROUP, "br0", direction), members(names, programs or {}))
        for direction, names in ((EGRESS, egress), (INGRESS, ingress))
        if names
    }
    taps = {direction: {EGRESS: TAP_OUT, INGRESS: TAP_IN}[direction] for direction in groups}
    known = {"all": ALL, "dns": DNS, "web": WEB, **{f"p{n}": _port(n) for n in range(20)}}
    return build(Wanted(switch_ports(), groups, taps, known, {}, hairpins), LAYOUT, "node-a")


def _port(number: int) -> TapProgram:
    return TapProgram(Action.EXCLUDE, (Match(Action.INCLUDE, protocol=17, peer_ports=PortRange(100 + number, 100 + number)),))


def left(made: BridgeFlows, packet: Packet, sender: str, *others: Flow) -> list[int]:
    pipeline = Pipeline(made, normal, (*others, DEFAULT))
    return [port for port, _ in pipeline.send(packet, PORTS[sender])]


def frame(sender: str, receiver: str, vlan: int | None = None) -> Packet:
    return Packet(MACS[sender], MACS.get(receiver, BROADCAST), vlan)


def udp(sender: str, receiver: str, *ports: int) -> Packet:
    return Packet(MACS[sender], MACS[receiver], None, 0x800, "10.0.0.1", "10.0.0.2", 17, (ports[0], ports[1]))


def test_a_pair_that_is_tapped_at_both_ends_gives_both_copies_and_the_original_once() -> None:
    made = flows(egress="a", ingress="b")
    assert left(made, frame("a", "b"), "a") == [PORTS["b"], TAP_OUT, TAP_IN]
    assert left(made, frame("b", "a"), "b") == [PORTS["a"]]
    assert left(made, frame("c", "b"), "c") == [PORTS["b"], TAP_IN]
    assert left(made, frame("a", "c"), "a") == [PORTS["c"], TAP_OUT]


@pytest.mark.parametrize("sender", "abcde")
@pytest.mark.parametrize("receiver", ["a", "b", "c", "d", "e", "*"])
@pytest.mark.parametrize("vlan", [None, 7, 8])
def test_originals_leave_as_without_us(sender: str, receiver: str, vlan: int | None) -> None:
    made, packet = flows(egress="abd", ingress="abe"), frame(sender, receiver, vlan)
    copies = [port for port in left(made, packet, sender) if port not in (TAP_OUT, TAP_IN)]
    assert copies == left(BridgeFlows(), packet, sender)


def test_a_broadcast_is_copied_once_for_all_receivers_and_not_for_its_sender() -> None:
    made = flows(ingress="ab")
    assert left(made, frame("c", "*"), "c").count(TAP_IN) == 1
    assert left(made, frame("a", "*"), "a").count(TAP_IN) == 1, "b gets it"
    alone = flows(ingress="a")
    assert left(alone, frame("a", "*"), "a").count(TAP_IN) == 0, "nobody who is tapped gets it"
    assert left(alone, frame("c", "*"), "c").count(TAP_IN) == 1


def test_a_broadcast_stays_in_its_vlan() -> None:
    made = flows(ingress="e")
    assert left(made, frame("d", "*"), "d").count(TAP_IN) == 1
    assert left(made, frame("a", "*"), "a").count(TAP_IN) == 0
    assert left(made, frame("a", "*", 7), "a").count(TAP_IN) == 1, "a trunk may send into the VLAN"


def test_what_bridges_do_not_forward_is_not_received() -> None:
    made = flows(ingress="b")
    assert TAP_IN not in left(made, Packet(MACS["a"], "01:80:c2:00:00:0e"), "a")


def test_copies_of_an_access_port_bear_its_tag() -> None:
    pipeline = Pipeline(flows(egress="d", ingress="e"), normal, (DEFAULT,))
    out = dict(pipeline.send(frame("d", "e"), PORTS["d"]))
    assert (out[TAP_OUT].vlan, out[TAP_IN].vlan, out[PORTS["e"]].vlan) == (7, 7, None)


def test_a_frame_that_does_not_belong_to_a_pods_vlan_is_not_its() -> None:
    made = flows(egress="d", ingress="e")
    assert left(made, frame("a", "e"), "a").count(TAP_IN) == 0
    assert left(made, frame("d", "e", 8), "d") == [], "an access port takes no tags, so nothing was sent"


def test_a_packet_that_comes_back_to_its_sender_is_copied_only_where_others_flows_send_it_back() -> None:
    assert TAP_IN not in left(flows(ingress="a"), frame("a", "a"), "a")
    assert TAP_IN in left(flows(ingress="a", hairpins=True), frame("a", "a"), "a")


def test_other_peoples_flows_decide_the_originals_fate() -> None:
    made = flows(egress="a", ingress="b")
    drop = Flow(0, 200, f"in_port={PORTS['a']}", "drop", 0)
    assert left(made, frame("a", "b"), "a", drop) == [TAP_OUT, TAP_IN], "copied before policy, as pod egress is"
    pipeline = (Flow(0, 300, "", "resubmit(,5)", 0), Flow(5, 1, f"dl_dst={MACS['b']}", "output:3", 0))
    assert left(made, frame("a", "b"), "a", *pipeline) == [3, TAP_OUT, TAP_IN]


@pytest.mark.parametrize("priority", [0, 9, 32768])
@pytest.mark.parametrize("table", LAYOUT.tables)
def test_others_flows_in_a_table_of_ours_meet_their_own_packets_and_ours_meet_ours(table: int, priority: int) -> None:
    """Until ours have moved; whatever does not fit their flows is lost there with and without us."""
    theirs = (
        Flow(0, 100, f"dl_dst={MACS['b']}", f"resubmit(,{table})", 0),
        Flow(table, priority, f"in_port={PORTS['a']}", "output:3", 0),
    )
    made = flows(egress="a", ingress="b", programs={"a": ("all", "dns"), "b": ("web",)})
    assert left(made, frame("a", "b"), "a", *theirs) == [3, TAP_OUT]
    assert left(made, frame("c", "b"), "c", *theirs) == []
    assert left(made, frame("a", "c"), "a", *theirs) == [PORTS["c"], TAP_OUT]
    web = Packet(MACS["a"], MACS["b"], None, 0x800, "10.0.0.1", "10.0.0.2", 6, (80, 999))
    assert left(made, web, "a", *theirs) == [3, TAP_OUT, TAP_IN]


def test_others_flows_that_write_our_register_decide_all_the_same() -> None:
    theirs = (Flow(0, 100, "", "load:0x7->NXM_NX_REG15[],resubmit(,5)", 0), Flow(5, 1, "reg15=0x7", "NORMAL", 0))
    made = flows(egress="a", ingress="b")
    assert left(made, frame("a", "b"), "a", *theirs) == [PORTS["b"], TAP_OUT, TAP_IN]
    assert left(made, frame("c", "d"), "c", *theirs) == left(BridgeFlows(), frame("c", "d"), "c")


def test_two_taps_on_a_pod_get_the_union_of_what_they_want() -> None:
    made = flows(egress="a", programs={"a": ("dns", "web")})
    assert TAP_OUT in left(made, udp("a", "b", 999, 53), "a")
    assert TAP_OUT not in left(made, udp("a", "b", 999, 54), "a")
    web = Packet(MACS["a"], MACS["b"], None, 0x800, "10.0.0.1", "10.0.0.2", 6, (999, 81))
    assert left(made, web, "a").count(TAP_OUT) == 1
    assert left(made, frame("a", "b"), "a") == [PORTS["b"]], "what neither wants passes no group"


def test_more_filters_than_the_bound_copy_everything() -> None:
    few = flows(egress="a", programs={"a": tuple(f"p{n}" for n in range(MAX_CHAIN))})
    many = flows(egress="a", programs={"a": tuple(f"p{n}" for n in range(MAX_CHAIN + 1))})
    assert TAP_OUT not in left(few, udp("a", "b", 1, 2), "a")
    assert TAP_OUT in left(few, udp("a", "b", 1, 100 + MAX_CHAIN - 1), "a")
    assert TAP_OUT in left(many, udp("a", "b", 1, 2), "a")


def test_ingress_looks_at_the_other_side() -> None:
    made = flows(ingress="b", programs={"b": ("dns",)})
    assert TAP_IN in left(made, udp("a", "b", 53, 999), "a")
    assert TAP_IN not in left(made, udp("a", "b", 999, 53), "a")


def test_what_the_host_says_at_a_tap_port_goes_nowhere() -> None:
    assert Pipeline(flows(egress="a"), normal, (DEFAULT,)).send(frame("c", "*"), TAP_OUT) == []


def test_what_was_not_copied_is_counted_for_every_receiver() -> None:
    made = flows(egress="a", ingress="ab", programs={"a": ("dns",), "b": ("web",)})
    counting = [flow for flow in made.flows if flow.uncopied]
    asked = {flow.cookie: flow.match.partition(",")[2] for flow in counting}
    now = {cookie: Counted(match, 5) for cookie, match in asked.items() if match.startswith(("dl_dst=01", "in_port=1,dl_src"))}
    slots = {flow.cookie: flow.uncopied for flow in counting}
    assert uncopied(slots, {}, now) == {PORTS["a"]: 10, PORTS["b"]: 5}
    assert uncopied(slots, now, now) == {}


def test_a_flow_that_takes_another_s_place_goes_on_from_its_count() -> None:
    """As a switch does where one is added whose table, priority and match another has."""
    one, both = flows(egress="a", programs={"a": ("dns",)}), flows(egress="a", ingress="b", programs={"a": ("dns",)})
    (old,), (new,) = ([flow for flow in made.flows if flow.uncopied == (PORTS["a"],)] for made in (one, both))
    assert old.cookie != new.cookie and (old.table, old.priority, old.match) == (new.table, new.priority, new.match)
    slots = {flow.cookie: flow.uncopied for flow in (old, new)}
    before, now = {old.cookie: Counted(old.match, 10_000)}, {new.cookie: Counted(new.match, 10_003)}
    assert uncopied(slots, before, now) == {PORTS["a"]: 3}


def test_a_flow_that_was_made_anew_unseen_has_counted_from_zero() -> None:
    made = flows(egress="a", programs={"a": ("dns",)})
    (flow,) = (flow for flow in made.flows if flow.uncopied)
    before, now = ({flow.cookie: Counted(flow.match, count)} for count in (10_000, 7))
    assert uncopied({flow.cookie: flow.uncopied}, before, now) == {PORTS["a"]: 7}


def test_filters_are_shared_by_pods() -> None:
    one, two = flows(egress="a", programs={"a": ("dns",)}), flows(egress="ab", programs={"a": ("dns",), "b": ("dns",)})
    table = LAYOUT.tables.egress_filter
    assert [flow for flow in one.flows if flow.table == table] == [flow for flow in two.flows if flow.table == table]


def test_cookies_tell_flows_apart_and_are_ours() -> None:
    made = flows(egress="abd", ingress="abe", programs={"a": ("dns", "web")})
    value, mask = our_cookies("node-a")
    assert len({flow.cookie for flow in made.flows}) == len(made.flows)
    assert all(flow.cookie & mask == value for flow in made.flows)
    assert our_cookies("node-b") != our_cookies("node-a")


def test_a_bundle_changes_what_differs_and_nothing_else() -> None:
    before, after = flows(egress="a"), flows(egress="ab")
    counted = {flow.cookie: Counted(flow.match, 1) for flow in before.flows}
    present = Present(counted, frozenset(group.number for group in before.groups))
    assert bundle(before, present) == ()
    changes = bundle(after, present)
    assert sum(line.startswith("flow add") for line in changes) == 4 and not any("delete" in line for line in changes)
    away = bundle(BridgeFlows(), present)
    assert {line.split()[0] for line in away} == {"flow", "group"} and all(" delete " in line for line in away)


def test_tables_that_others_begin_to_use_are_left_to_them() -> None:
    first = layout_for(ForeignFlows(), None)
    assert first is not None and first.tables.tap == 253 and first.register == 15
    assert layout_for(ForeignFlows(frozenset({0, 10})), first) is first
    moved = layout_for(ForeignFlows(frozenset({0, 250}), frozenset({15, 14})), first)
    assert moved is not None and 250 not in moved.tables and moved.register == 13
    assert layout_for(ForeignFlows(frozenset(range(250))), None) is None
    assert layout_for(ForeignFlows(registers=frozenset(range(16))), None) is None
