"""From a TapDestination of kind rewrite to a monitor's capture: on the node itself, and on another in its layer-2 domain."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dataplane import offloaded_talk
from tests.dataplane.altered_agent import alter_agents
from tests.dataplane.attached import program_name
from tests.dataplane.packets import TCP, UDP, Packet, datagrams, is_housekeeping, packet_in, tcp_stream
from vtap_agent.drivers import libbpf
from vtap_lab.daemons import Agent
from vtap_lab.errors import comes_true, wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import BRIDGE, PLAIN_BRIDGE, Lab, LabOptions, Pod
from vtap_lab.processes import LabProcess

pytestmark = pytest.mark.slow

PATIENCE = 20.0
LINK = "to-b"
MONITOR_ADDRESS, MONITOR_MAC = "10.10.200.9", "02:76:74:77:00:09"
CONNECTION = """
import socket, sys
ends = {
    "listen": lambda: socket.create_server(("", 7000), family=socket.AF_INET6, dualstack_ipv6=True),
    "connect": lambda: socket.create_connection((sys.argv[2], 7000), 20),
}
made = ends[sys.argv[1]]()
print("ready", flush=True)
if sys.argv[1] == "listen":
    peer, _ = made.accept()
    while data := peer.recv(65536):
        peer.sendall(data)
else:
    for number in range(50):
        text = b"%08d" % number * 100
        made.sendall(text)
        back = b""
        while len(back) < len(text):
            back += made.recv(65536)
        assert back == text
"""
MANY = """
import itertools, socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in itertools.cycle(range(5000)):
    sender.sendto(b"!", (f"198.51.{number >> 8}.{number & 255}", 9))
    if number % 50 == 0:
        time.sleep(0.01)
"""
"""More destinations than a node has ids, again and again."""


@dataclass
class Capture:
    """tcpdump at an interface of a namespace."""

    process: LabProcess
    file: Path

    def frames(self) -> list[bytes]:
        """All that it has written so far."""
        data, found, at = self.file.read_bytes(), [], 24
        while at + 16 <= len(data):
            length = struct.unpack_from("=I", data, at + 8)[0]
            if at + 16 + length > len(data):
                break
            found.append(data[at + 16 : at + 16 + length])
            at += 16 + length
        return found


def capture(lab: Lab, where: str | Pod, name: str) -> Capture:
    file = lab.directory / f"{name}.pcap"
    process = lab.spawn(where, "tcpdump", "-U", "-i", "eth0", "-s", "0", "-B", "8192", "-w", str(file), name=f"tcpdump-{name}")
    process.wait_ready(lambda: "listening on" in process.output(), PATIENCE, "captures")
    return Capture(process, file)


def write_destination(lab: Lab, **rewrite: str) -> None:
    spec = {"rewrite": rewrite}
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "default"}}
    lab.write(lab.taps / "destination.yaml", yaml.safe_dump({**head, "spec": spec}))


def write_tap(lab: Lab, **spec: object) -> None:
    body = {"podSelector": {"matchLabels": {"app": "web"}}, **spec}
    head = {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "web", "namespace": "shop"}}
    lab.write(lab.taps / "tap.yaml", yaml.safe_dump({**head, "spec": body}))


def says(agent: Agent, words: str) -> bool:
    """Whether a condition or a tap point says so."""
    return any(
        words in said["message"] for tap in agent.get("/v1/status")["taps"] for said in (*tap["conditions"], *tap["points"])
    )


def programmed(agent: Agent) -> bool:
    taps = agent.get("/v1/status")["taps"]
    return bool(taps) and all(tap["points"] and all(one["state"] == "Ready" for one in tap["points"]) for tap in taps)


def rows(agent: Agent) -> list[Mapping[str, Any]]:
    return [row for row in agent.get("/v1/ledger")["points"] if not row["closed"]]


def closes(row: Mapping[str, Any]) -> bool:
    fates = row["excluded"] + row["unsampled"] + row["limited"] + sum(row["dropped"].values()) + row["sent"]
    return row["seen"] == fates and not row["announced"]


def mac(pod: Pod) -> bytes:
    return bytes.fromhex(pod.mac.replace(":", ""))


def address_of(pod: Pod, family: int) -> str:
    return pod.ipv4 if family == 4 else pod.ipv6


def unicast(frames: list[bytes], family: int) -> Counter[bytes]:
    kind = b"\x08\x00" if family == 4 else b"\x86\xdd"
    return Counter(frame for frame in frames if frame[12:14] == kind and not frame[0] & 1)


def expected_at_monitor(pods: list[Pod], captures: list[Capture], family: int) -> Counter[bytes]:
    """What every tapped pod sent and received, once for each that it belongs to."""
    seen = [unicast(one.frames(), family) for one in captures]
    return sum(
        (
            Counter({f: n for f, n in found.items() if mac(pod) in (f[:6], f[6:12])})
            for pod, found in zip(pods, seen, strict=True)
        ),
        Counter[bytes](),
    )


def talk(lab: Lab, web: Pod, client: Pod, family: int = 4) -> None:
    """Numbered datagrams both ways, and a connection with data both ways."""
    for exchange in [start_exchange(lab, *ends, family=family, count=100) for ends in ((web, client), (client, web))]:
        assert len(exchange.finish().sent) == 100
    server = lab.spawn(web, sys.executable, "-c", CONNECTION, "listen", name="tcp-server")
    server.wait_ready(lambda: "ready" in server.output(), PATIENCE, "listens")
    lab.spawn(client, sys.executable, "-c", CONNECTION, "connect", address_of(web, family), name="tcp-client").wait_ok(60)
    server.wait_ok(20)


def sent(agent: Agent) -> int:
    return sum(row["sent"] for row in rows(agent))


def own_macs(lab: Lab) -> set[bytes]:
    """The monitors'."""
    return {bytes.fromhex(MONITOR_MAC.replace(":", "")), *(mac(pod) for pod in lab.pods.values() if pod.name == "monitor")}


