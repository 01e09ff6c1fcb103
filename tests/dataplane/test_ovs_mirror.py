"""Mirrors on real Open vSwitch while packets flow, and while its daemons come and go."""

from __future__ import annotations

import json
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.contract.frames import BROADCAST, Frame, frame
from tests.contract.networks import EGRESS_TAP, INGRESS_TAP, NODE, OvsNetwork, converge, tap, want
from vtap_agent.backends.ovs_mirror import OvsMirrorBackend
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.plan.dataplane import Backend, DataPlane, Direction, Feed
from vtap_agent.plan.mirror_health import MirrorHealth, MirrorState, unhealthy
from vtap_lab.errors import PATIENCE
from vtap_lab.lab import BRIDGE, Lab

RATE = 500
"""Frames a second of a running flow."""


@dataclass
class Flow:
    """Numbered frames from one pod to another while the context lasts, and all that arrived anywhere meanwhile."""

    network: OvsNetwork
    sender: str
    source: str
    destination: str
    sent: list[int] = field(default_factory=list)
    arrived: dict[str, Counter[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._collect)]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        self.run_on()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the flow once every frame has had the time to arrive."""
        self.run_on()
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not any(end.lost() for end in self.network.sockets.values()), "the test's own sockets overflowed"

    def run_on(self, frames: int = 50) -> int:
        """Let so many more frames leave; the number of the last."""
        wanted = len(self.sent) + frames
        wait_for(lambda: len(self.sent) >= wanted, "the flow runs")
        return self.sent[-1]

    def copies(self, port: str, after: int = 0, until: int = 1 << 32) -> Counter[int]:
        """Of the frames numbered after `after` and up to `until`: how often each left the port."""
        return Counter({n: count for n, count in self.arrived.get(port, Counter()).items() if after < n <= until})

    def each_once(self, after: int = 0, until: int = 1 << 32) -> Counter[int]:
        """What `copies` is where every frame left the port once."""
        return Counter(number for number in self.sent if after < number <= until)

    def _send(self) -> None:
        end, due = self.network.sockets[self.sender], time.monotonic()
        while not self._stop.is_set():
            packet = frame(self.destination, self.source)
            try:
                end.send(packet)
            except OSError:  # The far end of the veth is down; what could not be sent is no packet.
                continue
            self.sent.append(packet.number)
            due += 1 / RATE
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _collect(self) -> None:
        quiet_since = None
        while quiet_since is None or time.monotonic() - quiet_since < 0.2:
            came = self._take()
            quiet_since = None if came or not self._stop.is_set() else quiet_since or time.monotonic()
            select.select(list(self.network.sockets.values()), [], [], 0.05)

    def _take(self) -> bool:
        came = False
        for name, end in list(self.network.sockets.items()):
            for packet in end.receive():
                self.arrived.setdefault(name, Counter())[packet.number] += 1
                came = True
        return came


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout * PATIENCE:g} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def network(shared_lab: Lab) -> Iterator[OvsNetwork]:
    real = OvsNetwork(shared_lab)
    try:
        yield real
    finally:
        real.close()


@pytest.fixture
def pair(network: OvsNetwork) -> tuple[str, str]:
    """The MACs of pods a and b, which the bridge has learnt."""
    macs = network.add_pod("a"), network.add_pod("b")
    for name, mac in zip("ab", macs, strict=True):
        network.exchange(name, frame(BROADCAST, mac), 1)
    return macs


def test_copies_of_a_running_flow_begin_and_end_with_the_pass(network: OvsNetwork, pair: tuple[str, str]) -> None:
    a, b = pair
    spans: list[tuple[int, int, bool]] = []
    with Flow(network, "a", a, b) as flow:
        for tapped in (True, False) * 4:
            # b's selection keeps the mirror and its port when a's goes, so that a flow that is still copied would show.
            tap(network, egress=["a", "b"] if tapped else ["b"], ingress=["b"] if tapped else ["a"])
            begin = flow.run_on(2)
            spans.append((begin, flow.run_on(), tapped))
    assert flow.copies("b") == flow.each_once(), "originals"
    for begin, end, tapped in spans:
        expected = flow.each_once(begin, end) if tapped else Counter()
        assert flow.copies(EGRESS_TAP, begin, end) == expected
        assert flow.copies(INGRESS_TAP, begin, end) == expected


def test_a_flow_that_escaped_the_mirror_is_found_by_counters_and_copied(network: OvsNetwork, pair: tuple[str, str]) -> None:
    a, b = pair
    tap(network, egress=["a"])
    wanted = DataPlane(mirrors=want(network, egress=["a"]))
    with Flow(network, "a", a, b) as flow:
        network.backend.check_health(wanted)
        lose_output(network, EGRESS_TAP)
        escaped = flow.run_on()
        before = network.backend.purges
        wait_for(lambda: missing_or_purged(network, wanted, before), "the counters show it")
        assert network.backend.settle(5)
        found = flow.run_on(2)
    assert network.backend.purges > before
    assert flow.copies("b") == flow.each_once(), "originals"
    assert flow.copies(EGRESS_TAP, escaped - 10, escaped) == Counter(), "the test could not make a flow escape"
    assert flow.copies(EGRESS_TAP, found) == flow.each_once(found)


def missing_or_purged(network: OvsNetwork, wanted: DataPlane, before: int) -> bool:
    states = {judged.state for judged in network.backend.check_health(wanted).values()}
    return network.backend.purges > before or MirrorState.MISSING in states


def lose_output(network: OvsNetwork, port: str) -> None:
    """Make the datapath's running flows forget one output, as after a change that vswitchd did not notice."""
    numbers = {name: number for number, name in re.findall(r"port (\d+): (\S+)", network.lab.switch.appctl("dpctl/show"))}
    for line in network.lab.switch.appctl("dpctl/dump-flows", "-m").splitlines():
        found = re.match(r"ufid:(\S+?), .*?(recirc_id.*?), packets:.*actions:(\S+)", line)
        if found and port in (outputs := found[3].rstrip(",").split(",")):
            kept = ",".join(numbers[output] for output in outputs if output != port)
            network.lab.switch.appctl("dpctl/mod-flow", f"ufid:{found[1]},{found[2]}", kept)


