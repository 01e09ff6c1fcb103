"""What real Open vSwitch copies of the packets that a filter is about, by ofproto/trace: never less than `pick` includes.

Its judge is the reference that the eBPF programs are tested against; the model of OpenFlow that unit tests use is judged too.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataplane.test_ovs_group import FEEDS, TAPS, GroupNetwork
from tests.dataplane.test_ovs_mirror import wait_for
from tests.unit.pipeline import frames as wire
from tests.unit.pipeline.test_filter import PEER_SETS, frames_of_any_kind, programs
from tests.unit.plan.flow_tables import Packet, matches
from vtap_agent.plan import reference
from vtap_agent.plan.dataplane import Action, DataPlane, Direction, Group, GroupMember, Match, PortRange, TapProgram
from vtap_agent.plan.groups_filter import Tags, compile_filter
from vtap_agent.plan.groups_flows import SwitchPort
from vtap_lab.lab import BRIDGE, Lab, LabOptions
from vtap_lab.preflight import why_no_lab

POD, PEER, ELSEWHERE = "10.0.0.2", "10.0.0.1", "192.168.7.9"
POD6, PEER6, ELSEWHERE6 = "fd00::2", "fd00::1", "2001:db8::9"
TCP, UDP, SCTP, ICMP, ICMPV6, GRE = 6, 17, 132, 1, 58, 47
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
PEER_MAC = bytes.fromhex("02cc00000001")
ACCESS_VLAN, NATIVE_VLAN = 7, 9
TAGS = (b"\x81\x00", b"\x88\xa8")
"""EtherTypes of VLAN tags (IEEE 802.1Q), of customers' and of services'."""


# --- packets ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A packet between the pod and a peer, whoever sends it. `fragment` is no, first or later."""

    peer: str = PEER
    protocol: int = TCP
    pod_port: int = 40000
    peer_port: int = 80
    flags: int = ACK
    fragment: str = "no"
    vlan: int | None = None

    def packet(self, direction: Direction) -> Packet:
        """As unit tests model it."""
        pod = POD6 if ":" in self.peer else POD
        ends, ports = (pod, self.peer), (self.pod_port, self.peer_port)
        if direction is Direction.INGRESS:
            ends, ports = ends[::-1], ports[::-1]
        return Packet(
            vlan=self.vlan,
            ethertype=wire.ethertype(pod),
            ip_source=ends[0],
            ip_destination=ends[1],
            protocol=self.protocol,
            ports=(ports[0], ports[1]) if self.protocol in (TCP, UDP, SCTP) else (0, 0),
            tcp_flags=self.flags if self.protocol == TCP else 0,
            fragment=self.fragment,
        )


PACKETS = (
    *(Said(flags=flags) for flags in (SYN, SYN | ACK, ACK, FIN | ACK, RST, PSH | ACK, 0, 63)),
    *(Said(peer_port=port, flags=SYN) for port in (1, 79, 443, 1023, 1024, 5432, 6439, 6440, 6441, 65535)),
    *(Said(pod_port=port) for port in (22, 53, 65535)),
    *(Said(peer, flags=SYN) for peer in ("10.0.0.127", "10.0.0.128", "10.0.1.1", "11.0.0.1", ELSEWHERE)),
    *(Said(peer, protocol, peer_port=53) for peer in (PEER, PEER6) for protocol in (UDP, SCTP, ICMP, ICMPV6, GRE)),
    *(Said(peer) for peer in (PEER6, "fd00::7fff", "fd00::8000", "fd00:0:0:1::1", "fe80::1", ELSEWHERE6)),
    *(Said(PEER6, flags=flags, peer_port=443) for flags in (SYN, SYN | ACK, RST)),
    *(
        Said(peer, protocol, peer_port=53, fragment=fragment)
        for peer in (PEER, PEER6, ELSEWHERE6)
        for protocol in (TCP, UDP)
        for fragment in ("first", "later")
    ),
    *(Said(peer, protocol, vlan=vlan) for peer in (PEER, PEER6) for protocol in (TCP, UDP) for vlan in (7, 8)),
    Said(protocol=UDP, fragment="later", vlan=7),
)


