"""What is on this node, as immutable values. `inventory/` fills them in by looking; `plan/` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class PodRef:
    """A pod's name and identity; a recreated pod has another `uid`."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as its source declares it. `netns` is a path that setns(2) accepts, empty while the pod has none."""

    ref: PodRef
    labels: Mapping[str, str]
    netns: str
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class BridgePort:
    """An OVS port. `vlan_mode` and `tag` as in the Port table; `tag` is 0 where the port is not an access port."""

    bridge: str
    name: str
    uuid: str
    tag: int = 0
    vlan_mode: str = ""
    external_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    interface_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    """external_ids of its Interface rows."""
    device: str = ""
    """The kernel's device that its packets come from where it is called otherwise than the port: of one that DPDK polls."""
    deviceless: bool = False
    """A port of DPDK's with no kernel's device behind it: the pod's end is a socket or a ring, not an interface."""
    mtu: int = 0
    """In bytes; 0 where it is not known."""
    by_xdp: bool = False
    """Open vSwitch takes what its device receives by XDP, and gives it frames by AF_XDP: both before the device's tc hooks."""


@dataclass(frozen=True, slots=True)
class PodInterface:
    """A pod's interface and the way from it to a bridge.

    `host_ifindex` is 0 and `host_name` empty where no peer is found in the node's namespace; `port` is None where the peer
    is on no OVS bridge. `addresses` are without prefix length. `mtu` in bytes.
    """

    pod: PodRef
    name: str
    mac: str
    addresses: tuple[str, ...]
    mtu: int
    host_name: str
    host_ifindex: int
    port: BridgePort | None


@dataclass(frozen=True, slots=True)
class Bridge:
    """An OVS bridge with its ports."""

    name: str
    uuid: str
    datapath_type: str
    controllers: tuple[str, ...]
    ports: tuple[BridgePort, ...]
    mirror_count: int
    """Mirrors on the bridge, ours and others'. OVS allows 32."""
    foreign_mirror_count: int
    polled: bool = False
    """DPDK's poll-mode threads move its packets."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The Open vSwitch of this node; `version` like "3.1.0", `datapaths_ready` False while vswitchd does not answer."""

    version: str
    bridges: tuple[Bridge, ...]
    reachable: bool
    restarts: int
    """Increments each time vswitchd is seen to have restarted (Open_vSwitch.cur_cfg reset or pid change)."""


class NextHopState(StrEnum):
    """Whether copies can reach a remote address."""

    REACHABLE = "Reachable"
    NO_ROUTE = "NoRoute"
    NO_NEIGHBOUR = "NoNeighbour"
    LOOP = "Loop"
    """The route leads out of an interface that is itself tapped, or to this node."""
    ROUTED = "Routed"
    """A router is in between, which copies without a tunnel do not pass."""
    NO_EDGE = "NoEdge"
    """Nobody answers for the monitor that copies without a tunnel are for."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """How copies reach a remote address from the node's namespace, as the kernel's route and neighbour tables say."""

    remote: str
    state: NextHopState
    ifindex: int = 0
    ifname: str = ""
    source: str = ""
    """The address the outer header gets as its source."""
    source_mac: str = ""
    gateway_mac: str = ""
    mtu: int = 0
    """Bytes of outer IP packet that fit: the route's MTU, else the interface's."""
    gateway: str = ""
    """The router's address, empty where the remote is on the link itself."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """One look at the node."""

    pods: tuple[Pod, ...]
    interfaces: tuple[PodInterface, ...]
    switch: Switch
    next_hops: Mapping[str, NextHop]
    """By remote address."""
    problems: tuple[str, ...] = ()
    """Sentences about pods and remotes that could not be looked at as they should."""
