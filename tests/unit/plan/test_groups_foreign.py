"""What other people's flows mean for ours, by dumps as ovs-ofctl prints them."""

from __future__ import annotations

import pytest

from tests.unit.plan.test_planning import interface, pod
from vtap_agent.plan.backend_choice import Choice, choose, next_best
from vtap_agent.plan.dataplane import Backend, Direction, Feed, Group
from vtap_agent.plan.groups import GroupBridge, layout_for, refusals
from vtap_agent.plan.groups_flows import SwitchPort
from vtap_agent.plan.groups_foreign import ForeignFlows, cookie_of, packets_of, place_of, read_foreign
from vtap_agent.plan.inventory_model import Bridge
from vtap_agent.plan.tap_ports import tap_port_name
from vtap_api.virtualtap import BackendName

NORMAL = "cookie=0x0, duration=31.7s, table=0, n_packets=7, n_bytes=666, priority=0 actions=NORMAL"
INGRESS, EGRESS = Feed(Backend.OVS_GROUP, "br0", Direction.INGRESS), Feed(Backend.OVS_GROUP, "br0", Direction.EGRESS)
BOTH = {feed.direction: Group(feed, ()) for feed in (INGRESS, EGRESS)}


def flow(actions: str, match: str = "priority=5,ip", table: int = 0, cookie: int = 0) -> str:
    return f"cookie={cookie:#x}, duration=1.0s, table={table}, n_packets=3, n_bytes=9, {match} actions={actions}"


def test_a_bridge_that_only_switches_leaves_everything_to_us() -> None:
    assert read_foreign([NORMAL], []) == ForeignFlows()


@pytest.mark.parametrize(
    ("line", "tables"),
    [
        (flow("resubmit(,17)"), {17}),
        (flow("resubmit(3,18)"), {18}),
        (flow("goto_table:19"), {19}),
        (flow("ct(commit,zone=1,table=20)"), {20}),
        (flow("learn(table=21,hard_timeout=300,NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[])"), {21}),
        (flow("drop", table=22), {22}),
    ],
)
def test_tables_that_are_looked_into_or_led_to_are_taken(line: str, tables: set[int]) -> None:
    assert read_foreign([line], []).tables == {0, *tables}


@pytest.mark.parametrize(
    ("line", "registers"),
    [
        (flow("drop", "priority=5,reg3=0x1/0x1"), {3}),
        (flow("load:0x1->NXM_NX_REG4[0..3],NORMAL"), {4}),
        (flow("set_field:0x1->xreg1,NORMAL"), {2, 3}),
        (flow("move:NXM_NX_XXREG3[]->NXM_NX_XXREG1[]"), {4, 5, 6, 7, 12, 13, 14, 15}),
        (flow("load:0x1->OXM_OF_PKT_REG7[]"), {14, 15}),
        (flow("output:NXM_NX_REG15[0..15]"), {15}),
    ],
)
def test_registers_that_are_named_are_taken(line: str, registers: set[int]) -> None:
    assert read_foreign([line], []).registers == registers


@pytest.mark.parametrize(
    "actions",
    [
        *("mod_dl_dst:02:00:00:00:00:01,output:2", "strip_vlan,NORMAL", "push_vlan:0x8100,NORMAL", "dec_ttl,output:3"),
        *(
            "set_field:10.0.0.1->ip_dst,output:1",
            "ct(commit,nat(src=10.0.0.1))",
            "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],in_port",
        ),
    ],
)
def test_rewriting_is_noticed(actions: str) -> None:
    assert read_foreign([flow(actions)], []).rewriting.endswith(actions)
    assert read_foreign([], [f"group_id=5,type=select,bucket=bucket_id:0,actions={actions}"]).rewriting


@pytest.mark.parametrize("actions", ["load:0x1->NXM_NX_REG4[0..3],NORMAL", "set_field:0x1->metadata,output:2", "NORMAL", "drop"])
def test_marks_of_others_rewrite_nothing(actions: str) -> None:
    assert not read_foreign([flow(actions)], []).rewriting


@pytest.mark.parametrize(
    "actions",
    [
        "IN_PORT",
        "mod_dl_src:02:00:00:00:00:01,in_port",
        "output:NXM_OF_IN_PORT[]",
        "load:0->NXM_OF_IN_PORT[],NORMAL",
        "load:0->OXM_OF_IN_PORT[],output:2",
        "load:0xffff->in_port,output:2",
        "set_field:0->in_port,output:2",
        "set_field:ANY->in_port,NORMAL",
        "move:NXM_NX_REG0[0..15]->NXM_OF_IN_PORT[],resubmit(,3)",
        "pop:NXM_OF_IN_PORT[],NORMAL",
    ],
)
def test_hairpins_are_noticed(actions: str) -> None:
    """Also those by ovs-actions(7): whoever forgets where a packet came from may send it back there."""
    assert read_foreign([flow(actions)], []).hairpins
    assert read_foreign([], [f"group_id=5,type=select,bucket=bucket_id:0,actions={actions}"]).hairpins
    assert not read_foreign([flow(actions)], []).rewriting or actions.startswith("mod_dl_src")


