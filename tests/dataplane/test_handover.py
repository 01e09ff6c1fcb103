"""Copies that CPUs set aside work at: all of them there, none lost while that changes, and what doesn't get there is counted."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataplane.handing_over import OLD, handing_over, sent_by_cpu
from tests.dataplane.hooked_node import PEER, POD, HookedNode, force_clsact
from tests.dataplane.test_ebpf_hooks import (
    BROADCAST,
    KINDS,
    MSS,
    datagram,
    first,
    inner,
    keys,
    segments,
    super_packet,
)
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import EGRESS, INGRESS, PEER_MAC, POD_MAC, Node, ip, wait_until, why_not
from vtap_agent.drivers import links, steering
from vtap_agent.errors import TellUser
from vtap_agent.pipeline import Pipeline, devices, handover
from vtap_agent.pipeline.kernel import ZERO
from vtap_agent.plan.dataplane import ANY_VLAN, Action, Sampling, SamplingType, TapProgram

NEEDS_CHECKSUM, GSO_UDP_L4 = 1, 5
"""Of struct virtio_net_hdr."""
TICKETS = 0
"""Where struct cursor has them, in bytes."""
WAY = devices.handover_devices("test-node")


@pytest.fixture(params=["tcx", "clsact"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HookedNode]:
    """As on this kernel, and as before Linux 6.6."""
    if reason := why_not():
        pytest.skip(reason)
    if request.param == "clsact":
        force_clsact(monkeypatch)
    with handing_over(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture
def elsewhere(node: HookedNode) -> Iterator[None]:
    """Whoever sends is on a CPU that isn't set aside."""
    allowed = os.sched_getaffinity(0)
    rest = allowed - node.export_cpus
    if not rest:
        pytest.skip("needs two CPUs")
    os.sched_setaffinity(0, rest)
    yield
    os.sched_setaffinity(0, allowed)


@pytest.mark.usefixtures("elsewhere")
def test_copies_are_worked_at_there(node: HookedNode) -> None:
    node.apply(node.plane())
    payload = os.urandom(MSS * 20 + 17)
    packet = super_packet(payload)
    copies, plain, whole = node.capture(), node.sender(POD), node.sender(POD, offload=True)
    plain.send(KINDS["IPv4"])
    assert [inner(copy) for copy in copies.frames(1)] == [KINDS["IPv4"]]
    whole.send(packet)
    assert segments(packet, copies.frames(21), 4) == payload
    node.settled(1)
    (cpu,) = node.export_cpus
    assert sent_by_cpu(node.root, 1) == {cpu: 22}


@pytest.mark.usefixtures("elsewhere")
def test_what_open_vswitch_copies_is_worked_at_there_too(node: HookedNode) -> None:
    desired = Node.plane(node)
    node.apply(desired)
    toward = [replace_macs(KINDS[kind]) for kind in ("IPv4", "IPv6")]
    copies = node.capture()
    for frame in toward:
        node.tap(INGRESS, frame)
    node.tap(EGRESS, KINDS["IPv4"])
    assert sorted(map(inner, copies.frames(3))) == sorted([*toward, KINDS["IPv4"]])
    node.settled(0)
    node.settled(1)
    (cpu,) = node.export_cpus
    assert (sent_by_cpu(node.root, 0), sent_by_cpu(node.root, 1)) == ({cpu: 2}, {cpu: 1})
    ip("link", "set", WAY.far, "down")
    node.tap(EGRESS, KINDS["IPv4"])
    assert dict(node.settled(1).dropped) == {"handover": 1}


def replace_macs(frame: bytes) -> bytes:
    """From the peer to the pod."""
    return POD_MAC + PEER_MAC + frame[12:]


def test_a_flood_reaches_each_receivers_tap_there_too(node: HookedNode) -> None:
    node.apply(Node.plane(node))
    copies = node.capture()
    flood = BROADCAST + PEER_MAC + KINDS["IPv4"][12:]
    node.tap(INGRESS, flood)
    assert [inner(copy) for copy in copies.frames(1)] == [flood]
    assert (node.settled(0).seen, node.settled(0).sent) == (1, 1)


