"""The networks of a cluster's pods, as data: the pod network, and the second networks on Open vSwitch that joins the nodes.

Pod network: CNI's `ptp` with `host-local` addresses from each node's pod CIDR, and routes between the nodes. Second networks:
bridge `br1` in each node, joined by one kernel VXLAN device a node which floods to all others (and so makes no loop); and one
of CNI's plain `bridge` plugin, which stays within each node.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Flavour = Literal["local", "upstream"]

BRIDGE = "br1"
MTU = 1450
"""Of second interfaces: 1500 less what VXLAN adds."""
_VXLAN = "kvx0"
_VXLAN_ID = 78
_VXLAN_PORT = 4790
_UPLINK = "eth0"


@dataclass(frozen=True)
class NodePlace:
    """Where a node is: its own address, and the range that its pods' addresses come from."""

    name: str
    address: str
    pods: str
    index: int
    """From 0, in the order of names."""


@dataclass(frozen=True)
class SecondNetwork:
    """One layer-2 segment on `BRIDGE`; a node's pods get addresses from the third octet index + 1."""

    name: str
    """NAMESPACE/NAME, as pods ask for it in k8s.v1.cni.cncf.io/networks."""
    subnet: str
    vlan: int = 0

    def ipam(self, node: NodePlace) -> dict[str, Any]:
        first = ipaddress.ip_network(self.subnet).network_address + (node.index + 1) * 256
        own = {"subnet": self.subnet, "rangeStart": str(first + 10), "rangeEnd": str(first + 250)}
        return {"type": "host-local", "ranges": [[own]]}


PLAIN_NETWORK = SecondNetwork("default/plain-net", "10.52.0.0/16")
"""Without Open vSwitch."""
_PLAIN_BRIDGE = "lan0"
SECOND_NETWORKS = (SecondNetwork("default/ovs-net", "10.50.0.0/16"), SecondNetwork("default/ovs-vlan", "10.51.0.0/16", vlan=100))


def pod_conflist(node: NodePlace, flavour: Flavour) -> str:
    """The node's CNI configuration list."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    plugins: list[dict[str, Any]] = [
        {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    if flavour == "local":
        networks = {one.name: {"bridge": BRIDGE, "mtu": MTU, "vlan": one.vlan, "ipam": one.ipam(node)} for one in SECOND_NETWORKS}
        plain = {"plugin": "bridge", "bridge": _PLAIN_BRIDGE, "mtu": 1500, "ipam": PLAIN_NETWORK.ipam(node)}
        networks[PLAIN_NETWORK.name] = plain
        plugins.append({"type": "vtap-second-networks", "networks": networks})
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}, indent=1)


def ovs_cni_configuration(network: SecondNetwork, node: NodePlace) -> str:
    """What Multus hands to OVS-CNI for a network whose NetworkAttachmentDefinition carries no configuration of its own."""
    tag = {"vlan": network.vlan} if network.vlan else {}
    name = network.name.partition("/")[2]
    told = {"cniVersion": "0.4.0", "name": name, "type": "ovs", "bridge": BRIDGE, "mtu": MTU, **tag, "ipam": network.ipam(node)}
    return json.dumps(told, indent=1)


def join_script(node: NodePlace, others: Sequence[NodePlace], conflist: str) -> str:
    """A shell script for the node. Run again it repairs what a restart of the node undid, and else changes nothing."""
    routes = "\n".join(f"ip route replace {other.pods} via {other.address}" for other in others)
    peers = " ".join(other.address for other in others)
    return f"""set -eu
datapath=netdev
[ ! -e /sys/module/openvswitch ] || datapath=system
ovs-vsctl --timeout=30 --may-exist add-br {BRIDGE} -- set bridge {BRIDGE} datapath_type=$datapath
if ! ip -d link show {_VXLAN} 2>/dev/null | grep -q 'local {node.address} '; then
  ip link delete {_VXLAN} 2>/dev/null || true
  ip link add {_VXLAN} mtu {MTU} type vxlan id {_VXLAN_ID} local {node.address} dev {_UPLINK} dstport {_VXLAN_PORT}
fi
ip link set {_VXLAN} up
for peer in {peers}; do
  bridge fdb show dev {_VXLAN} | grep -q "^00:00:00:00:00:00 dst $peer " ||
    bridge fdb append 00:00:00:00:00:00 dev {_VXLAN} dst "$peer"
done
ovs-vsctl --timeout=30 --may-exist add-port {BRIDGE} {_VXLAN}
if ! ip link show {_PLAIN_BRIDGE} >/dev/null 2>&1; then
  # With an address and a port that stay: a bridge without pods looks as one with pods does.
  ip link add {_PLAIN_BRIDGE} address 0a:58:0a:34:00:{node.index + 1:02x} type bridge
  ip link set {_PLAIN_BRIDGE} addrgenmode none up
  ip link add {_PLAIN_BRIDGE}-in type veth peer name {_PLAIN_BRIDGE}-out
  ip link set {_PLAIN_BRIDGE}-in addrgenmode none master {_PLAIN_BRIDGE} up
  ip link set {_PLAIN_BRIDGE}-out addrgenmode none up
fi
{routes}
mkdir -p /etc/cni/net.d
cat > /etc/cni/net.d/.10-pods <<'CONFLIST'
{conflist}
CONFLIST
mv /etc/cni/net.d/.10-pods /etc/cni/net.d/10-pods.conflist
"""
