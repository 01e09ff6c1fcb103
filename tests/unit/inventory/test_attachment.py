"""Which device on the node is a pod's, told from both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vtap_agent.inventory.attachment import NamespaceView, pod_interfaces
from vtap_agent.inventory.port_owners import Ports, ports_of
from vtap_agent.inventory.rtnetlink import Link
from vtap_agent.plan.inventory_model import Bridge, BridgePort, Inventory, Pod, PodInterface, PodRef, Switch
from vtap_agent.plan.steadiness import with_switch

NODE, POD, OTHER = 0, 5, 6
REF = PodRef("shop", "web", "u")


def link(index: int, name: str, peer: int = 0, peer_nsid: int | None = None, *, ethernet: bool = True) -> Link:
    return Link(index, name, bytes([2, 0, 0, 0, 0, index]), 1500, peer, peer_nsid, ethernet, name == "lo")


def view(nsid: int, *links: Link, addresses: Mapping[int, tuple[bytes, ...]] | None = None) -> NamespaceView:
    return NamespaceView(nsid, {item.index: item for item in links}, addresses or {})


def attached(pod: NamespaceView, node: NamespaceView, *ports: str) -> dict[str, PodInterface]:
    known = {name: BridgePort("br0", name, f"uuid-{name}") for name in ports}
    return {item.name: item for item in pod_interfaces(REF, pod, node, Ports(known, ()))}


def test_a_veth_pair_that_names_each_other() -> None:
    node = view(NODE, link(9, "veth1", 2, POD))
    found = attached(view(POD, link(2, "eth0", 9, NODE), addresses={2: (bytes([10, 0, 0, 1]),)}), node, "veth1")["eth0"]
    assert found == PodInterface(
        REF, "eth0", "02:00:00:00:00:02", ("10.0.0.1",), 1500, "veth1", 9, BridgePort("br0", "veth1", "uuid-veth1")
    )


def test_a_peer_on_no_bridge() -> None:
    found = attached(view(POD, link(2, "eth0", 9, NODE)), view(NODE, link(9, "veth1", 2, POD)))["eth0"]
    assert (found.host_name, found.port) == ("veth1", None)


def test_the_right_number_in_another_namespace_is_no_peer() -> None:
    node = view(NODE, link(9, "veth1", 2, POD))
    assert attached(view(POD, link(2, "eth0", 9, OTHER)), node, "veth1")["eth0"].port is None
    assert attached(view(POD, link(2, "eth0", 9, None)), node, "veth1")["eth0"].host_ifindex == 0


def test_a_device_that_does_not_point_back_is_no_peer() -> None:
    pod = view(POD, link(3, "macvlan0", 9, NODE))
    for back in (link(9, "uplink"), link(9, "veth1", 2, POD), link(9, "veth1", 3, OTHER)):
        assert attached(pod, view(NODE, back), back.name)["macvlan0"].host_name == ""


def test_loopback_and_layer_3_tunnels_are_left_out() -> None:
    pod = view(POD, link(1, "lo", ethernet=False), link(4, "tunl0", ethernet=False), link(3, "net1"), link(2, "eth0"))
    assert list(attached(pod, view(NODE))) == ["eth0", "net1"]


def test_ports_of_all_bridges_by_name() -> None:
    ports = [BridgePort("br0", "a", "1"), BridgePort("br1", "b", "2")]
    bridges = tuple(Bridge(port.bridge, port.bridge, "netdev", (), (port,), 0, 0) for port in ports)
    assert ports_of(Switch("3.1.0", bridges, True, 0)).by_name == {"a": ports[0], "b": ports[1]}


VHOST_USER = BridgePort(
    "br0",
    "vhu-web",
    "7",
    interface_ids={"attached-mac": "02:AA:00:00:00:07", "pod-name": "web", "pod-namespace": "shop"},
    deviceless=True,
    mtu=9000,
)


def on_bridge(*ports: BridgePort) -> Ports:
    return ports_of(Switch("3.1.0", (Bridge("br0", "b", "netdev", (), ports, 0, 0, polled=True),), True, 0))


def test_a_vhost_user_port_is_an_interface_that_no_namespace_shows() -> None:
    found = pod_interfaces(REF, view(POD, link(1, "lo", ethernet=False)), view(NODE), on_bridge(VHOST_USER))
    assert found == (PodInterface(REF, "vhu-web", "02:aa:00:00:00:07", (), 9000, "", 0, VHOST_USER),)


def test_a_port_s_long_name_ends_as_the_interface_is_called() -> None:
    long = replace(VHOST_USER, name="6f1ab2c3d4e5-net1")
    (found,) = pod_interfaces(REF, view(POD), view(NODE), on_bridge(long))
    assert found.name == "1ab2c3d4e5-net1" and found.port == long


def test_ovs_cni_s_vhost_user_port_needs_a_mac_and_has_the_interface_s_name() -> None:
    cni = {"contPodUid": REF.uid, "contIface": "net1"}
    mute = replace(VHOST_USER, external_ids=cni, interface_ids={})
    told = replace(mute, interface_ids={"attached-mac": "02:aa:00:00:00:07"})
    assert pod_interfaces(REF, view(POD), view(NODE), on_bridge(mute)) == ()
    (found,) = pod_interfaces(REF, view(POD), view(NODE), on_bridge(told))
    assert (found.name, found.mac, found.port) == ("net1", "02:aa:00:00:00:07", told)


def test_a_port_is_not_shown_twice_where_the_pod_has_its_interface() -> None:
    cni = {"contPodUid": REF.uid, "contIface": "net1", "attached-mac": "02:00:00:00:00:03"}
    port = replace(VHOST_USER, external_ids=cni)
    (found,) = pod_interfaces(REF, view(POD, link(3, "net1")), view(NODE), on_bridge(port))
    assert (found.name, found.port) == ("net1", port)


def test_a_veth_that_dpdk_polls_is_found_by_its_device() -> None:
    port = BridgePort("br0", "dpdk7", "7", device="veth1")
    (found,) = pod_interfaces(REF, view(POD, link(2, "eth0", 9, NODE)), view(NODE, link(9, "veth1", 2, POD)), on_bridge(port))
    assert (found.host_name, found.port) == ("veth1", port)


def test_what_only_ports_tell_of_is_remembered_while_the_switch_is_away() -> None:
    pod = Pod(REF, {}, "/run/netns/web")
    veth = BridgePort("br0", "dpdk7", "8", device="veth1")
    ports, node = on_bridge(VHOST_USER, veth), view(NODE, link(9, "veth1", 2, POD))
    switch = Switch("3.1.0", (Bridge("br0", "b", "netdev", (), (VHOST_USER, veth), 0, 0, polled=True),), True, 0)
    inside = view(POD, link(2, "eth0", 9, NODE))
    before = Inventory((pod,), pod_interfaces(REF, inside, node, ports), switch, {})
    away = Inventory((pod,), pod_interfaces(REF, inside, node, Ports({}, ())), Switch("", (), False, 0), {})
    steadied = with_switch(away, before)
    assert steadied.interfaces == before.interfaces and len(before.interfaces) == 2
    assert not steadied.switch.reachable
    assert with_switch(replace(away, pods=(), interfaces=()), before).interfaces == ()
