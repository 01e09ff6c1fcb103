"""A tap's spec compiled to flat matches: what the preprocessor decides is what the rules say."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_agent.plan import dataplane
from vtap_agent.plan.compile import compile_tap, referenced_peers
from vtap_agent.plan.dataplane import Action, Match, PortRange, Sampling, SamplingType
from vtap_agent.plan.selectors import matches
from vtap_api import MAX_MATCHES, LabelSelector, Peer, VirtualTap, VirtualTapSpec
from vtap_api.load import load_file
from vtap_api.virtualtap import PROTOCOLS

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def spec(**fields: Any) -> VirtualTapSpec:
    return VirtualTapSpec.model_validate({"podSelector": {}, **fields})


def filtered(*rules: dict[str, Any], default: str = "Exclude") -> VirtualTapSpec:
    return spec(filter={"defaultAction": default, "rules": list(rules)})


def no_peers(peer: Peer) -> int:
    raise AssertionError(f"{peer} needs no resolving")


def matches_of(*rules: dict[str, Any]) -> tuple[Match, ...]:
    return compile_tap(filtered(*rules), no_peers).matches


def test_a_short_tap_copies_everything_whole():
    program = compile_tap(spec(), no_peers)
    assert program.default_action is Action.INCLUDE
    assert program.matches == ()
    assert program.sampling == Sampling(SamplingType.ALL)
    assert (program.rate_bits_per_second, program.burst_bits, program.snap_length, program.headers_only) == (0, 0, 0, False)


def test_filter_without_rules_decides_by_its_default():
    assert compile_tap(spec(filter={"defaultAction": "Exclude"}), no_peers).default_action is Action.EXCLUDE
    assert compile_tap(spec(filter={}), no_peers).default_action is Action.INCLUDE


def test_rules_keep_their_order():
    first, second = matches_of({"action": "Exclude", "protocol": "UDP"}, {"action": "Include", "protocol": 6})
    assert first == Match(Action.EXCLUDE, protocol=17)
    assert second == Match(Action.INCLUDE, protocol=6)


@pytest.mark.parametrize(
    ("cidr", "version", "peer"),
    [
        ("10.96.0.10/32", 4, (bytes([10, 96, 0, 10]), 32)),
        ("0.0.0.0/0", 4, (bytes(4), 0)),
        ("fd00::/8", 6, (bytes([0xFD, *[0] * 15]), 8)),
        ("::/0", 6, (bytes(16), 0)),
    ],
)
def test_networks(cidr: str, version: int, peer: tuple[bytes, int]):
    (match,) = matches_of({"action": "Include", "peer": {"cidr": cidr}})
    assert (match.ip_version, match.peer, match.peer_set) == (version, peer, None)


def test_every_pair_of_a_pod_port_and_a_peer_port_is_one_match():
    rule = {
        "action": "Include",
        "protocol": "TCP",
        "podPorts": [{"port": 80}, {"port": 443}],
        "peerPorts": [{"port": 1, "endPort": 9}],
    }
    pairs = [(match.pod_ports, match.peer_ports) for match in matches_of(rule)]
    assert pairs == [(PortRange(80, 80), PortRange(1, 9)), (PortRange(443, 443), PortRange(1, 9))]


@pytest.mark.parametrize(
    ("flags", "value_and_mask"),
    [
        ({"set": ["SYN"]}, (0x02, 0x02)),
        ({"set": ["SYN"], "clear": ["ACK"]}, (0x02, 0x12)),
        ({"clear": ["FIN", "RST"]}, (0x00, 0x05)),
        ({"set": ["PSH", "URG", "ECE", "CWR"]}, (0xE8, 0xE8)),
    ],
)
def test_tcp_flags_are_bits_of_the_header(flags: dict[str, list[str]], value_and_mask: tuple[int, int]):
    (match,) = matches_of({"action": "Include", "protocol": "TCP", "tcpFlags": flags})
    assert match.tcp_flags == value_and_mask


def test_vlan_zero_means_untagged_and_none_means_any():
    assert [match.vlan for match in matches_of({"action": "Include", "vlan": 0}, {"action": "Include"})] == [0, None]


def test_peer_selectors_become_sets_and_are_named_once():
    database, everybody = {"podSelector": {"matchLabels": {"app": "db"}}}, {"namespaceSelector": {}}
    wanted = filtered(
        {"action": "Include", "peer": database, "protocol": "TCP", "peerPorts": [{"port": 1}, {"port": 2}]},
        {"action": "Include", "peer": everybody},
        {"action": "Exclude", "peer": database},
        {"action": "Exclude", "peer": {"cidr": "10.0.0.0/8"}},
    )
    peers = referenced_peers(wanted)
    assert peers == (Peer.model_validate(database), Peer.model_validate(everybody))
    program = compile_tap(wanted, lambda peer: 100 + peers.index(peer))
    assert [match.peer_set for match in program.matches] == [100, 100, 101, 100, None]


@pytest.mark.parametrize(
    ("sampling", "compiled"),
    [
        (
            {"type": "PerInterval", "perInterval": {"packets": 10, "interval": "1m30s"}},
            Sampling(SamplingType.PER_INTERVAL, packets=10, interval_ns=90 * 10**9),
        ),
        ({"type": "OneIn", "oneIn": 100}, Sampling(SamplingType.ONE_IN, one_in=100)),
        ({"type": "Flows", "flows": {"percent": 5}}, Sampling(SamplingType.FLOWS, flow_threshold=2**32 * 5 // 100)),
        ({"type": "Flows", "flows": {"percent": 100}}, Sampling(SamplingType.FLOWS, flow_threshold=2**32)),
    ],
)
def test_sampling(sampling: dict[str, Any], compiled: Sampling):
    assert compile_tap(spec(sampling=sampling), no_peers).sampling == compiled


@pytest.mark.parametrize(
    ("limit", "bits"),
    [
        ({"bitsPerSecond": "50M"}, (50_000_000, 5_000_000)),
        ({"bitsPerSecond": "1M"}, (1_000_000, 524_288)),
        ({"bitsPerSecond": 1000, "burst": "1Mi"}, (1000, 1 << 20)),
    ],
)
def test_rate_limit(limit: dict[str, Any], bits: tuple[int, int]):
    program = compile_tap(spec(rateLimit=limit), no_peers)
    assert (program.rate_bits_per_second, program.burst_bits) == bits


def test_packet_cut():
    assert compile_tap(spec(packet={"snapLength": 128}), no_peers).snap_length == 128
    assert compile_tap(spec(packet={"headersOnly": True}), no_peers).headers_only


def test_the_models_bound_what_the_data_plane_can_hold():
    assert MAX_MATCHES == dataplane.MAX_MATCHES
    ports = [{"port": number} for number in range(1, 9)]
    full = filtered({"action": "Include", "protocol": "TCP", "podPorts": ports, "peerPorts": [*ports, *ports]})
    assert len(compile_tap(full, no_peers).matches) == MAX_MATCHES
    with pytest.raises(ValueError, match="more than 128"):
        filtered(
            {"action": "Include", "protocol": "TCP", "podPorts": ports, "peerPorts": [*ports, *ports]}, {"action": "Exclude"}
        )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_compiles(path: Path):
    for located in load_file(path).documents:
        tap = located.document
        assert isinstance(tap, VirtualTap)
        program = compile_tap(tap.spec, lambda peer: 7)
        assert len(program.matches) == (tap.spec.filter.match_count if tap.spec.filter else 0)


# What a user's rules say and what the flat matches say are decided independently, and have to agree.


@dataclass(frozen=True)
class Packet:
    peer: str
    protocol: int
    pod_port: int
    peer_port: int
    vlan: int
    flags: int


FLAG_BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ECE": 64, "CWR": 128}
SELECTED = frozenset({"10.0.0.1", "fd00::1"})
PORT_NUMBERS = st.sampled_from([1, 2, 3, 80, 65535])


def said_by_rules(wanted: list[dict[str, Any]], default: str, packet: Packet) -> str:
    """The documented meaning, straight from the YAML's own words."""
    return next((rule["action"] for rule in wanted if rule_holds(rule, packet)), default)


