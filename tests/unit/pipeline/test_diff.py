"""What lies between the sources that the kernel has and those that it should have."""

from __future__ import annotations

from vtap_agent.pipeline.diff import grown, receivers
from vtap_agent.pipeline.steps import Selection
from vtap_agent.plan.dataplane import ANY_VLAN, MAX_FLOOD_ENTRIES, Direction, MirrorKey


def _sources(mirror: MirrorKey, first: int, count: int) -> frozenset[Selection]:
    return frozenset(
        Selection(mirror, ANY_VLAN, number.to_bytes(6, "big"), False, (number,)) for number in range(first, first + count)
    )


def test_old_and_new_sources_are_both_there_while_they_fit() -> None:
    mirror = MirrorKey("br0", Direction.INGRESS)
    old, new = _sources(mirror, 0, 500), _sources(mirror, 500, 500)
    assert grown(old, new) == old | new


def test_a_mirror_without_room_for_old_and_new_receivers_changes_at_once_and_others_do_not() -> None:
    crowded, roomy, sending = (
        MirrorKey("br0", Direction.INGRESS),
        MirrorKey("br1", Direction.INGRESS),
        MirrorKey("br0", Direction.EGRESS),
    )
    old = _sources(crowded, 0, 1000) | _sources(roomy, 0, 1) | _sources(sending, 0, 1000)
    new = _sources(crowded, 1000, 1000) | _sources(roomy, 1, 1) | _sources(sending, 1000, 1000)
    between = grown(old, new)
    assert max(len(listed) for listed in receivers(between).values()) <= MAX_FLOOD_ENTRIES
    assert between == _sources(crowded, 1000, 1000) | _sources(roomy, 0, 2) | _sources(sending, 0, 2000)