def to_wire(packet: Packet, source: bytes, destination: bytes) -> bytes:
    """The packet in a frame between two MAC addresses."""
    ends = packet.ip_source, packet.ip_destination
    ports = packet.ports
    if packet.protocol == TCP:
        transport = wire.tcp(*ends, *ports, b"", packet.tcp_flags)
    elif packet.protocol == UDP:
        transport = wire.udp(*ends, *ports, b"")
    elif packet.protocol == SCTP:
        transport = struct.pack(">HHII", *ports, 0, 0)
    else:
        transport = bytes((8, 0)) + bytes(10)
    more, offset = {"no": (0, 0), "first": (1, 0), "later": (1, 100)}[packet.fragment]
    if packet.version == 4:
        payload = wire.ipv4(*ends, packet.protocol, transport, fragment=more << 13 | offset)
    elif packet.fragment == "no":
        payload = wire.ipv6(*ends, packet.protocol, transport)
    else:
        payload = wire.ipv6(*ends, 44, struct.pack(">BxHI", packet.protocol, offset << 3 | more, 5) + transport)
    tags = () if packet.vlan is None else ((0x8100, packet.vlan),)
    return wire.ethernet(destination, source, packet.ethertype, payload, tags).ljust(64, b"\0")


# --- filters ---------------------------------------------------------------------------------------------------------------


def net(text: str) -> dict[str, object]:
    """Of a CIDR, as a rule's peer is compiled."""
    address, _, length = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return {"ip_version": 6 if ":" in address else 4, "peer": (socket.inet_pton(family, address), int(length))}


def ports(first: int, last: int = 0) -> PortRange:
    return PortRange(first, last or first)


RULES: Mapping[str, Mapping[str, object]] = {
    "tcp": {"protocol": TCP},
    "udp": {"protocol": UDP},
    "sctp": {"protocol": SCTP},
    "icmp": {"protocol": ICMP},
    "icmpv6": {"protocol": ICMPV6},
    "gre": {"protocol": GRE},
    "tcp-of-ipv6": {"protocol": TCP, "ip_version": 6},
    "ipv4": {"ip_version": 4},
    "ipv6": {"ip_version": 6},
    "syn": {"tcp_flags": (SYN, SYN)},
    "syn-without-ack": {"tcp_flags": (SYN, SYN | ACK), "protocol": TCP},
    "reset": {"tcp_flags": (RST, RST)},
    "no-flag-at-all": {"tcp_flags": (0, 63)},
    "without-syn": {"tcp_flags": (0, SYN)},
    "all-flags": {"tcp_flags": (63, 63)},
    "port-80": {"protocol": TCP, "peer_ports": ports(80)},
    "dns-of-any-protocol": {"peer_ports": ports(53)},
    "well-known-ports": {"peer_ports": ports(1, 1023)},
    "postgres-and-more": {"protocol": TCP, "peer_ports": ports(5432, 6440)},
    "every-port": {"peer_ports": ports(0, 65535)},
    "the-pods-ssh": {"protocol": TCP, "pod_ports": ports(22)},
    "ports-of-both": {"pod_ports": ports(32768, 65535), "peer_ports": ports(79, 443)},
    "host": net("10.0.0.1/32"),
    "half-a-subnet": net("10.0.0.0/25"),
    "ten": net("10.0.0.0/8"),
    "any-ipv4": net("0.0.0.0/0"),
    "host-of-ipv6": net("fd00::1/128"),
    "prefix-of-113": net("fd00::/113"),
    "prefix-of-64": net("fd00::/64"),
    "prefix-of-7": net("fc00::/7"),
    "any-ipv6": net("::/0"),
    "peers": {"peer_set": 1},
    "nobody": {"peer_set": 3},
    "vlan-7": {"vlan": 7},
    "untagged": {"vlan": 0},
    "tcp-in-vlan-7": {"vlan": 7, "protocol": TCP},
    "syn-to-a-prefix": {**net("fd00::/64"), "tcp_flags": (SYN, SYN), "peer_ports": ports(443)},
    "dns-of-peers-in-vlan-7": {"vlan": 7, "peer_set": 1, "peer_ports": ports(53, 80)},
}


