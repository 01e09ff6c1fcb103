"""Copies made at a pod's own device: right, once, and the originals as if nobody had looked."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataplane.attached import programs_at
from tests.dataplane.cut_copies import CUTTINGS, told
from tests.dataplane.handing_over import handing_over
from tests.dataplane.hooked_node import MACS, PEER, POD, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, Beside, HookedNode, force_clsact
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import KEY, PEER_MAC, POD_MAC, wait_until, why_not
from vtap_agent.drivers import libbpf, links, qdiscs
from vtap_agent.errors import Retry
from vtap_agent.pipeline import devices
from vtap_agent.plan.dataplane import (
    Action,
    DataPlane,
    Direction,
    Match,
    PortRange,
    Sampling,
    SamplingType,
    TapProgram,
)

MSS = 1300
HOUR = 3_600_000_000_000
OUTER, TRAILER = 54, 20
ALL = TapProgram(Action.INCLUDE, ())
BROADCAST = bytes.fromhex("ffffffffffff")
MULTICAST = bytes.fromhex("01005e010203")


def first(packets: int) -> TapProgram:
    return TapProgram(Action.INCLUDE, (), Sampling(SamplingType.PER_INTERVAL, packets=packets, interval_ns=HOUR))


def one_in(number: int) -> TapProgram:
    return TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=number))


@pytest.fixture(params=["tcx", "clsact", "handover"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HookedNode]:
    """As on this kernel, as before Linux 6.6, and with a CPU set aside for copies."""
    if reason := why_not():
        pytest.skip(reason)
    if request.param == "handover":
        with handing_over(monkeypatch, tmp_path) as made:
            yield made
        return
    if request.param == "clsact":
        force_clsact(monkeypatch)
    with HookedNode() as made:
        yield made


@pytest.fixture
def hooked() -> Iterator[HookedNode]:
    """As on this kernel."""
    if reason := why_not():
        pytest.skip(reason)
    with HookedNode() as made:
        yield made


@pytest.fixture
def clsact(monkeypatch: pytest.MonkeyPatch) -> Iterator[HookedNode]:
    """As before Linux 6.6."""
    if reason := why_not():
        pytest.skip(reason)
    force_clsact(monkeypatch)
    with HookedNode() as made:
        yield made


def datagram(version: int, payload: bytes, port: int = 80, source: str = POD, target: bytes | None = None) -> bytes:
    """From one of the two pods to the other, or to `target`."""
    ends = {POD: (frames.POD4, frames.POD6), PEER: (frames.PEER4, frames.PEER6)}
    other = PEER if source == POD else POD
    a, b = (ends[name][version == 6] for name in (source, other))
    packet = frames.ip(a, b, 17, frames.udp(a, b, 9, port, payload))
    return frames.ethernet(target or MACS[other], MACS[source], frames.ethertype(a), packet)


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    return frame[:12] + b"".join(struct.pack(">HH", *tag) for tag in tags) + frame[12:]


def inner(copy: bytes) -> bytes:
    return copy[OUTER:-TRAILER]


def keys(copies: list[bytes]) -> list[int]:
    return [struct.unpack(">I", copy[46:50])[0] - KEY for copy in copies]


ARP = frames.ethernet(BROADCAST, POD_MAC, 0x0806, bytes.fromhex("0001080006040001") + bytes(20))
KINDS = {
    "IPv4": datagram(4, bytes(range(200))),
    "IPv6": datagram(6, bytes(range(200))),
    "short": datagram(4, b""),
    "a tag": tagged(datagram(4, b"tagged"), (0x8100, 0x6000 | 30)),
    "a tag on IPv6": tagged(datagram(6, b"tagged"), (0x8100, 5)),
    "two tags": tagged(datagram(6, b"tagged twice"), (0x88A8, 30), (0x8100, 0x2000 | 77)),
    "broadcast": datagram(4, b"to all", target=BROADCAST),
    "multicast": datagram(4, b"to many", target=MULTICAST),
    "ARP": ARP,
    "fragment": frames.ethernet(
        PEER_MAC, POD_MAC, 0x0800, frames.ipv4(frames.POD4, frames.PEER4, 17, bytes(64), fragment=0x2001)
    ),
    "no IP": frames.ethernet(PEER_MAC, POD_MAC, 0x88CC, os.urandom(50)),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_pod_sends_is_copied_once_and_arrives_as_it_was(node: HookedNode, name: str) -> None:
    node.apply(node.plane())
    copies, arrived = node.capture(), node.receiver(PEER)
    node.sender(POD).send(KINDS[name])
    assert [inner(copy) for copy in copies.frames(1)] == [KINDS[name]]
    assert arrived.frames(1) == [KINDS[name]]
    counters = node.settled(1)
    assert (counters.seen, counters.sent, counters.seen_bytes) == (1, 1, len(KINDS[name]))
    assert node.settled(0).seen == 0


@pytest.mark.parametrize("name", KINDS)
def test_what_a_pod_receives_is_copied_once_and_arrives_as_it_was(node: HookedNode, name: str) -> None:
    frame = KINDS[name]
    frame = (POD_MAC if frame[:6] == PEER_MAC else frame[:6]) + PEER_MAC + frame[12:]
    node.apply(node.plane())
    copies, arrived = node.capture(), node.receiver(POD)
    node.sender(PEER).send(frame)
    assert [inner(copy) for copy in copies.frames(1)] == [frame]
    assert arrived.frames(1) == [frame]
    counters = node.settled(0)
    assert (counters.seen, counters.sent, counters.seen_bytes) == (1, 1, len(frame))
    assert node.settled(1).seen == 0


def super_packet(payload: bytes, version: int = 4, source: str = POD, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """With its virtio header in front."""
    ends = {POD: (frames.POD4, frames.POD6), PEER: (frames.PEER4, frames.PEER6)}
    other = PEER if source == POD else POD
    a, b = (ends[name][version == 6] for name in (source, other))
    segment = frames.tcp_super(a, b, 5201, 40000, payload)
    frame = frames.ethernet(MACS[other], MACS[source], frames.ethertype(a), frames.ip(a, b, 6, segment), tags)
    return frames.virtio(version, MSS, len(frame) - len(payload)) + frame


def segments(packet: bytes, copies: list[bytes], version: int, tags: int = 0) -> bytes:
    """The payload that the copies carry together; each has right checksums and the packet's addresses and tags."""
    parts: list[tuple[int, bytes]] = []
    for copy in map(inner, copies):
        assert copy[: 14 + 4 * tags] == packet[10 : 24 + 4 * tags]
        start = 14 + 4 * tags + (20 if version == 4 else 40)
        segment = copy[start:]
        addresses = copy[start - 8 : start] if version == 4 else copy[start - 32 : start]
        tail = struct.pack(">BBH", 0, 6, len(segment)) if version == 4 else struct.pack(">IxxxB", len(segment), 6)
        assert frames.checksum(addresses + tail + segment) == 0
        parts.append((struct.unpack(">I", segment[4:8])[0], segment[20:]))
    return b"".join(part for _, part in sorted(parts))


