"""What a bridge's row tells of its ports, and of the tap ports among them. For every backend that has tap ports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vtap_agent.drivers import links
from vtap_agent.drivers.ovsdb import first
from vtap_agent.plan.stamps import Stamp, read_stamp
from vtap_agent.plan.tap_ports import TRUNKS, ObservedPort

OTHER_CONFIG = {"stp-enable": "false", "rstp-enable": "false"}
"""No bridge protocol data units into the copies."""


def names(bridge: Any) -> dict[str, str]:
    """Of all ports, by UUID."""
    return {str(port.uuid): port.name for port in bridge.ports}


def mtus(bridge: Any) -> dict[str, int]:
    """Of the ports whose MTU is known, by UUID."""
    return {str(port.uuid): mtu for port in bridge.ports if (mtu := _largest(port, "mtu"))}


def stamped(bridge: Any) -> tuple[ObservedPort, ...]:
    """The ports that bear a stamp, of any node and backend."""
    stamps = [(port, read_stamp(port.external_ids)) for port in bridge.ports]
    return tuple(_observed(port, stamp) for port, stamp in stamps if stamp is not None)


def interface_type(name: str) -> str:
    """What the Interface of a tap port has to say for `type`: "tap" where vswitchd is to write to the file of a tap device."""
    return "tap" if links.is_tap(name) else ""


def checked(port: ObservedPort) -> ObservedPort:
    """The port, not as made where its Interface is of another type than its device. Raises NetlinkError."""
    return replace(port, as_made=port.as_made and port.type == interface_type(port.name))


def _observed(port: Any, stamp: Stamp) -> ObservedPort:
    return ObservedPort(
        uuid=str(port.uuid),
        name=port.name,
        stamp=stamp,
        as_made=_as_made(port, stamp),
        mtu=_largest(port, "mtu_request"),
        ofport=_largest(port, "ofport"),
        type=next((interface.type for interface in port.interfaces), ""),
    )


def _as_made(port: Any, stamp: Stamp) -> bool:
    """Whether nobody has changed how copies leave the tap port: tags as they were, no BPDUs between them."""
    tags = not port.tag and tuple(port.trunks) == TRUNKS.get(stamp.backend) and not port.vlan_mode
    return tags and OTHER_CONFIG.items() <= dict(port.other_config).items()


def _largest(port: Any, column: str) -> int:
    return max((first(getattr(interface, column), 0) for interface in port.interfaces), default=0)
