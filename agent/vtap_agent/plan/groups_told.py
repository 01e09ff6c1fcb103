"""What of a tap's work a switch's flows do, and what is left to the preprocessor: a clause for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set

from vtap_agent.plan.dataplane import Direction, SamplingType, TapProgram
from vtap_agent.plan.groups_filter import SwitchFilter, Tags, compile_filter
from vtap_agent.plan.groups_flows import MAX_CHAIN, SwitchPort
from vtap_agent.plan.inventory_model import BridgePort

MAX_NAMED = 3
"""Parts of a filter that are named; more are counted."""


_SOMEBODY = frozenset({"192.0.2.1"})
"""Stands for peers that are yet to come (TEST-NET-1 of RFC 5737)."""


class Sieve:
    """Whether flows can leave out something of what one program's filter excludes; found out once for ports that are alike."""

    def __init__(self, program: TapProgram, peer_sets: Mapping[int, frozenset[str]]) -> None:
        self._program = program
        self._peer_sets = {number: addresses or _SOMEBODY for number, addresses in peer_sets.items()}
        self._known: dict[tuple[Direction, Tags], bool] = {}

    def leaves_out(self, direction: Direction, port: BridgePort) -> bool:
        """At this port, with the addresses that its peers have now; a selector that means nobody yet is one that will."""
        key = (direction, _tags(port))
        if key not in self._known:
            self._known[key] = not compile_filter(self._program, self._peer_sets, *key).wants_all
        return self._known[key]


def _tags(port: BridgePort) -> Tags:
    return SwitchPort("", (), port.tag, port.vlan_mode).tags


class WhereItRuns:
    """Tells it of one tap point after another; what taps share is found out once."""

    def __init__(self, programs: Mapping[str, TapProgram], peer_sets: Mapping[int, frozenset[str]]) -> None:
        self._programs = programs
        self._peer_sets = peer_sets
        self._compiled_ones: dict[tuple[str, Direction, Tags], SwitchFilter] = {}
        self._clauses: dict[tuple[str, Direction, Tags, tuple[str, ...]], str] = {}

    def tell(self, name: str, direction: Direction, port: BridgePort, programs: tuple[str, ...]) -> str:
        """The clause for a program at a port; `programs` are all that select it. Empty where nothing is to be said."""
        tags = _tags(port)
        key = (name, direction, tags, programs)
        if key not in self._clauses:
            asked = {one for one in (self._compiled(other, direction, tags) for other in programs) if not one.wants_nothing}
            clauses = (
                _filter_clause(self._programs[name], self._compiled(name, direction, tags), asked),
                _rest_clause(self._programs[name]),
            )
            self._clauses[key] = "; ".join(filter(None, clauses))
        return self._clauses[key]

    def _compiled(self, name: str, direction: Direction, tags: Tags) -> SwitchFilter:
        key = (name, direction, tags)
        if key not in self._compiled_ones:
            self._compiled_ones[key] = compile_filter(self._programs[name], self._peer_sets, direction, tags)
        return self._compiled_ones[key]


def _filter_clause(program: TapProgram, own: SwitchFilter, asked: Set[SwitchFilter]) -> str:
    """`asked` are the different filters of all taps at the port, as flows hold a packet against each but once."""
    if not program.matches:
        return ""
    if own.wants_all:
        why = f": {_few(own.unsaid)}" if own.unsaid else ""
        return f"filter in the preprocessor, as flows would leave out nothing{why}"
    if any(one.wants_all for one in asked):
        return "filter in the preprocessor, as another tap of the pod has everything copied"
    if len(asked) > MAX_CHAIN:
        return f"filter in the preprocessor, as taps with more than {MAX_CHAIN} different filters select the pod"
    said = f"filter in flows, but for {_few(own.unsaid)}, which the preprocessor judges" if own.unsaid else "filter in flows"
    return said if not asked - {own} else f"{said}, and what the pod's other taps want comes too"


def _few(parts: tuple[str, ...]) -> str:
    more = f" and {len(parts) - MAX_NAMED} more" if len(parts) > MAX_NAMED else ""
    return ", ".join(parts[:MAX_NAMED]) + more


def _rest_clause(program: TapProgram) -> str:
    parts = [
        *(["sampling"] if program.sampling.type is not SamplingType.ALL else []),
        *(["rate limit"] if program.rate_bits_per_second else []),
        *(["cutting"] if program.snap_length or program.headers_only else []),
    ]
    return f"{' and '.join(parts)} in the preprocessor" if parts else ""
