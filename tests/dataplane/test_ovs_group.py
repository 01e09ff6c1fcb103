"""Copies by flows and groups on real Open vSwitch: originals fare as without them, whatever else is on the bridge."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.contract.columns import DATAPATHS, KERNEL, Column, why_not
from tests.contract.frames import BROADCAST, KINDS, LINK_LOCAL, MULTICAST, MULTICAST6, frame
from tests.contract.networks import NODE, OvsNetwork
from tests.contract.sockets import gather
from tests.dataplane.site import Site, expect_each_once, expect_none, point
from tests.dataplane.test_ovs_mirror import Flow, assert_no_worse, wait_for
from vtap_agent.backends.ovs_group import LOOK_AT_LEAST_EVERY, OvsGroupBackend
from vtap_agent.plan.dataplane import Action, Backend, DataPlane, Direction, Feed, Group, GroupMember, Match, TapProgram
from vtap_agent.plan.tap_ports import tap_port_name
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import BRIDGE, Lab, LabOptions, Pod

FEEDS = {direction: Feed(Backend.OVS_GROUP, BRIDGE, direction) for direction in Direction}
TAPS = {direction: tap_port_name(NODE, feed) for direction, feed in FEEDS.items()}
OUT, IN = TAPS[Direction.EGRESS], TAPS[Direction.INGRESS]
PROGRAMS = {"all": TapProgram(Action.INCLUDE, ()), "tcp": TapProgram(Action.EXCLUDE, (Match(Action.INCLUDE, protocol=6),))}
SLOTS = {Direction.EGRESS: 1, Direction.INGRESS: 2}
CLEAR_IN_PORT = ("load:0->NXM_OF_IN_PORT[]", "load:0->OXM_OF_IN_PORT[]", "set_field:0->in_port")
HOST_SAYS = 20
"""Packets that the node itself may send to new devices, ours among them, where our flows drop them."""
POD_SAYS = 40
"""Packets that a pod may send of its own accord while a test runs, to find neighbours and routers."""
NETDEV = "netdev"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shared_lab" in metafunc.fixturenames:
        datapaths = (NETDEV, KERNEL) if metafunc.definition.get_closest_marker("every_datapath") else (NETDEV,)
        metafunc.parametrize("shared_lab", datapaths, indirect=True, scope="module")


class GroupNetwork(OvsNetwork):
    """A bridge with pods, and flows of ours beside whatever flows a test puts there. No agent."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.lost = 0
        self.counts = lab.run_dir / "flow-counts.json"
        self.counts.unlink(missing_ok=True)
        self.next_agent()

    def next_agent(self) -> None:
        """Another takes over, as after one was killed."""
        self.groups = OvsGroupBackend(self.connection, NODE, 1, self._count_loss, self.counts)

    def _count_loss(self) -> None:
        self.lost += 1

    def want(
        self, egress: str = "", ingress: str = "", program: str = "all", slots: Mapping[Direction, int] = SLOTS
    ) -> DataPlane:
        sides = {Direction.EGRESS: egress, Direction.INGRESS: ingress}
        groups = {
            FEEDS[direction]: Group(FEEDS[direction], tuple(self._member(name, slots[direction], program) for name in names))
            for direction, names in sides.items()
            if names
        }
        return DataPlane(groups=groups, programs=PROGRAMS)

    def _member(self, name: str, slot: int, program: str) -> GroupMember:
        pod = self.pods[name]
        return GroupMember(self.port(name), bytes.fromhex(pod.mac.replace(":", "")), pod.vlan, (slot,), (program,))

    def tap(
        self,
        egress: str = "",
        ingress: str = "",
        program: str = "all",
        passes: int = 1,
        slots: Mapping[Direction, int] = SLOTS,
    ) -> DataPlane:
        """So many passes, after which nothing is left to do. A tap port that goes takes two, as flows name it until then."""
        wanted = self.want(egress, ingress, program, slots)
        self.make_tap_devices(wanted)
        assert self.groups.refusals(wanted) == {}
        for _ in range(passes):
            self.groups.apply(self.groups.plan(wanted))
        assert self.groups.verify(wanted) == ()
        assert self.groups.plan(wanted) == ()
        return wanted

    def make_tap_devices(self, wanted: DataPlane) -> None:
        for feed in wanted.groups:
            if TAPS[feed.direction] not in self._tap_devices:
                self.make_tap_device(TAPS[feed.direction])

    def uncopied(self, slot: int) -> int:
        return sum(count for of, count in self.groups.uncopied().items() if of.slot == slot)

    def has_counted(self, flow: Flow, slot: int = SLOTS[Direction.EGRESS]) -> None:
        """All of a flow to c that no tap wants, once; a busy switch may not have taken all that was sent."""
        arrived = flow.copies("c").total()
        wait_for(lambda: self.uncopied(slot) >= arrived, "the switch has counted all that has arrived")
        assert arrived <= self.uncopied(slot) <= len(flow.sent)

    def flows(self) -> list[str]:
        dump = self.lab.switch.ofctl("--no-stats", "dump-flows", BRIDGE).splitlines()
        return sorted(line.strip() for line in dump if "actions=" in line)

    def group_dump(self) -> list[str]:
        dump = self.lab.switch.ofctl("-O", "OpenFlow13", "dump-groups", BRIDGE).splitlines()
        return sorted(line.strip() for line in dump if "group_id" in line)

    def learnt(self) -> set[tuple[str, str, str]]:
        """(port, VLAN, MAC) that the bridge has learnt of pods and at tap ports; the node itself speaks whenever it likes."""
        pods = {pod.mac for pod in self.pods.values()}
        rows = [line.split() for line in self.lab.switch.appctl("fdb/show", BRIDGE).splitlines()[1:]]
        return {(port, vlan, mac) for port, vlan, mac, _age in rows if port != "LOCAL" or mac in pods}

    def close(self) -> None:
        self.groups.sweep()
        super().close()


