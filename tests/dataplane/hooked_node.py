"""A node whose pods are on a plain bridge: two of them, seen from their own ends, with copies made by eBPF at the node's ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tests.unit.pipeline.node import (
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    PACKET_VNET_HDR,
    PEER_MAC,
    POD_MAC,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    Capture,
    Inside,
    Node,
    ip,
    new_namespace,
    point,
)
from vtap_agent.backends.ebpf import EbpfBackend
from vtap_agent.plan.dataplane import (
    ANY_VLAN,
    Action,
    Backend,
    DataPlane,
    Destination,
    Direction,
    Feed,
    Source,
    TapProgram,
)
from vtap_agent.plan.steps import Step, ordered

POD, PEER = "pod0", "pod1"
"""The node's ends. `POD` is the one that is tapped."""
MACS = {POD: POD_MAC, PEER: PEER_MAC}
BRIDGE = "bridge0"


class HookedNode(Node):
    """As `Node`, with a bridge and two pods beside."""

    def _build(self) -> None:
        super()._build()
        self.backend = EbpfBackend(self.pipeline.hooks)
        self.pods: dict[str, int] = {}
        self._sockets: list[socket.socket] = []
        ip("link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
        self._quiet(BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for name in (POD, PEER):
            self.add_pod(name)

    def add_pod(self, name: str) -> None:
        """A veth from the bridge into a namespace of its own."""
        self.pods[name] = namespace = new_namespace()
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{namespace}")
        self._quiet(name)
        ip("link", "set", name, "master", BRIDGE, "up")
        with Inside(namespace):
            self._quiet("eth0")
            ip("link", "set", "eth0", "address", MACS[name].hex(":"))
            ip("link", "set", "eth0", "up")

    def remove_pod(self, name: str) -> None:
        """Its device goes, and with it both ends."""
        ip("link", "del", name)
        os.close(self.pods.pop(name))

    @staticmethod
    def _quiet(name: str) -> None:
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")

    def _leave(self) -> None:
        for handle in getattr(self, "_sockets", ()):
            handle.close()
        for namespace in getattr(self, "pods", {}).values():
            os.close(namespace)
        super()._leave()

    def reopen(self) -> None:
        super().reopen()
        self.backend = EbpfBackend(self.pipeline.hooks)

    def feed(self, direction: Direction, name: str = POD) -> Feed:
        """At the node's end of a pod."""
        return Feed(Backend.EBPF, name, direction, socket.if_nametoindex(name))

    def plane(
        self,
        program: TapProgram | None = None,
        destination: Destination | None = None,
        peer_sets: object = None,
    ) -> DataPlane:
        """One pod, tapped in both directions by one tap: slot 0 ingress, slot 1 egress."""
        del peer_sets
        feeds = [self.feed(direction) for direction in (Direction.INGRESS, Direction.EGRESS)]
        return DataPlane(
            hooks=frozenset(feeds),
            sources=tuple(Source(feed, ANY_VLAN, bytes(6), False, (slot,)) for slot, feed in enumerate(feeds)),
            points=(point(0, Direction.INGRESS), point(1, Direction.EGRESS)),
            programs={"shop/web": program or TapProgram(Action.INCLUDE, ())},
            destinations={"c": destination or self.destination()},
        )

    def two_taps(self, first: TapProgram, second: TapProgram) -> DataPlane:
        """As `plane`, and another tap on the same pod: slots 2 and 3."""
        plane = self.plane(first)
        more = tuple(
            replace(point(2 + slot, direction), program="shop/second")
            for slot, direction in enumerate((Direction.INGRESS, Direction.EGRESS))
        )
        return replace(
            plane,
            sources=tuple(replace(source, slots=(source.slots[0], source.slots[0] + 2)) for source in plane.sources),
            points=(*plane.points, *more),
            programs={**plane.programs, "shop/second": second},
        )

    def steps(self, desired: DataPlane) -> list[Step]:
        """What is still to do."""
        ports = {feed: self.pipeline.tap_port_devices(feed) for feed in desired.tap_ports}
        return ordered([*self.pipeline.plan(desired, ports), *self.backend.plan(desired)])

    def apply(self, desired: DataPlane) -> None:
        """One pass, which must leave nothing to do."""
        self.apply_steps(self.steps(desired))
        assert self.steps(desired) == []

    def apply_steps(self, steps: Iterable[Step]) -> None:
        """As the loop does."""
        for step in steps:
            self.backend.apply([step])
            if self.pipeline.owns(step):
                self.pipeline.apply(step)

    # What passes

    def sender(self, name: str = POD, offload: bool = False) -> socket.socket:
        """Sends frames as the pod; with `offload` a virtio_net_hdr precedes each."""
        with Inside(self.pods[name]):
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if offload:
            handle.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        with Inside(self.pods[name]):
            handle.bind(("eth0", 0))
        self._sockets.append(handle)
        return handle

    def receiver(self, name: str = PEER, offload: bool = False) -> Capture:
        """What arrives at a pod from now on; with `offload` a virtio_net_hdr precedes each frame."""
        with Inside(self.pods[name]):
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            if offload:
                handle.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            handle.bind(("eth0", ETH_P_ALL))
        self._sockets.append(handle)
        return Capture(handle)