@pytest.mark.parametrize(
    "line",
    [
        *(NORMAL, flow("drop", "priority=5,in_port=4"), flow("move:NXM_OF_IN_PORT[]->NXM_NX_REG0[0..15],NORMAL")),
        *(flow("push:NXM_OF_IN_PORT[],NORMAL"), flow("resubmit(4,3)"), flow("load:0x4->NXM_NX_REG0[],output:4")),
    ],
)
def test_what_looks_at_the_port_of_entry_is_no_hairpin(line: str) -> None:
    assert not read_foreign([line], []).hairpins


def test_counters_and_cookies_are_read() -> None:
    line = flow("drop", cookie=0x76540000000001)
    assert cookie_of(line) == 0x76540000000001 and packets_of(line) == 3


def test_a_flow_s_place_is_its_table_priority_and_match() -> None:
    """Whatever it has counted, and whatever it does."""
    line = "cookie=0x1, duration=1.7s, table=7, n_packets=7, n_bytes=6, idle_age=3, priority=5,in_port=1,dl_src=02:00:00:00:00:01"
    assert place_of(f"{line} actions=drop") == "table=7,priority=5,in_port=1,dl_src=02:00:00:00:00:01"
    assert place_of(f"{line} actions=drop") == place_of(f"{line.replace('n_packets=7', 'n_packets=8')} actions=NORMAL")
    assert place_of(NORMAL) == "table=0,priority=0"


def refused(bridge: GroupBridge, *lines: str) -> dict[Feed, str]:
    foreign = read_foreign([NORMAL, *lines], [])
    return refusals(bridge, BOTH, foreign, layout_for(foreign, None), "node-a")


def instead(sentence: str) -> Choice:
    """What `Auto` takes for a tap whose filter flows can carry out, once the bridge has refused flows of ours."""
    bridge = Bridge("br0", "uuid", "netdev", (), (), 0, 0, polled=True)
    first = choose(BackendName.AUTO, interface(pod(1), 1), bridge, lambda: True)
    assert isinstance(first, Choice) and first.backend is Backend.OVS_GROUP
    made = next_best(first, sentence, "")
    assert made.why.startswith("Auto takes OVSMirror, as ") and next_best(made, sentence, "mirrors are full; delete one") == made
    assert next_best(first, sentence, "mirrors are full; delete one") == made
    return made


def test_nothing_is_refused_beside_static_flows() -> None:
    assert refused(GroupBridge("br0"), flow("drop"), flow("resubmit(,5)"), flow("NORMAL", cookie=9)) == {}


@pytest.mark.parametrize(
    ("bridge", "lines", "words"),
    [
        (GroupBridge("br0", controllers=("tcp:10.0.0.1:6653",)), (), "belongs to the controller tcp:10.0.0.1:6653"),
        *((GroupBridge("br0", cni=name), (), f"{name} programs") for name in ("Antrea", "OVN", "Kube-OVN")),
        (GroupBridge("br0", fail_mode="secure"), (flow("output:2", cookie=0xABC),), "fail_mode secure"),
        (GroupBridge("br0"), (flow("drop", "priority=65535,tcp"),), "highest priorities"),
        (GroupBridge("br0"), tuple(flow("drop", table=n) for n in range(1, 250)), "8 tables and a register"),
    ],
)
def test_a_bridge_that_somebody_else_owns_is_refused_and_auto_takes_mirrors(
    bridge: GroupBridge, lines: tuple[str, ...], words: str
) -> None:
    sentences = refused(bridge, *lines)
    assert sentences.keys() == {INGRESS, EGRESS}
    assert all(words in sentence for sentence in sentences.values())
    assert {(one.backend, words in one.why) for one in map(instead, sentences.values())} == {(Backend.OVS_MIRROR, True)}


def test_static_flows_of_a_secure_bridge_are_no_hindrance() -> None:
    assert refused(GroupBridge("br0", fail_mode="secure"), flow("output:2")) == {}


def test_where_packets_are_rewritten_only_what_pods_send_can_be_copied() -> None:
    rewritten = refused(GroupBridge("br0"), flow("mod_dl_dst:02:00:00:00:00:01,output:2"))
    snooped = refused(GroupBridge("br0", snoops_multicast=True))
    assert rewritten.keys() == snooped.keys() == {INGRESS}
    assert "as DPDK moves the packets of br0 past the kernel and OVSGroup could not be had: " in instead(rewritten[INGRESS]).why
    assert "flows of bridge br0 rewrite packets (" in instead(rewritten[INGRESS]).why
    assert "OVSGroup could not be had: bridge br0 learns which pod wants which multicast" in instead(snooped[INGRESS]).why


def test_a_port_that_has_our_name_is_refused() -> None:
    ports = (SwitchPort("u1", (1,)),)
    assert refused(GroupBridge("br0", ports, {"u1": "other"})) == {}
    assert refused(GroupBridge("br0", ports, {"u1": tap_port_name("node-a", EGRESS)})).keys() == {EGRESS}