@pytest.fixture(scope="module")
def shared_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if reason := why_not(Column(Backend.OVS_GROUP.value, request.param)):
        (pytest.fail if os.environ.get("CI") and request.param == NETDEV else pytest.skip)(reason)
    with Lab(DATAPATHS[request.param]) as lab:
        yield lab


@pytest.fixture
def network(shared_lab: Lab) -> Iterator[GroupNetwork]:
    real = GroupNetwork(shared_lab)
    try:
        yield real
    finally:
        real.close()


@pytest.fixture
def macs(network: GroupNetwork) -> Mapping[str, str]:
    """Of pods a, b and c, and of d and e in VLAN 7, which the bridge has learnt."""
    made = {name: network.add_pod(name, vlan=7 if name in "de" else 0) for name in "abcde"}
    for name, mac in made.items():
        network.exchange(name, frame(BROADCAST, mac), 1)
    return made


def originals(network: GroupNetwork, macs: Mapping[str, str]) -> Counter[tuple[str, int, str, int]]:
    """Everything that a bridge treats in a way of its own: (kind, which frame, pod that it reached, VLAN there), and how often.

    Kind by kind: a switch may drop a burst of flows that are all new to it.
    """
    found: Counter[tuple[str, int, str, int]] = Counter()
    for kind in KINDS:
        found.update({(kind, *where): count for where, count in originals_of(kind, network, macs).items()})
    return found


def originals_of(kind: str, network: GroupNetwork, macs: Mapping[str, str]) -> Counter[tuple[int, str, int]]:
    receivers = [*macs.values(), BROADCAST, MULTICAST, MULTICAST6, LINK_LOCAL, "02:99:00:00:00:01"]
    sent = [(sender, frame(receiver, macs[sender], 0, kind)) for sender in macs for receiver in receivers]
    sent += [(sender, frame(receiver, macs[sender], 7, kind)) for sender in "ad" for receiver in (macs["e"], BROADCAST)]
    last = {sender: frame(BROADCAST, macs[sender]) for sender in macs}
    for sender, packet in (*sent, *last.items()):
        network.sockets[sender].send(packet)
    places = {packet.number: place for place, (_, packet) in enumerate(sent)}
    due = {packet.number for packet in last.values()}
    found: Counter[tuple[int, str, int]] = Counter()

    def come() -> bool:
        arrived = gather({name: network.sockets[name] for name in macs}, 0)
        for name, packets in arrived.items():
            due.difference_update(packet.number for packet in packets)
            own = [packet for packet in packets if packet.number in places]
            assert all(packet.kind == kind for packet in own)
            found.update((places[packet.number], name, packet.vlan) for packet in own)
        return not due and not any(arrived.values())

    wait_for(come, "each pod's last broadcast has arrived, and nothing comes any more")
    return found


