"""From a TapDestination of kind rewrite to a monitor's capture: on the node itself, and on another in its layer-2 domain."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtap_agent.drivers import libbpf
from vtap_lab.daemons import Agent
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import BRIDGE, PLAIN_BRIDGE, Lab, LabOptions, Pod
from vtap_lab.processes import LabProcess

pytestmark = pytest.mark.slow

PATIENCE = 20.0
LINK = "to-b"
MONITOR_ADDRESS, MONITOR_MAC = "10.10.200.9", "02:76:74:77:00:09"
TCP = """
import socket, sys
ends = {"listen": lambda: socket.create_server(("", 7000)), "connect": lambda: socket.create_connection((sys.argv[2], 7000), 20)}
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


def unicast_ipv4(frames: list[bytes]) -> Counter[bytes]:
    return Counter(frame for frame in frames if frame[12:14] == b"\x08\x00" and not frame[0] & 1)


def expected_at_monitor(pods: list[Pod], captures: list[Capture]) -> Counter[bytes]:
    """What every tapped pod sent and received, once for each that it belongs to."""
    seen = [unicast_ipv4(one.frames()) for one in captures]
    return sum(
        (
            Counter({f: n for f, n in found.items() if mac(pod) in (f[:6], f[6:12])})
            for pod, found in zip(pods, seen, strict=True)
        ),
        Counter[bytes](),
    )


def talk(lab: Lab, web: Pod, client: Pod) -> None:
    """Numbered datagrams both ways, and a connection with data both ways."""
    for exchange in [start_exchange(lab, *ends, count=100) for ends in ((web, client), (client, web))]:
        assert len(exchange.finish().sent) == 100
    server = lab.spawn(web, sys.executable, "-c", TCP, "listen", name="tcp-server")
    server.wait_ready(lambda: "ready" in server.output(), PATIENCE, "listens")
    lab.spawn(client, sys.executable, "-c", TCP, "connect", web.ipv4, name="tcp-client").wait_ok(60)
    server.wait_ok(20)


def sent(agent: Agent) -> int:
    return sum(row["sent"] for row in rows(agent))


def expect_same(lab: Lab, agent: Agent, at_monitor: Capture, tapped: list[Pod], at_pods: list[Capture], before: int = 0) -> None:
    """The monitor has what the pods have, byte for byte, and said nothing to anybody; the ledger closes."""
    wait_for(lambda: all(closes(row) for row in rows(agent)), PATIENCE, "the ledger closes")
    own = {bytes.fromhex(MONITOR_MAC.replace(":", "")), *(mac(pod) for pod in lab.pods.values() if pod.name == "monitor")}

    def foreign() -> Counter[bytes]:
        return Counter({frame: n for frame, n in unicast_ipv4(at_monitor.frames()).items() if not own & {frame[:6], frame[6:12]}})

    def same() -> bool:
        expected = expected_at_monitor(tapped, at_pods)
        return sum(expected.values()) == sent(agent) - before and foreign() == expected

    try:
        wait_for(same, PATIENCE, "the monitor's capture equals the pods'", every=0.2)
    finally:
        missing, extra = expected_at_monitor(tapped, at_pods) - foreign(), foreign() - expected_at_monitor(tapped, at_pods)
        assert not missing and not extra, (len(missing), len(extra), [f.hex() for f in [*missing, *extra][:4]], rows(agent))
    assert [frame for frame in unicast_ipv4(at_monitor.frames()) if frame[6:12] in own] == []


@pytest.fixture
def started(lab: Lab) -> Iterator[Lab]:
    if not shutil.which("tcpdump"):
        pytest.skip("needs tcpdump")
    yield lab


SWITCH, PLAIN = LabOptions(), LabOptions(datapath=PLAIN_BRIDGE)
BACKENDS = [(SWITCH, "OVSMirror"), (SWITCH, "OVSGroup"), (SWITCH, "EBPF"), (PLAIN, "EBPF")]


@pytest.mark.parametrize(
    ("lab", "backend"), BACKENDS, indirect=["lab"], ids=[f"{options.datapath} {name}" for options, name in BACKENDS]
)
def test_a_monitor_among_the_nodes_own_pods_sees_what_the_pods_see(started: Lab, backend: str) -> None:
    """Wildcard destinations: two tapped pods, each talking to others, and between themselves."""
    lab = started
    web, other = (lab.add_pod(name, namespace="shop", labels={"app": "web"}) for name in ("web-0", "web-1"))
    client, monitor = lab.add_pod("client", namespace="shop"), lab.add_pod("monitor", namespace="soc")
    for pod in (web, other, client):  # so that captures in them show packets as they are on the wire
        lab.run(pod, "ethtool", "-K", "eth0", "tx", "off")
    agent = lab.start_agent()
    write_destination(lab, address=monitor.ipv4)
    write_tap(lab, backend=backend)
    wait_for(lambda: programmed(agent), PATIENCE, "the tap is programmed")
    at_monitor, at_pods = capture(lab, monitor, "monitor"), [capture(lab, pod, pod.name) for pod in (web, other)]
    talk(lab, web, client)
    talk(lab, other, web)
    expect_same(lab, agent, at_monitor, [web, other], at_pods)
    unsent = {reason for row in rows(agent) for reason in row["dropped"]}
    assert unsent <= {"notRewritable"}  # the pods' ARP and neighbour discovery


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


def runs(program: int) -> bool:
    found = subprocess.run(["bpftool", "prog", "show", "id", str(program)], capture_output=True, text=True, check=False)
    return "name recover" in found.stdout


def test_an_edge_outlives_a_killed_agent_and_nothing_outlives_cleanup(started: Lab) -> None:
    if not shutil.which("bpftool"):
        pytest.skip("needs bpftool")
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
    assert runs(program)
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
    wait_for(lambda: not runs(program), PATIENCE, "the edge's program is gone")


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