def test_rows_persist_and_copies_resume_when_vswitchd_is_killed_and_started(network: OvsNetwork, pair: tuple[str, str]) -> None:
    a, b = pair
    tap(network, egress=["a"], ingress=["b"])
    with Flow(network, "a", a, b) as tapped:
        network.lab.switch.kill_vswitchd()
        tapped.run_on()
        network.lab.switch.start_vswitchd()
        back = tapped.run_on(2)
    assert tapped.copies("b", back) == tapped.each_once(back), "originals"
    assert tapped.copies(EGRESS_TAP, back) == tapped.each_once(back)
    assert tapped.copies(INGRESS_TAP, back) == tapped.each_once(back)
    wait_for(lambda: network.connection.snapshot().restarts == 1, "the restart is seen")
    assert network.backend.plan(DataPlane(mirrors=want(network, egress=["a"], ingress=["b"]))) == ()

    converge(network, {})
    with Flow(network, "a", a, b) as untapped:
        network.lab.switch.kill_vswitchd()
        untapped.run_on()
        network.lab.switch.start_vswitchd()
    assert_no_worse(tapped, untapped)


def assert_no_worse(tapped: Flow, untapped: Flow) -> None:
    """The outage is as long as a daemon takes to start, on a machine that others use too: hence the half second."""
    assert longest_gap(tapped) <= 2 * longest_gap(untapped) + RATE // 2


def longest_gap(flow: Flow) -> int:
    """How many originals in a row did not arrive."""
    longest = gap = 0
    for number in flow.sent:
        gap = 0 if flow.arrived["b"][number] else gap + 1
        longest = max(longest, gap)
    return longest


def test_copies_go_on_while_the_database_restarts_and_the_next_pass_finds_nothing_to_do(
    network: OvsNetwork, pair: tuple[str, str]
) -> None:
    a, b = pair
    tap(network, egress=["a"])
    wanted = DataPlane(mirrors=want(network, egress=["a"]))
    changes = threading.Event()
    network.connection.on_change(changes.set)
    with Flow(network, "a", a, b) as flow:
        steady = flow.run_on(2)
        network.lab.switch.restart_ovsdb()
        wait_for(lambda: network.connection.snapshot().reachable, "the connection is back")
        assert network.backend.plan(wanted) == ()
        network.lab.switch.sync()
        back = flow.run_on(2)
        flow.run_on()
    assert changes.is_set(), "whoever waits for events hears of it"
    # Without its database's lock vswitchd lets the userspace datapath rest, tapped or not; what it forwards, it copies.
    assert flow.copies(EGRESS_TAP, steady) == flow.copies("b", steady)
    assert flow.copies("b", back) == flow.each_once(back)
    tap(network, egress=["b"])
    packet = frame(a, b)
    assert network.exchange("b", packet, 2) == {"a": [packet], EGRESS_TAP: [packet]}

    converge(network, {})
    with Flow(network, "a", a, b) as untapped:
        network.lab.switch.restart_ovsdb()
        network.lab.switch.sync()
    assert_no_worse(flow, untapped)


def test_without_a_database_the_switch_is_unreachable_and_nothing_is_an_error_until_a_mirror_is_wanted(tmp_path_factory) -> None:
    nowhere = OvsdbConnection(f"unix:{tmp_path_factory.mktemp('ovs')}/db.sock")
    backend = OvsMirrorBackend(nowhere, NODE)
    assert not nowhere.snapshot().reachable
    assert backend.plan(DataPlane()) == ()
    assert backend.verify(DataPlane()) == ()


