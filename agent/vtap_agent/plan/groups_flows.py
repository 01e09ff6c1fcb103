"""The flows and groups of one bridge that copy what its taps want. Pure.

    table 0      packets from tapped pods, to tapped pods, and group-addressed ones ─► vlan; no others see our tables
    vlan         the VLAN inside the bridge, as NORMAL would find it ─► register
    egress       who sends? ─► filter ─► copy ─► group ┬─► ingress (the original)
                                 └─ unwanted ──────────┤   └─► tap ─► tap port of Egress
    ingress      to whom? ─► filter ─► copy ─► group ──┼─► table 0 (the original), marked as done
                                 └─ unwanted ──────────┘   └─► tap ─► tap port of Ingress

Each stage that copies is a group of type ALL with two buckets: the original, which goes on as if we weren't there, and the copy.
The original returns to table 0 with a mark in a register that no flow of others names, so that theirs decide its fate. One group
serves all pods and taps of a direction. A packet that no tap wants passes no group.

Register: bits 0-11 VLAN, 12 seen, 13 inside our tables, 14 wanted (or, at the tap port, its direction; 1: Ingress), 15-31 which
filters are yet to be asked.

Others may begin to use a table of ours before we have moved. So our flows there match only packets inside, and stand above the
priorities that others give: none of theirs meets a flow of ours, none of ours one of theirs.

Tables are in ascending order: Open vSwitch bounds the depth of resubmits that lead back (MAX_DEPTH in ofproto-dpif-xlate.c).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vtap_agent.plan.dataplane import Direction, Group, GroupMember, TapProgram
from vtap_agent.plan.groups_filter import ALL, MAX_FLOWS_A_FILTER, UNSEEN, SwitchFilter, Tags, compile_filter

TOP, BELOW_TOP = 0xFFFF, 0xFFFE
"""Priorities of ours in table 0."""
MAX_CHAIN = 8
"""Different filters that packets of one pod are held against, one resubmit each; beyond, all of its packets are copied."""
MAX_TRUNKS = 128
"""VLANs of one trunk port that are told apart."""
MULTICAST = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
RESERVED = "dl_dst=01:80:c2:00:00:00/ff:ff:ff:ff:ff:f0"
"""Which bridges do not forward (IEEE 802.1Q, 8.6.3)."""
COOKIE_MARK, COOKIE_MASK = 0x7654 << 48, 0xFFFFFFF000000000
"""A cookie of ours: the mark, 12 bits of the node's hash, 36 bits that stand for the flow's content."""
GROUP_MARK, GROUP_MASK = 0x76 << 24, 0xFFFFFFFE
"""A group's number: the mark, 23 bits of the node's hash, and its direction."""
_SEEN, _INSIDE, _CHAIN_BIT = 1 << 12, 1 << 13, 15
_OURS = _SEEN | _INSIDE
"""What packets bear in our tables; once back in table 0 they are seen, and no longer inside."""
_WANTED = _INGRESS = 1 << 14
_VLAN_BITS, _CHAIN_BITS = 0xFFF, 0xFFFF8000
_LIFT = 63000
"""The lowest priority in our tables."""
_FIRST_RULE = 2500
assert MAX_FLOWS_A_FILTER + len(UNSEEN) < _FIRST_RULE < TOP - _LIFT


class Tables(NamedTuple):
    """Numbers of our tables, ascending."""

    vlan: int
    egress: int
    egress_filter: int
    egress_copy: int
    ingress: int
    ingress_filter: int
    ingress_copy: int
    tap: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of a bridge's tables and registers are ours."""

    tables: Tables
    register: int