def of(name: str, action: Action) -> TapProgram:
    """A filter of one rule that decides against its default, or of a few."""
    other = Action.INCLUDE if action is Action.EXCLUDE else Action.EXCLUDE
    return TapProgram(other, (Match(action, **RULES[name]),))  # type: ignore[arg-type]


FILTERS: Mapping[str, TapProgram] = {
    **{f"{action.name.lower()}-{name}": of(name, action) for name in RULES for action in Action},
    "all-but-dns-of-udp": TapProgram(
        Action.EXCLUDE, (Match(Action.EXCLUDE, protocol=UDP, peer_ports=ports(53)), Match(Action.INCLUDE, protocol=UDP))
    ),
    "handshakes-but-those-of-a-prefix": TapProgram(
        Action.EXCLUDE,
        (Match(Action.EXCLUDE, **net("10.0.0.0/25")), Match(Action.INCLUDE, tcp_flags=(SYN, SYN))),  # type: ignore[arg-type]
    ),
}


# --- the bridge ------------------------------------------------------------------------------------------------------------


PLACES = {"trunk": Tags.SHOWN, "access": Tags.HIDDEN, "native": Tags.UNSURE}
"""Ports of pods, and what these see of VLANs. What pods receive comes from one more trunk port."""


class Bridge:
    """Behind each port a pod for every filter: MAC addresses are cheap."""

    def __init__(self, network: GroupNetwork) -> None:
        self.network = network
        self.held: Mapping[str, TapProgram] = {}
        for name, vlan in (("trunk", 0), ("access", ACCESS_VLAN), ("native", 0), ("wire", 0)):
            network.add_pod(name, vlan=vlan)
        switch = network.lab.switch
        switch.vsctl("set", "Port", network.pods["native"].host_name, f"tag={NATIVE_VLAN}", "vlan_mode=native-untagged")
        for tap in TAPS.values():
            network.make_tap_device(tap)
        self._uuids = {name: network.port(name) for name in network.pods}
        wait_for(lambda: self._seen("native").mode == "native-untagged", "the ports are seen")
        self._ports = {name: self._seen(name).numbers[0] for name in network.pods}

    def _seen(self, place: str) -> SwitchPort:
        (bridge,) = self.network.groups.observe().values()
        return next(port for port in bridge.ports if port.uuid == self._uuids[place])

    def hold(self, held: Mapping[str, TapProgram], places: Collection[str] = ("trunk", "access")) -> None:
        """Tap pods with these filters at these ports, and no others."""
        self.held = held
        members = tuple(
            GroupMember(self._uuids[place], self.mac(place, name), ACCESS_VLAN * (place == "access"), (1,), (name,))
            for place in places
            for name in held
        )
        groups = {feed: Group(feed, members) for feed in FEEDS.values()}
        wanted = DataPlane(groups=groups, programs=held, peer_sets=PEER_SETS)
        self.network.groups.apply(self.network.groups.plan(wanted))
        assert self.network.groups.verify(wanted) == ()
        shown = self.network.lab.switch.appctl("dpctl/show")
        self._taps = {name: number for number, name in re.findall(r"port (\d+): (\S+)", shown)}

    def mac(self, place: str, name: str) -> bytes:
        """Of the pod at a port that the filter is for."""
        return bytes((2, 0xBB, list(PLACES).index(place), 0, *divmod(list(self.held).index(name), 256)))

    def seen(self, place: str, name: str, direction: Direction, behind: bytes) -> bytes:
        """A frame as the pod sends or receives it; `behind` is what follows its addresses."""
        pod = self.mac(place, name)
        return (PEER_MAC + pod if direction is Direction.EGRESS else pod + PEER_MAC) + behind

    def copies(self, place: str, direction: Direction, frame: bytes) -> bool:
        """Whether the bridge copies a frame that its pod sends or receives."""
        port = self._ports[place if direction is Direction.EGRESS else "wire"]
        if direction is Direction.INGRESS:
            frame = _on_the_wire(place, frame)
        traced = self.network.connection.vswitchd.call("ofproto/trace", BRIDGE, f"in_port={port}", frame.hex())
        (actions,) = re.findall(r"^Datapath actions: (.*)$", traced, re.MULTILINE)
        return self._taps[TAPS[direction]] in re.split(r",(?![^(]*\))", actions)


