"""What other people's flows and groups on a bridge mean for ours: what is free, and what would not go together. Pure.

Texts are those of `ovs-ofctl dump-flows` and `dump-groups` (ovs-fields(7), ovs-actions(7)), with ports as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vtap_agent.plan.foreign_flows import MAX_SHOWN

LAST_TABLE = 253
"""254 is Open vSwitch's own."""
REGISTERS = 16
OURS = (0xFFFF, 0xFFFE)
"""Priorities that our flows of table 0 have."""
_COOKIE = re.compile(r"\bcookie=(0x[0-9a-f]+|\d+)")
_PACKETS = re.compile(r"\bn_packets=(\d+)")
_PLACE = re.compile(r"\b(table=\d+),.*?(\bpriority=\S+) actions=")
_GROUP = re.compile(r"\bgroup_id=(\d+)")
_TABLES = (
    re.compile(r"\btable=(\d+)"),
    re.compile(r"\bresubmit\([^,)]*,(\d+)"),
    re.compile(r"\bgoto_table:(\d+)"),
)
_REGISTER = re.compile(r"\b(x{0,2})reg(\d+)\b|NXM_NX_(X{0,2})REG(\d+)\b|OXM_OF_PKT_REG(\d+)\b", re.IGNORECASE)
_COUNTERS = re.compile(r"\b(?:duration|n_packets|n_bytes|idle_age|hard_age)=[^,]*,?\s*")
_COOKIE_SHOWN = re.compile(r"\bcookie=[^,]*,?\s*")
_REWRITES = re.compile(
    r"\b(?:mod_(?:dl|nw|tp|vlan)_\w+|set_vlan_\w+|strip_vlan|pop_vlan|push_vlan|push_mpls|pop_mpls|encap|decap|dec_ttl"
    r"|nat(?:\(|\b)|(?:set_field|load|move):[^,]*->\s*(?!(?:x{0,2}reg\d|NXM_NX_X{0,2}REG|OXM_OF_PKT_REG|OXM_OF_METADATA|metadata"
    r"|NXM_NX_PKT_MARK|pkt_mark|NXM_NX_CT_|ct_|NXM_NX_TUN_|tun_|in_port|NXM_OF_IN_PORT|OXM_OF_IN_PORT))\w)",
    re.IGNORECASE,
)
_IN_PORT = r"(?:NXM_OF_|OXM_OF_)?in_port"
_HAIRPIN = re.compile(rf"\bin_port(?=[,)]|$)|\boutput:{_IN_PORT}|\bpop:{_IN_PORT}|->\s*{_IN_PORT}", re.IGNORECASE)
"""Also what writes where a packet came from, most often nowhere: no output is its port of entry then (ovs-actions(7))."""


@dataclass(frozen=True, slots=True)
class ForeignFlows:
    """What was found. Sentences and quoted flows are empty where there is nothing of the kind."""

    tables: frozenset[int] = frozenset({0})
    """Looked into, or led to."""
    registers: frozenset[int] = frozenset()
    programmed: str = ""
    """A flow with a cookie, as a program gives them to its own."""
    overriding: str = ""
    """A flow of table 0 with the priority that ours need."""
    rewriting: str = ""
    """An action that changes what a pod sees of a packet."""
    hairpins: bool = False
    """Some packet may leave where it came from."""

    def free_tables(self, count: int) -> tuple[int, ...]:
        """The `count` highest that nobody uses, in ascending order; fewer where there are fewer."""
        free = [number for number in range(LAST_TABLE, 0, -1) if number not in self.tables]
        return tuple(reversed(free[:count]))

    def free_register(self) -> int | None:
        """The highest that nobody names."""
        return next((number for number in range(REGISTERS - 1, -1, -1) if number not in self.registers), None)


def cookie_of(line: str) -> int:
    """Of a flow as dumped; 0 where none is told."""
    found = _COOKIE.search(line)
    return int(found[1], 0) if found else 0


def packets_of(line: str) -> int:
    """That a flow, as dumped, has counted."""
    found = _PACKETS.search(line)
    return int(found[1]) if found else 0


def place_of(line: str) -> str:
    """Table, priority and match of a flow of ours as dumped. A bridge has but one; what is added takes its place and counters."""
    found = _PLACE.search(line)
    return f"{found[1]},{found[2]}" if found else ""


def group_of(line: str) -> int:
    """The number of a group as dumped."""
    found = _GROUP.search(line)
    return int(found[1]) if found else 0


def without_counters(line: str) -> str:
    """A flow or group as dumped, but for what changes by itself."""
    return _COUNTERS.sub("", line)


def read_foreign(flows: Iterable[str], groups: Iterable[str]) -> ForeignFlows:
    """What lines of other people's flows and groups tell."""
    tables, registers = {0}, set[int]()
    programmed = overriding = rewriting = ""
    hairpins = False
    flows, groups = list(flows), list(groups)
    for line in (*flows, *groups):
        tables.update(int(found[1]) for pattern in _TABLES for found in pattern.finditer(line))
        registers.update(_registers(line))
        actions = line.partition("actions=")[2]
        rewriting = rewriting or (_quoted(line) if _REWRITES.search(actions) else "")
        hairpins = hairpins or bool(_HAIRPIN.search(actions))
    for line in flows:
        programmed = programmed or (_quoted(line) if cookie_of(line) else "")
        if "table=0," in line and any(f"priority={top}," in line or f"priority={top} " in line for top in OURS):
            overriding = overriding or _quoted(line)
    return ForeignFlows(frozenset(tables), frozenset(registers), programmed, overriding, rewriting, hairpins)


def _registers(line: str) -> Iterator[int]:
    """xreg0 is reg0 and reg1, xxreg0 is reg0 to reg3 (ovs-fields(7), Registers)."""
    for found in _REGISTER.finditer(line):
        if found[5] is not None:
            size, number = 2, int(found[5])
        else:
            size, number = 1 << len(found[1] or found[3] or ""), int(found[2] if found[2] is not None else found[4])
        yield from range(number * size, (number + 1) * size)


def _quoted(line: str) -> str:
    text = _COOKIE_SHOWN.sub("", without_counters(line)).strip(" ,")
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