@pytest.mark.every_datapath
def test_forwarding_and_learning_are_as_without_us(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    """Of ARP, neighbour discovery, IPv4, IPv6 and IGMP as of what no bridge knows: known, unknown, group-addressed, tagged."""
    originals(network, macs)  # Pod a's tagged frames teach the bridge where it is in VLAN 7 too.
    before, learnt = originals(network, macs), network.learnt()
    network.tap(egress="abd", ingress="abe")
    assert originals(network, macs) == before
    assert network.learnt() == learnt
    assert len(before) > 40 * len(KINDS)


def test_each_copy_is_made_once(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    network.tap(egress="a", ingress="b")
    for sender, receiver, expected in (
        ("a", macs["b"], {"b", OUT, IN}),
        ("a", macs["c"], {"c", OUT}),
        ("c", macs["b"], {"b", IN}),
        ("b", macs["a"], {"a"}),
        ("c", macs["a"], {"a"}),
    ):
        packet = frame(receiver, macs[sender])
        assert network.exchange(sender, packet, len(expected)) == {name: [packet] for name in expected}


def test_unknown_unicast_to_a_tapped_pod_is_copied_once(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    network.tap(ingress="b")
    network.lab.switch.appctl("fdb/flush", BRIDGE)
    packet = frame(macs["b"], macs["a"])
    found = network.exchange("a", packet, 3)
    assert found[IN] == [packet] and found["b"] == [packet]
    assert OUT not in found


@pytest.mark.every_datapath
def test_flows_of_others_still_decide(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    """An access list, and a pipeline of several tables."""
    switch = network.lab.switch
    switch.ofctl("add-flow", BRIDGE, f"table=0,priority=300,dl_src={macs['c']},actions=drop")
    switch.ofctl("add-flow", BRIDGE, "table=0,priority=100,actions=load:7->NXM_NX_REG15[],resubmit(,240)")
    switch.ofctl("add-flow", BRIDGE, f"table=240,priority=9,reg15=7,dl_dst={macs['b']},actions=resubmit(,253)")
    switch.ofctl("add-flow", BRIDGE, "table=253,priority=1,actions=NORMAL")
    theirs = network.flows()
    try:
        network.tap(egress="ac", ingress="b")
        packet = frame(macs["b"], macs["a"])
        assert network.exchange("a", packet, 3) == {"b": [packet], OUT: [packet], IN: [packet]}
        packet = frame(macs["b"], macs["c"])
        assert network.exchange("c", packet, 2) == {OUT: [packet], IN: [packet]}, "copied before policy"
        packet = frame(macs["c"], macs["a"])
        assert network.exchange("a", packet, 1) == {OUT: [packet]}, "their table 240 knows nobody else"
        assert set(theirs) <= set(network.flows())
        network.groups.sweep()
        assert network.flows() == theirs
    finally:
        for match in ("table=240", "table=253", f"table=0,dl_src={macs['c']}"):
            switch.ofctl("del-flows", BRIDGE, match)
        switch.ofctl("--strict", "del-flows", BRIDGE, "table=0,priority=100")


@pytest.mark.every_datapath
@pytest.mark.parametrize("version", ["OpenFlow10", "OpenFlow14"])
@pytest.mark.parametrize(
    "actions",
    ["in_port", *(f"{clear},output:{{port}}" for clear in CLEAR_IN_PORT)],
)
def test_a_hairpin_that_others_flows_make_is_copied_and_made(
    network: GroupNetwork, macs: Mapping[str, str], version: str, actions: str
) -> None:
    """Whichever way ovs-actions(7) knows, and however the switch shows it."""
    port = network.lab.switch.vsctl("get", "Interface", network.pods["a"].host_name, "ofport").strip()
    theirs = f"table=0,priority=300,dl_src={macs['a']},dl_dst={macs['a']},actions={actions.format(port=port)}"
    network.lab.switch.ofctl("-O", version, "add-flow", BRIDGE, theirs)
    try:
        network.tap(egress="a", ingress="a")
        packet = frame(macs["a"], macs["a"])
        assert network.exchange("a", packet, 3) == {"a": [packet], OUT: [packet], IN: [packet]}
    finally:
        network.lab.switch.ofctl("del-flows", BRIDGE, f"table=0,dl_src={macs['a']},dl_dst={macs['a']}")


@pytest.mark.every_datapath
def test_changes_lose_and_double_nothing(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    """A starved switch may not come round to a port in time, tapped or not; what it takes it forwards, and copies, once."""
    spans: list[tuple[int, int, bool]] = []
    network.tap(egress="c", ingress="b")
    dropped = drops(network)
    with Flow(network, "a", macs["a"], macs["b"]) as flow:
        for tapped in (True, False) * 4:
            network.tap(egress="ac" if tapped else "c", ingress="b")
            begin = flow.run_on(2)
            spans.append((begin, flow.run_on(), tapped))
    forwarded = flow.copies("b")
    assert set(forwarded.values()) == {1}
    assert flow.copies(IN) == forwarded, "a copy that nobody touched"
    for begin, end, tapped in spans:
        assert flow.copies(OUT, begin, end) == (flow.copies("b", begin, end) if tapped else Counter())
    assert drops(network) - dropped <= HOST_SAYS, "the switch counts what it drops, whatever for"


@pytest.fixture
def silent(network: GroupNetwork, macs: Mapping[str, str]) -> GroupNetwork:
    """Pod a says what the test sends, and no more."""
    sender = network.pods["a"]
    network.lab.sysctl(sender.netns, f"net/ipv6/conf/{sender.interface}/disable_ipv6", "1")
    network.lab.switch.appctl("revalidator/wait")  # What it has said so far is counted.
    return network


@pytest.mark.every_datapath
def test_what_is_not_copied_is_counted_once_while_flows_change(silent: GroupNetwork, macs: Mapping[str, str]) -> None:
    """Taps of another pod, which come and go, change what our flows for this one do."""
    silent.tap(egress="a", program="tcp")
    with Flow(silent, "a", macs["a"], macs["c"]) as flow:
        for ingress in ("b", "") * 3:
            silent.tap(egress="a", ingress=ingress, program="tcp", passes=1 if ingress else 2)
            flow.run_on()
    silent.has_counted(flow)
    assert flow.copies("c") == flow.each_once() and not flow.copies(OUT)


@pytest.mark.every_datapath
def test_the_next_agent_knows_what_was_counted_before_it_has_planned_anything(
    silent: GroupNetwork, macs: Mapping[str, str]
) -> None:
    silent.tap(egress="a", program="tcp")
    with Flow(silent, "a", macs["a"], macs["c"]) as flow:
        flow.run_on()
        silent.next_agent()
        flow.run_on()
    silent.has_counted(flow)
    silent.next_agent()
    silent.tap(egress="a", program="tcp")
    silent.has_counted(flow)


@pytest.mark.every_datapath
def test_an_agent_that_is_killed_once_it_has_changed_all_flows_costs_no_count(
    silent: GroupNetwork, macs: Mapping[str, str]
) -> None:
    silent.tap(egress="a", program="tcp")
    both = silent.want(egress="a", ingress="b", program="tcp")
    silent.make_tap_devices(both)
    with Flow(silent, "a", macs["a"], macs["c"]) as flow:
        flow.run_on()
        silent.groups.apply(silent.groups.plan(both))
        silent.next_agent()
        flow.run_on()
        silent.tap(egress="a", ingress="b", program="tcp")
        flow.run_on()
    silent.has_counted(flow)


@pytest.mark.every_datapath
def test_the_next_agent_knows_for_whom_flows_count_that_did_not_change(silent: GroupNetwork, macs: Mapping[str, str]) -> None:
    slots = {Direction.EGRESS: 7}
    silent.tap(egress="a", program="tcp")
    with Flow(silent, "a", macs["a"], macs["c"]) as flow:
        flow.run_on()
    silent.has_counted(flow)
    before, flows = len(flow.sent), silent.flows()
    silent.tap(egress="a", program="tcp", slots=slots)
    assert silent.flows() == flows
    with Flow(silent, "a", macs["a"], macs["c"]) as later:
        later.run_on()
    silent.has_counted(later, slot=7)
    silent.next_agent()
    silent.has_counted(later, slot=7)
    assert silent.uncopied(SLOTS[Direction.EGRESS]) == before


@pytest.mark.every_datapath
def test_counts_outlive_a_switch_that_ends_after_its_agent(silent: GroupNetwork, macs: Mapping[str, str]) -> None:
    silent.tap(egress="a", program="tcp")
    with Flow(silent, "a", macs["a"], macs["c"]) as flow:
        flow.run_on()
    silent.has_counted(flow)
    silent.groups.close()
    silent.lab.switch.kill_vswitchd()
    silent.lab.switch.start_vswitchd()
    silent.next_agent()
    assert silent.uncopied(SLOTS[Direction.EGRESS]) == len(flow.sent)
    silent.tap(egress="a", program="tcp")
    silent.has_counted(flow)


@pytest.mark.every_datapath
def test_others_may_begin_to_use_a_table_of_ours(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    """Until we have moved, which is soon, their flows and ours don't meet."""
    network.tap(egress="a", ingress="b")
    table = min(ours(network.flows())[0])
    begin_to(network, macs, f"table={table},priority=32768,actions=NORMAL", f"table=0,priority=100,actions=resubmit(,{table})")
    assert table not in ours(network.flows())[0]


@pytest.mark.every_datapath
def test_others_may_begin_to_use_our_register(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    network.tap(egress="a", ingress="b")
    register = ours(network.flows())[1]
    load = f"load:0x7->NXM_NX_REG{register}[]"
    theirs = f"table=9,reg{register}=0x7,actions=NORMAL", f"table=0,priority=100,actions={load},resubmit(,9)"
    assert 9 not in ours(network.flows())[0]
    begin_to(network, macs, *theirs)
    assert ours(network.flows())[1] != register


def begin_to(network: GroupNetwork, macs: Mapping[str, str], *theirs: str) -> None:
    """Add flows of others' under traffic from a to b, until ours have moved, then take them back."""
    dropped, noticed = drops(network), network.lost
    switch = network.lab.switch
    try:
        with Flow(network, "a", macs["a"], macs["b"]) as flow:
            for line in theirs:
                switch.ofctl("add-flow", BRIDGE, line)
            added, as_they_are = flow.run_on(), foreign(network.flows())
            wait_for(
                lambda: bool(network.groups.uncopied() or network.lost > noticed), "others' flows are seen", LOOK_AT_LEAST_EVERY
            )
            beside = flow.run_on()
            network.tap(egress="a", ingress="b")
        assert foreign(network.flows()) == as_they_are
    finally:
        for line in theirs:
            switch.ofctl("--strict", "del-flows", BRIDGE, line.partition(",actions=")[0])
    forwarded = flow.copies("b")
    assert set(forwarded.values()) == {1}
    assert len(flow.copies("b", added, beside)) > 0.9 * len(flow.each_once(added, beside)), "their flows forward, beside ours"
    assert flow.copies(OUT) == flow.copies(IN) == forwarded
    assert drops(network) - dropped <= HOST_SAYS


def is_ours(flow: str) -> bool:
    return "cookie=0x7654" in flow


def foreign(flows: list[str]) -> list[str]:
    return [flow for flow in flows if not is_ours(flow)]


def ours(flows: list[str]) -> tuple[set[int], int]:
    """(tables, register) of our flows."""
    found = [flow for flow in flows if is_ours(flow)]
    (register,) = {int(number) for flow in found for number in re.findall(r"\breg(\d+)=", flow)}
    return {int(number) for flow in found for number in re.findall(r"\btable=(\d+)", flow)} - {0}, register


def drops(network: GroupNetwork) -> int:
    """Packets that vswitchd has dropped, for all of its reasons."""
    counted = network.connection.vswitchd.coverage()
    return sum(count for name, count in counted.items() if name.startswith(("datapath_drop", "drop_action")))


def test_flows_return_after_vswitchd_was_killed(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    wanted = network.tap(egress="a", ingress="b")
    with Flow(network, "a", macs["a"], macs["b"]) as tapped:
        network.lab.switch.kill_vswitchd()
        tapped.run_on()
        network.lab.switch.start_vswitchd()
        assert network.groups.problems(wanted, frozenset()), "the loss shows"
        assert network.lost
        network.tap(egress="a", ingress="b")
        back = tapped.run_on(2)
    for name in ("b", OUT, IN):
        assert tapped.copies(name, back) == tapped.each_once(back), name
    network.groups.sweep()
    with Flow(network, "a", macs["a"], macs["b"]) as untapped:
        network.lab.switch.kill_vswitchd()
        untapped.run_on()
        network.lab.switch.start_vswitchd()
    assert_no_worse(tapped, untapped)


def test_sweeping_leaves_flows_groups_and_ports_as_they_were(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    switch = network.lab.switch
    switch.ofctl("-O", "OpenFlow13", "add-group", BRIDGE, "group_id=5,type=all,bucket=actions=drop")
    try:
        before = network.flows(), network.group_dump(), switch.vsctl("list-ports", BRIDGE)
        network.tap(egress="abcde", ingress="abcde")
        assert len(network.group_dump()) == 3
        OvsGroupBackend(network.connection, NODE, 2).sweep()
        assert (network.flows(), network.group_dump(), switch.vsctl("list-ports", BRIDGE)) == before
    finally:
        switch.ofctl("-O", "OpenFlow13", "del-groups", BRIDGE, "group_id=5")


def test_a_bridge_of_a_controllers_is_refused(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    network.lab.switch.vsctl("set-controller", BRIDGE, "tcp:127.0.0.1:1")
    try:
        wanted = network.want(egress="a")
        wait_for(lambda: bool(network.groups.refusals(wanted)), "the controller is seen")
        (sentence,) = network.groups.refusals(wanted).values()
        assert "it needs flows of its own in bridge br0, which belongs to the controller tcp:127.0.0.1:1" in sentence
    finally:
        network.lab.switch.vsctl("del-controller", BRIDGE)
        wait_for(lambda: any("NORMAL" in line for line in network.flows()), "the bridge switches again")


def test_a_bridge_without_openflow_14_is_refused_with_the_cure(network: GroupNetwork, macs: Mapping[str, str]) -> None:
    network.lab.switch.vsctl("set", "Bridge", BRIDGE, "protocols=OpenFlow10")
    try:
        (sentence,) = network.groups.refusals(network.want(egress="a")).values()
        assert "ovs-vsctl add bridge br0 protocols OpenFlow14" in sentence
    finally:
        network.lab.switch.vsctl("clear", "Bridge", BRIDGE, "protocols")


# --- with the agent ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[LabOptions(), LabOptions(userspace_tso=True)], ids=["no-tso", "tso"], scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Lab(request.param) as lab:
        yield Site(lab, tmp_path_factory.mktemp("captures"))


def test_a_switch_counts_what_it_does_not_copy(site: Site) -> None:
    """Excluded packets never reach the tap port, and are in the ledger all the same."""
    site.new_scene()
    web, client = site.pod("web"), site.pod("client")
    rule = {"action": "Include", "protocol": "UDP", "peerPorts": [{"port": 30000, "endPort": 30006}]}
    site.tap("web", backend="OVSGroup", direction="Egress", filter={"defaultAction": "Exclude", "rules": [rule]})
    assert site.says("web", "filter in flows")
    wanted = start_exchange(site.lab, web, client, count=100, port=30005).finish()
    unwanted = start_exchange(site.lab, web, client, count=150, port=30007).finish()
    expect_excluded(site, 150)
    summary, found = site.closes("web"), site.stored("web")
    expect_each_once(found, wanted, point(web, "egress"))
    expect_none(found, unwanted, point(web, "egress"))
    assert summary["stored"] == 100 and summary["seen"] == summary["excluded"] + 100
    at_tap = packets_at(site, Direction.EGRESS)
    assert at_tap < 110, "what nobody wants is not copied"


def tapped_for_tcp(site: Site) -> tuple[Pod, Pod]:
    """In a new scene. Of what the first sends to the second only TCP is copied; no test here sends any."""
    site.new_scene()
    web, client = site.pod("web"), site.pod("client")
    rule = {"action": "Include", "protocol": "TCP"}
    site.tap("web", backend="OVSGroup", direction="Egress", filter={"defaultAction": "Exclude", "rules": [rule]})
    return web, client


def expect_excluded(site: Site, packets: int) -> None:
    """At least, once the switch's counters are read."""
    wait_for(lambda: site.summary("web")["excluded"] >= packets, f"{packets} are excluded")


def test_another_pod_s_tap_changes_no_count(site: Site) -> None:
    """It comes and goes on the same bridge, and makes flows for both directions of those for one."""
    web, client = tapped_for_tcp(site)
    start_exchange(site.lab, web, client, count=200).finish()
    expect_excluded(site, 200)
    site.tap("client", app="client", backend="OVSGroup", direction="Ingress")
    start_exchange(site.lab, web, client, count=100).finish()
    site.remove_tap("client")
    start_exchange(site.lab, web, client, count=100).finish()
    expect_excluded(site, 400)
    summary = site.closes("web")
    assert summary["seen"] == summary["excluded"] < 400 + POD_SAYS


def test_an_agent_that_takes_over_knows_what_the_switch_has_left_out(site: Site) -> None:
    """Before it came, and while there was none; and not only the first time."""
    web, client = tapped_for_tcp(site)
    start_exchange(site.lab, web, client, count=100).finish()
    expect_excluded(site, 100)
    for before in (100, 300):
        site.agent.kill()
        start_exchange(site.lab, web, client, count=100).finish()
        site.start_agent()
        assert site.summary("web")["excluded"] >= before, "it does not fall"
        expect_excluded(site, before + 100)
        start_exchange(site.lab, web, client, count=100).finish()
        expect_excluded(site, before + 200)
    summary = site.closes("web")
    assert summary["seen"] == summary["excluded"] < 500 + POD_SAYS


def test_what_a_switch_left_out_before_it_was_started_again_is_known_to_the_next_agent(site: Site) -> None:
    web, client = tapped_for_tcp(site)
    start_exchange(site.lab, web, client, count=100).finish()
    expect_excluded(site, 100)
    site.lab.switch.kill_vswitchd()
    site.lab.switch.start_vswitchd()
    wait_for(lambda: has_our_flows(site) and site.condition("web", "Programmed") == "True", "the flows are there again")
    start_exchange(site.lab, web, client, count=100).finish()
    expect_excluded(site, 200)
    site.agent.kill()
    site.start_agent()
    assert site.summary("web")["excluded"] >= 200
    start_exchange(site.lab, web, client, count=100).finish()
    expect_excluded(site, 300)
    summary = site.closes("web")
    assert summary["seen"] == summary["excluded"] < 300 + POD_SAYS


def has_our_flows(site: Site) -> bool:
    return any(map(is_ours, site.lab.switch.ofctl("dump-flows", BRIDGE).splitlines()))


def packets_at(site: Site, direction: Direction) -> int:
    """That the switch has given to a tap port."""
    shown = site.lab.switch.ofctl("dump-ports", BRIDGE, tap_port_name("node-a", FEEDS[direction]))
    found = re.search(r"tx pkts=(\d+)", shown)
    assert found is not None
    return int(found[1])


def test_two_taps_with_different_filters_share_a_group(site: Site) -> None:
    site.new_scene()
    web, client = site.pod("web"), site.pod("client")
    for name, port in (("one", 30101), ("two", 30102)):
        rule = {"action": "Include", "protocol": "UDP", "peerPorts": [{"port": port}]}
        site.tap(name, backend="OVSGroup", direction="Egress", filter={"defaultAction": "Exclude", "rules": [rule]})
    first, second, third = (start_exchange(site.lab, web, client, count=80, port=port).finish() for port in (30101, 30102, 30103))
    site.closes("one")
    site.closes("two")
    expect_each_once(site.stored("one"), first, point(web, "egress"))
    expect_each_once(site.stored("two"), second, point(web, "egress"))
    for exchange in (first, second, third):
        others = [name for name, own in (("one", first), ("two", second)) if own is not exchange]
        for name in others:
            expect_none(site.stored(name), exchange, point(web, "egress"))
    dump = site.lab.switch.ofctl("-O", "OpenFlow13", "dump-groups", BRIDGE)
    assert dump.count("group_id=") == 1


def test_two_taps_of_the_same_packets_take_one_output_of_the_switch(site: Site) -> None:
    """Each to a destination of its own: copies are multiplied behind the tap port."""
    site.new_scene()
    web, client = site.pod("web"), site.pod("client")
    site.lab.write(site.lab.taps / "destination-other.yaml", site.collector.as_destination("other"))
    site.tap("one", backend="OVSGroup", direction="Egress")
    site.tap("two", backend="OVSGroup", direction="Egress", destinationRef={"name": "other"})
    before = packets_at(site, Direction.EGRESS)
    exchange = start_exchange(site.lab, web, client, count=200).finish()
    for name in ("one", "two"):
        assert site.closes(name)["sent"] >= 200
        expect_each_once(site.stored(name), exchange, point(web, "egress"))
    assert 200 <= packets_at(site, Direction.EGRESS) - before < 220


def test_our_flows_leave_a_table_that_others_begin_to_use(site: Site) -> None:
    """By themselves, and no packet and no copy is the poorer for it."""
    site.new_scene()
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", backend="OVSGroup", direction="Egress")
    switch = site.lab.switch

    def tables() -> set[int]:
        return ours(switch.ofctl("--no-stats", "dump-flows", BRIDGE).splitlines())[0]

    table = max(tables())
    running = start_exchange(site.lab, web, client, count=0, rate=200)
    try:
        switch.ofctl("add-flow", BRIDGE, f"table={table},priority=1,actions=NORMAL")
        switch.ofctl("add-flow", BRIDGE, f"table=0,priority=100,actions=resubmit(,{table})")
        wait_for(lambda: table not in tables(), "our flows have moved", LOOK_AT_LEAST_EVERY)
        exchange = running.stop()
        site.closes("web")
    finally:
        switch.ofctl("--strict", "del-flows", BRIDGE, "table=0,priority=100")
        switch.ofctl("del-flows", BRIDGE, f"table={table}")
    assert Counter(exchange.received[str(client)]) == Counter(exchange.sent)
    expect_each_once(site.stored("web"), exchange, point(web, "egress"))


def test_flows_that_somebody_wiped_come_back_by_themselves(site: Site) -> None:
    site.new_scene()
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", backend="OVSGroup")
    site.lab.switch.ofctl("del-flows", BRIDGE, "cookie=0x7654000000000000/0xffff000000000000")
    site.lab.switch.ofctl("-O", "OpenFlow13", "del-groups", BRIDGE)
    wait_for(lambda: "group:" in site.lab.switch.ofctl("dump-flows", BRIDGE), "the flows are back")
    exchange = start_exchange(site.lab, web, client, count=100).finish()
    site.closes("web")
    expect_each_once(site.stored("web"), exchange, point(web, "egress"))


def test_cleanup_after_a_crash_leaves_the_bridge_as_it_was(site: Site) -> None:
    site.new_scene()
    wait_for(lambda: "0x7654" not in site.lab.switch.ofctl("dump-flows", BRIDGE), "the last scene's flows are gone")
    site.pod("web")
    before = bridge_state(site)
    site.tap("web", backend="OVSGroup")
    assert bridge_state(site) != before
    site.agent.kill()
    try:
        argv = ["vtap-agent", "--cleanup", f"--run-dir={site.lab.run_dir}", f"--state-dir={site.lab.state_dir}", "--node=node-a"]
        cleaned = ["nsenter", f"--net=/run/netns/{site.lab.node}", "--", *argv, f"--ovsdb={site.lab.switch.db_remote}"]
        environment = {**site.lab.switch.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(cleaned, check=True, env=environment, timeout=120)
        assert bridge_state(site) == before
    finally:
        site.start_agent()


def bridge_state(site: Site) -> list[str]:
    """Flows, groups and ports."""
    switch = site.lab.switch
    flows = switch.ofctl("--no-stats", "dump-flows", BRIDGE).splitlines()
    groups = switch.ofctl("-O", "OpenFlow13", "dump-groups", BRIDGE).splitlines()
    told = [line.strip() for line in (*flows, *groups) if "actions=" in line]
    return sorted([*told, *switch.vsctl("list-ports", BRIDGE).split()])
