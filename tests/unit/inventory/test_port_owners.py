"""Which pod a port is of, by what CNI plugins really write. The examples are what each was seen or documented to write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vtap_agent.inventory.port_owners import Owner, owner_of, ports_of
from vtap_agent.plan.inventory_model import Bridge, BridgePort, PodRef, Switch

UID = "fbd4ebf0-c662-45da-aab7-0bd3500117d9"
POD = PodRef("shop", "web-0", UID)
MAC = "0a:58:0a:f4:01:05"

OVS_CNI = BridgePort(
    "br1",
    "vethf7915744",
    "1",
    external_ids={
        "contIface": "net1",
        "contNetns": "/var/run/netns/cni-0f6f",
        "contPodUid": UID,
        "owner": "ovs-cni.network.kubevirt.io",
    },
)
ANTREA = BridgePort(
    "br-int",
    "web-0-1a2b3c",
    "2",
    external_ids={
        "antrea-type": "container",
        "attached-mac": MAC.upper(),
        "container-id": "e9a7c0",
        "ip-address": "10.10.1.5",
        "pod-name": "web-0",
        "pod-namespace": "shop",
    },
)
OVN = BridgePort(
    "br-int",
    "e9a7c0ffee12345",
    "3",
    interface_ids={
        "attached_mac": MAC,
        "iface-id": "shop_web-0",
        "iface-id-ver": UID,
        "ip_addresses": "10.244.1.5/24",
        "sandbox": "e9a7c0ffee",
        "ovn-installed": "true",
    },
)
KUBE_OVN = BridgePort(
    "br-int",
    "e9a7c0ffee12_h",
    "4",
    interface_ids={
        "iface-id": "web-0.shop",
        "ip": "10.16.0.5",
        "pod_name": "web-0",
        "pod_namespace": "shop",
        "pod_netns": "/var/run/netns/cni-0f6f",
        "vendor": "kube-ovn",
    },
)


def switch(*ports: BridgePort) -> Switch:
    return Switch("3.1.0", (Bridge("br1", "b", "system", (), ports, 0, 0),), True, 0)


@pytest.mark.parametrize(
    ("port", "interface"),
    [(OVS_CNI, "net1"), (ANTREA, "eth0"), (OVN, "eth0"), (KUBE_OVN, "eth0")],
    ids=lambda item: str(item)[:20],
)
def test_the_port_of_a_pod_that_no_veth_leads_to(port: BridgePort, interface: str) -> None:
    ports = ports_of(switch(port, BridgePort("br1", "patch", "9")))
    assert ports.of(POD, interface, MAC, "") == port
    assert ports.of(PodRef("shop", "web-1", "another"), interface, MAC, "") is None
    assert ports.of(PodRef("bank", "web-0", "another"), interface, MAC, "") is None
    assert ports.of(POD, interface, MAC, "elsewhere") is None, "a veth is the better witness"


@pytest.mark.parametrize("port", [OVS_CNI, OVN], ids=["OVS-CNI", "OVN-Kubernetes"])
def test_a_recreated_pod_of_the_same_name_is_another(port: BridgePort) -> None:
    assert ports_of(switch(port)).of(replace(POD, uid="new"), "net1", MAC, "") is None


@pytest.mark.parametrize("port", [ANTREA, OVN], ids=["Antrea", "OVN-Kubernetes"])
def test_the_mac_says_which_interface(port: BridgePort) -> None:
    ports = ports_of(switch(port))
    assert ports.of(POD, "eth0", "0a:58:00:00:00:01", "") is None
    assert ports.of(POD, "renamed0", MAC, "") == port


def test_a_second_network_of_ovn_is_told_by_uid_and_mac() -> None:
    ids = {**OVN.interface_ids, "iface-id": "shop.blue_shop_web-0", "k8s.ovn.org/network": "blue"}
    second = replace(OVN, interface_ids=ids)
    assert ports_of(switch(second)).of(POD, "net1", MAC, "") == second
    assert ports_of(switch(second)).of(PodRef("shop.blue", "shop_web-0", "x"), "net1", MAC, "") is None


def test_two_ports_that_both_say_so_are_none() -> None:
    assert ports_of(switch(OVS_CNI, replace(OVS_CNI, name="other", uuid="5"))).of(POD, "net1", MAC, "") is None


@pytest.mark.parametrize(
    "ids",
    [
        {},
        {"iface-id": "3e5d91a7-1b7c-4a4e-9a4f-0d5b2c1e7f10", "attached-mac": MAC},
        {"iface-id": "shop_web-0"},
        {"contPodUid": UID},
        {"iface-id": "web-0.shop.blue.provider", "pod_name": "web-0", "pod_namespace": "shop", "vendor": "kube-ovn"},
    ],
)
def test_what_others_write_is_nobodys(ids: dict[str, str]) -> None:
    assert owner_of(BridgePort("br1", "p", "1", external_ids=ids, interface_ids=ids)) is None
    assert not Owner().is_of(POD, "eth0", MAC)
