"""What to believe while something cannot be seen for a moment: the last that was seen of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vtap_agent.plan.inventory_model import Inventory, PodInterface


def with_switch(inventory: Inventory, before: Inventory) -> Inventory:
    """The inventory as it would be if the switch still told its ports, and those pods' interfaces that only ports tell of."""
    ports = {port.device or port.name: port for bridge in before.switch.bridges for port in bridge.ports}
    interfaces = tuple(replace(item, port=ports.get(item.host_name or _port_name(item))) for item in inventory.interfaces)
    here, taken = {pod.ref for pod in inventory.pods}, {item.port.uuid for item in interfaces if item.port is not None}
    deviceless = (item for item in before.interfaces if item.port is not None and item.port.deviceless)
    missed = (item for item in deviceless if item.pod in here and item.port is not None and item.port.uuid not in taken)
    switch = replace(before.switch, reachable=inventory.switch.reachable)
    return replace(inventory, interfaces=(*interfaces, *missed), switch=switch)


def _port_name(interface: PodInterface) -> str:
    """Of a port that no veth leads to."""
    return interface.port.name if interface.port is not None else ""


def vanished(now: Inventory, before: Inventory) -> frozenset[str]:
    """Pods, by UID, of which no interface can be seen any more, though they are there and a port of theirs is on a bridge."""
    seen = {interface.pod.uid for interface in now.interfaces}
    ports = {port.uuid for bridge in now.switch.bridges for port in bridge.ports}
    had = {item.pod.uid for item in before.interfaces if item.port is not None and item.port.uuid in ports}
    return frozenset(pod.ref.uid for pod in now.pods if pod.netns and pod.ref.uid in had - seen)


def with_interfaces(now: Inventory, before: Inventory, pods: Iterable[str]) -> Inventory:
    """`now` with the interfaces that the pods of these UIDs had `before`."""
    kept = frozenset(pods)
    return replace(now, interfaces=(*now.interfaces, *(item for item in before.interfaces if item.pod.uid in kept)))
