"""Tap ports of bridges: what they are called, what a bridge has of them, and the steps that add and delete them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from vtap_agent.plan.dataplane import Backend, Feed
from vtap_agent.plan.stamps import Stamp
from vtap_agent.plan.steps import Phase

TRUNKS: Mapping[Backend, tuple[int, ...]] = {Backend.OVS_MIRROR: (), Backend.OVS_GROUP: (4095,)}
"""The VLANs that a tap port carries, by backend; none named are all of them.

A mirror's output port takes no part in NORMAL. The port that flows of ours send to has a VLAN that no frame is in, so that NORMAL
sends nothing there and takes nothing from there.
"""


@dataclass(frozen=True, slots=True)
class ObservedPort:
    """A Port row with a stamp. `as_made` is False where a column that decides how copies leave has been changed since.

    `mtu` is what its Interface's `mtu_request` asks for, 0 for nothing. `ofport` is its OpenFlow number, 0 while it has none.
    """

    uuid: str
    name: str
    stamp: Stamp
    as_made: bool
    mtu: int
    ofport: int = 0
    type: str = ""
    """Of its Interface: "tap" for a tap device, empty for any other."""


@dataclass(frozen=True, slots=True)
class BridgeStep(ABC):
    """A change of one bridge."""

    bridge: str

    @property
    def phase(self) -> Phase:
        """When copies begin and end."""
        return Phase.MIRROR

    @property
    @abstractmethod
    def backend(self) -> Backend:
        """Whose it is."""


@dataclass(frozen=True, slots=True)
class TapPortStep(BridgeStep):
    """A change of one tap port, whose stamp tells the backend."""

    name: str
    stamp: Stamp

    @property
    def backend(self) -> Backend:
        return self.stamp.backend


@dataclass(frozen=True, slots=True)
class AddTapPort(TapPortStep):
    """Add an existing device to the bridge, or put a changed row of ours right. `mtu` 0 asks for none."""

    mtu: int

    def __str__(self) -> str:
        return f"make {self.name} a tap port of bridge {self.bridge}"


@dataclass(frozen=True, slots=True)
class DeleteTapPort(TapPortStep):
    """Take a tap port of ours out of the bridge. Its device is the pipeline's to delete."""

    uuid: str

    def __str__(self) -> str:
        return f"take tap port {self.name} out of bridge {self.bridge}"


def tap_port_name(node: str, key: Feed) -> str:
    """The name of the tap port's device, its Port and its Mirror: 15 characters, all that a Linux device may have."""
    named = (node, key.place, key.direction, *(() if key.backend is Backend.OVS_MIRROR else (key.backend,)))
    digest = hashlib.sha256("\0".join(named).encode()).hexdigest()
    return f"vtap-{key.direction[0].lower()}-{digest[:8]}"