@pytest.mark.parametrize("source", [POD, PEER])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [(), ((0x8100, 30),)], ids=["untagged", "tagged"])
def test_a_super_packet_goes_on_whole_and_is_copied_as_its_segments(
    node: HookedNode, source: str, version: int, tags: tuple[tuple[int, int], ...]
) -> None:
    payload = os.urandom(MSS * 20 + 17)
    packet = super_packet(payload, version, source, tags)
    slot = 1 if source == POD else 0
    node.apply(node.plane())
    copies, arrived = node.capture(), node.receiver(PEER if source == POD else POD, offload=True)
    node.sender(source, offload=True).send(packet)
    assert segments(packet, copies.frames(21), version, len(tags)) == payload
    (original,) = arrived.frames(1)
    assert original[10:] == packet[10:], "headers, checksum field and payload as they were"
    assert original[1] & 0x7F == packet[1], "still to be segmented by whoever is asked to"
    assert struct.unpack_from("=H", original, 4) == (MSS,)
    counters = node.settled(slot)
    assert (counters.seen, counters.handed, counters.sent) == (21, 21, 21)
    assert counters.seen_bytes == len(payload) + 21 * (len(packet) - 10 - len(payload))


@pytest.mark.parametrize("source", [POD, PEER])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [(), ((0x8100, 30),)], ids=["untagged", "tagged"])
def test_each_segment_of_a_super_packet_is_cut_on_its_own(
    node: HookedNode, source: str, version: int, tags: tuple[tuple[int, int], ...]
) -> None:
    payload = os.urandom(MSS * 20 + 17)
    packet = super_packet(payload, version, source, tags)
    headers = len(packet) - 10 - len(payload)
    node.apply(node.plane())
    copies = node.capture()
    node.sender(source, offload=True).send(packet)
    whole = copies.frames(21)
    assert segments(packet, whole, version, len(tags)) == payload
    for name, cutting in CUTTINGS.items():
        node.apply(node.plane(cutting.program, node.destination(**cutting.destination)))
        copies, arrived = node.capture(), node.receiver(PEER if source == POD else POD, offload=True)
        node.sender(source, offload=True).send(packet)
        expected = [cutting.of(inner(copy), headers) for copy in whole]
        assert [told(copy) for copy in copies.frames(21)] == expected, name
        assert [original[10:] for original in arrived.frames(1)] == [packet[10:]], name
    counters = node.settled(1 if source == POD else 0)
    assert counters.seen == counters.sent == 21 * (1 + len(CUTTINGS)) and dict(counters.dropped) == {}


