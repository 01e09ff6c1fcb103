"""What a switch copies of a filter's packets: never less than `pick` would include, and no more where it can say it exactly."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.plan.flow_tables import Packet, matches
from vtap_agent.plan.dataplane import Action, Direction, Match, PortRange, TapProgram
from vtap_agent.plan.groups_filter import MAX_FLOWS_A_FILTER, MAX_PEERS, UNSEEN, SwitchFilter, Tags, compile_filter, port_masks

INCLUDE, EXCLUDE = Action.INCLUDE, Action.EXCLUDE
EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
SETS = {1: frozenset({"10.0.0.1", "10.0.0.9", "fd00::1"}), 2: frozenset()}


def copied(switch: SwitchFilter, packet: Packet, vlan: int = 0) -> bool:
    for match in switch.matches:
        if match.vlan in (None, vlan) and matches(match.fields, packet, {}, 1):
            return match.wanted
    return switch.default


def picked(program: TapProgram, packet: Packet, direction: Direction, vlan: int = 0) -> bool:
    """As bpf/filter.h decides."""
    ends = (packet.ip_source, packet.ip_destination)
    pod_side = 0 if direction is EGRESS else 1
    for match in program.matches:
        if _means(match, packet, ends[1 - pod_side], packet.ports[pod_side], packet.ports[1 - pod_side], vlan):
            return match.action is INCLUDE
    return program.default_action is INCLUDE


def _means(match: Match, packet: Packet, peer: str, pod_port: int, peer_port: int, vlan: int) -> bool:
    has_transport = packet.version != 0 and packet.fragment != "later"
    has_ports = has_transport and packet.protocol in (6, 17, 132)
    asks_ports = match.pod_ports is not None or match.peer_ports is not None
    return all(
        (
            match.ip_version is None or packet.version == match.ip_version,
            match.protocol is None or (packet.version != 0 and packet.protocol == match.protocol),
            match.vlan is None or match.vlan == vlan,
            not asks_ports or has_ports,
            match.pod_ports is None or match.pod_ports.first <= pod_port <= match.pod_ports.last,
            match.peer_ports is None or match.peer_ports.first <= peer_port <= match.peer_ports.last,
            match.tcp_flags is None
            or (has_transport and packet.protocol == 6 and packet.tcp_flags & match.tcp_flags[1] == match.tcp_flags[0]),
            match.peer is None or (bool(peer) and _within(peer, *match.peer)),
            match.peer_set is None or peer in SETS[match.peer_set],
        )
    )


def _within(address: str, network: bytes, length: int) -> bool:
    whole = ipaddress.ip_network((network, length), strict=False)
    own = ipaddress.ip_address(address)
    return own.version == whole.version and own in whole


ranges = st.tuples(st.integers(1, 65535), st.integers(0, 300)).map(lambda pair: PortRange(pair[0], min(65535, sum(pair))))
prefixes = st.sampled_from([("10.0.0.0", 8), ("10.0.0.1", 32), ("0.0.0.0", 0), ("fd00::", 64), ("::", 0)])
flags = st.tuples(st.integers(0, 63), st.integers(0, 63)).map(lambda pair: (pair[0], pair[0] | pair[1]))


@st.composite
def rules(draw: st.DrawFn) -> Match:
    prefix = draw(st.none() | prefixes)
    version, peer, peer_set = None, None, None
    if prefix is not None:
        network = ipaddress.ip_address(prefix[0])
        version, peer = network.version, (network.packed, prefix[1])
    else:
        peer_set = draw(st.none() | st.sampled_from(sorted(SETS)))
    return Match(
        action=draw(st.sampled_from([INCLUDE, EXCLUDE])),
        ip_version=version,
        peer=peer,
        peer_set=peer_set,
        protocol=draw(st.sampled_from([None, 0, 1, 6, 17, 58, 132])),
        pod_ports=draw(st.none() | ranges),
        peer_ports=draw(st.none() | ranges),
        vlan=draw(st.sampled_from([None, None, 0, 7])),
        tcp_flags=draw(st.none() | st.none() | flags),
    )


@st.composite
def packets(draw: st.DrawFn, program: TapProgram) -> Packet:
    """Often at the very edge of what some rule says."""
    edges = [
        number
        for match in program.matches
        for ports in (match.pod_ports, match.peer_ports)
        if ports is not None
        for number in (ports.first - 1, ports.first, ports.last, min(65535, ports.last + 1))
    ] or [80]
    version = draw(st.sampled_from([0, 4, 4, 6]))
    if not version:
        return Packet()
    addresses = st.sampled_from(["10.0.0.1", "10.0.0.9", "11.0.0.1"] if version == 4 else ["fd00::1", "fd01::1"])
    return Packet(
        ethertype=0x800 if version == 4 else 0x86DD,
        ip_source=draw(addresses),
        ip_destination=draw(addresses),
        protocol=draw(st.sampled_from([1, 6, 6, 17, 17, 58, 132])),
        ports=(draw(st.sampled_from(edges)), draw(st.sampled_from(edges))),
        tcp_flags=draw(st.integers(0, 63)),
        fragment=draw(st.sampled_from(["no", "no", "no", "first", "later"])),
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_switch_copies_all_that_pick_includes_and_only_that_where_it_says_all(data: st.DataObject) -> None:
    program = TapProgram(data.draw(st.sampled_from([INCLUDE, EXCLUDE])), tuple(data.draw(st.lists(rules(), max_size=4))))
    direction, tags = data.draw(st.sampled_from([EGRESS, INGRESS])), data.draw(st.sampled_from(list(Tags)))
    switch = compile_filter(program, SETS, direction, tags)
    for _ in range(5):
        packet = data.draw(packets(program))
        vlan = data.draw(st.sampled_from([0, 7])) if tags is not Tags.HIDDEN else 0
        included = picked(program, packet, direction, vlan)
        assert copied(switch, packet, vlan) or not included, (switch, packet)
        if packet.fragment == "no" and any(packet.ports) and not switch.unsaid:
            assert copied(switch, packet, vlan) == included, (switch, packet)


@settings(deadline=None)
@given(ranges)
def test_masks_of_a_range_mean_its_ports_and_no_others(ports: PortRange) -> None:
    masks = port_masks(ports)
    edges = {0, 65535, ports.first - 1, ports.first, ports.last, min(65535, ports.last + 1), (ports.first + ports.last) // 2}
    for number in edges:
        assert sum(number & mask == value for value, mask in masks) == (ports.first <= number <= ports.last)
    assert len(masks) <= 30


def test_every_port_takes_one_mask() -> None:
    assert port_masks(PortRange(0, 65535)) == ((0, 0),)
    assert port_masks(PortRange(1, 65535))[0] == (1, 65535) and len(port_masks(PortRange(1, 65534))) == 30


def test_a_first_fragment_is_left_to_pick_where_ports_are_asked_for() -> None:
    rule = Match(EXCLUDE, protocol=17, peer_ports=PortRange(53, 53))
    switch = compile_filter(TapProgram(INCLUDE, (rule,)), {}, EGRESS, Tags.HIDDEN)
    dns = Packet(ethertype=0x800, ip_source="10.0.0.1", ip_destination="10.0.0.2", protocol=17, ports=(999, 53))
    assert not copied(switch, dns)
    assert copied(switch, Packet(**{**vars(dns), "fragment": "first"}))


@pytest.mark.parametrize(("action", "default"), [(INCLUDE, EXCLUDE), (EXCLUDE, INCLUDE)])
def test_a_tag_behind_an_access_ports_own_is_left_to_pick(action: Action, default: Action) -> None:
    switch = compile_filter(TapProgram(default, (Match(action, vlan=30 if action is INCLUDE else 0),)), {}, EGRESS, Tags.HIDDEN)
    assert copied(switch, Packet(ethertype=0x8100)) and not copied(switch, Packet())


def test_more_peers_than_the_bound_are_left_to_pick_in_words() -> None:
    many = frozenset(f"10.1.{n >> 8}.{n & 255}" for n in range(MAX_PEERS + 1))
    program = TapProgram(EXCLUDE, (Match(INCLUDE, peer_set=5, protocol=6),))
    switch = compile_filter(program, {5: many}, EGRESS, Tags.HIDDEN)
    assert switch.unsaid == (f"rule match 1 (its {MAX_PEERS + 1} peer addresses)",)
    tcp = Packet(ethertype=0x800, ip_source="10.0.0.1", ip_destination="9.9.9.9", protocol=6, ports=(9, 9))
    assert copied(switch, tcp) and not copied(switch, Packet(**{**vars(tcp), "protocol": 17}))


def test_too_many_flows_leave_the_rest_to_pick() -> None:
    wide = tuple(Match(INCLUDE, protocol=6, peer_ports=PortRange(1, 65534), pod_ports=PortRange(1, 17 + n)) for n in range(60))
    switch = compile_filter(TapProgram(EXCLUDE, wide), {}, EGRESS, Tags.HIDDEN)
    assert len(switch.matches) <= MAX_FLOWS_A_FILTER + len(UNSEEN)
    assert switch.default and "from rule match" in switch.unsaid[-1]


@pytest.mark.parametrize(("default", "everything"), [(INCLUDE, True), (EXCLUDE, False)])
def test_a_tap_without_rules_takes_no_filter(default: Action, everything: bool) -> None:
    switch = compile_filter(TapProgram(default, ()), {}, EGRESS, Tags.HIDDEN)
    assert switch.wants_all is everything and switch.wants_nothing is not everything and switch.matches == ()


@pytest.mark.parametrize("default", [INCLUDE, EXCLUDE])
@pytest.mark.parametrize("action", [INCLUDE, EXCLUDE])
def test_what_comes_after_a_rule_that_means_everything_asks_for_nothing(action: Action, default: Action) -> None:
    switch = compile_filter(TapProgram(default, (Match(action), Match(EXCLUDE, protocol=17))), {}, EGRESS, Tags.HIDDEN)
    assert switch.wants_all is (action is INCLUDE) and switch.wants_nothing is (action is EXCLUDE)
    assert switch.matches == () and switch.unsaid == ()
    seldom = compile_filter(
        TapProgram(default, (Match(INCLUDE, protocol=6), Match(EXCLUDE), Match(INCLUDE, protocol=17))), {}, EGRESS, Tags.HIDDEN
    )
    assert not seldom.wants_all and not any("udp" in match.fields for match in seldom.matches if match.fields not in UNSEEN)
