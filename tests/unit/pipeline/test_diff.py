"""What lies between the sources that the kernel has and those that it should have."""

from __future__ import annotations

from dataclasses import replace

from vtap_agent.pipeline.diff import Observed, assign, diff, grown, receivers, selections, shortfalls, unwritable
from vtap_agent.pipeline.steps import Selection, TapPortDevices
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    MAX_FLOOD_ENTRIES,
    MAX_FLOOD_LISTS,
    MAX_SOURCES,
    Action,
    Backend,
    DataPlane,
    Direction,
    Feed,
    Match,
    Mirror,
    Source,
    TapPoint,
    TapPointName,
    TapProgram,
)


def _sources(mirror: Feed, first: int, count: int) -> frozenset[Selection]:
    return frozenset(
        Selection(mirror, ANY_VLAN, number.to_bytes(6, "big"), False, (number,)) for number in range(first, first + count)
    )


def test_old_and_new_sources_are_both_there_while_they_fit() -> None:
    mirror = Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS)
    old, new = _sources(mirror, 0, 500), _sources(mirror, 500, 500)
    assert grown(old, new) == old | new


def test_a_mirror_without_room_for_old_and_new_receivers_changes_at_once_and_others_do_not() -> None:
    crowded, roomy, sending = (
        Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS),
        Feed(Backend.OVS_MIRROR, "br1", Direction.INGRESS),
        Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS),
    )
    old = _sources(crowded, 0, 1000) | _sources(roomy, 0, 1) | _sources(sending, 0, 1000)
    new = _sources(crowded, 1000, 1000) | _sources(roomy, 1, 1) | _sources(sending, 1000, 1000)
    between = grown(old, new)
    assert max(len(listed) for listed in receivers(between).values()) <= MAX_FLOOD_ENTRIES
    assert between == _sources(crowded, 1000, 1000) | _sources(roomy, 0, 2) | _sources(sending, 0, 2000)


def test_old_sources_give_way_where_there_is_no_room_for_all() -> None:
    """Whatever a node had before, and however full: the step in between holds all that is wanted, and fits the map."""
    old_mirror, new_mirror = Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS), Feed(Backend.OVS_MIRROR, "br1", Direction.EGRESS)
    old, new = _sources(old_mirror, 0, 6000), _sources(new_mirror, 0, 6000)
    between = grown(old, new)
    assert len(between) == MAX_SOURCES and new <= between <= old | new
    assert grown(frozenset(), new) == new


def test_lists_of_receivers_that_have_no_room_beside_the_new_ones_go_at_once() -> None:
    def access(bridge: str) -> frozenset[Selection]:
        mirror = Feed(Backend.OVS_MIRROR, bridge, Direction.INGRESS)
        return frozenset(Selection(mirror, vlan, vlan.to_bytes(6, "big"), True, (vlan,)) for vlan in range(1, 3001))

    old, new = access("br0"), access("br1")
    between = grown(old, new)
    assert new <= between and len(receivers(between)) <= MAX_FLOOD_LISTS


def test_a_program_that_has_no_form_is_named_and_the_others_are_not() -> None:
    plain = TapProgram(Action.INCLUDE, ())
    odd = replace(plain, matches=(Match(Action.INCLUDE, peer=(b"x", 300)),))
    refused = unwritable({"shop/odd": odd, "shop/plain": plain})
    assert refused.keys() == {"shop/odd"} and refused["shop/odd"]


def test_what_is_still_to_do_concerns_the_taps_that_use_it() -> None:
    mirror = Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS)
    names = [TapPointName("shop", tap, "shop", f"pod-{tap}", tap, "eth0", Direction.EGRESS) for tap in ("a", "b")]
    points = tuple(
        TapPoint(name, slot, slot, "0" * 16, f"shop/{name.tap_name}", name.tap_name) for slot, name in enumerate(names)
    )
    peers = {7: frozenset({"10.0.0.1"})}
    program = TapProgram(Action.INCLUDE, ())
    programs = {"shop/a": replace(program, matches=(Match(Action.INCLUDE, peer_set=7),)), "shop/b": program}
    sources = tuple(Source(mirror, 0, bytes([2, 0, 0, 0, 0, slot]), False, (slot,)) for slot in (0, 1))
    desired = DataPlane({mirror: Mirror(mirror, frozenset())}, sources, points, programs, {}, peers)
    nothing = Observed({}, {}, {}, {}, frozenset(), frozenset(), pair_ready=True)
    ports = {mirror: TapPortDevices("vtap-e", "vtp")}
    found = {type(step).__name__: set[str]() for step in diff(nothing, desired, ports)}
    for step, said in zip(diff(nothing, desired, ports), shortfalls(nothing, desired, ports), strict=True):
        found[type(step).__name__] |= said.taps
        assert said.sentence == f"still to do: {step}"
    both = {"shop/a", "shop/b"}
    assert found == {"AddPeers": {"shop/a"}, "PutProgram": both, "PutPoint": both, "AttachPick": set(), "Select": both}

    indices = assign({}, programs)
    there = frozenset(one for one in selections(desired, indices) if one.mac[-1] == 0)
    half = replace(nothing, selections=there | _sources(mirror, 500, 1))
    selecting = [said for said in shortfalls(half, desired, ports) if "source" in said.sentence]
    assert [said.taps for said in selecting] == [{"shop/b"}, {"shop/b"}]
    stale = replace(nothing, points={9: bytes(64)}, programs={3: bytes(64)})
    garbage = [said for said in shortfalls(stale, DataPlane(), {}) if said.concerns_nobody]
    assert {said.sentence for said in garbage} == {"still to do: free slot 9", "still to do: drop program 3"}
