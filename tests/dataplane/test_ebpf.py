"""backend: EBPF from a file to packets in a file, on every kind of bridge."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.contract.traffic import InPod
from tests.dataplane.attached import programs_at
from tests.dataplane.scenes import a_recreated_pod_is_tapped_again, each_datagram_is_stored_once_a_tap_point
from tests.dataplane.site import Site, expect_each_once, expect_none, point
from vtap_agent.lease import LEASE
from vtap_lab.capture import fields
from vtap_lab.datagrams import Datagram
from vtap_lab.errors import wait_for
from vtap_lab.exchange import Exchange, start_exchange
from vtap_lab.lab import PLAIN_BRIDGE, Lab, LabOptions, Pod

pytestmark = pytest.mark.slow

EBPF = {"backend": "EBPF"}
KINDS = pytest.mark.parametrize(
    "shared_lab",
    [LabOptions(userspace_tso=False), LabOptions(userspace_tso=True), LabOptions(datapath=PLAIN_BRIDGE)],
    indirect=True,
    ids=["ovs-no-tso", "ovs-tso", "bridge"],
)


@pytest.fixture(scope="module")
def shared_site(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(shared_lab, tmp_path_factory.mktemp("captures"))


@pytest.fixture
def site(shared_site: Site) -> Site:
    """With names of the test's own."""
    shared_site.new_scene()
    return shared_site


def backends_of(site: Site, tap: str) -> set[str]:
    """Of its tap points, as the status says."""
    status = site.status(tap)
    return {one["backend"] for one in status["points"]} if status else set()


@KINDS
@pytest.mark.parametrize("family", [4, 6])
def test_each_datagram_is_stored_once_a_tap_point(site: Site, family: int) -> None:
    each_datagram_is_stored_once_a_tap_point(site, family, **EBPF)
    assert backends_of(site, "web") == {"EBPF"}


@KINDS
def test_a_pair_of_tapped_pods_shows_a_packet_at_both_ends_and_a_broadcast_at_every_receiver(site: Site) -> None:
    one, other = site.pod("web"), site.pod("web")
    site.tap("web", **EBPF)
    exchange = start_exchange(site.lab, one, other, count=200).finish()
    everybody = start_exchange(site.lab, one, other, address="10.10.255.255", count=50).finish()
    site.closes("web")
    found = site.stored("web")
    for seen in (exchange, everybody):
        expect_each_once(found, seen, point(one, "egress"), point(other, "ingress"))
        expect_none(found, seen, point(one, "ingress"))


SO_MAX_PACING_RATE, RATE = 47, 20_000_000
"""Bytes a second: super-packets still, but no more of them at a time than a CPU's backlog has room for."""
SEND = (
    "import socket,sys;s=socket.create_connection((sys.argv[1],5300));"
    f"s.setsockopt(socket.SOL_SOCKET,{SO_MAX_PACING_RATE},{RATE});s.sendall(bytes(range(256))*int(sys.argv[2]))"
)
RECEIVE = (
    "import hashlib,socket;l=socket.create_server(('',5300));print('ready',flush=True);c,_=l.accept();h=hashlib.sha256();n=0\n"
    "while d:=c.recv(1<<20): h.update(d);n+=len(d)\n"
    "print(n,h.hexdigest(),flush=True)"
)


