"""How tap points go over from one feed to another, as where a tap's backend changes. Pure.

What they came from stays up until the new feed is there; then the preprocessor's sources change over. So a pass that moves tap
points first makes a data plane that has both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vtap_agent.plan.dataplane import DataPlane, Feed, Group, GroupMember, Mirror


def feeds_of_slots(plane: DataPlane) -> dict[int, frozenset[Feed]]:
    """Where the packets of each slot come from."""
    found: dict[int, set[Feed]] = {}
    for source in plane.sources:
        for slot in source.slots:
            found.setdefault(slot, set()).add(source.feed)
    return {slot: frozenset(feeds) for slot, feeds in found.items()}


def with_old_feeds(before: DataPlane, wanted: DataPlane) -> DataPlane:
    """`wanted`, with what `before` copied at feeds that some slot is to leave for another; `wanted` itself where none is."""
    old, new = feeds_of_slots(before), feeds_of_slots(wanted)
    left = {feed for slot, feeds in old.items() if slot in new for feed in feeds - new[slot]}
    if not left:
        return wanted
    return replace(
        wanted,
        mirrors={**wanted.mirrors, **_mirrors(before, wanted, left)},
        groups={**wanted.groups, **_groups(before, wanted, left)},
        hooks=wanted.hooks | (before.hooks & left),
    )


def _mirrors(before: DataPlane, wanted: DataPlane, left: set[Feed]) -> Mapping[Feed, Mirror]:
    return {
        feed: replace(mirror, ports=mirror.ports | (wanted.mirrors[feed].ports if feed in wanted.mirrors else frozenset()))
        for feed, mirror in before.mirrors.items()
        if feed in left
    }


def _groups(before: DataPlane, wanted: DataPlane, left: set[Feed]) -> Mapping[Feed, Group]:
    """Members that stay are as wanted; those that leave go on as they were, as far as their programs are still there."""
    made: dict[Feed, Group] = {}
    for feed, group in before.groups.items():
        if feed in left:
            staying = {_place(one): one for one in (wanted.groups[feed].members if feed in wanted.groups else ())}
            leaving = {_place(one): one for one in group.members if all(program in wanted.programs for program in one.programs)}
            made[feed] = Group(feed, tuple(sorted({**leaving, **staying}.values())))
    return made


def _place(member: GroupMember) -> tuple[str, bytes, int]:
    return member.port_uuid, member.mac, member.vlan