def transport(version: int, protocol: str, source: str, payload: bytes, *, complete: bool) -> bytes:
    """A datagram or segment between the two pods; one that is not complete has its checksum left to the device."""
    ends = {POD: (frames.POD4, frames.POD6), PEER: (frames.PEER4, frames.PEER6)}
    a, b = (ends[name][version == 6] for name in (source, PEER if source == POD else POD))
    made = {
        ("UDP", True): frames.udp,
        ("UDP", False): frames.udp_partial,
        ("TCP", True): frames.tcp,
        ("TCP", False): frames.tcp_super,
    }[protocol, complete](a, b, 9, 80, payload)
    target = MACS[PEER if source == POD else POD]
    return frames.ethernet(target, MACS[source], frames.ethertype(a), frames.ip(a, b, 17 if protocol == "UDP" else 6, made))


@pytest.mark.parametrize("source", [POD, PEER])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
def test_a_checksum_left_to_the_device_is_complete_in_the_copy_and_still_left_in_the_original(
    node: HookedNode, source: str, version: int, protocol: str
) -> None:
    """As what pods on one node send each other is, with the offload that veths have: packets that nobody has to segment."""
    node.apply(node.plane())
    field, start = 6 if protocol == "UDP" else 16, 14 + (20 if version == 4 else 40)
    payloads = [b"", b"odd", bytes(range(256)) * 5]
    # One whose sum is such that the checksum comes out as 0, for which UDP writes all ones: 0 would say that there is none.
    alone = transport(version, protocol, source, bytes(2), complete=True)
    payloads.append(alone[start + field : start + field + 2])
    copies, arrived = node.capture(), node.receiver(PEER if source == POD else POD, offload=True)
    sender = node.sender(source, offload=True)
    partial = [transport(version, protocol, source, payload, complete=False) for payload in payloads]
    for frame in partial:
        sender.send(frames.virtio_checksum(start, field) + frame)
    expected = [transport(version, protocol, source, payload, complete=True) for payload in payloads]
    found = [inner(copy) for copy in copies.frames(len(payloads))]
    assert found[:-1] == expected[:-1]
    zero = found[-1][start + field : start + field + 2]
    assert zero == b"\xff\xff" or (protocol == "TCP" and zero == b"\0\0")
    originals = arrived.frames(len(payloads))
    assert [original[10:] for original in originals] == partial, "the field as it was"
    assert [original[:10] for original in originals] == [frames.virtio_checksum(start, field)] * len(payloads), "still to be done"


@pytest.mark.parametrize("source", [POD, PEER])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_of_a_super_packet_only_what_a_sampler_wants_is_made(hooked: HookedNode, source: str, version: int, wanted: int) -> None:
    node, slot = hooked, 1 if source == POD else 0
    payload = os.urandom(MSS * 20 + 17)
    packet = super_packet(payload, version, source)
    node.apply(node.plane())
    copies = node.capture()
    node.sender(source, offload=True).send(packet)
    expected = [inner(copy) for copy in copies.frames(21)]
    node.apply(node.plane(first(wanted)))
    node.pipeline.reset_slots([0, 1])
    arrived = node.receiver(PEER if source == POD else POD, offload=True)
    node.sender(source, offload=True).send(packet)
    assert [inner(copy) for copy in copies.frames(wanted)] == expected[:wanted]
    assert [original[10:] for original in arrived.frames(1)] == [packet[10:]]
    counters = node.settled(slot)
    assert (counters.seen, counters.sent, counters.unsampled) == (21, wanted, 21 - wanted)
    assert counters.handed == counters.arrived == (wanted if wanted <= 2 else 21)
    assert node.pipeline.stale() == 0