def test_tap_ports_copy_on_while_it_changes_where(node: HookedNode) -> None:
    desired, cpus = Node.plane(node), node.export_cpus
    node.apply(desired)
    copies = node.capture()
    for round_, export_cpus in enumerate((frozenset[int](), cpus, cpus)):
        node.tap(EGRESS, KINDS["IPv4"])
        node.export_cpus = export_cpus
        node.reopen()
        node.tap(EGRESS, KINDS["IPv4"])
        node.apply(desired)
        node.tap(EGRESS, KINDS["IPv4"])
        assert [inner(copy) for copy in copies.frames(3)] == [KINDS["IPv4"]] * 3, round_
    counters = node.settled(1)
    assert (counters.seen, counters.sent, dict(counters.dropped)) == (9, 9, {})
    assert node.pipeline.stale() == 0


def test_what_finds_no_room_is_counted_in_segments(node: HookedNode) -> None:
    """A far end that takes nothing is to the sender what a full queue is."""
    node.apply(node.plane())
    arrived, plain, whole = node.receiver(PEER, offload=True), node.sender(POD), node.sender(POD, offload=True)
    ip("link", "set", WAY.far, "mtu", "68")
    plain.send(KINDS["IPv4"])
    ip("link", "set", WAY.far, "down")
    whole.send(super_packet(os.urandom(MSS * 20 + 17)))
    assert len(arrived.frames(2)) == 2
    counters = node.settled(1)
    assert (counters.seen, counters.handed, counters.sent) == (22, 0, 0)
    assert dict(counters.dropped) == {"handover": 22}
    assert node.pipeline.counters().pair_dropped == 0


def tickets_taken(node: HookedNode) -> int:
    """By all CPUs since the maps were made."""
    each = node.pipeline._kernel.per_cpu("cursors", ZERO)
    return sum(struct.unpack_from("=I", raw, TICKETS)[0] for raw in each)


def test_what_finds_no_room_uses_up_no_ticket(node: HookedNode) -> None:
    """Those are the ones of copies that wait."""
    node.apply(node.plane())
    plain = node.sender(POD)
    ip("link", "set", WAY.far, "down")
    before = tickets_taken(node)
    for _ in range(5):
        plain.send(KINDS["IPv4"])
    assert dict(node.settled(1).dropped) == {"handover": 5}
    assert tickets_taken(node) == before


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),)], ids=["plain", "tagged"])
def test_copies_are_made_here_where_the_way_is_refused_while_the_pair_is_made_anew(
    node: HookedNode, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tags: tuple[tuple[int, int], ...]
) -> None:
    desired = Node.plane(node)
    desired = replace(desired, sources=tuple(replace(one, vlan=ANY_VLAN) for one in desired.sources))
    node.apply(desired)
    backlog = tmp_path_factory.mktemp("sysctl") / "backlog"
    backlog.write_text("250000\n")
    with monkeypatch.context() as patched:
        patched.setattr(handover, "BACKLOG", backlog)
        ip("link", "del", devices.pair_devices("test-node").near)
        with pytest.raises(TellUser, match="netdev_max_backlog"):
            node.apply(desired)
        copies, payload = node.capture(), os.urandom(MSS * 3)
        packet = super_packet(payload, tags=tags)
        node.writer(EGRESS, offload=True).send(packet)
        assert segments(packet, copies.frames(3), 4, len(tags)) == payload
        assert (node.settled(1).sent, dict(node.settled(1).dropped)) == (3, {})
    node.apply(desired)


def test_a_second_tap_is_not_charged_for_the_first(node: HookedNode) -> None:
    node.apply(node.two_taps(first(1), node.plane().programs["shop/web"]))
    copies, whole = node.capture(), node.sender(POD, offload=True)
    ip("link", "set", WAY.far, "down")
    whole.send(super_packet(os.urandom(MSS * 10)))
    assert keys(copies.frames(1)) == [1], "a cut segment has its own way"
    assert dict(node.settled(1).dropped) == {}
    assert dict(node.settled(3).dropped) == {"handover": 10}


