"""Pods on a DPDK datapath: veths that poll-mode threads read, and vhost-user sockets, tapped like any other."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane.handing_over import sent_by_cpu
from tests.dataplane.site import PATIENCE, Site, expect_each_once, expect_none, point
from vtap_agent.drivers import steering
from vtap_agent.drivers.unixctl import Vswitchd
from vtap_agent.plan.dataplane import MAX_SLOTS
from vtap_lab import preflight
from vtap_lab.dpdk import DpdkLab, why_no_dpdk
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import BRIDGE, Lab, Pod

pytestmark = [pytest.mark.slow, pytest.mark.lab]
COUNT = 200
UDP_ONLY = {"defaultAction": "Exclude", "rules": [{"action": "Include", "protocol": "UDP"}]}
SILENT_MAC = "00:00:00:00:00:00"
"""Source and destination of what net_null makes."""
MANY, ONE_IN = 500_000, 1000
BURST = 32
"""Packets that a poll-mode thread takes at once."""
BACKENDS = pytest.mark.parametrize("backend", ["OVSMirror", "OVSGroup"])


@pytest.fixture(scope="module")
def lab() -> Iterator[DpdkLab]:
    if reason := preflight.why_no_lab() or why_no_dpdk():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with DpdkLab() as made:
        yield made


@pytest.fixture(scope="module")
def site(lab: DpdkLab, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(lab, tmp_path_factory.mktemp("captures"))


@pytest.fixture(scope="module")
def veths(site: Site) -> tuple[Pod, Pod]:
    """Two pods whose veths DPDK reads by packet sockets; the first one's are tapped."""
    return site.pod("veth"), site.pod("client")


@pytest.fixture(scope="module")
def sockets(lab: DpdkLab) -> tuple[Pod, Pod]:
    """Two pods with nothing but a vhost-user socket."""
    labels = ({"app": "socket"}, {"app": "socket-client"})
    first, second = (lab.add_application(f"app-{n}", namespace="shop", labels=one) for n, one in enumerate(labels))
    return first, second


@pytest.fixture(autouse=True)
def _no_taps_left(site: Site) -> Iterator[None]:
    yield
    for file in site.lab.taps.glob("tap-*.yaml"):
        file.unlink()
    wait_for(lambda: not site.agent.get("/v1/status")["taps"], PATIENCE, "the test's taps are gone")


@pytest.fixture(params=["veth", "socket"])
def pair(request: pytest.FixtureRequest) -> tuple[str, Pod, Pod]:
    """(what the tapped pod is labelled, tapped pod, its peer)."""
    first, second = request.getfixturevalue(f"{request.param}s")
    return request.param, first, second


def interface_of(site: Site, pod: Pod) -> str:
    """A socket is called as its port is."""
    return site.lab.port_of(pod) if pod.sandbox else pod.interface


def at(site: Site, pod: Pod, direction: str) -> str:
    """What a tap point is called in a capture."""
    return f"{pod}/{interface_of(site, pod)} {direction}" if pod.sandbox else point(pod, direction)


REGAIN = 60.0
"""Seconds that flows have to have been allowed before they copy again what a mirror copies meanwhile."""


@pytest.mark.parametrize("family", [4, 6])
@BACKENDS
def test_each_datagram_is_stored_once_a_direction(site: Site, pair: tuple[str, Pod, Pod], family: int, backend: str) -> None:
    app, pod, peer = pair
    name = f"both-{app}-{family}-{backend.lower()}"
    site.tap(name, app, backend=backend)
    sent = start_exchange(site.lab, pod, peer, count=COUNT, family=family).finish()
    received = start_exchange(site.lab, peer, pod, count=COUNT, family=family).finish()
    summary = site.closes(name)
    found = site.stored(name)
    expect_each_once(found, sent, at(site, pod, "egress"))
    expect_each_once(found, received, at(site, pod, "ingress"))
    expect_none(found, sent, at(site, pod, "ingress"))
    assert summary["lost"] == 0 and summary["seen"] >= 2 * COUNT