def test_one_in_n_segments_of_many_super_packets(hooked: HookedNode) -> None:
    node = hooked
    node.apply(node.plane(one_in(20)))
    packet = super_packet(os.urandom(MSS * 20))
    sender, copies = node.sender(POD, offload=True), node.capture()
    rounds = 400
    for number in range(rounds):
        sender.send(packet)
        if number % 50 == 49:
            node.settled(1)
    counters = node.settled(1)
    assert counters.seen == rounds * 20
    assert len(copies.frames(counters.sent)) == counters.sent
    # Binomial: mean 400, standard deviation 19.5; six of them.
    assert abs(counters.sent - rounds) < 6 * 19.5
    assert counters.handed < counters.seen / 3, "most hits are cut out alone"
    assert node.pipeline.counters().pair_dropped == 0


def transmitted(name: str) -> int:
    return int(Path(f"/sys/class/net/{name}/statistics/tx_packets").read_text())


def sent_into_the_pair() -> int:
    """Read in the node's own namespace, of which /sys may be another's: by ip."""
    total = 0
    for line in subprocess.run(["ip", "-s", "-o", "link"], check=True, capture_output=True, text=True).stdout.splitlines():
        name = line.split(": ")[1].split("@")[0]
        if name in (devices.pair_devices("test-node").near, devices.cut_devices("test-node").near):
            total += int(line.split("TX:")[1].split("\\")[1].split()[1])
    return total


UNWANTED = {
    "filter": TapProgram(Action.EXCLUDE, ()),
    "rule": TapProgram(Action.INCLUDE, (Match(Action.EXCLUDE, protocol=17, peer_ports=PortRange(80, 80)),)),
    "sampler": TapProgram(Action.INCLUDE, (), Sampling(SamplingType.FLOWS, flow_threshold=0)),
    "interval": TapProgram(Action.INCLUDE, (), Sampling(SamplingType.PER_INTERVAL, packets=0, interval_ns=HOUR)),
}


@pytest.mark.parametrize("why", UNWANTED)
def test_nothing_is_cloned_that_no_tap_wants(hooked: HookedNode, why: str) -> None:
    node = hooked
    node.apply(node.plane(UNWANTED[why]))
    arrived, sender = node.receiver(PEER), node.sender(POD)
    before = sent_into_the_pair()
    for _ in range(100):
        sender.send(KINDS["IPv4"])
    assert len(arrived.frames(100)) == 100
    counters = node.settled(1)
    assert (counters.seen, counters.excluded + counters.unsampled, counters.handed) == (100, 100, 0)
    assert sent_into_the_pair() == before


def test_two_taps_get_each_their_own(node: HookedNode) -> None:
    secret = TapProgram(Action.INCLUDE, (Match(Action.EXCLUDE, protocol=17, peer_ports=PortRange(4444, 4444)),), snap_length=64)
    node.apply(node.two_taps(ALL, secret))
    copies, arrived, sender = node.capture(), node.receiver(PEER), node.sender(POD)
    public, hidden = datagram(4, b"public" * 30), datagram(4, b"hidden" * 30, port=4444)
    for frame in (public, hidden):
        sender.send(frame)
    found = copies.frames(3)
    assert sorted(zip(keys(found), map(inner, found), strict=True)) == sorted([(1, public), (1, hidden), (3, public[:64])])
    assert arrived.frames(2) == [public, hidden]


def test_two_taps_on_super_packets_one_of_which_wants_a_segment(hooked: HookedNode) -> None:
    node = hooked
    payload = os.urandom(MSS * 10)
    packet = super_packet(payload)
    for order in ((ALL, first(1)), (first(2), ALL)):
        node.apply(node.two_taps(*order))
        node.pipeline.reset_slots(range(4))
        copies, arrived = node.capture(), node.receiver(PEER, offload=True)
        node.sender(POD, offload=True).send(packet)
        wanted = [program.sampling.packets or 10 for program in order]
        found = copies.frames(sum(wanted))
        assert [keys(found).count(slot) for slot in (1, 3)] == wanted
        whole = [copy for copy in found if keys([copy]) == [1 if order[0] is ALL else 3]]
        assert segments(packet, whole, 4) == payload
        assert [original[10:] for original in arrived.frames(1)] == [packet[10:]]


