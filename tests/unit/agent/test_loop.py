"""Whatever a pass meets, the loop goes on, copies stay as they are, and the status says what is the matter."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.agent.node import Node
from tests.unit.agent.waiting import eventually
from tests.unit.plan.test_planning import interface, pod, tap
from vtap_agent import accounts
from vtap_agent import loop as module
from vtap_agent.errors import Retry
from vtap_agent.plan import auto, hookless, leaning
from vtap_agent.plan.dataplane import Backend, DataPlane, Direction, Feed, PointCounters
from vtap_agent.plan.groups_filter import MAX_PEERS
from vtap_agent.plan.mirror_health import MirrorHealth, MirrorState
from vtap_agent.plan.selection import select
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.report import ids

BOTH_PODS = {("web", "web-1"), ("web", "web-2")}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(module, "TICK", 0.02)
    made = Node(tmp_path)
    running = threading.Thread(target=made.loop.run, daemon=True)
    running.start()
    yield made
    made.mailbox.stop()
    running.join(10)
    assert not running.is_alive()


def programmed(node: Node, name: str = "web") -> bool:
    return node.condition(name, "Programmed")[0] == "True"


def test_a_tap_is_copied_and_its_removal_frees_its_slots(node: Node) -> None:
    node.want(tap())
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    node.want()
    eventually(lambda: node.copied() == set() and node.mirrors.has == {} and not node.accounts.used_slots())
    assert not node.pipeline.devices


def test_what_nobody_foresaw_is_logged_counted_said_and_tried_again(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    def bug() -> None:
        raise KeyError("surprise")

    node.pipeline.trouble = bug
    with caplog.at_level(logging.ERROR):
        node.want(tap())
        eventually(lambda: "failed unexpectedly (KeyError" in node.condition("web", "Programmed")[2])
    assert any(record.exc_info for record in caplog.records)
    assert b'vtap_agent_unexpected_failures_total{where="pass"}' in node.loop.metrics.render()
    leases = node.pipeline.leases
    node.pipeline.trouble = lambda: None
    eventually(lambda: programmed(node))
    eventually(lambda: node.pipeline.leases > leases)


def test_a_failing_tick_ends_nothing(node: Node) -> None:
    node.want(tap())
    eventually(lambda: programmed(node))
    node.pipeline.map_bytes = lambda: 1 // 0
    node.loop._maps_changed = True
    eventually(lambda: b'vtap_agent_unexpected_failures_total{where="tick"}' in node.loop.metrics.render())
    del node.pipeline.map_bytes
    node.want(tap(), tap("second"))
    eventually(lambda: programmed(node, "second"))


def test_streams_stay_open_while_the_pass_that_ends_them_fails(node: Node) -> None:
    node.want(tap())
    eventually(lambda: programmed(node))
    slots = node.accounts.used_slots()

    def fails() -> None:
        raise Retry("not now")

    node.pipeline.trouble = fails
    node.want()
    eventually(lambda: node.loop.view.statuses == () and len(node.accounts.leaving) == len(slots))
    threading.Event().wait(1.3)  # longer than SETTLE
    assert node.accounts.used_slots() == slots and node.copied() == BOTH_PODS
    node.pipeline.trouble = lambda: None
    eventually(lambda: not node.accounts.used_slots())


def test_taps_stay_as_they_are_while_open_vswitch_is_away(node: Node) -> None:
    node.want(tap())
    eventually(lambda: programmed(node))
    mirrors, has = node.mirrors.has, node.pipeline.has
    node.switch_away(True)
    eventually(lambda: node.condition("web", "Programmed")[1] == "NotApplied")
    assert "check ovs-vswitchd" in node.condition("web", "Programmed")[2]
    assert (node.mirrors.has, node.pipeline.has) == (mirrors, has)
    node.switch_away(False)
    eventually(lambda: programmed(node))


def test_a_tap_that_is_removed_while_open_vswitch_is_away_is_copied_no_more(node: Node) -> None:
    node.want(tap(), tap("other"))
    eventually(lambda: programmed(node, "other"))
    node.switch_away(True)
    node.want(tap("other"))
    eventually(lambda: node.copied() == {("other", "web-1"), ("other", "web-2")})
    eventually(lambda: node.condition("web", "Accepted") == ("", "", ""))
    assert node.pipeline.devices == set(node.mirrors.has), "tap ports stay as long as their mirrors"
    node.want()
    eventually(lambda: node.copied() == set())
    node.switch_away(False)
    eventually(lambda: node.mirrors.has == {} and not node.pipeline.devices)


def test_taps_are_in_the_status_even_if_open_vswitch_never_answered(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.switch_away(True)
    node.want(tap())
    running = threading.Thread(target=node.loop.run, daemon=True)
    running.start()
    eventually(lambda: node.condition("web", "Programmed")[1] == "NotApplied")
    assert node.condition("web", "Accepted")[0] == "True"
    node.switch_away(False)
    eventually(lambda: programmed(node))
    node.mailbox.stop()
    running.join(10)


def test_what_needs_no_open_vswitch_goes_on_while_it_is_away(node: Node) -> None:
    node.want(tap())
    eventually(lambda: programmed(node))
    node.switch_away(True)
    node.want(tap(), tap("hooked", backend="EBPF"))
    eventually(lambda: programmed(node, "hooked") and len(node.hooks.has) == 4)
    assert node.condition("web", "Programmed")[1] == "NotApplied"
    assert node.copied() == {(name, pod) for name in ("web", "hooked") for pod in ("web-1", "web-2")}
    node.want(tap())
    eventually(lambda: not node.hooks.has and node.copied() == BOTH_PODS)


def test_what_a_switch_left_out_of_a_stream_is_not_counted_for_the_next_one_in_its_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while Open vSwitch is away, when its backends are not told what is wanted."""
    monkeypatch.setattr(module, "TICK", 0.02)
    monkeypatch.setattr(accounts, "SETTLE", 0.1)
    node = Node(tmp_path, slots=4)
    node.want(tap())
    running = threading.Thread(target=node.loop.run, daemon=True)
    running.start()
    eventually(lambda: programmed(node))
    node.uncopied = dict.fromkeys(node.accounts.slots.assigned.values(), 7)
    eventually(lambda: counted(node, "web") == {(7, 7)})
    node.switch_away(True)
    node.want(tap("next", backend="EBPF"))
    eventually(lambda: programmed(node, "next") and len(counted(node, "next")) > 0)
    assert counted(node, "next") == {(0, 0)}
    assert counted(node, "web") == {(7, 7)}, "which have ended"
    node.mailbox.stop()
    running.join(10)