def test_the_next_agent_adopts_what_is_wanted_and_sweeps_the_rest(network: OvsNetwork, pair: tuple[str, str]) -> None:
    a, b = pair
    tap(network, egress=["a"], ingress=["a"])
    next_connection = OvsdbConnection(network.lab.switch.db_remote)
    next_agent = OvsMirrorBackend(next_connection, NODE, generation=2)
    try:
        assert next_agent.plan(DataPlane(mirrors=want(network, egress=["a"], ingress=["a"]))) == ()
        next_agent.apply(next_agent.plan(DataPlane(mirrors=want(network, egress=["a"]))))
        assert next_agent.settle(5)
    finally:
        next_agent.close()
        next_connection.close()
    packet, reply = frame(b, a), frame(a, b)
    assert network.exchange("a", packet, 2) == {"b": [packet], EGRESS_TAP: [packet]}
    assert network.exchange("b", reply, 1) == {"a": [reply]}
    assert INGRESS_TAP not in network.lab.switch.vsctl("list-ports", BRIDGE).split()


def test_nothing_enters_the_bridge_from_a_tap_port_and_no_address_is_learnt_there(
    network: OvsNetwork, pair: tuple[str, str]
) -> None:
    a, b = pair
    tap(network, egress=["a"])
    stranger = "02:00:00:00:00:99"
    assert network.exchange(EGRESS_TAP, frame(a, stranger), 0) == {}
    assert network.exchange(EGRESS_TAP, frame(BROADCAST, stranger), 0) == {}
    assert network.exchange(EGRESS_TAP, frame(b, a), 0) == {}
    assert stranger not in network.lab.switch.appctl("fdb/show", BRIDGE)
    packet = frame(a, b)
    assert network.exchange("b", packet, 1) == {"a": [packet]}


def test_nothing_enters_from_a_tap_port_even_where_flows_flood_explicitly(network: OvsNetwork, pair: tuple[str, str]) -> None:
    _, b = pair
    tap(network, egress=["a"])
    network.lab.switch.ofctl("replace-flows", BRIDGE, write_flows(network, "actions=FLOOD"))
    try:
        packet = frame(b, "02:00:00:00:00:77")
        assert network.exchange("b", frame(BROADCAST, b), 1).keys() >= {"a"}, "the flow is in force"
        assert network.exchange(EGRESS_TAP, packet, 0) == {}
    finally:
        network.lab.switch.ofctl("replace-flows", BRIDGE, write_flows(network, "actions=NORMAL"))


def write_flows(network: OvsNetwork, flow: str) -> str:
    path = network.lab.directory / "flows"
    path.write_text(f"{flow}\n")
    return str(path)


@pytest.mark.parametrize("restarted", [False, True])
def test_flows_that_flood_spare_the_tap_port_and_the_mirror_still_copies(
    network: OvsNetwork, pair: tuple[str, str], restarted: bool
) -> None:
    a, b = pair
    tap(network, egress=["a"])
    wanted = DataPlane(mirrors=want(network, egress=["a"]))
    if restarted:
        network.lab.switch.kill_vswitchd()
        network.lab.switch.start_vswitchd()
        wait_for(lambda: network.connection.snapshot().reachable, "the connection is back")
    assert network.backend.verify(wanted) == () and network.backend.notes == ()
    network.lab.switch.ofctl("replace-flows", BRIDGE, write_flows(network, "actions=FLOOD"))
    network.lab.switch.appctl("revalidator/purge")
    try:
        tapped, other = frame(BROADCAST, a), frame(BROADCAST, b)
        assert network.exchange("a", tapped, 2) == {"b": [tapped], EGRESS_TAP: [tapped]}
        assert network.exchange("b", other, 1) == {"a": [other]}
    finally:
        network.lab.switch.ofctl("replace-flows", BRIDGE, write_flows(network, "actions=NORMAL"))
        network.lab.switch.appctl("revalidator/purge")


def test_a_bridge_that_cannot_be_asked_to_spare_it_says_what_to_do(network: OvsNetwork, pair: tuple[str, str]) -> None:
    network.lab.switch.vsctl("set", "Bridge", BRIDGE, "protocols=OpenFlow13")
    try:
        tap(network, egress=["a"])
        wanted = DataPlane(mirrors=want(network, egress=["a"]))
        assert network.backend.verify(wanted) == ()
        assert "protocols OpenFlow10" in network.backend.notes[0]
        network.lab.switch.vsctl("add", "Bridge", BRIDGE, "protocols", "OpenFlow10")
        assert network.backend.verify(wanted) == () and network.backend.notes == ()
    finally:
        network.lab.switch.vsctl("clear", "Bridge", BRIDGE, "protocols")