def test_a_socket_and_a_veth_see_each_other_s_packets(site: Site, veths: tuple[Pod, Pod], sockets: tuple[Pod, Pod]) -> None:
    site.tap("veth", "veth")
    site.tap("socket", "socket")
    exchange = start_exchange(site.lab, veths[0], sockets[0], count=COUNT).finish()
    assert len(exchange.received[str(sockets[0])]) == COUNT
    site.closes()
    expect_each_once(site.stored("veth"), exchange, at(site, veths[0], "egress"))
    expect_each_once(site.stored("socket"), exchange, at(site, sockets[0], "ingress"))


@BACKENDS
def test_a_filter_copies_what_it_includes(site: Site, pair: tuple[str, Pod, Pod], backend: str) -> None:
    app, pod, peer = pair
    name = f"filtered-{app}-{backend.lower()}"
    wanted = start_exchange(site.lab, pod, peer, count=0, rate=200)
    rule = {"action": "Include", "protocol": "UDP", "peerPorts": [{"port": wanted.port}]}
    site.tap(name, app, backend=backend, direction="Egress", filter={"defaultAction": "Exclude", "rules": [rule]})
    begun = start_exchange(site.lab, pod, peer, count=COUNT)
    other, kept = begun.finish(), wanted.stop()
    site.closes(name)
    found = site.stored(name)
    expect_none(found, other, at(site, pod, "egress"))
    numbers = sorted(datagram.sequence for _, datagram in found if datagram.sender == kept.sender)
    assert numbers == list(range(len(kept.sent) - len(numbers), len(kept.sent))), "from some moment on, all of them"


def test_where_the_bridge_refuses_flows_of_ours_auto_takes_mirrors(site: Site, pair: tuple[str, Pod, Pod]) -> None:
    app, pod, peer = pair
    name = f"auto-{app}"
    site.lab.switch.vsctl("set", "Bridge", BRIDGE, "mcast_snooping_enable=true")
    try:
        site.tap(name, app, backend="Auto", filter=UDP_ONLY)
        points = chosen(site, name)
        assert {direction: point["backend"] for direction, point in points.items()} == {
            "Ingress": "OVSMirror",
            "Egress": "OVSGroup",
        }
        assert "Auto takes OVSMirror, as DPDK moves the packets of br0 past the kernel" in points["Ingress"]["why"]
        assert "OVSGroup could not be had: bridge br0 learns which pod wants which multicast" in points["Ingress"]["message"]
        assert "Auto takes OVSGroup" in points["Egress"]["why"] and site.condition(name, "Programmed") == "True"
        sent = start_exchange(site.lab, pod, peer, count=COUNT).finish()
        received = start_exchange(site.lab, peer, pod, count=COUNT).finish()
        site.closes(name)
        found = site.stored(name)
        expect_each_once(found, sent, at(site, pod, "egress"))
        expect_each_once(found, received, at(site, pod, "ingress"))
    finally:
        site.lab.switch.vsctl("set", "Bridge", BRIDGE, "mcast_snooping_enable=false")
    site.tap(f"named-{name}", app, backend="OVSGroup")
    assert chosen(site, name)["Ingress"]["backend"] == "OVSMirror", "not before a minute is over"


def test_auto_goes_over_to_mirrors_where_flows_cannot_be_written_any_more(site: Site, veths: tuple[Pod, Pod]) -> None:
    site.tap("auto", "veth", backend="Auto", filter=UDP_ONLY)
    assert backends(site, "auto") == {"OVSGroup"}
    site.lab.switch.vsctl("set", "Bridge", BRIDGE, "protocols=OpenFlow10")
    try:
        wait_for(lambda: backends(site, "auto") == {"OVSMirror"}, PATIENCE, "mirrors copy instead")
        wait_for(lambda: site.condition("auto", "Programmed") == "True", PATIENCE, "they are programmed")
        whys = {point["why"] for point in chosen(site, "auto").values()}
        assert all("OVSGroup could not be had: bridge br0 speaks no OpenFlow 1.4" in why for why in whys), whys
        exchange = start_exchange(site.lab, veths[0], veths[1], count=COUNT).finish()
        assert len(exchange.received[str(veths[1])]) == COUNT
        site.closes("auto")
        expect_each_once(site.stored("auto"), exchange, at(site, veths[0], "egress"))
    finally:
        site.lab.switch.vsctl("clear", "Bridge", BRIDGE, "protocols")
    wait_for(lambda: backends(site, "auto") == {"OVSGroup"}, REGAIN + PATIENCE, "flows copy again")


