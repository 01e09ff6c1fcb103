"""Copies without a tunnel: who stands at a monitor's edge, by which addresses they find it, and whether they may leave. Pure.

Copies are not sent to the monitor's own MAC address but to one that only its edge knows, its alias: a copy that nobody recovers
is then for no stack at all, and none answers it. Switches learn where the alias is from the edge's answers to our probes.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vtap_agent.plan.dataplane import Encapsulation
from vtap_agent.plan.destinations import ResolvedDestination
from vtap_agent.plan.inventory_model import Inventory, NextHop, NextHopState, PodInterface
from vtap_api import TapDestination

ID_OCTET = 0x0A
ALIAS_OCTETS = b"\x0e\x76"
"""How ids and aliases begin: as locally administered unicast MAC addresses do (IEEE 802-2014 §8.4)."""
NODE_OCTETS = 3


@dataclass(frozen=True, slots=True, order=True)
class Monitor:
    """A monitor on this node and where its edge is: the egress of `device`. MAC addresses are 6 bytes."""

    ifindex: int
    device: str
    address: str
    alias: bytes
    mac: bytes


@dataclass(frozen=True, slots=True, order=True)
class EdgeTarget:
    """Whom to ask whether a monitor has an edge: its alias, out of a device of ours with this MAC address."""

    address: str
    ifindex: int
    source_mac: bytes
    alias: bytes


def alias_of(address: str) -> bytes:
    """The MAC address that stands for a monitor's edge: of 32 bits of its address's digest."""
    packed = ipaddress.ip_address(address).packed
    return ALIAS_OCTETS + hashlib.sha256(b"edge" + packed).digest()[:4]


def ids_of(uplink_mac: bytes) -> bytes:
    """The MAC address of a node's id 0: by the device that copies leave by, so that no two nodes share ids."""
    return bytes([ID_OCTET]) + hashlib.sha256(b"ids" + uplink_mac).digest()[:NODE_OCTETS] + bytes(2)


def mac_bytes(text: str) -> bytes:
    """6 bytes; zeros for the empty text."""
    return bytes.fromhex(text.replace(":", "")) if text else bytes(6)


def with_edge(destinations: Iterable[ResolvedDestination]) -> frozenset[str]:
    """The addresses of monitors whose edges are ours."""
    return frozenset(item.remote for item in destinations if item.encapsulation is Encapsulation.REWRITE and not item.mac)


def monitors(addresses: frozenset[str], interfaces: Iterable[PodInterface]) -> tuple[Monitor, ...]:
    """The monitors among this node's pods."""
    return tuple(
        Monitor(one.host_ifindex, one.host_name, address, alias_of(address), mac_bytes(one.mac))
        for one in interfaces
        for address in sorted(addresses.intersection(one.addresses))
        if one.host_ifindex
    )


def out_of_reach(addresses: frozenset[str], interfaces: Iterable[PodInterface]) -> tuple[str, ...]:
    """A sentence for each monitor on this node that can have no edge."""
    return tuple(
        f"pod {one.pod} has {address}, to which copies are rewritten, but no device in this node's namespace: they can't be "
        f"recovered on their way to {one.name}; give it a veth, or let its monitor have another address"
        for one in interfaces
        for address in sorted(addresses.intersection(one.addresses))
        if not one.host_ifindex
    )


def targets(destinations: Iterable[ResolvedDestination], hops: Mapping[str, NextHop]) -> frozenset[EdgeTarget]:
    """The edges that this node would send to."""
    found = ((address, hops.get(address)) for address in with_edge(destinations))
    return frozenset(
        EdgeTarget(address, hop.ifindex, mac_bytes(hop.source_mac), alias_of(address))
        for address, hop in found
        if hop is not None and hop.ifindex and not hop.gateway
    )


def hop_of(destination: ResolvedDestination, hop: NextHop, edges: frozenset[str]) -> NextHop:
    """The way of copies without a tunnel, from the way that the routes tell. `edges` are monitors whose edges answer.

    What the kernel knows of the neighbour doesn't matter: its MAC address is not the one that copies are sent to.
    """
    if hop.state in (NextHopState.NO_ROUTE, NextHopState.LOOP):
        return hop
    if hop.gateway:
        return replace(hop, state=NextHopState.ROUTED)
    ids = ids_of(mac_bytes(hop.source_mac)).hex(":")
    to = destination.mac or alias_of(destination.remote).hex(":")
    state = NextHopState.REACHABLE if destination.mac or destination.remote in edges else NextHopState.NO_EDGE
    return replace(hop, state=state, source_mac=ids, gateway_mac=to)


def without_edges(_destinations: Iterable[TapDestination], inventory: Inventory) -> Inventory:
    """Where no edges are kept: rewritten copies have no way."""
    return inventory


def with_ways(
    inventory: Inventory, destinations: Iterable[ResolvedDestination], edges: frozenset[str], problems: tuple[str, ...]
) -> Inventory:
    """The inventory with the ways of copies without a tunnel, under `ResolvedDestination.way`."""
    added: dict[str, NextHop] = {}
    for destination in destinations:
        hop = inventory.next_hops.get(destination.remote)
        if destination.encapsulation is Encapsulation.REWRITE and hop is not None:
            added[destination.way] = hop_of(destination, hop, edges)
    if not added and not problems:
        return inventory
    return replace(inventory, next_hops={**inventory.next_hops, **added}, problems=(*inventory.problems, *problems))
