"""What of a tap's work a switch's flows do, and what is left to the preprocessor: a clause for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping

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
        self._known: dict[tuple[str, Direction, Tags], str] = {}

    def tell(self, name: str, direction: Direction, port: BridgePort, others: int) -> str:
        """The clause for a program at a port; `others` counts programs that also select it. Empty where nothing is to be said."""
        program = self._programs[name]
        tags = _tags(port)
        key = (name, direction, tags)
        if key not in self._known:
            self._known[key] = _filter_clause(program, compile_filter(program, self._peer_sets, direction, tags))
        filtered = self._known[key]
        if filtered and others >= MAX_CHAIN:
            filtered = f"filter in the preprocessor, as more than {MAX_CHAIN} taps select the pod"
        elif filtered and others:
            filtered += ", and what the pod's other taps want comes too"
        return "; ".join(filter(None, (filtered, _rest_clause(program))))


def _filter_clause(program: TapProgram, compiled: SwitchFilter) -> str:
    if not program.matches:
        return ""
    if compiled.wants_all:
        why = f": {_few(compiled.unsaid)}" if compiled.unsaid else ""
        return f"filter in the preprocessor, as flows would leave out nothing{why}"
    if compiled.unsaid:
        return f"filter in flows, but for {_few(compiled.unsaid)}, which the preprocessor judges"
    return "filter in flows"


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
