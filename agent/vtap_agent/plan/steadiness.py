"""What to believe while something cannot be seen for a moment: the last that was seen of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vtap_agent.plan.inventory_model import Inventory, PodInterface, Switch


def with_switch(inventory: Inventory, switch: Switch) -> Inventory:
    """The inventory as it would be if `switch` still told its ports."""
    ports = {port.name: port for bridge in switch.bridges for port in bridge.ports}
    interfaces = tuple(replace(item, port=ports.get(item.host_name or _port_name(item))) for item in inventory.interfaces)
    return replace(inventory, interfaces=interfaces, switch=replace(switch, reachable=inventory.switch.reachable))


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
