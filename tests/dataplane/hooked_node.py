"""A node whose pods are on a plain bridge: two of them, seen from their own ends, with copies made by eBPF at the node's ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.unit.pipeline.node import (
    DEADLINE,
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    PACKET_VNET_HDR,
    PEER_MAC,
    POD_MAC,
    SO_RCVBUFFORCE,
    SOL_PACKET,
    Inside,
    Node,
    ip,
    new_namespace,
    point,
    wait_until,
)
from vtap_agent.backends.ebpf import EbpfBackend
from vtap_agent.drivers import libbpf
from vtap_agent.drivers.libbpf import BpfError
from vtap_agent.pipeline import Pipeline
from vtap_agent.pipeline.compiler import compile_object
from vtap_agent.pipeline.kernel import word
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
PACKET_AUXDATA = 8
TP_STATUS_VLAN_VALID = 1 << 4
AUXDATA = struct.Struct("=IIIHHHH")
VIRTIO_BYTES = 10
TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT = -1, 0, 2
WORD = (1 << 64) - 1


def refuse_tcx(_program: int, ifindex: int, **_where: bool) -> int:
    """As kernels before Linux 6.6 do."""
    raise BpfError(errno.EINVAL, f"attach to interface {ifindex}")


def force_clsact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before Linux 6.6."""
    monkeypatch.setattr(libbpf, "attach_tcx", refuse_tcx)
    monkeypatch.setattr(libbpf, "has_tcx", lambda: False)


def port_state(name: str) -> str:
    """Of a port of a kernel's bridge: it forwards once the kernel's link watch has seen its carrier, some time after it is up."""
    shown = subprocess.run(["ip", "-d", "-j", "link", "show", "dev", name], check=True, capture_output=True, text=True)
    (link,) = json.loads(shown.stdout)
    return link["linkinfo"]["info_slave_data"]["state"]


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
        wait_until(lambda: port_state(name) == "forwarding", f"the bridge forwards for {name}")

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

    def reopen_closed(self) -> None:
        """As after an agent that was killed."""
        self.pipeline = Pipeline.open(self.root, "test-node", self.export_cpus)
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

    def receiver(self, name: str = PEER, offload: bool = False) -> WholeFrames:
        """What arrives at a pod from now on; with `offload` a virtio_net_hdr precedes each frame."""
        with Inside(self.pods[name]):
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            handle.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            if offload:
                handle.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            handle.bind(("eth0", ETH_P_ALL))
        self._sockets.append(handle)
        return WholeFrames(handle, VIRTIO_BYTES if offload else 0)


@dataclass(frozen=True)
class WholeFrames:
    """Frames that arrived at a device, in order, with the tag that the kernel keeps beside them back in its place."""

    handle: socket.socket
    before: int
    """Bytes in front of each frame."""

    def frames(self, count: int, deadline: float = DEADLINE) -> list[bytes]:
        """Waits until `count` have come; more than that are returned too if they are there already."""
        found: list[bytes] = []
        end = time.monotonic() + deadline
        while time.monotonic() < end and len(found) < count:
            self.handle.settimeout(max(0.001, end - time.monotonic()))
            try:
                found.append(self._one())
            except TimeoutError:
                break
        self.handle.setblocking(False)
        while True:
            try:
                found.append(self._one())
            except BlockingIOError:
                return found

    def _one(self) -> bytes:
        data, beside, _flags, _address = self.handle.recvmsg(1 << 17, 256)
        ((_level, _kind, raw),) = beside
        status, _length, _kept, _mac, _net, tci, tpid = AUXDATA.unpack_from(raw)
        at = self.before + 12
        return data[:at] + struct.pack(">HH", tpid, tci) + data[at:] if status & TP_STATUS_VLAN_VALID else data


class Beside:
    """Somebody else's program, from beside.bpf.c. `verdict` is what it returns; attach it as often as wanted."""

    def __init__(self, directory: Path, verdict: int = TC_ACT_UNSPEC) -> None:
        compiled = directory / "beside.o"
        if not compiled.exists():
            compile_object(Path(__file__).with_name("beside.bpf.c"), compiled)
        loaded = libbpf.Object(compiled)
        loaded.load()
        self.map = libbpf.Map(loaded.map_fd("beside"))
        self.program, self.marking, self.delivering = map(loaded.program_fd, ("watch_beside", "mark_it", "deliver"))
        loaded.close()
        self.map.update(word(6), (verdict & WORD).to_bytes(8, "little"))
        self._links: list[int] = []

    def note(self, index: int) -> int:
        """count, mark, queue, vlan, length, segments, verdict, hash, device to deliver to."""
        return int.from_bytes(self.map.lookup(word(index)) or b"", "little")

    @property
    def count(self) -> int:
        return self.note(0)

    def at_tcx(self, ifindex: int, *, egress: bool, first: bool = False, marking: bool = False) -> None:
        """First or last of those that are there now."""
        program = self.marking if marking else self.program
        self._links.append(libbpf.attach_tcx(program, ifindex, egress=egress, first=first))

    def deliver(self, arriving: int, target: int) -> None:
        """What arrives at one device goes right into the pod behind another, past all that is at that device; behind ours."""
        self.deliver_to(target)
        try:
            self._links.append(libbpf.attach_tcx(self.delivering, arriving, egress=False, first=False))
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            libbpf.attach_clsact(self.delivering, arriving, 5, 1, egress=False)

    def deliver_to(self, target: int) -> None:
        """Behind that device from now on; 0: the packets take their usual way."""
        self.map.update(word(8), target.to_bytes(8, "little"))

    def at_clsact(self, ifindex: int, *, egress: bool, priority: int = 1, handle: int = 1, marking: bool = False) -> None:
        """As a network plugin does that knows nothing of tcx."""
        libbpf.attach_clsact(self.marking if marking else self.program, ifindex, priority, handle, egress=egress)

    def close(self) -> None:
        for link in self._links:
            os.close(link)
        self.map.close()
        for program in (self.program, self.marking, self.delivering):
            os.close(program)