def counted(node: Node, name: str) -> set[tuple[int, int]]:
    """(seen, excluded) of a tap's streams."""
    return {(row.counters.seen, row.counters.excluded) for row in node.loop.view.rows if row.name.tap_name == name}


def test_a_node_without_open_vswitch_is_a_node_like_others(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.switch_expected = False
    node.switch_away(True)
    node.want(tap(backend="Auto"), tap("mirrored"))
    running = threading.Thread(target=node.loop.run, daemon=True)
    running.start()
    eventually(lambda: programmed(node) and node.loop.ready)
    assert node.condition("mirrored", "Programmed")[1] == "NoPort"
    assert node.copied() == BOTH_PODS and len(node.hooks.has) == 4
    node.mailbox.stop()
    running.join(10)


def test_a_tap_that_changes_its_backend_keeps_its_slots_and_never_lacks_both_feeds(node: Node) -> None:
    node.want(tap(backend="EBPF"))
    eventually(lambda: programmed(node) and len(node.hooks.has) == 4)
    slots = node.accounts.used_slots()
    node.want(tap())
    eventually(lambda: len(node.mirrors.has) == 2 and not node.hooks.has)
    assert node.accounts.used_slots() == slots
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    node.want(tap(backend="EBPF"))
    eventually(lambda: node.mirrors.has == {} and len(node.hooks.has) == 4)
    assert node.accounts.used_slots() == slots


def test_a_pod_that_cannot_be_looked_into_for_a_moment_stays_tapped(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.want(tap())
    eventually(lambda: programmed(node))
    there, slots = node.world.inventory, node.accounts.slots
    node.world.inventory = replace(there, interfaces=there.interfaces[1:])
    node.want(tap(), tap("marker"))
    eventually(lambda: programmed(node, "marker"))
    assert node.copied() > BOTH_PODS
    monkeypatch.setattr(module, "BLINK", 0.0)
    eventually(lambda: ("web", "web-1") not in node.copied())
    eventually(lambda: "has no network interface yet" in node.condition("web", "Programmed")[2])
    node.world.inventory = there
    node.mailbox.changed()
    eventually(lambda: programmed(node))
    assert slots.assigned.keys() <= node.accounts.slots.assigned.keys()


def test_an_unhealthy_mirror_is_said_of_the_taps_it_feeds(node: Node) -> None:
    node.want(tap("in", direction="Ingress"), tap("out", direction="Egress"))
    eventually(lambda: programmed(node, "in") and programmed(node, "out"))
    node.mirrors.health = {Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS): MirrorHealth(MirrorState.NOT_HELD, 0, 0, 0)}
    eventually(lambda: node.condition("in", "Programmed")[1] == "NotVerified")
    assert programmed(node, "out")
    node.mirrors.health = {}
    eventually(lambda: programmed(node, "in"))


def test_a_problem_is_looked_at_again_soon_and_seldom_once_it_stays(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no look cures must not have the node look without end."""
    monkeypatch.setattr(module, "CHANGE_WATCHED", 0.0)
    monkeypatch.setattr(module, "HEALTH_EVERY", 0.5)
    monkeypatch.setattr(module, "HEALTH_EVERY_AFTER_CHANGE", 0.02)
    node.want(tap())
    eventually(lambda: programmed(node))
    looks = node.mirrors.looked_at
    eventually(lambda: len(looks) > 0)
    begin = len(looks) - 1
    node.mirrors.health = {Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS): MirrorHealth(MirrorState.NOT_HELD, 0, 0, 0)}
    eventually(lambda: not programmed(node))
    eventually(lambda: len(looks) >= begin + 5)
    gaps = [after - before for before, after in itertools.pairwise(looks[begin : begin + 5])]
    assert [gap >= 0.5 for gap in gaps] == [True, False, True, True], gaps


def test_packets_that_pass_a_device_by_are_said_of_the_taps_that_miss_them(node: Node) -> None:
    node.want(tap("in", backend="EBPF", direction="Ingress"), tap("out", backend="EBPF", direction="Egress"))
    eventually(lambda: programmed(node, "in") and programmed(node, "out"))
    node.passed_by = frozenset(feed for feed in node.hooks.has if feed.direction is Direction.INGRESS)
    eventually(lambda: node.condition("in", "Programmed")[1] == "PastTheDevice")
    assert programmed(node, "out")
    assert node.copied() == {(name, pod) for name in ("in", "out") for pod in ("web-1", "web-2")}, "as far as they can be"
    node.passed_by = frozenset()
    eventually(lambda: programmed(node, "in"))


def test_copies_that_find_no_id_are_said_while_there_are_more_of_them(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "QUIET", 0.1)
    node.want(tap("few"), tap("many"))
    eventually(lambda: programmed(node, "few") and programmed(node, "many"))
    slots = [value.slot for name, value in node.accounts.slots.assigned.items() if name.point.tap_name == "many"]
    count = 0

    def said() -> bool:
        nonlocal count
        count += 1
        node.pipeline.points = dict.fromkeys(slots, PointCounters(dropped={"noId": count}))
        return node.condition("many", "Delivering")[1] == "NoId"

    eventually(said)
    assert node.condition("few", "Delivering")[1] == "Sent"
    eventually(lambda: node.condition("many", "Delivering")[1] == "Sent")


def test_a_mirror_that_cannot_be_had_is_refused_for_good_and_not_tried_each_pass(node: Node) -> None:
    ingress = Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS)
    node.mirrors.refused = {ingress: "the bridge is full of mirrors"}
    node.want(tap("in", direction="Ingress"), tap("out", direction="Egress"))
    eventually(lambda: programmed(node, "out"))
    assert "the bridge is full" in node.condition("in", "Programmed")[2]
    for _ in range(3):
        passes = node.passes()
        node.mailbox.changed()
        eventually(lambda passes=passes: node.passes() > passes)
        assert ingress not in node.mirrors.has and "the bridge is full" in node.condition("in", "Programmed")[2]
    node.mirrors.refused = {}
    node.mailbox.changed()
    eventually(lambda: programmed(node, "in") and ingress in node.mirrors.has)


FILTER = {"defaultAction": "Exclude", "rules": [{"action": "Include", "protocol": "UDP"}]}
INGRESS_GROUP = Feed(Backend.OVS_GROUP, "br0", Direction.INGRESS)


def whys(node: Node, name: str = "web") -> set[str]:
    """Why each of a tap's points has the backend that it has."""
    return {point.why for one in node.loop.view.statuses if one.verdict.name == name for point in one.verdict.points}


def one_more_pass(node: Node) -> None:
    passes = node.passes()
    node.mailbox.changed()
    eventually(lambda: node.passes() > passes)


def test_where_a_bridge_refuses_groups_auto_takes_mirrors_and_stays_with_them(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.polled()
    node.groups.refused = {INGRESS_GROUP: "bridge br0 snoops"}
    node.want(tap(backend="Auto", filter=FILTER))
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    mixed = {("Ingress", "OVSMirror"), ("Egress", "OVSGroup")}
    assert node.backends("web") == mixed
    assert {(feed.backend, feed.direction) for feed in (*node.mirrors.has, *node.groups.has)} == {
        (Backend.OVS_MIRROR, Direction.INGRESS),
        (Backend.OVS_GROUP, Direction.EGRESS),
    }
    assert any("Auto takes OVSMirror" in why and "OVSGroup could not be had: bridge br0 snoops" in why for why in whys(node))
    mirrors = node.mirrors.has
    anew: list[object] = []
    monkeypatch.setattr(module, "select", lambda *given: anew.append(given) or select(*given))
    for refused in ({}, {INGRESS_GROUP: "bridge br0 snoops"}, {}):
        node.groups.refused = refused
        one_more_pass(node)
        assert node.backends("web") == mixed and node.mirrors.has is mirrors
    assert anew == [], "others' flows come and go, and nothing is decided anew"
    monkeypatch.setattr(auto, "REGAIN", 0.0)
    node.mailbox.changed()
    eventually(lambda: node.backends("web") == {("Ingress", "OVSGroup"), ("Egress", "OVSGroup")} and node.mirrors.has == {})
    assert node.copied() == BOTH_PODS


HOOKS = {("Ingress", "EBPF"), ("Egress", "EBPF")}
ONE_SIDED = "veth1 has an ingress qdisc; let its owner use clsact"


def test_where_a_device_has_no_place_for_ebpf_auto_takes_open_vswitch(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Feed(Backend.EBPF, "veth1", Direction.INGRESS, 101)
    node.want(tap(backend="Auto"), tap("named", backend="EBPF"))
    eventually(lambda: programmed(node) and programmed(node, "named") and node.backends("web") == HOOKS)
    node.hooks.refused = {side: ONE_SIDED}
    node.mailbox.changed()
    eventually(lambda: node.mirrors.has.keys() == {INGRESS_MIRROR} and programmed(node))
    assert side not in node.hooks.has and len(node.hooks.has) == 3, "the other pod's, and what this one sends, are copied as ever"
    assert "Auto takes OVSMirror, as veth1 has an ingress qdisc and flows would leave out nothing" in whys(node)
    assert node.condition("named", "Programmed")[1:] == ("NoHook", ONE_SIDED)
    mirrors = node.mirrors.has
    for refused in ({}, {side: ONE_SIDED}, {}):
        node.hooks.refused = refused
        one_more_pass(node)
        assert node.mirrors.has is mirrors and node.copied() >= BOTH_PODS
    monkeypatch.setattr(hookless, "REGAIN", 0.0)
    node.mailbox.changed()
    eventually(lambda: node.backends("web") == HOOKS and node.mirrors.has == {} and programmed(node))


def test_ebpf_is_taken_at_once_where_open_vswitch_cannot_copy_any_more(node: Node) -> None:
    side = Feed(Backend.EBPF, "veth1", Direction.INGRESS, 101)
    node.hooks.refused = {side: ONE_SIDED}
    node.want(tap(backend="Auto"))
    eventually(lambda: programmed(node) and node.mirrors.has.keys() == {INGRESS_MIRROR})
    node.mirrors.refused, node.groups.refused = {INGRESS_MIRROR: FULL}, {INGRESS_GROUP: "bridge br0 snoops"}
    node.mailbox.changed()
    eventually(lambda: node.condition("web", "Programmed")[1] == "NoMirror")
    node.hooks.refused = {}
    node.mailbox.changed()
    eventually(lambda: programmed(node) and node.backends("web") == HOOKS)


def test_a_device_on_no_bridge_is_refused_where_ebpf_has_no_place(node: Node) -> None:
    side = Feed(Backend.EBPF, "veth1", Direction.INGRESS, 101)
    seen = node.world.inventory
    node.world.inventory = replace(seen, interfaces=tuple(replace(one, port=None) for one in seen.interfaces))
    node.hooks.refused = {side: ONE_SIDED}
    node.want(tap(backend="Auto"))
    eventually(lambda: node.condition("web", "Programmed")[1] == "NoHook")
    assert ONE_SIDED in node.condition("web", "Programmed")[2] and node.mirrors.has == {}


def test_peers_that_come_and_go_move_no_tap_point_before_a_minute_is_over(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.polled()
    few = node.world.inventory
    many = [pod(number, app="db") for number in range(3, 3 + MAX_PEERS + 1)]
    there = [*few.interfaces, *(interface(one, number) for number, one in enumerate(many, 3))]
    rolling = replace(few, pods=(*few.pods, *many), interfaces=tuple(there))
    rule = {"action": "Exclude", "peer": {"podSelector": {"matchLabels": {"app": "db"}}}}
    node.want(tap(backend="Auto", filter={"defaultAction": "Include", "rules": [rule]}))
    eventually(lambda: programmed(node) and node.backends("web") == GROUPS)
    for seen in (rolling, few, rolling):
        node.world.inventory = seen
        one_more_pass(node)
        one_more_pass(node)
        assert node.backends("web") == GROUPS and node.mirrors.has == {}
    monkeypatch.setattr(leaning, "REGAIN", 0.0)
    node.mailbox.changed()
    eventually(lambda: node.backends("web") == MIRRORS and node.groups.has == {} and node.copied() == BOTH_PODS)


def test_what_auto_took_instead_stays_while_open_vswitch_is_away(node: Node) -> None:
    node.polled()
    node.groups.refused = {INGRESS_GROUP: "bridge br0 snoops"}
    node.want(tap(backend="Auto", direction="Ingress", filter=FILTER))
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    node.switch_away(True)
    eventually(lambda: node.condition("web", "Programmed")[1] == "NotApplied")
    node.want(tap(backend="Auto", direction="Ingress", filter=FILTER, packet={"snapLength": 64}))
    eventually(lambda: any(program.snap_length == 64 for program in node.pipeline.has.programs.values()))
    assert node.copied() == BOTH_PODS and node.backends("web") == {("Ingress", "OVSMirror")}
    node.switch_away(False)
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    assert node.groups.has == {}


def test_a_tap_that_names_groups_is_refused_beside_one_that_leaves_it_to_auto(node: Node) -> None:
    node.polled()
    node.groups.refused = {INGRESS_GROUP: "bridge br0 snoops"}
    node.want(
        tap("named", backend="OVSGroup", direction="Ingress", filter=FILTER),
        tap(backend="Auto", direction="Ingress", filter=FILTER),
    )
    eventually(lambda: programmed(node) and node.condition("named", "Programmed")[1] == "NoGroup")
    sentence = node.condition("named", "Programmed")[2]
    assert "spec.backend: use Auto, OVSMirror or EBPF, as OVSGroup can't be had: bridge br0 snoops" in sentence
    assert node.copied() == BOTH_PODS and node.groups.has == {}


def test_mirrors_that_auto_takes_instead_can_be_refused_too(node: Node) -> None:
    node.polled()
    node.groups.refused = {INGRESS_GROUP: "bridge br0 snoops"}
    node.mirrors.refused = {INGRESS_MIRROR: FULL}
    node.want(tap(backend="Auto", direction="Ingress", filter=FILTER))
    eventually(lambda: node.condition("web", "Programmed")[1] == "NoMirror")
    sentence = node.condition("web", "Programmed")[2]
    assert f"{FULL}; or change what keeps OVSGroup from it: bridge br0 snoops" in sentence, "both cures"
    assert node.backends("web") == {("Ingress", "OVSMirror")} and "bridge br0 snoops" in "".join(whys(node))
    assert node.copied() == set() and node.mirrors.has == {} and node.groups.has == {}


INGRESS_MIRROR, EGRESS_MIRROR = (Feed(Backend.OVS_MIRROR, "br0", direction) for direction in Direction)
FULL = "the bridge is full of mirrors; delete one"
GROUPS = {("Ingress", "OVSGroup"), ("Egress", "OVSGroup")}
MIRRORS = {("Ingress", "OVSMirror"), ("Egress", "OVSMirror")}


def test_where_a_bridge_has_no_mirror_left_auto_takes_groups_and_stays_with_them(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.polled()
    node.mirrors.refused = {INGRESS_MIRROR: FULL, EGRESS_MIRROR: FULL}
    node.want(tap(backend="Auto"))
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    assert node.backends("web") == GROUPS and node.mirrors.has == {}
    why = "Auto takes OVSGroup, as DPDK moves the packets of br0 past the kernel and OVSMirror could not be had: "
    assert whys(node) == {f"{why}the bridge is full of mirrors"}, "and not what to do, as nothing has to be done"
    groups = node.groups.has
    anew: list[object] = []
    monkeypatch.setattr(module, "select", lambda *given: anew.append(given) or select(*given))
    for refused in ({}, {INGRESS_MIRROR: FULL}, {}, {EGRESS_MIRROR: FULL, INGRESS_MIRROR: FULL}, {}):
        node.mirrors.refused = refused
        one_more_pass(node)
        assert node.backends("web") == GROUPS and node.groups.has is groups and node.mirrors.has == {}
    assert anew == [], "others' mirrors come and go, and nothing is decided anew"
    monkeypatch.setattr(auto, "REGAIN", 0.0)
    node.mailbox.changed()
    eventually(lambda: node.backends("web") == MIRRORS and node.groups.has == {} and node.copied() == BOTH_PODS)


def test_auto_takes_a_group_only_for_the_direction_that_has_no_mirror_left(node: Node) -> None:
    node.polled()
    node.mirrors.refused = {INGRESS_MIRROR: FULL}
    node.want(tap(backend="Auto"))
    eventually(lambda: programmed(node) and node.copied() == BOTH_PODS)
    assert node.backends("web") == {("Ingress", "OVSGroup"), ("Egress", "OVSMirror")}
    assert node.mirrors.has.keys() == {EGRESS_MIRROR} and node.groups.has.keys() == {INGRESS_GROUP}


def test_a_mirror_is_taken_at_once_where_the_group_that_was_taken_instead_is_refused(node: Node) -> None:
    node.polled()
    node.mirrors.refused = {INGRESS_MIRROR: FULL}
    node.want(tap(backend="Auto", direction="Ingress"))
    eventually(lambda: programmed(node) and node.backends("web") == {("Ingress", "OVSGroup")})
    node.mirrors.refused, node.groups.refused = {}, {INGRESS_GROUP: "bridge br0 snoops"}
    node.mailbox.changed()
    eventually(lambda: programmed(node) and node.backends("web") == {("Ingress", "OVSMirror")} and node.groups.has == {})
    assert node.copied() == BOTH_PODS


def test_what_auto_took_for_want_of_a_mirror_stays_while_open_vswitch_is_away(node: Node) -> None:
    node.polled()
    node.mirrors.refused = {INGRESS_MIRROR: FULL}
    node.want(tap(backend="Auto", direction="Ingress"))
    eventually(lambda: programmed(node) and node.backends("web") == {("Ingress", "OVSGroup")})
    node.switch_away(True)
    eventually(lambda: node.condition("web", "Programmed")[1] == "NotApplied")
    node.want(tap(backend="Auto", direction="Ingress", packet={"snapLength": 64}))
    eventually(lambda: any(program.snap_length == 64 for program in node.pipeline.has.programs.values()))
    assert node.copied() == BOTH_PODS and node.backends("web") == {("Ingress", "OVSGroup")}
    node.switch_away(False)
    eventually(lambda: programmed(node) and node.mirrors.has == {})


def test_a_tap_that_names_mirrors_is_refused_beside_one_that_leaves_it_to_auto(node: Node) -> None:
    node.polled()
    node.mirrors.refused = {INGRESS_MIRROR: FULL}
    node.want(tap("named", direction="Ingress"), tap(backend="Auto", direction="Ingress"))
    eventually(lambda: programmed(node) and node.condition("named", "Programmed")[1] == "NoMirror")
    assert f"{FULL}; or use spec.backend: Auto, which takes another way where it can" in node.condition("named", "Programmed")[2]
    assert node.copied() == BOTH_PODS and node.mirrors.has == {}


def test_where_nothing_is_refused_no_bridge_is_asked_for_groups(node: Node) -> None:
    """It means to read all of its flows."""
    node.polled()
    asked: list[DataPlane] = []
    refusals = node.groups.refusals
    node.groups.refusals = lambda wanted: asked.append(wanted) or refusals(wanted)
    node.want(tap(backend="Auto"))
    eventually(lambda: programmed(node) and node.backends("web") == MIRRORS)
    assert asked and not any(wanted.groups for wanted in asked)


def test_a_pass_without_news_plans_nothing_anew_and_still_puts_right_what_others_changed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.want(tap())
    eventually(lambda: programmed(node) and not node.loop._feed_problems)
    made: list[object] = []
    monkeypatch.setattr(module, "select", lambda *arguments: made.append(arguments))
    node.pipeline.has = replace(node.pipeline.has, sources=())
    node.mirrors.has = {}
    node.mailbox.changed()
    eventually(lambda: node.copied() == BOTH_PODS and node.mirrors.has != {})
    assert made == []


def test_a_scrape_shows_what_has_happened_since_the_last_tick(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.want(tap(direction="Egress"))
    eventually(lambda: programmed(node))
    monkeypatch.setattr(module, "TICK", 3600.0)
    ticks = node.mailbox.call(lambda: node.loop.view.read_at)
    for seen in (3, 8):
        node.pipeline.points = dict.fromkeys(node.accounts.used_slots(), PointCounters(seen=seen))
        node.mailbox.call(node.loop.refresh)
        assert f'fate="seen",interface="eth0",pod="web-1",pod_namespace="shop",tap="web",tap_namespace="shop"}} {seen}.0' in (
            node.loop.metrics.render().decode()
        )
    assert node.loop.view.read_at > ticks


def test_what_is_not_done_yet_is_said_of_the_taps_it_concerns_and_of_no_others(node: Node) -> None:
    node.want(tap("one", podSelector={"matchLabels": {"number": "1"}}), tap("two", podSelector={"matchLabels": {"number": "2"}}))
    pods = tuple(replace(item, labels={"number": item.ref.name[-1]}) for item in node.world.inventory.pods)
    node.world.inventory = replace(node.world.inventory, pods=pods)
    node.mailbox.changed()
    eventually(lambda: programmed(node, "one") and programmed(node, "two"))
    ingress = frozenset({Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS)})
    node.mirrors.unlike = (
        Shortfall("not done yet: add 1 port", ingress, frozenset({"uuid-2"})),
        Shortfall("not done yet: delete mirror old", frozenset()),
    )
    node.mailbox.changed()
    eventually(lambda: node.condition("two", "Programmed")[1:] == ("NotVerified", "not done yet: add 1 port"))
    assert programmed(node, "one")
    assert "not done yet: delete mirror old" in node.loop.view.problems
    node.mirrors.unlike = ()
    eventually(lambda: programmed(node, "two") and node.loop.view.problems == ())


def test_a_tap_that_the_preprocessor_cannot_hold_is_said_and_the_others_go_on(node: Node) -> None:
    node.pipeline.unwritable = {"shop/odd": "OverflowError"}
    node.want(tap("odd"), tap("web"))
    eventually(lambda: programmed(node) and node.condition("odd", "Programmed")[1] == "Unwritable")
    assert node.copied() == BOTH_PODS


@pytest.mark.parametrize("trouble", [Retry("the kernel answers: no memory"), OSError(12, "no memory")])
def test_a_tap_port_that_cannot_be_made_is_said_and_other_taps_go_on(node: Node, trouble: Exception) -> None:
    node.pipeline.unmakeable = {Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS): trouble}
    node.want(tap("in", direction="Ingress"), tap("out", direction="Egress"))
    eventually(lambda: programmed(node, "out") and "no memory" in node.condition("in", "Programmed")[2])
    assert {name for name, _ in node.copied()} == {"out"}
    node.pipeline.unmakeable = {}
    eventually(lambda: programmed(node, "in"))