def rule_holds(rule: dict[str, Any], packet: Packet) -> bool:
    number = PROTOCOLS.get(rule.get("protocol"), rule.get("protocol"))  # type: ignore[arg-type]
    return (
        (number is None or number == packet.protocol)
        and rule.get("vlan", packet.vlan) == packet.vlan
        and peer_holds(rule.get("peer"), packet.peer)
        and ports_hold(rule.get("podPorts"), packet.pod_port)
        and ports_hold(rule.get("peerPorts"), packet.peer_port)
        and flags_hold(rule.get("tcpFlags", {}), packet.flags)
    )


def peer_holds(peer: dict[str, Any] | None, address: str) -> bool:
    if peer is None:
        return True
    if "cidr" in peer:
        return ipaddress.ip_address(address) in ipaddress.ip_network(peer["cidr"])
    return address in SELECTED


def ports_hold(ports: list[dict[str, int]] | None, port: int) -> bool:
    return ports is None or any(entry["port"] <= port <= entry.get("endPort", entry["port"]) for entry in ports)


def flags_hold(flags: Mapping[str, list[str]], have: int) -> bool:
    return all(have & FLAG_BITS[name] for name in flags.get("set", [])) and not any(
        have & FLAG_BITS[name] for name in flags.get("clear", [])
    )


