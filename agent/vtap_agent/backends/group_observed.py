"""Bridges that flows and groups may be on, as the Open vSwitch database tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtap_agent.backends import tap_ports
from vtap_agent.drivers.ovsdb import Tables, first
from vtap_agent.plan.dataplane import Backend
from vtap_agent.plan.groups import GroupBridge
from vtap_agent.plan.groups_flows import SwitchPort


def observed(tables: Tables) -> Mapping[str, GroupBridge]:
    """By name."""
    return {row.name: _bridge(row) for row in tables["Bridge"].rows.values()}


def _bridge(row: Any) -> GroupBridge:
    return GroupBridge(
        name=row.name,
        ports=tuple(sorted((_port(port) for port in row.ports), key=lambda port: port.uuid)),
        names=tap_ports.names(row),
        mtus=tap_ports.mtus(row),
        tap_ports=tuple(port for port in tap_ports.stamped(row) if port.stamp.backend is Backend.OVS_GROUP),
        controllers=tuple(sorted(controller.target for controller in row.controller)),
        fail_mode=first(row.fail_mode, ""),
        snoops_multicast=bool(row.mcast_snooping_enable),
        cni=next(filter(None, (_plugin(port) for port in row.ports)), ""),
    )


def _port(port: Any) -> SwitchPort:
    numbers = tuple(sorted(number for interface in port.interfaces if (number := first(interface.ofport, 0)) > 0))
    return SwitchPort(
        str(port.uuid), numbers, first(port.tag, 0), first(port.vlan_mode, ""), frozenset(int(vlan) for vlan in port.trunks)
    )


def _plugin(port: Any) -> str:
    """The network plugin that programs a bridge with such a port, by what it writes into external_ids; OVS-CNI programs none."""
    if "antrea-type" in port.external_ids or {"container-id", "pod-name"} <= port.external_ids.keys():
        return "Antrea"
    for interface in port.interfaces:
        if interface.external_ids.get("vendor") == "kube-ovn":
            return "Kube-OVN"
        if "ovn-installed" in interface.external_ids or {"iface-id", "sandbox"} <= interface.external_ids.keys():
            return "OVN"
    return ""
