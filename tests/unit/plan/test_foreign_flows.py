"""Flows that output to a tap port, as `bridge/dump-flows` prints them."""

from __future__ import annotations

import pytest

from vtap_agent.plan.foreign_flows import outputs_to, told


@pytest.mark.parametrize(
    "actions",
    [
        "output:4",
        "ALL",
        "NORMAL,output:4",
        "clone(output:4),NORMAL",
        "output(port=4,max_len=64)",
        "enqueue:4:1",
    ],
)
def test_an_output_to_the_port_is_found(actions: str) -> None:
    line = f"cookie=0x1, duration=3s, n_packets=7, n_bytes=70, priority=9,arp,actions={actions}"
    assert outputs_to(f"{line}\n", 4) == (f"cookie=0x1, priority=9,arp,actions={actions}",)


@pytest.mark.parametrize(
    "actions",
    [
        "NORMAL",
        "FLOOD",
        "output:40",
        "output:14",
        "drop",
        "resubmit(4,1)",
        "resubmit(,4)",
        "output:NXM_NX_REG4[]",
        "push_vlan:0x8100,set_field:4->reg1",
    ],
)
def test_what_is_no_output_to_the_port_is_not(actions: str) -> None:
    assert outputs_to(f"duration=3s, n_packets=7, n_bytes=70, in_port=4,priority=9,actions={actions}\n", 4) == ()


def test_the_sentence_quotes_one_flow_in_bounds_and_counts_the_others() -> None:
    flows = tuple(f"priority={number}," + "x" * 500 for number in range(3))
    said = told(flows, "br0", "vtap-e-1", 4)
    assert "and 2 more" in said and "leave out port 4" in said and len(said) < 500
    assert told((), "br0", "vtap-e-1", 4) == ""
