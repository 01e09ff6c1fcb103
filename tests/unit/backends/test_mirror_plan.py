"""Single decisions of the mirror plan, and the sentences that a person reads."""

from __future__ import annotations

from tests.contract.fake_bridge import FakeSwitch
from vtap_agent.plan.dataplane import Backend, Direction, Feed, Mirror
from vtap_agent.plan.mirrors import diff, refusals, unlike
from vtap_agent.plan.stamps import Stamp, read_stamp
from vtap_agent.plan.steps import Phase
from vtap_agent.plan.tap_ports import tap_port_name

KEY = Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS)
STAMP = Stamp("node-a", 3)
NAME = tap_port_name("node-a", KEY)


def selecting(*ports: str) -> dict[Feed, Mirror]:
    return {KEY: Mirror(KEY, frozenset(ports))}


def test_a_tap_ports_name_fits_a_device_and_tells_bridges_directions_and_nodes_apart() -> None:
    keys = [
        Feed(Backend.OVS_MIRROR, bridge, direction)
        for bridge in ("br0", "a-bridge-with-a-very-long-name")
        for direction in Direction
    ]
    names = {tap_port_name(node, key) for node in ("node-a", "node-b") for key in keys}
    assert len(names) == 8
    assert all(len(name) <= 15 for name in names)


def test_steps_run_in_the_mirror_phase_and_read_as_sentences() -> None:
    switch = FakeSwitch("br0")
    port = switch.add_port("br0", "veth1")
    steps = diff(switch.observe(), selecting(port.uuid), STAMP)
    assert [str(step) for step in steps] == [
        f"make {NAME} a tap port of bridge br0",
        f"mirror Egress of 1 port on bridge br0 to {NAME}",
    ]
    assert {step.phase for step in steps} == {Phase.MIRROR}


def test_our_own_tap_port_is_never_selected() -> None:
    switch = FakeSwitch("br0")
    port = switch.add_port("br0", "veth1")
    switch.apply(diff(switch.observe(), selecting(port.uuid), STAMP))
    tap = switch.bridges["br0"].named(NAME)
    assert diff(switch.observe(), selecting(port.uuid, tap.uuid), STAMP) == ()


def test_a_port_that_has_gone_is_left_out() -> None:
    switch = FakeSwitch("br0")
    port = switch.add_port("br0", "veth1")
    desired = selecting(port.uuid, "00000000-0000-0000-0000-00000000dead")
    switch.apply(diff(switch.observe(), desired, STAMP))
    assert unlike(switch.observe(), desired, STAMP) == ()


def test_a_bridge_that_does_not_exist_is_said() -> None:
    (said,) = unlike(FakeSwitch("br1").observe(), selecting("x"), STAMP)
    assert (said.sentence, said.feeds) == ("there is no bridge br0", {KEY})


def test_a_port_of_somebody_else_with_our_name_is_refused_and_left_alone() -> None:
    switch = FakeSwitch("br0")
    port = switch.add_port("br0", "veth1")
    switch.add_port("br0", NAME)
    refused = refusals(switch.observe(), selecting(port.uuid), "node-a")
    assert f"remove it (ovs-vsctl del-port br0 {NAME})" in refused[KEY]
    assert diff(switch.observe(), selecting(port.uuid), STAMP) == ()


def test_a_tap_port_that_was_moved_to_another_bridge_comes_back() -> None:
    switch = FakeSwitch("br0", "br1")
    port = switch.add_port("br0", "veth1")
    switch.add_port("br1", NAME, external_ids=STAMP.external_ids())
    switch.apply(diff(switch.observe(), selecting(port.uuid), STAMP))
    observed = switch.observe()
    assert [tap.name for tap in observed.bridges["br0"].tap_ports] == [NAME]
    assert observed.bridges["br1"].tap_ports == ()


def test_a_stamp_survives_the_way_through_external_ids_and_strangers_have_none() -> None:
    assert read_stamp(STAMP.external_ids()) == STAMP
    assert read_stamp({**STAMP.external_ids(), "vtap-generation": "x"}) == Stamp("node-a", 0)
    assert read_stamp({"vtap-node": "node-a"}) is None
    assert read_stamp({"owner": "mirror-producer.ovs-cni.network.kubevirt.io"}) is None
