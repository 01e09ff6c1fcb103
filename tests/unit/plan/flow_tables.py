"""An OpenFlow pipeline as far as our flows use it: a packet goes in at table 0, and leaves from ports, as ovs-actions(7) says.

What NORMAL does is the test's to say: a function from (packet, in_port) to ports.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from vtap_agent.plan.groups_flows import BridgeFlows, Flow, OpenFlowGroup

MAX_DEPTH = 64
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclass(frozen=True)
class Packet:
    """`vlan` None means untagged; `fragment` is no, first or later. Addresses as text, empty for what is not IP."""

    source: str = "02:00:00:00:00:01"
    destination: str = "02:00:00:00:00:02"
    vlan: int | None = None
    ethertype: int = 0x88B5
    ip_source: str = ""
    ip_destination: str = ""
    protocol: int = 0
    ports: tuple[int, int] = (0, 0)
    tcp_flags: int = 0
    fragment: str = "no"

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.ip_source).version if self.ip_source else 0

    @property
    def tci(self) -> int:
        return 0 if self.vlan is None else 0x1000 | self.vlan


@dataclass
class Pipeline:
    """A bridge with these flows and groups."""

    ours: BridgeFlows
    normal: Callable[[Packet, int], Iterable[int]] = lambda _packet, _port: ()
    others: tuple[Flow, ...] = ()
    out: list[tuple[int, Packet]] = field(default_factory=list)

    def send(self, packet: Packet, port: int) -> list[tuple[int, Packet]]:
        """(port, packet) of what leaves."""
        self.out = []
        _Run(self, port).table(0, packet, {}, 0)
        return sorted(self.out, key=lambda item: item[0])


class _Run:
    def __init__(self, pipeline: Pipeline, port: int) -> None:
        self.pipeline = pipeline
        self.port = port
        flows = (*pipeline.ours.flows, *pipeline.others)
        self.flows = sorted(flows, key=lambda flow: -flow.priority)
        self.groups: dict[int, OpenFlowGroup] = {group.number: group for group in pipeline.ours.groups}

    def table(self, number: int, packet: Packet, registers: dict[int, int], depth: int) -> None:
        assert depth < MAX_DEPTH, "resubmits too deep"
        for flow in self.flows:
            if flow.table == number and matches(flow.match, packet, registers, self.port):
                self.actions(flow.actions, number, packet, registers, depth)
                return

    def actions(self, text: str, table: int, packet: Packet, registers: dict[int, int], depth: int) -> None:
        for action in re.split(r",(?![^(]*\))", text):
            if found := re.fullmatch(r"resubmit\(,(\d+)\)", action):
                self.table(int(found[1]), packet, registers, depth + int(int(found[1]) <= table))
            elif found := re.fullmatch(r"group:(\d+)", action):
                for bucket in self.groups[int(found[1])].buckets:
                    self.actions(bucket, table, packet, dict(registers), depth + 1)
            elif found := re.fullmatch(r"output:(\d+)", action):
                self.pipeline.out.append((int(found[1]), packet))
            elif action == "NORMAL":
                self.pipeline.out.extend((port, packet) for port in self.pipeline.normal(packet, self.port))
            elif action != "drop":
                packet = _changed(action, packet, registers)


def _changed(action: str, packet: Packet, registers: dict[int, int]) -> Packet:
    """By an action that sets a field."""
    if found := re.fullmatch(r"load:(\w+)->NXM_NX_REG(\d+)\[(?:(\d+)(?:\.\.(\d+))?)?\]", action):
        low, high = int(found[3] or 0), int(found[4] or found[3] or 31)
        _set_bits(registers, int(found[2]), low, high, int(found[1], 0))
        return packet
    if found := re.fullmatch(r"move:NXM_OF_VLAN_TCI\[0\.\.11\]->NXM_NX_REG(\d+)\[0\.\.11\]", action):
        _set_bits(registers, int(found[1]), 0, 11, packet.tci & 0xFFF)
        return packet
    if found := re.fullmatch(r"move:NXM_NX_REG(\d+)\[0\.\.11\]->NXM_OF_VLAN_TCI\[0\.\.11\]", action):
        return replace(packet, vlan=registers.get(int(found[1]), 0) & 0xFFF)
    assert action == "push_vlan:0x8100", action
    return replace(packet, vlan=0)


def _set_bits(registers: dict[int, int], number: int, low: int, high: int, value: int) -> None:
    mask = ((1 << (high - low + 1)) - 1) << low
    registers[number] = registers.get(number, 0) & ~mask | (value << low & mask)


def matches(text: str, packet: Packet, registers: dict[int, int], port: int) -> bool:
    """Whether a packet is what ovs-fields(7) means by a match."""
    return all(_matches_one(field, packet, registers, port) for field in text.split(",") if field)


def _matches_one(text: str, packet: Packet, registers: dict[int, int], port: int) -> bool:
    name, _, value = text.partition("=")
    if not value:
        return _is_of_kind(name, packet)
    if name.startswith("reg"):
        return _masked(value, registers.get(int(name[3:]), 0))
    if name in ("dl_src", "dl_dst"):
        address, _, mask = value.partition("/")
        wanted, care = _number(address), _number(mask or "ff:ff:ff:ff:ff:ff")
        return (_number(packet.source if name == "dl_src" else packet.destination) & care) == wanted
    if name in ("nw_src", "nw_dst", "ipv6_src", "ipv6_dst"):
        own = packet.ip_source if name.endswith("src") else packet.ip_destination
        return ipaddress.ip_address(own) in ipaddress.ip_network(value)
    # As a bridge in its ordinary fragment mode: no fragment shows ports (ofproto-dpif.c, rule_dpif_lookup_from_table).
    ports = packet.ports if packet.fragment == "no" else (0, 0)
    plain = {
        "in_port": port,
        "vlan_tci": packet.tci,
        "dl_type": packet.ethertype,
        "nw_proto": _shown_protocol(packet),
        "tp_src": ports[0],
        "tp_dst": ports[1],
        "tcp_flags": packet.tcp_flags,
    }
    return packet.fragment == value if name == "nw_frag" else _masked(value, plain[name])


def _is_of_kind(name: str, packet: Packet) -> bool:
    kind, version = (name[:-1], 6) if name in ("tcp6", "udp6", "sctp6") else (name, 4)
    if kind in PROTOCOLS:
        return packet.version == version and _shown_protocol(packet) == PROTOCOLS[kind]
    return packet.version == {"ip": 4, "ipv6": 6}[name]


def _shown_protocol(packet: Packet) -> int:
    """Later fragments of IPv6 are of protocol Fragment (flow.c, parse_ipv6_ext_hdrs)."""
    return 44 if packet.version == 6 and packet.fragment == "later" else packet.protocol


def _masked(value: str, own: int) -> bool:
    wanted, _, mask = value.partition("/")
    return own & int(mask or "0xffffffff", 0) == int(wanted, 0)


def _number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)