@pytest.fixture
def mirrors(site: Site) -> Iterator[OthersMirrors]:
    made = OthersMirrors(site.lab)
    yield made
    made.delete()


class OthersMirrors:
    """Mirrors of somebody else's on the bridge, which select nothing and take places."""

    def __init__(self, lab: Lab) -> None:
        self._switch = lab.switch
        self._names: list[str] = []

    def make(self, count: int) -> None:
        for number in range(count):
            row = (f"--id=@m{number}", "create", "Mirror", f"name=span{number}", f"output_vlan={100 + number}")
            self._switch.vsctl(*row, "--", "add", "Bridge", BRIDGE, "mirrors", f"@m{number}")
            self._names.append(f"span{number}")

    def delete(self) -> None:
        while self._names:
            self._switch.vsctl("--id=@m", "get", "Mirror", self._names.pop(), "--", "remove", "Bridge", BRIDGE, "mirrors", "@m")

    def rows(self) -> set[str]:
        columns = "_uuid,name,external_ids,output_port,output_vlan,select_all,select_src_port,select_dst_port"
        found = self._switch.vsctl("--format=csv", "--no-headings", f"--columns={columns}", "list", "Mirror").splitlines()
        return {row for row in found if ",span" in row}


@pytest.mark.parametrize(
    ("used", "taken"),
    [(32, {"Ingress": "OVSGroup", "Egress": "OVSGroup"}), (31, {"Ingress": "OVSGroup", "Egress": "OVSMirror"})],
)
def test_where_the_bridge_has_no_mirror_left_auto_takes_flows(
    site: Site, pair: tuple[str, Pod, Pod], mirrors: OthersMirrors, used: int, taken: dict[str, str]
) -> None:
    app, pod, peer = pair
    name = f"full-{used}-{app}"
    mirrors.make(used)
    others = mirrors.rows()
    assert len(others) == used
    site.tap(name, app, backend="Auto")
    points = chosen(site, name)
    assert {direction: point["backend"] for direction, point in points.items()} == taken
    why = f"and OVSMirror could not be had: bridge br0 can hold 32 mirrors, Open vSwitch's limit, and others use {used}"
    why += ": the last place is for Egress" if used == 31 else ""
    assert points["Ingress"]["why"] == f"Auto takes OVSGroup, as DPDK moves the packets of br0 past the kernel {why}"
    assert site.condition(name, "Programmed") == "True"
    sent = start_exchange(site.lab, pod, peer, count=COUNT).finish()
    received = start_exchange(site.lab, peer, pod, count=COUNT).finish()
    summary = site.closes(name)
    found = site.stored(name)
    expect_each_once(found, sent, at(site, pod, "egress"))
    expect_each_once(found, received, at(site, pod, "ingress"))
    assert summary["lost"] == 0 and mirrors.rows() == others
    mirrors.delete()
    site.tap(f"named-{name}", app, backend="OVSMirror")
    assert {direction: point["backend"] for direction, point in chosen(site, name).items()} == taken, (
        "not before a minute is over"
    )