@dataclass(frozen=True, slots=True)
class SwitchPort:
    """A Port row: the OpenFlow numbers of its interfaces, and its VLANs as in ovs-vswitchd.conf.db(5)."""

    uuid: str
    numbers: tuple[int, ...]
    tag: int = 0
    vlan_mode: str = ""
    trunks: frozenset[int] = frozenset()

    @property
    def mode(self) -> str:
        """`vlan_mode`, or what its absence means."""
        return self.vlan_mode or ("access" if self.tag else "trunk")

    @property
    def tags(self) -> Tags:
        """What the far end sees of VLANs."""
        return {"access": Tags.HIDDEN, "trunk": Tags.SHOWN}.get(self.mode, Tags.UNSURE)

    @property
    def vlans(self) -> frozenset[int] | None:
        """Those that the port carries, None for all."""
        if self.mode in ("access", "dot1q-tunnel"):
            return frozenset({self.tag})
        if not self.trunks or len(self.trunks) > MAX_TRUNKS:
            return None
        return self.trunks if self.mode == "trunk" else self.trunks | {self.tag}


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow. `uncopied` are the slots whose unwanted packets it counts; `copies`: it leads to a group."""

    table: int
    priority: int
    match: str
    actions: str
    cookie: int
    uncopied: tuple[int, ...] = ()
    copies: bool = False

    def __str__(self) -> str:
        match = f",{self.match}" if self.match else ""
        return f"cookie={self.cookie:#x},table={self.table},priority={self.priority}{match},actions={self.actions}"


@dataclass(frozen=True, slots=True)
class OpenFlowGroup:
    """A group of type ALL; `buckets` are action sets."""

    number: int
    buckets: tuple[str, ...]

    def __str__(self) -> str:
        buckets = ",".join(f"bucket=actions={bucket}" for bucket in self.buckets)
        return f"group_id={self.number},type=all,{buckets}"


@dataclass(frozen=True, slots=True)
class BridgeFlows:
    """Everything of ours that a bridge should have."""

    flows: tuple[Flow, ...] = ()
    groups: tuple[OpenFlowGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one bridge is to copy. `taps` are the OpenFlow numbers of our tap ports; a direction without one copies nothing."""

    ports: tuple[SwitchPort, ...]
    groups: Mapping[Direction, Group]
    taps: Mapping[Direction, int]
    programs: Mapping[str, TapProgram]
    peer_sets: Mapping[int, frozenset[str]]
    hairpins: bool = False
    """Whether flows of others may send a packet back to the port that it came from."""


def our_cookies(node: str) -> tuple[int, int]:
    """(value, mask) of the cookies of this node's flows."""
    return COOKIE_MARK | _hash(node, 12) << 36, COOKIE_MASK


def our_group(node: str, direction: Direction) -> int:
    """The number of a direction's group."""
    return GROUP_MARK | _hash(node, 23) << 1 | int(direction is Direction.INGRESS)


def build(wanted: Wanted, layout: Layout, node: str) -> BridgeFlows:
    """The flows and groups. Members whose port has no OpenFlow number yet are left out."""
    return _Builder(wanted, layout, node).build()


def _hash(text: str, bits: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - bits)


class _Where(NamedTuple):
    """A match: the VLAN inside the bridge, None for any, and what else."""

    vlan: int | None
    fields: str


_Member = tuple[GroupMember, SwitchPort]
Chain = tuple[SwitchFilter, ...]
"""Filters to ask in turn; what one wants is copied."""
EVERYTHING: Chain = (ALL,)


@dataclass
class _Receivers:
    """Members that a group-addressed packet of one VLAN reaches."""

    members: list[_Member] = field(default_factory=list[tuple[GroupMember, SwitchPort]])

    def but(self, port: str) -> list[_Member]:
        return [(member, own) for member, own in self.members if own.uuid != port]