def _on_the_wire(place: str, frame: bytes) -> bytes:
    """With the tag that the port of the pod takes off."""
    tagged = frame[12:14] in TAGS
    if place == "trunk" or (place == "native" and tagged):
        return frame
    return frame[:12] + struct.pack(">HH", 0x8100, ACCESS_VLAN if place == "access" else NATIVE_VLAN) + frame[12:]


def _is_taken(place: str, direction: Direction, behind: bytes) -> bool:
    """An access port takes no tags but those of VLAN 0."""
    tagged = behind[:2] in TAGS and struct.unpack_from(">H", behind, 2)[0] & 0xFFF
    return place != "access" or direction is Direction.INGRESS or not tagged


@pytest.fixture(scope="module")
def empty() -> Iterator[Bridge]:
    if reason := why_no_lab():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with Lab(LabOptions()) as lab:
        network = GroupNetwork(lab)
        try:
            yield Bridge(network)
        finally:
            network.close()


@pytest.fixture
def bridge(empty: Bridge) -> Bridge:
    """With a pod for each of FILTERS."""
    if empty.held is not FILTERS:
        empty.hold(FILTERS)
    return empty


def included(program: TapProgram, direction: Direction, frame: bytes) -> bool:
    """By `pick`'s standard."""
    packet = reference.parse(frame, direction)
    assert packet is not None
    return reference.decide(program, packet, PEER_SETS) is Action.INCLUDE


# --- what is asked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
def test_filters_mean_on_open_vswitch_what_they_mean(bridge: Bridge, name: str) -> None:
    program = FILTERS[name]
    for direction in Direction:
        switch = compile_filter(program, PEER_SETS, direction, Tags.SHOWN)
        for said in PACKETS:
            packet = said.packet(direction)
            frame = bridge.seen("trunk", name, direction, to_wire(packet, b"", b""))
            copied, wanted = bridge.copies("trunk", direction, frame), included(program, direction, frame)
            assert copied or not wanted, (direction, said, "left out")
            assert copied == wanted or said.fragment != "no" or switch.unsaid, (direction, said, "copied for nothing")
            decided = (
                one.wanted
                for one in switch.matches
                if one.vlan in (None, packet.vlan or 0) and matches(one.fields, packet, {}, 1)
            )
            assert next(decided, switch.default) == copied, (direction, said, "the model errs")