def copies_at(lab: Lab, at_monitor: Capture, family: int) -> Counter[bytes]:
    """What is neither from nor to the monitor itself."""
    own = own_macs(lab)
    return Counter({frame: n for frame, n in unicast(at_monitor.frames(), family).items() if not own & {frame[:6], frame[6:12]}})


def expect_all_delivered(lab: Lab, agent: Agent, at_monitor: Capture, family: int) -> None:
    """As many copies are at the monitor as were sent; the failure tells both numbers."""
    delivered = comes_true(lambda: copies_at(lab, at_monitor, family).total() == sent(agent), PATIENCE, every=0.2)
    assert delivered, (copies_at(lab, at_monitor, family).total(), sent(agent), rows(agent))


def expect_silent(lab: Lab, at_monitor: Capture) -> None:
    """The monitor said nothing to anybody."""
    own = own_macs(lab)
    said = [packet_in(frame) for frame in at_monitor.frames() if frame[6:12] in own]
    assert [packet for packet in said if packet is not None and not is_housekeeping(packet)] == []


def expect_same(
    lab: Lab,
    agent: Agent,
    at_monitor: Capture,
    tapped: list[Pod],
    at_pods: list[Capture],
    before: int = 0,
    family: int = 4,
) -> None:
    """The monitor has what the pods have, byte for byte, and said nothing to anybody; the ledger closes."""
    wait_for(lambda: all(closes(row) for row in rows(agent)), PATIENCE, "the ledger closes")

    def same() -> bool:
        expected = expected_at_monitor(tapped, at_pods, family)
        return sum(expected.values()) == sent(agent) - before and copies_at(lab, at_monitor, family) == expected

    try:
        wait_for(same, PATIENCE, "the monitor's capture equals the pods'", every=0.2)
    finally:
        expected, found = expected_at_monitor(tapped, at_pods, family), copies_at(lab, at_monitor, family)
        missing, extra = expected - found, found - expected
        assert not missing and not extra, (len(missing), len(extra), [f.hex() for f in [*missing, *extra][:4]], rows(agent))
    expect_silent(lab, at_monitor)


