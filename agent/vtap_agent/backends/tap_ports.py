"""What the rows of a tap port depend on that only the kernel tells. For every backend that has tap ports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vtap_agent.drivers import links
from vtap_agent.plan.mirrors import ObservedPort


def interface_type(name: str) -> str:
    """What the Interface of a tap port has to say for `type`: "tap" where vswitchd is to write to the file of a tap device."""
    return "tap" if links.is_tap(name) else ""


def row_type(port: Any) -> str:
    """The type of a Port row's Interface."""
    return next((interface.type for interface in port.interfaces), "")


def checked(port: ObservedPort) -> ObservedPort:
    """The port, not as made where its Interface is of another type than its device. Raises NetlinkError."""
    return replace(port, as_made=port.as_made and port.type == interface_type(port.name))