# --- beside others -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("beside")


def both_ways(node: HookedNode, frames_each: int = 20) -> tuple[int, int]:
    """(arrived at the peer, arrived at the pod) of as many sent each way."""
    at_peer, at_pod = node.receiver(PEER), node.receiver(POD)
    out, back = node.sender(POD), node.sender(PEER)
    for _ in range(frames_each):
        out.send(datagram(4, b"out"))
        back.send(datagram(4, b"back", source=PEER))
    return len(at_peer.frames(frames_each, 1)), len(at_pod.frames(frames_each, 1))


def test_whoever_gets_in_front_is_noticed_and_passed_again(node: HookedNode, compiled: Path) -> None:
    plane = node.plane()
    other, index = Beside(compiled, TC_ACT_OK), socket.if_nametoindex(POD)
    node.apply(plane)
    for egress in (False, True):
        other.at_clsact(index, egress=egress) if _without_tcx() else other.at_tcx(index, egress=egress, first=True)
    assert len(node.backend.verify(plane)) == 2
    node.apply(plane)
    copies = node.capture()
    assert both_ways(node) == (20, 20)
    assert (other.count, len(copies.frames(40))) == (40, 40)
    other.close()


@pytest.mark.parametrize("verdict", [TC_ACT_UNSPEC, TC_ACT_OK])
@pytest.mark.parametrize("when", ["before", "after"])
def test_others_programs_run_whether_they_come_before_or_after_ours(
    node: HookedNode, compiled: Path, verdict: int, when: str
) -> None:
    """One that lets everything pass ends the list, as Cilium's does: attached before or after ours, it sees all, and so do we."""
    other, index = Beside(compiled, verdict), socket.if_nametoindex(POD)

    def attach() -> None:
        for egress in (False, True):
            other.at_clsact(index, egress=egress) if _without_tcx() else other.at_tcx(index, egress=egress)

    if when == "before":
        attach()
    node.apply(node.plane())
    if when == "after":
        attach()
        # What is added to clsact comes in front within its priority: a pass puts ours back there.
        node.apply(node.plane())
    copies = node.capture()
    arrived = both_ways(node)
    seen = other.count
    assert arrived == (20, 20)
    assert seen == 40
    assert len(copies.frames(40)) == 40
    node.apply(DataPlane())
    both_ways(node)
    assert other.count == 2 * seen, "it runs on when ours has gone"
    other.close()


def _without_tcx() -> bool:
    return not libbpf.has_tcx()


def test_what_a_later_program_drops_was_copied_and_stays_dropped(node: HookedNode, compiled: Path) -> None:
    """Both directions are seen before others' policy: docs/decisions/0100."""
    other, index = Beside(compiled, TC_ACT_SHOT), socket.if_nametoindex(POD)
    for egress in (False, True):
        other.at_clsact(index, egress=egress, priority=5)
    node.apply(node.plane())
    copies = node.capture()
    assert both_ways(node) == (0, 0)
    assert len(copies.frames(40)) == 40
    other.close()


def test_a_program_behind_ours_finds_the_packet_untouched(node: HookedNode, compiled: Path) -> None:
    other, index = Beside(compiled), socket.if_nametoindex(POD)
    node.apply(node.plane())
    if _without_tcx():
        other.at_clsact(index, egress=False, marking=True)  # in front of ours: the latest comes first within a priority
        other.at_clsact(index, egress=False, priority=5)
    else:
        other.at_tcx(index, egress=False, first=True, marking=True)
        other.at_tcx(index, egress=False)
    frame = tagged(datagram(4, b"tagged"), (0x8100, 0x6000 | 30))
    copies = node.capture()
    node.sender(POD).send(frame)
    assert [inner(copy) for copy in copies.frames(1)] == [frame]
    assert (other.count, other.note(1), other.note(3), other.note(4)) == (1, 0xCAFE, 0x6000 | 30, len(frame) - 4)
    queue, hash_ = other.note(2), other.note(7)
    node.apply(DataPlane())
    node.sender(POD).send(frame)
    wait_until(lambda: other.count == 2, "the same without us")
    assert (other.note(2), other.note(7)) == (queue, hash_)
    other.close()