def said_by_matches(found: tuple[Match, ...], default: Action, packet: Packet) -> Action:
    return next((match.action for match in found if match_holds(match, packet)), default)


def match_holds(match: Match, packet: Packet) -> bool:
    address = ipaddress.ip_address(packet.peer)
    return (
        match.ip_version in (None, address.version)
        and (match.peer is None or same_prefix(address.packed, *match.peer))
        and (match.peer_set is None or packet.peer in SELECTED)
        and match.protocol in (None, packet.protocol)
        and (match.pod_ports is None or match.pod_ports.first <= packet.pod_port <= match.pod_ports.last)
        and (match.peer_ports is None or match.peer_ports.first <= packet.peer_port <= match.peer_ports.last)
        and match.vlan in (None, packet.vlan)
        and (match.tcp_flags is None or packet.flags & match.tcp_flags[1] == match.tcp_flags[0])
    )


def same_prefix(address: bytes, network: bytes, length: int) -> bool:
    shift = 8 * len(network) - length
    same_family = len(address) == len(network)
    return same_family and int.from_bytes(address, "big") >> shift == int.from_bytes(network, "big") >> shift


@st.composite
def ports(draw: st.DrawFn) -> list[dict[str, int]]:
    entries: list[dict[str, int]] = []
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted([draw(PORT_NUMBERS), draw(PORT_NUMBERS)])
        entries.append({"port": first, "endPort": last} if draw(st.booleans()) else {"port": first})
    return entries


@st.composite
def filter_rules(draw: st.DrawFn) -> dict[str, Any]:
    rule: dict[str, Any] = {"action": draw(st.sampled_from(["Include", "Exclude"]))}
    protocol = draw(st.sampled_from([None, "TCP", 6, "UDP", 47]))
    if protocol is not None:
        rule["protocol"] = protocol
    if draw(st.booleans()):
        rule["peer"] = draw(
            st.sampled_from([{"cidr": "10.0.0.0/31"}, {"cidr": "10.0.0.1/32"}, {"cidr": "fd00::/64"}, {"podSelector": {}}])
        )
    if protocol in ("TCP", 6, "UDP"):
        rule |= {name: draw(ports()) for name in ("podPorts", "peerPorts") if draw(st.booleans())}
    if protocol in ("TCP", 6) and draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(list(FLAG_BITS)), min_size=1, max_size=4, unique=True))
        cut = draw(st.integers(0, len(chosen)))
        rule["tcpFlags"] = {"set": chosen[:cut], "clear": chosen[cut:]}
    if draw(st.booleans()):
        rule["vlan"] = draw(st.sampled_from([0, 5]))
    return rule


PACKETS = st.builds(
    Packet,
    st.sampled_from(["10.0.0.0", "10.0.0.1", "10.0.0.2", "fd00::1", "fe80::1"]),
    st.sampled_from([6, 17, 47]),
    PORT_NUMBERS,
    PORT_NUMBERS,
    st.sampled_from([0, 5, 6]),
    st.integers(0, 255),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(filter_rules(), max_size=4), st.sampled_from(["Include", "Exclude"]), st.lists(PACKETS, min_size=1, max_size=8))
def test_flat_matches_decide_as_the_rules_say(wanted: list[dict[str, Any]], default: str, packets: list[Packet]):
    program = compile_tap(filtered(*wanted, default=default), lambda peer: 1)
    for packet in packets:
        said = said_by_matches(program.matches, program.default_action, packet)
        assert said.name == said_by_rules(wanted, default, packet).upper()


@pytest.mark.parametrize(
    ("selector", "labels", "selected"),
    [
        ({}, {}, True),
        ({}, {"app": "web"}, True),
        ({"matchLabels": {"app": "web"}}, {"app": "web", "x": "y"}, True),
        ({"matchLabels": {"app": "web"}}, {"app": "db"}, False),
        ({"matchLabels": {"app": "web"}}, {}, False),
        ({"matchLabels": {"app": ""}}, {}, False),
        ({"matchLabels": {"app": "web", "tier": "a"}}, {"app": "web"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}, {"app": "db"}, True),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, {"app": "web"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, {}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"app": ""}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {"app": "x"}, False),
        (
            {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "canary", "operator": "DoesNotExist"}]},
            {"app": "web", "canary": "1"},
            False,
        ),
    ],
)
def test_label_selectors(selector: dict[str, Any], labels: dict[str, str], selected: bool):
    assert matches(LabelSelector.model_validate(selector), labels) is selected