def test_where_neither_flows_nor_mirrors_can_copy_the_tap_says_what_cures_either(
    site: Site, veths: tuple[Pod, Pod], mirrors: OthersMirrors
) -> None:
    mirrors.make(32)
    site.lab.switch.vsctl("set", "Bridge", BRIDGE, "mcast_snooping_enable=true")
    try:
        site.write_tap("neither", "veth", backend="Auto")
        snoops = "or change what keeps OVSGroup from it: bridge br0 learns which pod wants which multicast"
        cure = f"others use 32; delete one of them, so that Ingress can be copied; {snoops}"
        wait_for(lambda: site.says("neither", cure), PATIENCE, "both cures are named")
        found = {direction: (one["backend"], one["reason"]) for direction, one in chosen(site, "neither").items()}
        assert found["Ingress"] == ("OVSMirror", "NoMirror") and found["Egress"][0] == "OVSGroup"
    finally:
        site.lab.switch.vsctl("set", "Bridge", BRIDGE, "mcast_snooping_enable=false")
    wait_for(lambda: backends(site, "neither") == {"OVSGroup"}, PATIENCE, "flows copy what the bridge now allows")


def test_a_filter_that_leaves_out_nothing_is_no_reason_for_flows(site: Site, veths: tuple[Pod, Pod]) -> None:
    site.tap("idle-filter", "veth", backend="Auto", filter={})
    points = chosen(site, "idle-filter").values()
    assert {point["backend"] for point in points} == {"OVSMirror"}
    assert all(point["why"].endswith("and flows would leave out nothing") for point in points), points


def backends(site: Site, name: str) -> set[str]:
    """Of a tap's points."""
    return {point["backend"] for point in chosen(site, name).values()}


def chosen(site: Site, name: str) -> dict[str, dict[str, Any]]:
    """A tap's points by direction."""
    status = site.status(name)
    assert status is not None
    return {point["direction"]: point for point in status["points"]}


def test_one_in_n_is_counted_to_the_packet(site: Site, pair: tuple[str, Pod, Pod]) -> None:
    app, pod, peer = pair
    site.tap(f"sampled-{app}", app, direction="Egress", sampling={"type": "OneIn", "oneIn": 10})
    start_exchange(site.lab, pod, peer, count=1000, rate=2000).finish()
    summary = site.closes(f"sampled-{app}")
    assert summary["seen"] >= 1000 and summary["unsampled"] == summary["seen"] - summary["stored"]
    assert 50 <= summary["stored"] <= 160, "about a tenth"


@BACKENDS
def test_other_cpus_may_work_at_what_poll_mode_threads_copy(
    lab: DpdkLab, site: Site, pair: tuple[str, Pod, Pod], backend: str
) -> None:
    cpu = max(steering.online_cpus())
    if cpu in lab.dpdk.cores:
        pytest.skip("needs a CPU beside the poll-mode thread's")
    app, pod, peer = pair
    name = f"elsewhere-{app}-{backend.lower()}"
    site.agent.stop()
    site.start_agent(f"--export-cpus={cpu}")
    try:
        site.tap(name, app, backend=backend)
        sent = start_exchange(site.lab, pod, peer, count=COUNT).finish()
        received = start_exchange(site.lab, peer, pod, count=COUNT).finish()
        summary = site.closes(name)
        found = site.stored(name)
        expect_each_once(found, sent, at(site, pod, "egress"))
        expect_each_once(found, received, at(site, pod, "ingress"))
        assert summary["lost"] == summary["dropped"] == 0
        slots = [row["key"] - MAX_SLOTS for row in rows(site, name)]
        # An agent that writes to sysfs has mounts of its own in a lab.
        pins = Path(f"/proc/{site.agent.process.pid}/root{lab.run_dir}/bpf")
        by_cpu = sum((Counter(sent_by_cpu(pins, slot)) for slot in slots), Counter[int]())
        assert by_cpu.keys() == {cpu} and by_cpu[cpu] >= 2 * COUNT
        site.remove_tap(name)
    finally:
        site.agent.stop()
        site.start_agent()


def rows(site: Site, name: str) -> list[dict[str, Any]]:
    """The agent's side of the ledger, of a tap's points."""
    return [row for row in site.agent.get("/v1/ledger")["points"] if row["tap"]["name"] == name and not row["closed"]]