@pytest.fixture
def started(lab: Lab) -> Iterator[Lab]:
    if not shutil.which("tcpdump"):
        pytest.skip("needs tcpdump")
    yield lab


SWITCH, TSO, PLAIN = LabOptions(), LabOptions(userspace_tso=True), LabOptions(datapath=PLAIN_BRIDGE)
BACKENDS = [
    (SWITCH, "OVSMirror", 4),
    (SWITCH, "OVSMirror", 6),
    (SWITCH, "OVSGroup", 4),
    (SWITCH, "EBPF", 4),
    (PLAIN, "EBPF", 4),
]


def without_offloads(lab: Lab, *pods: Pod) -> None:
    """So that captures in them show packets as they are on the wire."""
    for pod in pods:
        lab.run(pod, "ethtool", "-K", "eth0", "tx", "off")


@pytest.mark.parametrize(
    ("lab", "backend", "family"),
    BACKENDS,
    indirect=["lab"],
    ids=[f"{options.datapath} {name} IPv{family}" for options, name, family in BACKENDS],
)
def test_a_monitor_among_the_nodes_own_pods_sees_what_the_pods_see(started: Lab, backend: str, family: int) -> None:
    """Wildcard destinations: two tapped pods, each talking to others, and between themselves."""
    lab = started
    web, other = (lab.add_pod(name, namespace="shop", labels={"app": "web"}) for name in ("web-0", "web-1"))
    client, monitor = lab.add_pod("client", namespace="shop"), lab.add_pod("monitor", namespace="soc")
    without_offloads(lab, web, other, client)
    agent = lab.start_agent()
    write_destination(lab, address=address_of(monitor, family))
    write_tap(lab, backend=backend)
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    at_monitor, at_pods = capture(lab, monitor, "monitor"), [capture(lab, pod, pod.name) for pod in (web, other)]
    talk(lab, web, client, family)
    talk(lab, other, web, family)
    expect_same(lab, agent, at_monitor, [web, other], at_pods, family=family)
    assert reasons(agent) <= {"notRewritable"}  # the pods' ARP and neighbour discovery


def reasons(agent: Agent) -> set[str]:
    """Why copies were not sent."""
    return {reason for row in rows(agent) for reason in row["dropped"]}


OFFLOADED = [(PLAIN, "EBPF", 4), (PLAIN, "EBPF", 6), (TSO, "OVSMirror", 4)]


@pytest.mark.parametrize(
    ("lab", "backend", "family"),
    OFFLOADED,
    indirect=["lab"],
    ids=[f"{'tso' if options.userspace_tso else options.datapath} {name} IPv{family}" for options, name, family in OFFLOADED],
)
def test_what_pods_leave_to_offloads_is_whole_and_right_at_the_monitor(started: Lab, backend: str, family: int) -> None:
    """Super-packets and partial checksums, which pods have unless somebody switches them off."""
    lab = started
    web = lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    client, monitor = lab.add_pod("client", namespace="shop"), lab.add_pod("monitor", namespace="soc")
    segmented = super_packets(lab, web, client)
    agent = lab.start_agent()
    write_destination(lab, address=address_of(monitor, family))
    write_tap(lab, backend=backend)
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    at_monitor, at_web = capture(lab, monitor, "monitor"), capture(lab, web, "web")
    program = str(Path(offloaded_talk.__file__))
    listener = lab.spawn(web, sys.executable, program, offloaded_talk.LISTENER, name="listener")
    listener.wait_ready(lambda: "ready" in listener.output(), PATIENCE, "listens")
    lab.spawn(client, sys.executable, program, offloaded_talk.CALLER, address_of(web, family), name="caller").wait_ok(60)
    listener.wait_ok(20)

    wait_for(lambda: all(closes(row) for row in rows(agent)), PATIENCE, "the ledger closes")
    expect_all_delivered(lab, agent, at_monitor, family)
    assert reasons(agent) <= {"notRewritable"}
    expect_silent(lab, at_monitor)
    sides = {offloaded_talk.LISTENER: web, offloaded_talk.CALLER: client}
    pairs = [mac(web) + mac(client), mac(client) + mac(web)]
    for ends in pairs:
        expect_offloaded(at_web, ends, segmented)
    copies = list(copies_at(lab, at_monitor, family).elements())
    assert 1500 < max(map(len, copies)) <= 1514  # Open vSwitch says itself how super-packets are to be cut: to 1,512
    assert {frame[:12] for frame in copies} == set(pairs)
    packets = [packet_in(frame) for frame in copies]
    assert [frame.hex() for frame, one in zip(copies, packets, strict=True) if one is None or not is_right(one)][:4] == []
    expect_all_said([one for one in packets if one is not None], {side: address_of(pod, family) for side, pod in sides.items()})


