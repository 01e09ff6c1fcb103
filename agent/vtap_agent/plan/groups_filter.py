"""A tap's filter as OpenFlow matches, so that a switch copies only what some tap may want. Pure.

The switch never excludes what `pick` would include: `pick` stays the judge, and sees all that is copied. Where a match can't be
said exactly, packets that it may mean are copied, whatever its action, and `Unsaid` tells in words what is left to `pick`.

Fragments as `pick` has them: a match with ports or TCP flags means no packet without a transport header. A bridge in its ordinary
fragment mode shows first fragments without ports too (ovs-ofctl(8), set-frags), and later fragments of IPv6 without the protocol
of what they carry; these are copied where a match would ask for it.

Where a header doesn't fit its frame a bridge shows zeros, and `pick` what is there: such packets are copied.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from vtap_agent.plan.dataplane import Action, Direction, Match, PortRange, TapProgram

MAX_PEERS = 64
"""Addresses of a peer selector that become flows of their own."""
MAX_FLOWS_A_MATCH = 512
MAX_FLOWS_A_FILTER = 2048
TCP, UDP, SCTP = 6, 17, 132
_WITH_PORTS = (TCP, UDP, SCTP)
_NAMES = {(TCP, 4): "tcp", (TCP, 6): "tcp6", (UDP, 4): "udp", (UDP, 6): "udp6", (SCTP, 4): "sctp", (SCTP, 6): "sctp6"}
_SECOND_TAGS = ("dl_type=0x8100", "dl_type=0x88a8")
"""What a bridge sees of a frame with more tags than it looks into (`other_config:vlan-limit`); `pick` looks into two."""
_UNREAD_IP = ("ip,nw_proto=0,nw_src=0.0.0.0,nw_dst=0.0.0.0", "ipv6,nw_proto=0")
"""What it sees of a packet whose lengths don't fit (miniflow_extract in Open vSwitch's lib/flow.c); `pick` asks less.

Where it is an IPv6 extension header that doesn't fit, the addresses are seen."""
_UNREAD_TRANSPORT = tuple(f"{name},nw_frag=no,tp_src=0,tp_dst=0" for name in _NAMES.values())
"""Likewise of a transport header that is cut, or behind a payload length of zero, as that of jumbograms is."""
UNSEEN = (*_SECOND_TAGS, *_UNREAD_IP, *_UNREAD_TRANSPORT)
"""Copied whatever is asked for, as soon as a filter looks into packets."""
_FULL = 0xFFFF


class Tags(StrEnum):
    """How the VLAN that a pod sees relates to the one that its frames have inside the bridge."""

    HIDDEN = "Hidden"
    """An access port's pod sees none."""
    SHOWN = "Shown"
    """A trunk port's pod sees the same."""
    UNSURE = "Unsure"
    """A native VLAN may be tagged or not."""


@dataclass(frozen=True, slots=True, order=True)
class FlowMatch:
    """A match in ovs-fields(7)'s words; `vlan` is that inside the bridge, None for any. `wanted`: whether to copy."""

    fields: str
    vlan: int | None
    wanted: bool

    @property
    def means_all(self) -> bool:
        """Whether every packet matches."""
        return not self.fields and self.vlan is None


@dataclass(frozen=True, slots=True)
class SwitchFilter:
    """A filter as the switch can hold it: the first match decides, else `default`. `unsaid` is what it leaves to `pick`."""

    matches: tuple[FlowMatch, ...]
    default: bool
    unsaid: tuple[str, ...] = ()

    @property
    def wants_all(self) -> bool:
        """Whether it excludes nothing."""
        return self.default and all(match.wanted for match in self.matches)

    @property
    def wants_nothing(self) -> bool:
        """Whether it includes nothing."""
        return not self.default and not any(match.wanted for match in self.matches)


ALL = SwitchFilter((), True)
"""Copies everything."""


def compile_filter(
    program: TapProgram, peer_sets: Mapping[int, frozenset[str]], direction: Direction, tags: Tags
) -> SwitchFilter:
    """The filter of `program` for packets of one direction, of pods on ports that treat tags alike."""
    found: list[FlowMatch] = []
    unsaid: list[str] = []
    default = program.default_action is Action.INCLUDE
    for number, match in enumerate(program.matches, 1):
        flows, left = _flows(match, peer_sets, direction, tags)
        if left:
            unsaid.append(f"rule match {number} ({left})")
        if len(found) + len(flows) > MAX_FLOWS_A_FILTER:
            unsaid.append(f"everything from rule match {number} on (more than {MAX_FLOWS_A_FILTER} flows)")
            default = True
            break
        found.extend(flows)
        if flows and flows[-1].means_all:
            default = flows[-1].wanted  # What comes after it never decides.
            break
    while found and found[-1].wanted is default:
        found.pop()
    found[:0] = [FlowMatch(fields, None, True) for fields in _unseen(program, found, tags)]
    return SwitchFilter(tuple(found), default, tuple(unsaid))


def _unseen(program: TapProgram, found: Iterable[FlowMatch], tags: Tags) -> tuple[str, ...]:
    """What is copied first, since `pick` may see there what a match asks for: a tag behind an access port's own, for one."""
    if any(match.fields for match in found):
        return UNSEEN
    return _SECOND_TAGS if tags is Tags.HIDDEN and any(match.vlan is not None for match in program.matches) else ()


def port_masks(ports: PortRange) -> tuple[tuple[int, int], ...]:
    """(value, mask) pairs that together mean just these ports: at most 30 of 16 bits."""
    masks: list[tuple[int, int]] = []
    first = ports.first
    while first <= ports.last:
        size = first & -first or _FULL + 1
        while first + size - 1 > ports.last:
            size >>= 1
        masks.append((first, _FULL & ~(size - 1)))
        first += size
    return tuple(masks)