@pytest.mark.parametrize("actions", ["ALL", "NORMAL,{port}", "resubmit(,0),output:{port}", "clone(output:{port}),NORMAL"])
def test_flows_that_output_to_the_tap_port_themselves_are_named(network: OvsNetwork, pair: tuple[str, str], actions: str) -> None:
    key = Feed(Backend.OVS_MIRROR, BRIDGE, Direction.EGRESS)
    tap(network, egress=["a"])
    wanted = DataPlane(mirrors=want(network, egress=["a"]))
    network.backend.check_health(wanted)
    port = network.lab.switch.vsctl("get", "Interface", EGRESS_TAP, "ofport")
    flow = f"priority=7,arp,actions={actions.format(port=port)}"
    network.lab.switch.ofctl("add-flow", BRIDGE, flow)

    def state() -> MirrorHealth | None:
        return network.backend.check_health(wanted, frozenset({key})).get(key)

    try:
        wait_for(lambda: (found := state()) is not None and found.state is MirrorState.SHARED, "the flow is found")
        (said,) = unhealthy(network.backend.check_health(wanted))
        assert "priority=7" in said and said.endswith(f"leave out port {port}")
        assert network.backend.purges <= 1, "purging helps nobody here"
    finally:
        network.lab.switch.ofctl("--strict", "del-flows", BRIDGE, "priority=7,arp")
    wait_for(lambda: (found := state()) is not None and found.state is not MirrorState.SHARED, "the flow has gone")


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_a_tap_port_leaves_the_bridges_mtu_alone(network: OvsNetwork, mtu: int) -> None:
    network.add_pod("a", mtu=mtu)
    wait_for(lambda: bridge_mtu(network) == mtu, "the bridge takes its pods' MTU")
    network.make_tap_device(EGRESS_TAP, mtu=1280)
    converge(network, want(network, egress=["a"]))
    network.lab.switch.sync()
    assert bridge_mtu(network) == mtu


def bridge_mtu(network: OvsNetwork) -> int:
    return device_mtu(network, BRIDGE)


def device_mtu(network: OvsNetwork, name: str) -> int:
    return json.loads(network.lab.run(network.lab.node, "ip", "-json", "link", "show", name))[0]["mtu"]


def test_copies_resume_when_the_tap_ports_device_was_deleted_and_made_again(network: OvsNetwork, pair: tuple[str, str]) -> None:
    a, b = pair
    tap(network, egress=["a"])
    network.delete_tap_device(EGRESS_TAP)
    packet = frame(b, a)
    assert network.exchange("a", packet, 1) == {"b": [packet]}, "originals need no tap port"
    network.make_tap_device(EGRESS_TAP, mtu=9000)

    def copied() -> bool:
        return EGRESS_TAP in network.exchange("a", frame(b, a), 1)

    wait_for(copied, "vswitchd takes the new device")
    wait_for(lambda: device_mtu(network, EGRESS_TAP) == 1500, "and gives it the MTU that was asked for")
    packet = frame(b, a)
    assert network.exchange("a", packet, 2) == {"b": [packet], EGRESS_TAP: [packet]}


def test_a_mirror_that_open_vswitch_does_not_hold_is_unhealthy(network: OvsNetwork, pair: tuple[str, str]) -> None:
    """Its row is there as wanted; only `statistics` tells."""
    network.lab.switch.vsctl("--id=@m", "create", "Mirror", "name=orphan", "--", "add", "Bridge", BRIDGE, "mirrors", "@m")
    tap(network, egress=["a"])

    def held() -> dict[str, bool]:
        return {row.name: row.has_statistics for row in network.observe().bridges[BRIDGE].mirrors}

    wait_for(lambda: held()[EGRESS_TAP], "a mirror that is held has statistics")
    network.lab.switch.sync()
    assert held() == {EGRESS_TAP: True, "orphan": False}


def test_another_tools_mirror_of_everything_works_beside_ours(network: OvsNetwork, pair: tuple[str, str]) -> None:
    a, b = pair
    network.add_pod("span")
    span = network.pods["span"].host_name
    network.lab.switch.vsctl(
        *("--id=@p", "get", "Port", span, "--", "--id=@m", "create", "Mirror", "name=span", "select_all=true", "output_port=@p"),
        *("--", "add", "Bridge", BRIDGE, "mirrors", "@m"),
    )
    tap(network, egress=["a"])
    packet: Frame = frame(b, a)
    assert network.exchange("a", packet, 3) == {"b": [packet], "span": [packet], EGRESS_TAP: [packet]}
    converge(network, {})
    packet = frame(b, a)
    assert network.exchange("a", packet, 2) == {"b": [packet], "span": [packet]}