class _Builder:
    def __init__(self, wanted: Wanted, layout: Layout, node: str) -> None:
        self._wanted = wanted
        self._tables = layout.tables
        self._register = f"NXM_NX_REG{layout.register}"
        self._reg = f"reg{layout.register}"
        self._node = node
        self._flows: list[Flow] = []
        self._cookies: set[int] = set()
        self._ports = {port.uuid: port for port in wanted.ports if port.numbers}
        self._compiled: dict[tuple[str, Direction, Tags], SwitchFilter] = {}
        self._chains: dict[Direction, dict[Chain, int]] = {direction: {} for direction in Direction}
        self._digest = ""

    def build(self) -> BridgeFlows:
        members = {direction: self._members(direction) for direction in Direction}
        if not self._wanted.taps:
            return BridgeFlows()
        groups = tuple(self._group(direction, bool(members[Direction.INGRESS])) for direction in Direction if members[direction])
        self._digest = hashlib.sha256("\n".join(map(str, groups)).encode()).hexdigest()
        self._guard_taps()
        if groups:
            self._classify()
            self._send(members[Direction.EGRESS], onward=bool(members[Direction.INGRESS]))
            self._receive(members[Direction.INGRESS])
            self._tap(direction for direction in Direction if members[direction])
            for table in self._tables:
                self._inner(table, 0, self._ours(), self._finish())
        return BridgeFlows(tuple(self._flows), groups)

    def _members(self, direction: Direction) -> list[_Member]:
        group = self._wanted.groups.get(direction)
        if group is None or direction not in self._wanted.taps:
            return []
        return [(member, self._ports[member.port_uuid]) for member in group.members if member.port_uuid in self._ports]

    # --- words -----------------------------------------------------------------------------------------------------------

    def _flow(self, table: int, priority: int, match: str, actions: str, **told: object) -> None:
        content = f"{self._digest},{table},{priority},{match},{actions}"
        cookie = our_cookies(self._node)[0] | _hash(content, 36)
        while cookie in self._cookies:
            cookie = cookie & COOKIE_MASK | (cookie + 1) & ~COOKIE_MASK
        self._cookies.add(cookie)
        self._flows.append(Flow(table, priority, match, actions, cookie, **told))  # type: ignore[arg-type]

    def _inner(self, table: int, priority: int, match: str, actions: str, **told: object) -> None:
        """A flow in a table of ours; `match` is one of `_ours`."""
        self._flow(table, _LIFT + priority, match, actions, **told)

    def _is(self, value: int, mask: int) -> str:
        return f"{self._reg}={value:#x}/{mask:#x}"

    def _ours(self, fields: str = "", value: int = 0, mask: int = 0) -> str:
        """A match on packets inside our tables whose register says `value` under `mask`."""
        return ",".join(filter(None, (self._is(value | _OURS, mask | _OURS), fields)))

    def _load(self, value: int, bits: str) -> str:
        return f"load:{value:#x}->{self._register}[{bits}]"

    def _to(self, table: int, *before: str) -> str:
        return ",".join((*before, f"resubmit(,{table})"))

    def _finish(self) -> str:
        """The original goes to where it would have begun."""
        return self._to(0, self._load(_SEEN, ""))

    def _forget(self) -> str:
        """What the stage before has left but the VLAN."""
        return self._load(_OURS >> 12, "12..31")

    # --- groups ----------------------------------------------------------------------------------------------------------

    def _group(self, direction: Direction, receives: bool) -> OpenFlowGroup:
        onward = direction is Direction.EGRESS and receives
        original = self._to(self._tables.ingress, self._forget()) if onward else self._finish()
        copy = self._to(self._tables.tap, self._load(int(direction is Direction.INGRESS), "14"))
        return OpenFlowGroup(our_group(self._node, direction), (original, copy))

    # --- table 0 and VLANs -----------------------------------------------------------------------------------------------

    def _guard_taps(self) -> None:
        """Whatever the host says at a tap port's device goes nowhere."""
        for number in sorted(self._wanted.taps.values()):
            self._flow(0, TOP, f"in_port={number}", "drop")

    def _catch(self, priority: int, match: str) -> None:
        self._flow(0, priority, f"{self._is(0, _SEEN)},{match}", self._to(self._tables.vlan, self._load(_OURS, "")))

    def _classify(self) -> None:
        table, onward = self._tables.vlan, self._tables.egress
        taps = set(self._wanted.taps.values())
        for port in self._wanted.ports:
            for number in port.numbers:
                if number not in taps:
                    self._classify_port(port, f"in_port={number}")
        self._inner(table, 1, self._ours(), self._to(onward, f"move:NXM_OF_VLAN_TCI[0..11]->{self._register}[0..11]"))

    def _classify_port(self, port: SwitchPort, source: str) -> None:
        table, onward = self._tables.vlan, self._tables.egress
        own = self._to(onward, self._load(port.tag, "0..11"))
        shown = self._to(onward, f"move:NXM_OF_VLAN_TCI[0..11]->{self._register}[0..11]")
        untagged = f"{source},vlan_tci=0x0/0xfff"
        if port.mode == "access":
            self._inner(table, 20, self._ours(untagged), own)
            self._inner(table, 10, self._ours(source), self._finish())
            return
        if port.mode == "dot1q-tunnel":
            self._inner(table, 10, self._ours(source), own)
            return
        if port.mode != "trunk":
            self._inner(table, 20, self._ours(untagged), own)
        if port.vlans is not None:
            for vlan in sorted(port.vlans):
                if vlan or port.mode == "trunk":
                    self._inner(table, 15, self._ours(f"{source},vlan_tci={vlan:#x}/0xfff"), shown)
            self._inner(table, 10, self._ours(source), self._finish())

    # --- egress ----------------------------------------------------------------------------------------------------------

    def _send(self, members: list[_Member], *, onward: bool) -> None:
        after = self._to(self._tables.ingress, self._forget()) if onward else self._finish()
        by_sender: dict[str, list[_Member]] = {}
        for member, port in members:
            for number in port.numbers:
                by_sender.setdefault(f"in_port={number},dl_src={_mac(member.mac)}", []).append((member, port))
        for fields, senders in sorted(by_sender.items()):
            self._catch(TOP, fields)
            self._ask(Direction.EGRESS, 10, _Where(None, fields), senders, after)
        self._filters(Direction.EGRESS)
        self._inner(self._tables.egress, 1, self._ours(), after)

    # --- ingress ---------------------------------------------------------------------------------------------------------

    def _receive(self, members: list[_Member]) -> None:
        if not members:
            return
        by_receiver: dict[_Where, list[_Member]] = {}
        for member, port in members:
            address = f"dl_dst={_mac(member.mac)}"
            for vlan in sorted(port.vlans) if port.vlans is not None else (None,):
                by_receiver.setdefault(_Where(vlan, address), []).append((member, port))
            if not self._wanted.hairpins:
                for number in port.numbers:
                    self._inner(self._tables.ingress, 40, self._ours(f"in_port={number},{address}"), self._finish())
        for address in sorted({f"dl_dst={_mac(member.mac)}" for member, _ in members}):
            self._catch(BELOW_TOP, address)
        self._catch(BELOW_TOP, MULTICAST)
        for where, receivers in by_receiver.items():
            self._ask(Direction.INGRESS, 29 if where.vlan is None else 30, where, receivers, self._finish())
        self._inner(self._tables.ingress, 28, self._ours(RESERVED), self._finish())
        self._flood(members)
        self._filters(Direction.INGRESS)

    def _flood(self, members: list[_Member]) -> None:
        """To every receiver of the VLAN but the sender, by one copy."""
        everywhere = [(member, port) for member, port in members if port.vlans is None]
        by_vlan: dict[int | None, _Receivers] = {None: _Receivers(list(everywhere))} if everywhere else {}
        for member, port in members:
            for vlan in port.vlans or ():
                by_vlan.setdefault(vlan, _Receivers(list(everywhere))).members.append((member, port))
        for vlan, receivers in sorted(by_vlan.items(), key=lambda item: -1 if item[0] is None else item[0]):
            priority = 10 if vlan is None else 20
            self._ask(Direction.INGRESS, priority, _Where(vlan, MULTICAST), receivers.members, self._finish())
            for _, port in {own.uuid: (member, own) for member, own in receivers.members}.values():
                for number in port.numbers:
                    where = _Where(vlan, f"in_port={number},{MULTICAST}")
                    self._ask(Direction.INGRESS, priority + 1, where, receivers.but(port.uuid), self._finish())

    # --- filters and copies ----------------------------------------------------------------------------------------------

    def _ask(self, direction: Direction, priority: int, where: _Where, members: list[_Member], after: str) -> None:
        """Hold packets against what the members' taps want, then copy, or count as not copied."""
        table, filters, copies = self._stage(direction)
        chain, match = self._chain(direction, members), self._match(where)
        if chain == EVERYTHING:
            self._inner(table, priority, match, self._to(copies, self._load(1, "14")))
        elif chain:
            self._inner(table, priority, match, self._to(filters, self._load(self._number(direction, chain), "15..31")))
        else:
            self._inner(table, priority, match, self._to(copies))
        group = f"group:{our_group(self._node, direction)}"
        slots = tuple(sorted({slot for member, _ in members for slot in member.slots}))
        self._inner(copies, priority + 100, self._match(where, _WANTED), group, copies=True)
        self._inner(copies, priority, match, after, uncopied=slots)

    def _match(self, where: _Where, bit: int = 0) -> str:
        """With one more bit of the register set."""
        vlan, mask = (0, 0) if where.vlan is None else (where.vlan, _VLAN_BITS)
        return self._ours(where.fields, vlan | bit, mask | bit)

    def _stage(self, direction: Direction) -> tuple[int, int, int]:
        tables = self._tables
        if direction is Direction.EGRESS:
            return tables.egress, tables.egress_filter, tables.egress_copy
        return tables.ingress, tables.ingress_filter, tables.ingress_copy

    def _chain(self, direction: Direction, members: Iterable[_Member]) -> Chain:
        named = sorted({(program, port.tags) for member, port in members for program in member.programs})
        filters = dict.fromkeys(self._compile(program, direction, tags) for program, tags in named)
        chain = tuple(chosen for chosen in filters if not chosen.wants_nothing)
        if len(chain) > MAX_CHAIN or any(chosen.wants_all for chosen in chain):
            return EVERYTHING
        return chain

    def _compile(self, program: str, direction: Direction, tags: Tags) -> SwitchFilter:
        key = (program, direction, tags)
        if key not in self._compiled:
            self._compiled[key] = compile_filter(self._wanted.programs[program], self._wanted.peer_sets, direction, tags)
        return self._compiled[key]

    def _number(self, direction: Direction, chain: Chain) -> int:
        """Of a chain; its ends are chains too."""
        numbers = self._chains[direction]
        for begin in reversed(range(len(chain))):
            numbers.setdefault(chain[begin:], len(numbers) + 1)
        return numbers[chain]

    def _filters(self, direction: Direction) -> None:
        _, table, copies = self._stage(direction)
        for chain, number in self._chains[direction].items():
            chosen, rest = chain[0], chain[1:]
            wanted = self._to(copies, self._load(1, "14"))
            unwanted = self._to(table, self._load(self._chains[direction][rest], "15..31")) if rest else self._to(copies)
            for index, match in enumerate(chosen.matches):
                vlan, mask = (0, 0) if match.vlan is None else (match.vlan, _VLAN_BITS)
                asked = self._ours(match.fields, number << _CHAIN_BIT | vlan, _CHAIN_BITS | mask)
                self._inner(table, _FIRST_RULE - index, asked, wanted if match.wanted else unwanted)
            asked = self._ours("", number << _CHAIN_BIT, _CHAIN_BITS)
            self._inner(table, 1, asked, wanted if chosen.default else unwanted)

    # --- tap ports -------------------------------------------------------------------------------------------------------

    def _tap(self, directions: Iterable[Direction]) -> None:
        """A copy bears the tag of its VLAN, as a mirror's to a trunk port does."""
        vlan = f"move:{self._register}[0..11]->NXM_OF_VLAN_TCI[0..11]"
        for direction in directions:
            side, output = (_INGRESS if direction is Direction.INGRESS else 0), f"output:{self._wanted.taps[direction]}"
            table, mine = self._tables.tap, (side, _INGRESS)
            self._inner(table, 40, self._ours("", side, _INGRESS | _VLAN_BITS), output)
            self._inner(table, 30, self._ours("vlan_tci=0x0/0x1000", *mine), f"push_vlan:0x8100,{vlan},{output}")
            self._inner(table, 20, self._ours("vlan_tci=0x1000/0x1fff", *mine), f"{vlan},{output}")
            self._inner(table, 10, self._ours("", *mine), output)


def _mac(address: bytes) -> str:
    return address.hex(":")