def test_clsact_of_others_stays_and_ours_goes(clsact: HookedNode, compiled: Path) -> None:
    node = clsact
    index, theirs = socket.if_nametoindex(POD), socket.if_nametoindex(PEER)
    other = Beside(compiled)
    other.at_clsact(theirs, egress=True, priority=7, handle=3)
    feed = node.feed(Direction.EGRESS, PEER)
    plane = node.plane()
    node.apply(replace(plane, hooks=plane.hooks | {feed}))
    assert _qdisc(POD) and _qdisc(PEER)
    node.apply(DataPlane())
    assert not _qdisc(POD), "we added it"
    assert _qdisc(PEER), "others use it"
    assert libbpf.clsact_program(theirs, 7, 3, egress=True) is not None
    assert index == socket.if_nametoindex(POD)
    other.close()


def _qdisc(name: str, kind: str = "clsact") -> bool:
    told = subprocess.run(["tc", "qdisc", "show", "dev", name], check=True, capture_output=True, text=True).stdout
    return f"qdisc {kind} " in told


def _takes_all(priority: int) -> None:
    """A filter of a kind that is not ours, that ends the list for every packet that the pod sends; it lets them pass."""
    command = f"tc filter add dev {POD} ingress protocol all prio {priority} u32 match u32 0 0 flowid 1:1"
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True)
    if "classifier not found" in done.stderr:
        pytest.skip("this kernel has no u32")
    assert done.returncode == 0, done.stderr


def test_a_filter_of_another_kind_that_stays_in_front_is_told_until_it_goes(clsact: HookedNode) -> None:
    node, plane = clsact, clsact.plane()
    _qdisc_command("add", "clsact")
    for priority in (1, 3):
        _takes_all(priority)
    node.apply(plane)
    ((feed, sentence),) = node.backend.problems(plane, frozenset()).items()
    assert (feed.place, feed.direction) == (POD, Direction.EGRESS)
    assert "pod0" in sentence and "priority 1" in sentence and "Linux 6.6" in sentence
    assert copied(node, 20) == {0: 20, 1: 0}
    subprocess.run(["tc", "filter", "del", "dev", POD, "ingress", "prio", "1"], check=True)
    node.apply(plane)
    assert node.backend.problems(plane, frozenset()) == {}
    assert copied(node, 40) == {0: 20, 1: 20}


def test_an_ebpf_filter_of_another_protocol_that_stays_in_front_is_told_until_it_goes(clsact: HookedNode, compiled: Path) -> None:
    """As many programs that are meant for IP only are attached by hand: one priority holds one protocol, and ours is "all"."""
    node, plane, pin = clsact, clsact.plane(), clsact.root / "beside"
    other = Beside(compiled, TC_ACT_OK)
    libbpf.pin(other.program, pin)
    _qdisc_command("add", "clsact")
    command = f"tc filter add dev {POD} ingress protocol ip prio 1 bpf da pinned {pin}"
    subprocess.run(command.split(), check=True)
    pin.unlink()
    other.close()
    node.apply(plane)
    ((feed, sentence),) = node.backend.problems(plane, frozenset()).items()
    assert (feed.place, feed.direction) == (POD, Direction.EGRESS)
    assert "it is of another kind or protocol than ours and has priority 1" in sentence and "Linux 6.6" in sentence
    assert copied(node, 20) == {0: 20, 1: 0}
    subprocess.run(["tc", "filter", "del", "dev", POD, "ingress", "prio", "1"], check=True)
    node.apply(plane)
    assert node.backend.problems(plane, frozenset()) == {}
    assert copied(node, 40) == {0: 20, 1: 20}


# --- beside a qdisc of kind ingress, which has one side ----------------------------------------------------------------------


def _qdisc_command(*words: str, name: str = POD) -> None:
    """As the CNI bandwidth plugin and Open vSwitch's ingress_policing_rate do it."""
    subprocess.run(["tc", "qdisc", words[0], "dev", name, *words[1:]], check=True)


def unrefused(node: HookedNode, plane: DataPlane) -> DataPlane:
    """What the planner makes of it: refused feeds are neither attached nor looked up."""
    refused = node.backend.refusals(plane)
    sources = tuple(source for source in plane.sources if source.feed not in refused)
    return replace(plane, hooks=plane.hooks - refused.keys(), sources=sources)


