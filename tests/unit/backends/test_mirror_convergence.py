"""Whatever pods, taps, administrators and other tools do: a pass ends in the desired state, and touches nothing of others."""

from __future__ import annotations

import copy
import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.contract.fake_bridge import FakeMirror, FakeSwitch
from tests.contract.frames import BROADCAST, frame
from vtap_agent.plan.dataplane import Backend, Direction, Feed, Mirror
from vtap_agent.plan.mirrors import MAX_MIRRORS, diff, refusals
from vtap_agent.plan.stamps import Stamp, is_ours, read_stamp
from vtap_agent.plan.tap_ports import tap_port_name

NODE = "node-a"
BRIDGES = ("br0", "br1")
some_bridge = st.sampled_from(BRIDGES)
some_direction = st.sampled_from(Direction)
choice = st.integers(0, 1000)


class Node(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.switch = FakeSwitch(*BRIDGES)
        self.names = itertools.count(1)
        self.taps: set[tuple[str, Direction]] = set()
        self.pods: dict[str, str] = {}
        self.foreign: dict[str, FakeMirror] = {}
        self.generation = 1
        self.converged = True

    def desired(self) -> dict[Feed, Mirror]:
        wanted: dict[Feed, set[str]] = {}
        for pod, direction in self.taps:
            if pod in self.pods:
                bridge = self.pods[pod]
                wanted.setdefault(Feed(Backend.OVS_MIRROR, bridge, direction), set()).add(
                    self.switch.bridges[bridge].named(pod).uuid
                )
        return {key: Mirror(key, frozenset(ports)) for key, ports in wanted.items()}

    @rule(bridge=some_bridge, tag=st.sampled_from((0, 10, 20)), mtu=st.sampled_from((1400, 1500, 9000)))
    def pod_starts(self, bridge: str, tag: int, mtu: int) -> None:
        self._add_pod(f"veth{next(self.names)}", bridge, tag, mtu)

    def _add_pod(self, name: str, bridge: str, tag: int, mtu: int = 1500) -> None:
        self.switch.add_port(bridge, name, tag, {"contIface": "eth0", "owner": "ovs-cni.network.kubevirt.io"}, mtu)
        self.pods[name] = bridge
        self.converged = False

    @precondition(lambda self: self.pods)
    @rule(which=choice)
    def pod_ends(self, which: int) -> None:
        pod = self._some_pod(which)
        self.switch.bridges[self.pods.pop(pod)].delete_port(pod)
        self.converged = False

    @precondition(lambda self: self.pods)
    @rule(which=choice, bridge=some_bridge)
    def pod_is_made_again(self, which: int, bridge: str) -> None:
        pod = self._some_pod(which)
        self.switch.bridges[self.pods.pop(pod)].delete_port(pod)
        self._add_pod(pod, bridge, 0)

    @precondition(lambda self: self.pods)
    @rule(which=choice, direction=some_direction)
    def tap_begins(self, which: int, direction: Direction) -> None:
        self.taps.add((self._some_pod(which), direction))
        self.converged = False

    @precondition(lambda self: self.taps)
    @rule(which=choice)
    def tap_ends(self, which: int) -> None:
        self.taps.discard(sorted(self.taps)[which % len(self.taps)])
        self.converged = False

    @rule(bridge=some_bridge)
    def others_mirror(self, bridge: str) -> None:
        self._add_foreign(bridge, 1)

    @rule(bridge=some_bridge, left=st.integers(-1, 2))
    def others_use_up_the_mirrors(self, bridge: str, left: int) -> None:
        foreign = sum(not is_ours(read_stamp(row.external_ids), NODE) for row in self.switch.bridges[bridge].mirrors.values())
        self._add_foreign(bridge, MAX_MIRRORS - left - foreign)

    def _add_foreign(self, bridge: str, count: int) -> None:
        for _ in range(count):
            row = self.switch.add_mirror(bridge, FakeMirror("", f"span{next(self.names)}", plain=False))
            self.foreign[row.uuid] = copy.deepcopy(row)
        self.converged = False

    @precondition(lambda self: self.foreign)
    @rule()
    def others_delete_theirs(self) -> None:
        for bridge in self.switch.bridges.values():
            bridge.mirrors = {uuid: row for uuid, row in bridge.mirrors.items() if uuid not in self.foreign}
        self.foreign.clear()
        self.converged = False

    @rule(bridge=some_bridge, direction=some_direction)
    def another_nodes_agent_made_rows(self, bridge: str, direction: Direction) -> None:
        name = tap_port_name("node-b", Feed(Backend.OVS_MIRROR, bridge, direction))
        if all(port.name != name for port in self.switch.bridges[bridge].ports.values()):
            ids = Stamp("node-b", 7).external_ids()
            port = self.switch.add_port(bridge, name, 0, ids)
            row = self.switch.add_mirror(bridge, FakeMirror("", name, output_port=port.uuid, external_ids=ids))
            self.foreign[row.uuid] = copy.deepcopy(row)
            self.converged = False

    @rule(bridge=some_bridge, direction=some_direction)
    def an_older_run_left_a_second_mirror(self, bridge: str, direction: Direction) -> None:
        name = tap_port_name(NODE, Feed(Backend.OVS_MIRROR, bridge, direction))
        self.switch.add_mirror(bridge, FakeMirror("", name, external_ids=Stamp(NODE, 0).external_ids()))
        self.converged = False

    @rule(bridge=some_bridge, which=choice, how=st.sampled_from(("port", "mirror", "tag", "output", "plain", "other side")))
    def administrator_spoils(self, bridge: str, which: int, how: str) -> None:
        ours = [row for row in self.switch.bridges[bridge].mirrors.values() if row.external_ids.get("vtap-node") == NODE]
        if ours:
            self._spoil(bridge, sorted(ours, key=lambda row: row.uuid)[which % len(ours)], how)
            self.converged = False

    def _spoil(self, name: str, row: FakeMirror, how: str) -> None:
        bridge = self.switch.bridges[name]
        port = bridge.ports.get(row.output_port)
        if how == "mirror":
            del bridge.mirrors[row.uuid]
        elif how == "output":
            row.output_port = ""
        elif how == "plain":
            row.plain = False
        elif how == "other side":
            row.select_src, row.select_dst = row.select_dst, set(bridge.ports)
        elif port is not None and how == "tag":
            port.tag = 99
        elif port is not None:
            bridge.delete_port(port.name)

    @rule()
    def agent_restarts(self) -> None:
        self.generation += 1
        self.a_pass_runs()

    @rule(pods=st.lists(st.tuples(some_bridge, some_direction), min_size=1, max_size=4))
    def several_are_tapped_at_once(self, pods: list[tuple[str, Direction]]) -> None:
        for bridge, direction in pods:
            name = f"veth{next(self.names)}"
            self._add_pod(name, bridge, 0)
            self.taps.add((name, direction))
        self.a_pass_runs()

    @rule()
    def a_pass_runs(self) -> None:
        desired = self.desired()
        self.switch.apply(diff(self.switch.observe(), desired, Stamp(NODE, self.generation)))
        self.converged = True

    def _some_pod(self, which: int) -> str:
        return sorted(self.pods)[which % len(self.pods)]

    @invariant()
    def rows_of_others_are_untouched(self) -> None:
        rows = {uuid: row for bridge in self.switch.bridges.values() for uuid, row in bridge.mirrors.items()}
        assert {uuid: rows.get(uuid) for uuid in self.foreign} == self.foreign

    @invariant()
    def pods_keep_their_ports(self) -> None:
        for pod, bridge in self.pods.items():
            assert self.switch.bridges[bridge].named(pod).external_ids["contIface"] == "eth0"

    @invariant()
    def after_a_pass_ours_is_exactly_what_is_wanted(self) -> None:
        if not self.converged:
            return
        observed, desired = self.switch.observe(), self.desired()
        refused = refusals(observed, desired, NODE)
        names = {tap_port_name(NODE, key): key for key in desired if key not in refused}
        rows = [row for bridge in observed.bridges.values() for row in bridge.mirrors if is_ours(row.stamp, NODE)]
        assert {row.name: row.selected(names[row.name].direction) for row in rows} == {
            name: desired[key].ports for name, key in names.items()
        }
        assert len(rows) == len(names)
        ports = {
            port.name: port for bridge in observed.bridges.values() for port in bridge.tap_ports if is_ours(port.stamp, NODE)
        }
        assert ports.keys() == names.keys()
        assert all(port.as_made for port in ports.values())
        for row in rows:
            other_side = Direction.INGRESS if names[row.name].direction is Direction.EGRESS else Direction.EGRESS
            selected = [observed.bridges[names[row.name].place].mtus[port] for port in desired[names[row.name]].ports]
            assert ports[row.name].mtu == max(selected), "copies fit, and the bridge's own MTU is not lowered"
            assert (row.plain, row.selected(other_side), row.output_port) == (True, frozenset(), ports[row.name].uuid)
        for key in refused:
            assert sum(not is_ours(row.stamp, NODE) for row in observed.bridges[key.place].mirrors) >= MAX_MIRRORS - 1

    @invariant()
    def after_a_pass_a_tapped_pods_packet_is_copied_once(self) -> None:
        if not self.converged:
            return
        refused = refusals(self.switch.observe(), self.desired(), NODE)
        for pod, bridge in self.pods.items():
            key = Feed(Backend.OVS_MIRROR, bridge, Direction.EGRESS)
            left = self.switch.bridges[bridge].send(pod, frame(BROADCAST, "02:00:00:00:00:01"))
            copies = left.get(tap_port_name(NODE, key), [])
            assert len(copies) == ((pod, Direction.EGRESS) in self.taps and key not in refused)


Node.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestNode = Node.TestCase