@contextlib.contextmanager
def source_of_packets(lab: DpdkLab) -> Iterator[Pod]:
    """A pod whose port is a net_null: it makes packets as fast as the thread takes them, and the bridge drops them."""
    flow = f"dl_src={SILENT_MAC}"
    lab.switch.ofctl("add-flow", BRIDGE, f"priority=40000,{flow},actions=drop")
    try:
        pod = lab.add_generator("source", "net_null", "size=64", SILENT_MAC, namespace="shop", labels={"app": "source"})
        try:
            yield pod
        finally:
            lab.delete_pod(pod)
    finally:
        lab.switch.ofctl("del-flows", BRIDGE, flow)


@BACKENDS
def test_what_a_net_null_makes_is_all_seen(lab: DpdkLab, site: Site, backend: str) -> None:
    """As precisely as two counters can be compared that go on meanwhile: one is read before and after the other, each time."""
    name, vswitchd = f"null-{backend.lower()}", Vswitchd(lab.switch.directory)
    with source_of_packets(lab) as pod:
        port = lab.port_of(pod)

        def received() -> int:
            return vswitchd.port_counters()[port].received

        def seen() -> int:
            (row,) = rows(site, name)
            return row["seen"]

        site.tap(name, "source", backend=backend, direction="Egress", sampling={"type": "OneIn", "oneIn": ONE_IN})
        wait_for(lambda: seen() > 0, PATIENCE, "the thread copies")
        first = (seen(), received(), seen())
        wait_for(lambda: received() >= first[1] + MANY, PATIENCE, "the source goes on")
        last = (seen(), received(), seen())
    made = last[1] - first[1]
    # A burst that was received may not have been looked at yet.
    assert last[0] - first[2] - BURST <= made <= last[2] - first[0] + BURST
    summary = site.closes(name)
    assert summary["seen"] >= made and summary["dropped"] == 0
    # Binomial: six standard deviations.
    wanted = summary["seen"] / ONE_IN
    assert abs(summary["sent"] - wanted) <= 6 * math.sqrt(wanted)


def test_the_tap_port_is_a_device_that_costs_poll_mode_threads_little(site: Site, veths: tuple[Pod, Pod]) -> None:
    site.tap("port", "veth")
    ports = site.lab.switch.vsctl("--bare", "--columns=name,type", "find", "Interface", "external_ids:vtap-owner=vtap.dev")
    kinds = dict(zip(*[iter(ports.split())] * 2, strict=True))
    assert set(kinds.values()) == {"tap"} and len(kinds) == 2
    assert all(name in site.lab.run(site.lab.node, "ip", "-o", "link") for name in kinds)
    site.remove_tap("port")
    wait_for(lambda: not any(n in site.lab.run(site.lab.node, "ip", "-o", "link") for n in kinds), PATIENCE, "they are gone")
    assert not site.lab.switch.vsctl("--bare", "--columns=name", "find", "Port", "external_ids:vtap-owner=vtap.dev")


def test_copies_go_on_after_vswitchd_was_killed(site: Site, veths: tuple[Pod, Pod]) -> None:
    site.tap("killed", "veth")
    site.lab.switch.kill_vswitchd()
    site.lab.switch.start_vswitchd()
    site.lab.ip(site.lab.node, f"link set {BRIDGE} up")
    wait_for(lambda: site.condition("killed", "Delivering") == "True", PATIENCE, "the tap delivers again")
    exchange = start_exchange(site.lab, veths[0], veths[1], count=COUNT).finish()
    assert len(exchange.received[str(veths[1])]) == COUNT
    site.closes("killed")
    expect_each_once(site.stored("killed"), exchange, at(site, veths[0], "egress"))


def test_the_threads_cycles_are_among_the_metrics(site: Site, veths: tuple[Pod, Pod]) -> None:
    def value(name: str) -> float:
        lines = [line for line in site.agent.metrics().splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    before = value("vtap_ovs_pmd_packets_total")
    start_exchange(site.lab, veths[0], veths[1], count=COUNT).finish()
    wait_for(lambda: value("vtap_ovs_pmd_packets_total") >= before + COUNT, PATIENCE, "the packets are counted")
    assert value("vtap_ovs_pmd_busy_cycles_total") > 0 and value("vtap_ovs_pmd_idle_cycles_total") > 0