def copied(node: HookedNode, count: int) -> dict[int, int]:
    """Of 20 packets each way, which all arrive, so many copies: how many by slot (0: Ingress, 1: Egress)."""
    before = {slot: node.settled(slot).seen for slot in (0, 1)}
    copies = node.capture()
    assert both_ways(node) == (20, 20)
    slots = keys(copies.frames(count))
    assert {slot: node.settled(slot).seen - before[slot] for slot in (0, 1)} == {slot: slots.count(slot) for slot in (0, 1)}
    return {slot: slots.count(slot) for slot in (0, 1)}


def test_beside_an_ingress_qdisc_what_a_pod_sends_is_copied_and_what_it_receives_is_refused(clsact: HookedNode) -> None:
    node = clsact
    _qdisc_command("add", "ingress")
    plane = node.plane()
    ((feed, sentence),) = node.backend.refusals(plane).items()
    assert (feed.place, feed.direction) == (POD, Direction.INGRESS)
    for words in (POD, "ingress", "tc qdisc del dev pod0 ingress", "tc qdisc add dev pod0 clsact", "Linux 6.6"):
        assert words in sentence
    node.apply(unrefused(node, plane))
    assert node.backend.verify(unrefused(node, plane)) == ()
    assert copied(node, 20) == {0: 0, 1: 20}
    node.apply(DataPlane())
    assert programs_at(POD) == []
    assert _qdisc(POD, "ingress"), "it is somebody else's"


def test_the_cure_for_an_ingress_qdisc_works(clsact: HookedNode) -> None:
    node, plane = clsact, clsact.plane()
    _qdisc_command("add", "ingress")
    node.apply(unrefused(node, plane))
    _qdisc_command("del", "ingress")
    _qdisc_command("add", "clsact")
    assert node.backend.refusals(plane) == {}
    node.apply(plane)
    assert copied(node, 40) == {0: 20, 1: 20}


def test_an_ingress_qdisc_that_takes_the_place_of_clsact_leaves_what_a_pod_sends(clsact: HookedNode) -> None:
    node, plane = clsact, clsact.plane()
    node.apply(plane)
    _qdisc_command("del", "clsact")
    _qdisc_command("add", "ingress")
    assert [feed.direction for feed in node.backend.refusals(plane)] == [Direction.INGRESS]
    node.apply(unrefused(node, plane))
    assert copied(node, 20) == {0: 0, 1: 20}
    node.apply(DataPlane())
    assert programs_at(POD) == []
    assert _qdisc(POD, "ingress")


@pytest.mark.parametrize("wanted", [{Direction.INGRESS}, {Direction.INGRESS, Direction.EGRESS}], ids=["Ingress", "both"])
def test_what_an_older_version_put_at_the_wrong_side_of_an_ingress_qdisc_goes(
    clsact: HookedNode, monkeypatch: pytest.MonkeyPatch, wanted: set[Direction]
) -> None:
    """It took every qdisc in clsact's place for clsact."""
    node, plane = clsact, clsact.plane()
    plane = replace(plane, hooks=frozenset(feed for feed in plane.hooks if feed.direction in wanted))
    plane = replace(plane, sources=tuple(source for source in plane.sources if source.feed in plane.hooks))
    _qdisc_command("add", "ingress")
    with monkeypatch.context() as older:
        older.setattr(qdiscs, "one_sided", frozenset)
        node.apply_steps(node.steps(plane))
        assert programs_at(POD) != []
    node.apply(unrefused(node, plane))
    assert (programs_at(POD) != []) is (Direction.EGRESS in wanted)
    if Direction.EGRESS in wanted:
        assert copied(node, 20) == {0: 0, 1: 20}
    node.apply(DataPlane())
    assert programs_at(POD) == []


def test_an_ingress_qdisc_that_comes_while_attaching_gets_nothing_at_its_wrong_side(clsact: HookedNode) -> None:
    node, plane = clsact, clsact.plane()
    steps = node.steps(plane)
    _qdisc_command("add", "ingress")
    with pytest.raises(Retry, match="tc qdisc del dev pod0 ingress"):
        node.apply_steps(steps)
    assert not [line for line in programs_at(POD) if "watch_ingress" in line]
    node.apply(unrefused(node, plane))
    assert copied(node, 20) == {0: 0, 1: 20}


