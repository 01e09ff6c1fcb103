"""The collector's part of the ledger as JSON (docs/architecture.md, "The ledger"). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from vtap_collector.announcements import AgentTerms, Stream, TapName
from vtap_collector.native import ConsumerCounts, CoreCounts, StreamCounts


def terms(counts: StreamCounts) -> dict[str, Any]:
    """The terms of one stream or of a sum, all in wire packets but `receivedBytes`."""
    return {
        "received": counts.received,
        "receivedBytes": counts.received_bytes,
        "lost": {"network": counts.lost_network, "socket": counts.lost_socket, "before": counts.lost_before},
        "stored": counts.stored,
        "dropped": {"disk": counts.dropped_disk, "slow": counts.dropped_slow, "crash": counts.dropped_crash},
        "duplicate": counts.duplicate,
        "late": counts.late,
        "inFlight": counts.in_flight,
    }


def agent_side(terms: AgentTerms | None, sent: int) -> dict[str, Any] | None:
    """What the agent counted, as it said last; None where it has not said."""
    return None if terms is None else {**terms.model_dump(), "sent": sent}


def stream_row(
    node: str, stream: Stream, is_open: bool, stale: bool, counts: StreamCounts, agent: dict[str, Any] | None
) -> dict[str, Any]:
    """One row. `closed`: withdrawn, or its key is another incarnation's. `stale`: open, but its agent is silent."""
    return {
        "node": node,
        "key": stream.key,
        "incarnation": stream.incarnation,
        "tap": stream.tap.model_dump(),
        "pod": stream.pod.model_dump(),
        "interface": stream.interface,
        "direction": stream.direction,
        **terms(counts),
        "nextSequence": counts.next_sequence,
        "closed": not is_open,
        "stale": stale,
        "agent": agent,
    }


def tap_rows(sums: Mapping[TapName, StreamCounts]) -> list[dict[str, Any]]:
    """One row a tap: all its streams, those included that are no longer kept one by one."""
    return [{"tap": tap.model_dump(), **terms(counts)} for tap, counts in sums.items()]


def own_terms(core: CoreCounts) -> dict[str, Any]:
    """What no stream can be charged with."""
    return {
        "unannounced": {"key": core.unannounced_key, "address": core.unannounced_address},
        "malformed": core.malformed,
        "socket": {
            "overflow": core.socket_overflow,
            "unexplained": core.socket_unexplained,
            "datagrams": core.datagrams,
            "captured": core.captured,
        },
        "writer": {"errors": core.write_errors, "lastError": core.last_write_error, "filesOpened": core.files_opened},
    }


def consumer_rows(consumers: Iterable[tuple[str, ConsumerCounts]]) -> list[dict[str, Any]]:
    """One row a live consumer; `dropped` is what its own full queue refused."""
    return [{"consumer": name, **asdict(counts)} for name, counts in consumers]