def is_right(packet: Packet) -> bool:
    return packet.is_exact and packet.checksum_is_right


def super_packets(lab: Lab, *pods: Pod) -> frozenset[int]:
    """The protocols of which the pods leave super-packets to the switch.

    Open vSwitch in user space takes those of TCP only, with a tap and without: of UDP pods have to cut their own there.
    """
    if not lab.options.userspace_tso:
        return frozenset({TCP, UDP})
    for pod in pods:
        lab.run(pod, "ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
    return frozenset({TCP})


def expect_offloaded(captured: Capture, ends: bytes, segmented: frozenset[int]) -> None:
    """The pods' kernels left something to do, from one to the other of these MAC addresses: else nothing was tried."""

    def packets_until_now() -> list[tuple[int, Packet]]:
        frames = [frame for frame in captured.frames() if frame[:12] == ends]
        return [(len(frame), packet) for frame in frames if (packet := packet_in(frame)) is not None]

    def protocols() -> set[int]:
        return {packet.protocol for length, packet in packets_until_now() if length > 2 * 1514}

    comes_true(lambda: protocols() >= segmented, PATIENCE, every=0.2)  # tcpdump writes behind
    assert protocols() == segmented
    packets = packets_until_now()
    small = [packet for length, packet in packets if length <= 1514]
    assert all(any(one.protocol == of and not one.checksum_is_right for one in small) for of in (TCP, UDP))


def expect_all_said(packets: list[Packet], addresses: Mapping[str, str]) -> None:
    """By side of the talk: all that it said is there, the datagrams once each."""
    for side, source in addresses.items():
        (destination,) = set(addresses.values()) - {source}
        assert tcp_stream(packets, source, destination) == b"".join(offloaded_talk.chunks(side))
        assert datagrams(packets, source, destination) == Counter(offloaded_talk.all_datagrams(side))


FIRST, LAST = 5300, 5309
"""The ports that a policy names."""


@pytest.mark.parametrize(
    ("lab", "backend", "direction", "family"),
    [(SWITCH, "OVSGroup", "Egress", 4), (PLAIN, "EBPF", "Ingress", 6)],
    indirect=["lab"],
    ids=["netdev OVSGroup Egress IPv4", "bridge EBPF Ingress IPv6"],
)
def test_a_policy_of_addresses_and_ports_sends_what_it_names_and_counts_the_rest(
    started: Lab, backend: str, direction: str, family: int
) -> None:
    """The fields that docs/rewrite.md lists: pod and direction stand for in_port and MAC addresses, the filter for the others."""
    lab = started
    web = lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    client, stranger = (lab.add_pod(name, namespace="shop") for name in ("client", "stranger"))
    monitor = lab.add_pod("monitor", namespace="soc")
    without_offloads(lab, web, client, stranger)
    agent = lab.start_agent()
    write_destination(lab, address=address_of(monitor, family))
    peer = {"cidr": f"{address_of(client, family)}/{32 if family == 4 else 128}"}
    ports = {"peerPorts" if direction == "Egress" else "podPorts": [{"port": FIRST, "endPort": LAST}]}
    rule = {"action": "Include", "peer": peer, "protocol": "UDP", **ports}
    write_tap(lab, backend=backend, direction=direction, filter={"defaultAction": "Exclude", "rules": [rule]})
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    at_monitor, at_web = capture(lab, monitor, "monitor"), capture(lab, web, "web")
    (before,) = rows(agent)

    def send(peer_pod: Pod, port: int, count: int, *, tapped: bool = True) -> None:
        """In the tapped direction, or the other."""
        ends = (web, peer_pod) if tapped == (direction == "Egress") else (peer_pod, web)
        assert len(start_exchange(lab, *ends, family=family, port=port, count=count).finish().sent) == count

    send(client, FIRST, 30)
    send(client, LAST, 20)
    send(client, LAST + 1, 40)
    send(stranger, FIRST, 50)
    send(client, FIRST + 1, 60, tapped=False)

    def expected() -> Counter[bytes]:
        ends = (web, client) if direction == "Egress" else (client, web)
        return Counter(frame for frame in at_web.frames() if named(frame, *ends, family))

    def complete() -> bool:
        return copies_at(lab, at_monitor, family).total() >= 50 and expected().total() >= 50

    wait_for(lambda: closes(rows(agent)[0]) and rows(agent)[0]["seen"] >= before["seen"] + 140, PATIENCE, "all is counted")
    wait_for(complete, PATIENCE, "what the policy names is at the monitor", every=0.2)
    (after,) = rows(agent)
    assert copies_at(lab, at_monitor, family) == expected() and expected().total() == 50
    assert (after["sent"] - before["sent"], after["dropped"]) == (50, {})
    assert after["excluded"] - before["excluded"] >= 90
    expect_silent(lab, at_monitor)


def named(frame: bytes, source: Pod, destination: Pod, family: int) -> bool:
    """Whether the policy means this packet."""
    packet = packet_in(frame)
    if packet is None or packet.protocol != UDP or not FIRST <= packet.ports[1] <= LAST:
        return False
    ends = (address_of(source, family), address_of(destination, family))
    return (packet.source, packet.destination) == ends and frame[:12] == mac(destination) + mac(source)


def edge_program(lab: Lab, pod: Pod) -> int:
    """The kernel's number of the program at the egress of a pod's device, 0 where none of ours is attached."""
    descriptor = libbpf.get_pinned(lab.run_dir / "bpf" / "recover" / "links" / pod.host_name)
    if descriptor is None:
        return 0
    try:
        link = libbpf.link_info(descriptor)
    finally:
        os.close(descriptor)
    (device,) = json.loads(lab.run(lab.node, "ip", "-j", "link", "show", "dev", pod.host_name))
    return link.program_id if link.ifindex == device["ifindex"] else 0


def test_an_edge_outlives_a_killed_agent_and_nothing_outlives_cleanup(started: Lab) -> None:
    lab = started
    web = lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    client, monitor = lab.add_pod("client", namespace="shop"), lab.add_pod("monitor", namespace="soc")
    agent = lab.start_agent()
    write_destination(lab, address=monitor.ipv4)
    write_tap(lab)
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    program = edge_program(lab, monitor)
    if not program and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 6):
        pytest.skip("before Linux 6.6 there is no tcx, and so no link by which to know the program")
    assert program_name(program) == "recover"
    agent.kill()
    assert edge_program(lab, monitor) == program
    agent = lab.start_agent()
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed again")
    before = sent(agent)
    at_monitor, at_pods = capture(lab, monitor, "monitor"), [capture(lab, web, "web")]
    talk(lab, web, client)
    expect_same(lab, agent, at_monitor, [web], at_pods, before)
    assert edge_program(lab, monitor) == program
    assert 'vtap_agent_edge_frames_total{monitor="' + monitor.ipv4 in agent.metrics()
    agent.kill()
    cleanup = [str(Path(sys.executable).with_name("vtap-agent")), "--cleanup", f"--taps={lab.taps}", "--node=node-a"]
    arguments = [f"--run-dir={lab.run_dir}", f"--state-dir={lab.state_dir}", f"--ovsdb={lab.switch.db_remote}"]
    lab.spawn(lab.node, *cleanup, *arguments, name="cleanup", env=lab.switch.environment).wait_ok(PATIENCE)
    assert edge_program(lab, monitor) == 0
    wait_for(lambda: program_name(program) is None, PATIENCE, "the edge's program is gone")