ODD_TCP = wire.tcp(POD, PEER, 40000, 80, b"", SYN)
ODD_TCP6 = wire.tcp(POD6, PEER6, 40000, 80, b"", SYN)
ODD: Mapping[str, bytes] = {
    "arp": wire.ethernet(b"", b"", 0x0806, bytes(28)),
    "lldp": wire.ethernet(b"", b"", 0x88CC, bytes(46)),
    "experimental": wire.ethernet(b"", b"", 0x88B5, bytes(46)),
    "ip-cut": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP + bytes(100))[:60]),
    "ip-without-length": wire.ethernet(b"", b"", 0x0800, b"\x45\0\0\0" + wire.ipv4(POD, PEER, TCP, ODD_TCP)[4:]),
    "ip-with-options": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP, options=bytes([1]) * 40)),
    "ip-not-to-be-fragmented": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP, fragment=0x4000)),
    "tcp-cut": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP[:12])),
    "udp-cut": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, UDP, struct.pack(">HH", 40000, 53))),
    "sctp-cut": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, SCTP, struct.pack(">HHI", 40000, 80, 0))),
    "a-last-fragment": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, UDP, bytes(32), fragment=200)),
    "ipv6-cut": wire.ethernet(b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, TCP, ODD_TCP6)[:48]),
    "ipv6-without-length": wire.ethernet(b"", b"", 0x86DD, b"\x60\0\0\0\0\0" + wire.ipv6(POD6, PEER6, TCP, ODD_TCP6)[6:]),
    "hop-by-hop": wire.ethernet(b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, 0, bytes((TCP, 0)) + bytes(6) + ODD_TCP6)),
    "hop-by-hop-cut": wire.ethernet(b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, 0, bytes((TCP, 9)) + bytes(6) + ODD_TCP6)),
    "authenticated": wire.ethernet(b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, 51, bytes((TCP, 4)) + bytes(22) + ODD_TCP6)),
    "an-only-fragment": wire.ethernet(b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, 44, struct.pack(">BxHI", TCP, 0, 5) + ODD_TCP6)),
    "reserved-bits-of-a-fragment": wire.ethernet(
        b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, 44, struct.pack(">BxHI", TCP, 6, 5) + ODD_TCP6)
    ),
    "options-and-a-first-fragment": wire.ethernet(
        b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, 60, bytes((44, 0)) + bytes(6) + struct.pack(">BxHI", TCP, 1, 5) + ODD_TCP6)
    ),
    "two-tags": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP), ((0x8100, 7), (0x8100, 8))),
    "a-service-tag": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP), ((0x88A8, 7), (0x8100, 8))),
    "three-tags": wire.ethernet(b"", b"", 0x86DD, wire.ipv6(POD6, PEER6, TCP, ODD_TCP6), ((0x8100, 7),) * 3),
    "priority-tag": wire.ethernet(b"", b"", 0x0800, wire.ipv4(POD, PEER, TCP, ODD_TCP), ((0x8100, 0x6000),)),
}


def turned(behind: bytes, direction: Direction) -> bytes:
    """The same from the peer to the pod, where it is IP."""
    if direction is Direction.EGRESS:
        return behind
    for pod, peer, family in ((POD, PEER, socket.AF_INET), (POD6, PEER6, socket.AF_INET6)):
        there = socket.inet_pton(family, pod) + socket.inet_pton(family, peer)
        back = socket.inet_pton(family, peer) + socket.inet_pton(family, pod)
        behind = behind.replace(there, back)
    return behind.replace(struct.pack(">HH", 40000, 80), struct.pack(">HH", 80, 40000))


@pytest.mark.parametrize("kind", ODD)
def test_what_a_bridge_reads_otherwise_than_pick_is_copied(bridge: Bridge, kind: str) -> None:
    wanted: list[str] = []
    for name, place, direction in product(FILTERS, ("trunk", "access"), Direction):
        behind = turned(ODD[kind], direction).ljust(48, b"\0")
        frame = bridge.seen(place, name, direction, behind)
        if _is_taken(place, direction, behind) and included(FILTERS[name], direction, frame):
            wanted.append(name)
            assert bridge.copies(place, direction, frame), (name, place, direction, "left out")
    assert wanted


def _said_exactly(program: TapProgram) -> TapProgram:
    """As a tap can name it: no flags that no mask asks for, and a network of peers or a set, not both."""
    return replace(
        program,
        matches=tuple(
            replace(
                match,
                tcp_flags=match.tcp_flags and (match.tcp_flags[0] & match.tcp_flags[1], match.tcp_flags[1]),
                peer_set=None if match.peer else match.peer_set,
            )
            for match in program.matches
        ),
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(programs.map(_said_exactly), min_size=6, max_size=6), st.lists(frames_of_any_kind(), min_size=6, max_size=6))
def test_nothing_that_a_tap_includes_is_left_out(empty: Bridge, filters: list[TapProgram], frames: list[bytes]) -> None:
    """Random filters, random packets, every kind of port."""
    empty.hold({f"random-{number}": program for number, program in enumerate(filters)}, PLACES)
    behinds = [frame[12:] for frame in frames]
    for (name, program), behind, place, direction in product(empty.held.items(), behinds, PLACES, Direction):
        frame = empty.seen(place, name, direction, behind)
        if _is_taken(place, direction, behind) and included(program, direction, frame):
            assert empty.copies(place, direction, frame), (program, direction, place, frame.hex())