def test_tcx_comes_before_an_ingress_qdisc_and_has_both_sides(hooked: HookedNode, compiled: Path) -> None:
    """Even where all that the qdisc meets is dropped."""
    if not libbpf.has_tcx():
        pytest.skip("this kernel has no tcx: it is Linux 6.6 that has it")
    node, plane, other = hooked, hooked.plane(), Beside(compiled, TC_ACT_SHOT)
    _qdisc_command("add", "ingress")
    other.at_clsact(socket.if_nametoindex(POD), egress=False)
    assert node.backend.refusals(plane) == {}
    node.apply(plane)
    copies = node.capture()
    assert both_ways(node) == (0, 20)
    slots = keys(copies.frames(40))
    assert (slots.count(0), slots.count(1), other.count) == (20, 20, 20)
    other.close()


# --- life --------------------------------------------------------------------------------------------------------------------


def test_a_restarted_agent_finds_everything_and_copies_on(node: HookedNode) -> None:
    plane = node.plane()
    node.apply(plane)
    copies, sender = node.capture(), node.sender(POD)
    for number in range(30):
        if number == 10:
            node.pipeline.close()
        if number == 20:
            node.reopen_closed()
        sender.send(datagram(4, struct.pack(">I", number)))
    assert len(copies.frames(30)) == 30
    assert node.steps(plane) == []
    assert node.settled(1).sent == 30


def test_without_a_lease_nothing_is_cloned_and_everything_passes(node: HookedNode) -> None:
    node.apply(node.plane())
    node.pipeline.renew_lease(0)
    arrived, before = node.receiver(PEER), sent_into_the_pair()
    node.sender(POD).send(KINDS["IPv4"])
    assert arrived.frames(1) == [KINDS["IPv4"]]
    counters = node.settled(1)
    assert (counters.seen, dict(counters.dropped)) == (1, {"lease": 1})
    assert sent_into_the_pair() == before


def test_a_device_that_goes_is_forgotten_and_its_successor_copied(node: HookedNode) -> None:
    node.apply(node.plane())
    before = node.feed(Direction.EGRESS)
    node.remove_pod(POD)
    node.apply_steps(node.steps(DataPlane()))
    assert node.backend.plan(DataPlane()) == ()
    node.add_pod(POD)
    assert node.feed(Direction.EGRESS) != before
    node.apply(node.plane())
    copies = node.capture()
    node.sender(POD).send(KINDS["IPv4"])
    assert [inner(copy) for copy in copies.frames(1)] == [KINDS["IPv4"]]


def test_a_link_that_somebody_takes_away_is_noticed_and_put_back(hooked: HookedNode) -> None:
    node, plane = hooked, hooked.plane()
    node.apply(plane)
    for pin in (node.root / "links").glob("hook_*_egress"):
        pin.unlink()
    (said,) = node.backend.verify(plane)
    assert "watch Egress at pod0" in said.sentence and said.feeds == {node.feed(Direction.EGRESS)}
    node.apply(plane)
    copies = node.capture()
    node.sender(POD).send(KINDS["IPv4"])
    assert len(copies.frames(1)) == 1


def test_our_own_devices_are_refused(hooked: HookedNode) -> None:
    near = devices.pair_devices("test-node").near
    plane = replace(hooked.plane(), hooks=frozenset({hooked.feed(Direction.EGRESS, near)}))
    ((feed, sentence),) = hooked.backend.refusals(plane).items()
    assert feed.place == near and "of VirtualTap's own" in sentence


def test_copies_on_their_way_through_a_tapped_device_are_not_copied(node: HookedNode) -> None:
    plane = node.plane()
    node.apply(plane)
    tunnel = frames.udp("198.18.0.1", "198.18.0.2", 50000, 4754, bytes(60))
    outer = frames.ethernet(PEER_MAC, POD_MAC, 0x0800, frames.ipv4("198.18.0.1", "198.18.0.2", 17, tunnel))
    arrived = node.receiver(PEER)
    node.sender(POD).send(outer)
    assert arrived.frames(1) == [outer]
    assert dict(node.settled(1).dropped) == {"loop": 1}


def test_afterwards_there_is_no_trace(node: HookedNode) -> None:
    node.apply(node.plane())
    node.pipeline.hooks.remove_all()
    for name in (POD, PEER):
        assert not _qdisc(name)
        assert programs_at(name) == []
    everywhere = [line for _, name in socket.if_nameindex() for line in programs_at(name)]
    assert everywhere and not [line for line in everywhere if "watch_" in line]
    assert links.find(POD) is not None