def test_set_aside_or_not_may_change_with_any_start_and_no_copy_is_lost(node: HookedNode) -> None:
    node.apply(node.plane())
    copies, sender, cpus = node.capture(), node.sender(POD), node.export_cpus
    for round_, export_cpus in enumerate((frozenset[int](), cpus, cpus, frozenset[int](), cpus)):
        sender.send(KINDS["IPv4"])
        node.export_cpus = export_cpus
        node.reopen()
        sender.send(KINDS["IPv4"])
        node.apply(node.plane())
        assert (links.index_of(WAY.far) is not None) == bool(export_cpus)
        assert steering.steered(WAY.far) == export_cpus
        sender.send(KINDS["IPv4"])
        assert [inner(copy) for copy in copies.frames(3)] == [KINDS["IPv4"]] * 3, round_
    counters = node.settled(1)
    assert (counters.seen, counters.sent, dict(counters.dropped)) == (15, 15, {})
    assert node.pipeline.stale() == 0


@pytest.mark.parametrize("break_it", [("link", "del", WAY.near), ("link", "set", WAY.far, "down")], ids=["gone", "down"])
def test_a_way_that_somebody_broke_is_made_again(node: HookedNode, break_it: tuple[str, ...]) -> None:
    node.apply(node.plane())
    ip(*break_it)
    assert any("pair" in step.lower() for step in node.pipeline.verify(node.plane()))
    node.apply(node.plane())
    copies = node.capture()
    node.sender(POD).send(KINDS["IPv6"])
    assert [inner(copy) for copy in copies.frames(1)] == [KINDS["IPv6"]]


def test_steering_that_somebody_changed_is_set_again(node: HookedNode) -> None:
    node.apply(node.plane())
    steering.steer(WAY.far, frozenset())
    assert node.pipeline.verify(node.plane()) != []
    node.apply(node.plane())
    assert steering.steered(WAY.far) == node.export_cpus


def test_nothing_is_left(node: HookedNode) -> None:
    node.apply(node.plane())
    node.pipeline.destroy()
    assert [state.name for state in links.stamped() if "pair" in state.alias] == []
    node.reopen_closed()
    wait_until(lambda: links.index_of(WAY.far) is not None, "the way is there again")


def test_a_cpu_that_is_not_there_is_said(node: HookedNode) -> None:
    node.pipeline.close()
    with pytest.raises(TellUser, match=r"^--export-cpus: CPU 4095 is not up on this node; these are: 0"):
        Pipeline.open(node.root, "test-node", frozenset({4095}))
    node.reopen_closed()


