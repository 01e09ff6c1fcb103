"""How a pod's interfaces hang on the node: veth pairs matched end to end, and bridge ports by name. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from vtap_agent.inventory.port_owners import Deviceless, Ports
from vtap_agent.inventory.rtnetlink import Link
from vtap_agent.plan.inventory_model import PodInterface, PodRef


@dataclass(frozen=True, slots=True)
class NamespaceView:
    """A network namespace as last looked at. `nsid` is the number that the node's namespace has for it, its own included."""

    nsid: int
    links: Mapping[int, Link]
    addresses: Mapping[int, tuple[bytes, ...]]


def mac_text(mac: bytes) -> str:
    """As "02:00:00:00:00:01"; empty for none."""
    return mac.hex(":")


def address_text(address: bytes) -> str:
    """As RFC 5952 writes it; empty for none."""
    return str(ipaddress.ip_address(address)) if address else ""


def host_end(link: Link, pod: NamespaceView, node: NamespaceView) -> Link | None:
    """The end of a veth pair that is in the node's namespace, None where there is none.

    An ifindex means something in one namespace only, so both ends have to name each other: a macvlan names the device it
    sits on, which doesn't name it back, and a nested pod's peer has the right number in another pod's namespace.
    """
    if link.peer_nsid != node.nsid:
        return None
    peer = node.links.get(link.peer)
    if peer is None or peer.peer != link.index or peer.peer_nsid != pod.nsid:
        return None
    return peer


def pod_interfaces(ref: PodRef, pod: NamespaceView, node: NamespaceView, ports: Ports) -> tuple[PodInterface, ...]:
    """The pod's Ethernet interfaces by ifindex, then what only ports tell of, such as vhost-user sockets.

    Loopback and layer-3 tunnels are left out: no MAC tells their packets.
    """
    links = [link for _index, link in sorted(pod.links.items()) if link.is_ethernet and not link.is_loopback]
    seen = tuple(_interface(ref, link, pod, node, ports) for link in links)
    taken = {item.port.uuid for item in seen if item.port is not None}
    return (*seen, *(_behind(ref, item) for item in ports.deviceless_of(ref) if item.port.uuid not in taken))


def _behind(ref: PodRef, found: Deviceless) -> PodInterface:
    """An application's end of a socket or ring. It may use any address; none is known here."""
    return PodInterface(ref, found.interface, found.mac, (), found.port.mtu, "", 0, found.port)


def _interface(ref: PodRef, link: Link, pod: NamespaceView, node: NamespaceView, ports: Ports) -> PodInterface:
    host = host_end(link, pod, node)
    mac, host_name = mac_text(link.mac), host.name if host else ""
    return PodInterface(
        pod=ref,
        name=link.name,
        mac=mac,
        addresses=tuple(address_text(address) for address in pod.addresses.get(link.index, ())),
        mtu=link.mtu,
        host_name=host_name,
        host_ifindex=host.index if host else 0,
        port=ports.of(ref, link.name, mac, host_name),
    )
