"""OpenFlow flows of others that output to a tap port of ours, besides what its mirror sends there. Pure."""

from __future__ import annotations

import re

MAX_SHOWN = 160
"""Characters of a flow that a sentence quotes."""
_ACTIONS = re.compile(r"\bactions=(.*)$")
_COUNTERS = re.compile(r"\b(?:duration|n_packets|n_bytes)=[^,]*,?\s*")


def outputs_to(dump: str, port: int) -> tuple[str, ...]:
    """The flows of `bridge/dump-flows` whose actions name the port's OpenFlow number, or ALL ports.

    FLOOD does not count, as our tap ports are left out of it. What flows do through groups is not in this dump.
    """
    named = re.compile(rf"(?:^|[,(])(?:output:{port}|enqueue:{port}:\w+|output\(port={port},[^)]*\)|ALL)(?=[,)]|$)")
    found: list[str] = []
    for line in dump.splitlines():
        actions = _ACTIONS.search(line)
        if actions is not None and named.search(actions[1].strip()):
            found.append(_COUNTERS.sub("", line).strip(" ,").replace(" ,", ""))
    return tuple(found)


def told(flows: tuple[str, ...], bridge: str, name: str, port: int) -> str:
    """What is wrong with such flows, and what to do; empty without any."""
    if not flows:
        return ""
    shown = flows[0] if len(flows[0]) <= MAX_SHOWN else flows[0][: MAX_SHOWN - 1] + "…"
    more = f" and {len(flows) - 1} more" if len(flows) > 1 else ""
    return (
        f"flows of bridge {bridge} output to our tap port {name} themselves ({shown}{more}), so that packets are copied that no "
        f"tap selects, or twice; let these flows leave out port {port}"
    )