def test_what_cannot_be_is_said(started: Lab) -> None:
    lab = started
    lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    monitor = lab.add_pod("monitor", namespace="soc")
    agent = lab.start_agent()
    write_destination(lab, address="10.10.77.77")
    write_tap(lab)
    wait_for(lambda: says(agent, "nobody at the edge of the monitor 10.10.77.77 answers"), PATIENCE, "no edge is said")
    write_destination(lab, address="198.18.2.2")
    wait_for(lambda: says(agent, "is behind the router 198.18.1.1"), PATIENCE, "a router in between is said")
    write_destination(lab, address=monitor.ipv4)
    write_tap(lab, packet={"snapLength": 64})
    wait_for(lambda: says(agent, "spec.packet: TapDestination 'default' has copies rewritten"), PATIENCE, "the cut is refused")
    write_tap(lab)
    wait_for(lambda: programmed(agent), PATIENCE, "it works once nothing is wrong")


IMPATIENT = """
from vtap_agent.report import ids
ids.QUIET = 5.0
"""
"""It calls the lack of ids over much sooner than it does."""


def test_more_destinations_than_ids_are_said_until_the_filter_names_fewer(
    started: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = started
    alter_agents(monkeypatch, tmp_path, IMPATIENT)
    web = lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    client, monitor = lab.add_pod("client", namespace="shop"), lab.add_pod("monitor", namespace="soc")
    lab.ip(web.netns, f"route add 198.51.0.0/16 via {client.ipv4}")
    agent = lab.start_agent()
    write_destination(lab, address=monitor.ipv4)
    write_tap(lab, backend="EBPF", direction="Egress")
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    sender = lab.spawn(web, sys.executable, "-c", MANY, name="many")
    wait_for(lambda: delivering(agent) == ("False", "NoId"), PATIENCE, "copies without an id are said")
    assert says(agent, "name peers in spec.filter") and not programmed(agent)
    assert reasons(agent) >= {"noId"}

    rule = {"action": "Include", "peer": {"cidr": "198.51.0.0/26"}}
    write_tap(lab, backend="EBPF", direction="Egress", filter={"defaultAction": "Exclude", "rules": [rule]})
    wait_for(lambda: programmed(agent) and delivering(agent) == ("Unknown", "Sent"), PATIENCE, "it is over")
    (before,) = rows(agent)
    wait_for(lambda: rows(agent)[0]["sent"] >= before["sent"] + 200, PATIENCE, "the peers' copies leave")
    (after,) = rows(agent)
    assert sender.is_running and after["dropped"]["noId"] == before["dropped"]["noId"] and delivering(agent)[1] == "Sent"


def delivering(agent: Agent) -> tuple[str, str]:
    """(status, reason) of the only tap's condition."""
    (tap,) = agent.get("/v1/status")["taps"]
    return next((one["status"], one["reason"]) for one in tap["conditions"] if one["type"] == "Delivering")


def test_flows_of_open_vswitch_recover_what_is_sent_to_a_mac_address_of_ones_own(started: Lab) -> None:
    """As docs/rewrite.md tells: a monitor whose node has no agent, and its ids by the sending agent's answer."""
    lab = started
    web = lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    client, monitor = lab.add_pod("client", namespace="shop"), lab.add_pod("monitor", namespace="soc")
    port = lab.switch.vsctl("get", "Interface", monitor.host_name, "ofport")
    agent = lab.start_agent()
    write_destination(lab, address=monitor.ipv4, macAddress="0e:00:00:00:00:77")
    write_tap(lab)
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    talk(lab, web, client)
    ids = agent.get("/v1/rewrites")["ids"]
    assert {one["original"]["destination"] for one in ids} == {web.ipv4, client.ipv4}
    for one in ids:
        was = one["original"]
        lab.switch.ofctl(
            "add-flow",
            BRIDGE,
            f"priority=200,ip,dl_src={one['id']}/3f:ff:ff:ff:ff:ff,dl_dst={one['sentTo']['mac']},nw_dst={one['sentTo']['address']},"
            f"actions=mod_dl_src:{was['sourceMAC']},mod_dl_dst:{was['destinationMAC']},mod_nw_dst:{was['destination']},output:{port}",
        )
    at_monitor, at_pods = capture(lab, monitor, "monitor"), [capture(lab, web, "web")]
    before = sent(agent)
    talk(lab, web, client)
    expect_same(lab, agent, at_monitor, [web], at_pods, before)


@contextmanager
def second_node(lab: Lab) -> Iterator[tuple[str, Agent]]:
    """(the monitor's namespace, the agent) of a node with a plain bridge, whose uplink is a port of the first node's bridge."""
    node, monitor = lab.add_namespace("node-b"), lab.add_namespace("monitor-b")
    lab.ip(
        lab.node,
        f"link add {LINK} type veth peer name up0 netns {node}",
        f"link set {LINK} up",
    )
    lab.ip(
        node,
        "link add name bridge0 type bridge",
        f"link add mon0 type veth peer name eth0 address {MONITOR_MAC} netns {monitor}",
        "link set up0 master bridge0 up",
        "link set mon0 master bridge0 up",
        "link set bridge0 up",
    )
    lab.ip(monitor, "link set eth0 up", f"addr add {MONITOR_ADDRESS}/16 dev eth0")
    lab.run(lab.node, "ethtool", "-K", LINK, "tx", "off")
    lab.run(node, "ethtool", "-K", "up0", "tx", "off")
    lab.switch.add_port(BRIDGE, LINK)
    home = lab.directory / "node-b"
    home.mkdir()
    pods = home / "pods.yaml"
    lab.write(pods, yaml.safe_dump([{"namespace": "soc", "name": "monitor", "labels": {}, "netns": f"/run/netns/{monitor}"}]))
    arguments = [f"--taps={home / 'taps'}", f"--pods={pods}", "--node=node-b", f"--run-dir={home / 'run'}"]
    (home / "taps").mkdir()
    shutil.copy(lab.taps / "destination.yaml", home / "taps" / "destination.yaml")
    process = lab.spawn(
        node,
        str(Path(sys.executable).with_name("vtap-agent")),
        *arguments,
        f"--state-dir={home / 'state'}",
        f"--ovsdb=unix:{home / 'no-switch.sock'}",
        name="agent-b",
    )
    agent = Agent(process, home / "run" / "agent.sock")
    process.wait_ready(agent.answers, PATIENCE, "answers")
    try:
        yield monitor, agent
    finally:
        agent.stop()


def test_a_monitor_on_another_node_sees_what_the_pods_see(started: Lab) -> None:
    lab = started
    web = lab.add_pod("web-0", namespace="shop", labels={"app": "web"})
    client = lab.add_pod("client", namespace="shop")
    agent = lab.start_agent()
    write_destination(lab, address=MONITOR_ADDRESS)
    write_tap(lab)
    wait_for(lambda: says(agent, "nobody at the edge"), PATIENCE, "no edge is said")
    with second_node(lab) as (monitor, _):
        wait_for(lambda: programmed(agent), PATIENCE, "the edge is found")
        at_monitor, at_pods = capture(lab, monitor, "monitor"), [capture(lab, web, "web")]
        talk(lab, web, client)
        expect_same(lab, agent, at_monitor, [web], at_pods)
    wait_for(lambda: says(agent, "nobody at the edge"), PATIENCE, "the edge's end is said")