@KINDS
def test_a_bulk_of_tcp_arrives_as_sent_and_is_copied_to_the_byte(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", **EBPF, filter={"defaultAction": "Exclude", "rules": [{"action": "Include", "protocol": "TCP"}]})
    blocks = 1 << 14
    receiver = site.lab.spawn(client, sys.executable, "-c", RECEIVE, name="tcp-receiver")
    receiver.wait_ready(lambda: "ready" in receiver.output(), 10, "listens")
    site.lab.run(web, sys.executable, "-c", SEND, client.ipv4, str(blocks))
    wait_for(lambda: len(receiver.output().split()) == 3, 20, "all has arrived")
    expected = bytes(range(256)) * blocks
    assert receiver.output().split()[1:] == [str(len(expected)), hashlib.sha256(expected).hexdigest()]
    summary = site.closes("web")
    assert summary["lost"] == 0
    rows = [
        row for file in site.files("web") for row in fields(file, ("ip.src", "tcp.seq", "tcp.len", "frame.len"), "tcp.len > 0")
    ]
    carried = {int(seq): int(length) for source, seq, length, _ in rows if source == web.ipv4}
    assert sum(carried.values()) == len(expected), "every byte, whatever was sent again"
    assert max(int(length) for *_, length in rows) <= 1514, "as on the wire"


@KINDS
def test_filter_and_sampling_count_what_they_leave_out(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", **EBPF, direction="Egress", sampling={"type": "OneIn", "oneIn": 10})
    start_exchange(site.lab, web, client, count=2000, rate=4000).finish()
    summary = site.closes("web")
    assert summary["stored"] == summary["seen"] - summary["unsampled"]
    # Binomial: mean 200, standard deviation 13.4; six of them.
    assert abs(summary["stored"] - summary["seen"] / 10) < 6 * 13.4


def missing(found: Mapping[tuple[str, Datagram], int], exchange: Exchange, name: str) -> list[int]:
    """Sequence numbers that are not in a capture; none may be there twice."""
    counts = {datagram: found.get((name, datagram), 0) for datagram in exchange.sent}
    twice = [datagram for datagram, count in counts.items() if count > 1]
    assert not twice, f"{name}: {len(twice)} are copied twice, first {twice[:3]}"
    return sorted(datagram.sequence for datagram, count in counts.items() if not count)


def hooked(lab: Lab, pod: Pod) -> list[str]:
    """The programs at the node's end of a pod's device."""
    found: list[str] = []
    InPod(lab.node, lambda: found.extend(programs_at(pod.host_name))).join()
    return found


@pytest.mark.parametrize("shared_lab", [LabOptions(datapath=PLAIN_BRIDGE)], indirect=True)
def test_an_agent_that_is_killed_leaves_no_gap_and_cleanup_leaves_no_trace(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", **EBPF)
    running = start_exchange(site.lab, web, client, count=0, rate=500)
    wait_for(lambda: running.sent_so_far() > 200, 20, "traffic flows")
    site.agent.kill()
    killed, at_kill = time.monotonic(), running.sent_so_far()
    wait_for(lambda: running.sent_so_far() > at_kill + 200, 20, "traffic flows on")
    site.start_agent()
    wait_for(lambda: site.condition("web", "Delivering") == "True", 20, "the tap delivers again")
    away = time.monotonic() - killed
    exchange = running.stop()
    site.closes("web")
    lost = missing(site.stored("web"), exchange, point(web, "egress"))
    ended = sum(row["dropped"].get("lease", 0) for row in site.agent.get("/v1/ledger")["points"])
    assert len(lost) <= ended, f"{len(lost)} are missing, and {ended} counted"
    assert not lost or away > LEASE, "copies go on as long as the lease lasts"
    site.agent.kill()
    lab = site.lab
    assert hooked(lab, web)
    agent = str(Path(sys.executable).with_name("vtap-agent"))
    places = [f"--run-dir={lab.run_dir}", f"--state-dir={lab.state_dir}", f"--ovsdb={lab.switch.db_remote}", "--node=node-a"]
    lab.run(lab.node, agent, "--cleanup", *places)
    devices = lab.run(lab.node, "ip", "-d", "link", "show")
    assert "vtap.dev" not in devices
    assert hooked(lab, web) == []
    again = start_exchange(lab, web, client, count=50).finish()
    assert len(again.received[str(client)]) == 50
    site.start_agent()


@pytest.mark.parametrize("shared_lab", [LabOptions(datapath=PLAIN_BRIDGE)], indirect=True)
def test_a_recreated_pod_is_tapped_again_and_a_node_without_a_switch_is_ready(site: Site) -> None:
    a_recreated_pod_is_tapped_again(site, 20, **EBPF)