def test_a_sysfs_that_cannot_be_written_is_said(node: HookedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.pipeline.close()
    devices.remove_handover("test-node")
    monkeypatch.setattr(steering, "VIRTUAL_DEVICES", Path("/sys/devices/virtual/net"))
    with pytest.raises(TellUser, match=f"lacks {WAY.far}: let it show the network namespace that the agent is in"):
        Pipeline.open(node.root, "test-node", node.export_cpus)
    monkeypatch.undo()
    node.export_cpus = frozenset()
    node.reopen_closed()


def test_a_kernel_that_does_not_tell_what_it_drops_is_refused_each_time(
    node: HookedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not dropped looks the same as one of which that isn't told."""
    node.apply(node.plane())
    node.pipeline.close()
    devices.remove_handover("test-node")
    with monkeypatch.context() as patched:
        patched.setattr(handover, "_PROBE", BROADCAST + POD_MAC + b"\x88\xb5" + bytes(46))
        for _ in range(2):
            with pytest.raises(TellUser, match=r"^--export-cpus: this kernel doesn't tell what a full queue drops"):
                Pipeline.open(node.root, "test-node", node.export_cpus)
            assert links.index_of(WAY.far) is None
    copies = node.capture()
    node.sender(POD).send(KINDS["IPv4"])
    assert [inner(copy) for copy in copies.frames(1)] == [KINDS["IPv4"]], "copies are made as without the option"
    node.reopen_closed()


def test_a_way_left_half_made_is_not_taken(node: HookedNode) -> None:
    """As by an agent killed while it looked what the kernel tells."""
    node.apply(node.plane())
    node.pipeline.close()
    devices.make_handover("test-node", 68)
    node.reopen_closed()
    node.apply(node.plane())
    copies = node.capture()
    node.sender(POD).send(KINDS["IPv4"])
    assert [inner(copy) for copy in copies.frames(1)] == [KINDS["IPv4"]]


def test_a_queue_longer_than_there_are_tickets_is_refused(
    node: HookedNode, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backlog = tmp_path_factory.mktemp("sysctl") / "backlog"
    backlog.write_text("250000\n")
    node.pipeline.close()
    with monkeypatch.context() as patched:
        patched.setattr(handover, "BACKLOG", backlog)
        with pytest.raises(TellUser, match=r"net\.core\.netdev_max_backlog is 250000, .* set it to \d+ at most"):
            Pipeline.open(node.root, "test-node", node.export_cpus)
    node.reopen_closed()


@pytest.mark.usefixtures("elsewhere")
def test_super_packets_of_udp_stay(node: HookedNode) -> None:
    """Some would be taken apart in front of the crossing, and which can't be told."""
    node.apply(node.plane())
    payload = bytes(MSS * 3 + 5)
    whole = frames.udp(frames.POD4, frames.PEER4, 9, 80, payload)
    frame = frames.ethernet(PEER_MAC, POD_MAC, 0x0800, frames.ip(frames.POD4, frames.PEER4, 17, whole))
    header = struct.pack("=BBHHHH", NEEDS_CHECKSUM, GSO_UDP_L4, 42, MSS, 34, 6)
    copies = node.capture()
    try:
        node.sender(POD, offload=True).send(header + frame)
    except OSError as error:
        if error.errno == errno.EINVAL and os.uname().release.startswith(OLD):
            pytest.skip("before Linux 6.2 packet sockets send no super-packets of UDP")
        raise
    assert len(copies.frames(4)) == 4
    counters = node.settled(1)
    assert (counters.seen, counters.sent) == (4, 4)
    assert not node.export_cpus & sent_by_cpu(node.root, 1).keys()


def test_sampled_flows_go_to_all_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those whose hash is low are what the sampler keeps; by that alone they would all go to the first."""
    if reason := why_not():
        pytest.skip(reason)
    if len(steering.online_cpus()) < 2:
        pytest.skip("needs two CPUs")
    some = TapProgram(Action.INCLUDE, (), Sampling(SamplingType.FLOWS, flow_threshold=1 << 29))
    with handing_over(monkeypatch, tmp_path, cpus=2) as node:
        node.apply(node.plane(some))
        sender = node.sender(POD)
        for port in range(1, 513):
            sender.send(datagram(4, b"", port=port))
        counters = node.settled(1)
        # Binomial: mean 64, standard deviation 7.5; six of them.
        assert abs(counters.sent - 64) < 45
        assert sent_by_cpu(node.root, 1).keys() == node.export_cpus


def test_super_packets_may_be_as_large_as_the_kernel_makes_them(node: HookedNode) -> None:
    """Else they would be taken apart in front of the crossing (BIG TCP)."""
    limits = {}
    for name in (WAY.near,):
        listed = subprocess.run(
            ["ip", "-d", "link", "show", "dev", name], check=True, capture_output=True, text=True
        ).stdout.split()
        limits[name] = {key: int(listed[listed.index(key) + 1]) for key in ("gso_max_size", "tso_max_size") if key in listed}
    if "tso_max_size" not in limits[WAY.near]:
        pytest.skip("the kernel or iproute2 says nothing of it")
    assert limits[WAY.near]["gso_max_size"] == limits[WAY.near]["tso_max_size"]
