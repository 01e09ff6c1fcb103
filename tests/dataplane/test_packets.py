"""What counts as said by a monitor: every answer a stack can give, and not what keeps its network going."""

from __future__ import annotations

import pytest

from tests.dataplane.packets import HOP_BY_HOP, ICMP, ICMPV6, IGMP, TCP, UDP, is_housekeeping, packet_in
from tests.unit.pipeline import frames

ENDS4, ENDS6 = (frames.POD4, frames.PEER4), (frames.POD6, frames.PEER6)
ANSWERS4 = {"echo reply": 0, "unreachable": 3, "redirect": 5, "time exceeded": 11, "parameter problem": 12, "timestamp reply": 14}
ANSWERS6 = {"unreachable": 1, "too big": 2, "time exceeded": 3, "parameter problem": 4, "echo reply": 129}
"""Types of ICMP (RFC 792) and of ICMPv6 (RFC 4443)."""
HOUSEKEEPING6 = {"router solicitation": 133, "neighbour solicitation": 135, "neighbour advertisement": 136}


def housekeeping(ends: tuple[str, str], protocol: int, content: bytes) -> bool:
    packet = packet_in(frames.ethernet(bytes(6), bytes(6), frames.ethertype(ends[0]), frames.ip(*ends, protocol, content)))
    assert packet is not None and (packet.source, packet.destination, packet.content) == (*ends, content)
    return is_housekeeping(packet)


@pytest.mark.parametrize("kind", ANSWERS4.values(), ids=ANSWERS4)
def test_every_answer_of_icmp_counts(kind: int) -> None:
    assert not housekeeping(ENDS4, ICMP, bytes([kind, *bytes(7)]))


@pytest.mark.parametrize("kind", ANSWERS6.values(), ids=ANSWERS6)
def test_every_answer_of_icmpv6_counts(kind: int) -> None:
    assert not housekeeping(ENDS6, ICMPV6, bytes([kind, *bytes(7)]))


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("ends", [ENDS4, ENDS6], ids=["IPv4", "IPv6"])
def test_every_segment_and_datagram_counts(ends: tuple[str, str], protocol: int) -> None:
    assert not housekeeping(ends, protocol, bytes(20))


@pytest.mark.parametrize("kind", HOUSEKEEPING6.values(), ids=HOUSEKEEPING6)
def test_neighbour_discovery_does_not_count(kind: int) -> None:
    assert housekeeping(ENDS6, ICMPV6, bytes([kind, *bytes(23)]))


def test_group_reports_do_not_count() -> None:
    router_alert = bytes([ICMPV6, 0, 5, 2, 0, 0, 1, 0])
    assert housekeeping(ENDS4, IGMP, bytes(8)) and housekeeping(ENDS6, HOP_BY_HOP, router_alert + bytes([143, *bytes(7)]))
    assert not housekeeping(ENDS6, HOP_BY_HOP, router_alert + bytes([1, *bytes(7)]))