def _flows(
    match: Match, peer_sets: Mapping[int, frozenset[str]], direction: Direction, tags: Tags
) -> tuple[list[FlowMatch], str]:
    """(flows in order, what of the match they leave to `pick`)."""
    vlan, left = match.vlan, ""
    if vlan is not None and tags is Tags.HIDDEN:
        if vlan:
            return [], ""
        vlan = None
    elif vlan is not None and tags is Tags.UNSURE:
        vlan, left = None, "its VLAN"
    protocols = _protocols(match)
    if not protocols:
        return [], ""
    peers, peers_left = _peers(match, peer_sets)
    if not peers:
        return [], ""
    ports = _ports(match, direction)
    ports_left = ""
    if len(ports) * len(peers) * len(protocols) > MAX_FLOWS_A_MATCH and len(peers) > len(peers_of_any(match)):
        peers, peers_left = peers_of_any(match), f"its {len(peers)} peer addresses"
    if len(ports) * len(peers) * len(protocols) > MAX_FLOWS_A_MATCH:
        ports, ports_left = [""], f"its ports, which take {len(ports)} masks"
    if match.protocol == 0:
        protocols, left = (None,), ", ".join(filter(None, (left, "its protocol")))
    left = ", ".join(filter(None, (left, peers_left, ports_left)))
    wanted = bool(left) or match.action is Action.INCLUDE
    return list(_product(match, protocols, peers, ports, direction, vlan, wanted=wanted)), left


def _protocols(match: Match) -> tuple[int | None, ...]:
    """Those that it may mean: ports and flags are had by some only."""
    able: tuple[int | None, ...] = (match.protocol,) if match.protocol is not None else (None,)
    if match.tcp_flags is not None:
        able = (TCP,) if match.protocol in (None, TCP) else ()
    elif match.pod_ports is not None or match.peer_ports is not None:
        able = _WITH_PORTS if match.protocol is None else able if match.protocol in _WITH_PORTS else ()
    return able


Peer = tuple[int | None, str]
"""(IP version, network), None and empty for any."""


def peers_of_any(match: Match) -> list[Peer]:
    """Peers of a match whose set of addresses isn't looked at."""
    if match.ip_version is not None:
        return [(match.ip_version, "")]
    return [(4, ""), (6, "")] if _needs_ip(match) or match.peer_set is not None else [(None, "")]


def _needs_ip(match: Match) -> bool:
    parts = (match.protocol, match.pod_ports, match.peer_ports, match.tcp_flags)
    return any(part is not None for part in parts)


def _peers(match: Match, peer_sets: Mapping[int, frozenset[str]]) -> tuple[list[Peer], str]:
    if match.peer is not None:
        packed, length = match.peer
        network = ipaddress.ip_network((packed, length), strict=False)
        return [(network.version, str(network) if length else "")], ""
    if match.peer_set is None:
        return peers_of_any(match), ""
    addresses = sorted(map(ipaddress.ip_address, peer_sets.get(match.peer_set, ())), key=lambda item: (item.version, item))
    named: list[Peer] = [(item.version, str(item)) for item in addresses if match.ip_version in (None, item.version)]
    if len(named) > MAX_PEERS:
        return peers_of_any(match), f"its {len(named)} peer addresses"
    return named, ""


def _ports(match: Match, direction: Direction) -> list[str]:
    sides = (match.pod_ports, match.peer_ports) if direction is Direction.EGRESS else (match.peer_ports, match.pod_ports)
    return [",".join(filter(None, pair)) for pair in product(*(_side(*side) for side in zip(("src", "dst"), sides, strict=True)))]


def _side(name: str, ports: PortRange | None) -> list[str]:
    if ports is None:
        return [""]
    return [f"tp_{name}={value}" if mask == _FULL else f"tp_{name}={value:#x}/{mask:#x}" for value, mask in port_masks(ports)]


def _product(
    match: Match,
    protocols: Iterable[int | None],
    peers: Iterable[Peer],
    ports: Iterable[str],
    direction: Direction,
    vlan: int | None,
    *,
    wanted: bool,
) -> Iterator[FlowMatch]:
    needs_transport = match.pod_ports is not None or match.peer_ports is not None or match.tcp_flags is not None
    flags = "" if match.tcp_flags is None else f"tcp_flags={match.tcp_flags[0]:#x}/{match.tcp_flags[1]:#x}"
    ports = list(ports)
    for protocol, (version, network) in product(protocols, peers):
        peer = _address(network, version, direction)
        fields = _joined(_prerequisite(version, protocol), peer)
        if needs_transport:
            yield FlowMatch(_joined(fields, "nw_frag=first"), vlan, True)
            for pair in ports:
                yield FlowMatch(_joined(fields, "nw_frag=no", pair, flags), vlan, wanted)
            continue
        if version == 6 and protocol is not None:
            yield FlowMatch(_joined("ipv6", peer, "nw_frag=later"), vlan, True)
        yield FlowMatch(fields, vlan, wanted)


def _address(network: str, version: int | None, direction: Direction) -> str:
    side = "dst" if direction is Direction.EGRESS else "src"
    return f"{'nw' if version == 4 else 'ipv6'}_{side}={network}" if network else ""


def _prerequisite(version: int | None, protocol: int | None) -> str:
    if version is None:
        return ""
    name = "ip" if version == 4 else "ipv6"
    if protocol is None:
        return name
    return _NAMES.get((protocol, version)) or f"{name},nw_proto={protocol}"


def _joined(*parts: str) -> str:
    return ",".join(filter(None, parts))
