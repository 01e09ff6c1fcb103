"""A node of a test's own: a network namespace with a pipeline, tap ports to write copies to, and an uplink to a sink namespace.

The calling thread lives in the node's namespace while the node is open. Nothing gets an address but the sink and the uplink.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from vtap_agent.drivers import links
from vtap_agent.pipeline import Pipeline, TapPortDevices
from vtap_agent.pipeline.kernel import destroy_pins, unmount_bpffs
from vtap_agent.plan.dataplane import (
    Action,
    Backend,
    DataPlane,
    Destination,
    DestinationState,
    Direction,
    Encapsulation,
    Feed,
    Mirror,
    Oversize,
    PointCounters,
    Source,
    TapPoint,
    TapPointName,
    TapProgram,
)
from vtap_lab.errors import PATIENCE

CLONE_NEWNET = 0x40000000
POD_MAC = bytes.fromhex("020000000001")
PEER_MAC = bytes.fromhex("020000000002")
INGRESS = Feed(Backend.OVS_MIRROR, "br0", Direction.INGRESS)
EGRESS = Feed(Backend.OVS_MIRROR, "br0", Direction.EGRESS)
UPLINK, SINK = "up0", "up1"
ADDRESSES = {
    4: (socket.inet_aton("198.18.0.1"), socket.inet_aton("198.18.0.2")),
    6: (socket.inet_pton(socket.AF_INET6, "fd00::1"), socket.inet_pton(socket.AF_INET6, "fd00::2")),
}
KEY = 4096
INCARNATION = "9f86d081884c7d65"
DEADLINE = 10.0 * PATIENCE
PACKET_VNET_HDR = 15
ETH_P_ALL = 3
SIOCGIFHWADDR = 0x8927
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33

libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    return None if path.exists() else "the kernel has no eBPF"


def wait_until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline} s: {what}")
        time.sleep(0.005)


def setns(fd: int) -> None:
    if libc.setns(fd, CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "setns")


def own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_namespace() -> int:
    """A descriptor of a new namespace; the thread stays where it is."""
    here = own_namespace()
    try:
        if libc.unshare(CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        made = own_namespace()
        setns(here)
        return made
    finally:
        os.close(here)


class Inside(AbstractContextManager[None]):
    """The thread is in another namespace for a while."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._back = -1

    def __enter__(self) -> None:
        self._back = own_namespace()
        setns(self._fd)

    def __exit__(self, *_: object) -> None:
        setns(self._back)
        os.close(self._back)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def mac_of(name: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        raw = fcntl.ioctl(handle, SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
    return raw[18:24]


def point(slot: int, direction: Direction, program: str = "shop/web", destination: str = "c") -> TapPoint:
    name = TapPointName("shop", program.split("/")[1], "shop", f"pod-{slot}", f"uid-{slot}", "eth0", direction)
    return TapPoint(name, slot, KEY + slot, INCARNATION, program, destination)


@dataclass(frozen=True)
class Capture:
    """Frames that arrived at a device, each once, in order."""

    handle: socket.socket

    def frames(self, count: int, deadline: float = DEADLINE) -> list[bytes]:
        """Waits until `count` have come; more than that are returned too if they are there already."""
        found: list[bytes] = []
        end = time.monotonic() + deadline
        while time.monotonic() < end and len(found) < count:
            self.handle.settimeout(max(0.001, end - time.monotonic()))
            try:
                found.append(self.handle.recv(65536))
            except TimeoutError:
                break
        self.handle.setblocking(False)
        while True:
            try:
                found.append(self.handle.recv(65536))
            except BlockingIOError:
                return found


class Node:
    """Use as a context manager. `export_cpus` as the agent's option of that name."""

    def __init__(self, export_cpus: frozenset[int] = frozenset()) -> None:
        self.export_cpus = export_cpus
        self.root = Path(tempfile.mkdtemp(prefix="vtap-pipeline-"))
        self.ports: dict[Feed, TapPortDevices] = {}
        self._writers: dict[tuple[Feed, bool], socket.socket] = {}

    def __enter__(self) -> Self:
        self._before = own_namespace()
        self.namespace, self.sink = new_namespace(), new_namespace()
        setns(self.namespace)
        try:
            self._build()
        except BaseException:
            self._leave()
            raise
        return self

    def _build(self) -> None:
        ip("link", "add", UPLINK, "type", "veth", "peer", "name", SINK)
        links.silence(UPLINK, "test uplink", 1500)
        ip("link", "set", SINK, "netns", f"/proc/{os.getpid()}/fd/{self.sink}")
        with Inside(self.sink):
            Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
            ip("link", "set", "lo", "up")
            ip("link", "set", SINK, "up")
            ip("addr", "add", "198.18.0.2/24", "dev", SINK)
            ip("-6", "addr", "add", "fd00::2/64", "dev", SINK, "nodad")
            self.sink_mac = mac_of(SINK)
        self.uplink_mac = mac_of(UPLINK)
        self.pipeline = Pipeline.open(self.root, "test-node", self.export_cpus)
        for key in (INGRESS, EGRESS):
            self.ports[key] = self.pipeline.ensure_tap_port(key)
        self.pipeline.renew_lease(600)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.pipeline.destroy()
        finally:
            self._leave()

    def _leave(self) -> None:
        for handle in self._writers.values():
            handle.close()
        setns(self._before)
        for fd in (self._before, self.namespace, self.sink):
            os.close(fd)
        if self.root.exists():
            if os.path.ismount(self.root):
                destroy_pins(self.root)
                unmount_bpffs(self.root)
            self.root.rmdir()

    def reopen(self) -> None:
        """As after an agent's restart."""
        self.pipeline.close()
        self.pipeline = Pipeline.open(self.root, "test-node", self.export_cpus)

    def apply(self, desired: DataPlane) -> None:
        """One pass, which must leave nothing to do."""
        for step in self.pipeline.plan(desired, self.ports):
            self.pipeline.apply(step)
        assert self.pipeline.verify(desired) == []

    def destination(
        self, encapsulation: Encapsulation = Encapsulation.GRE_UDP, version: int = 4, **changes: object
    ) -> Destination:
        ours, theirs = ADDRESSES[version]
        made = Destination(
            name="c",
            encapsulation=encapsulation,
            state=DestinationState.READY,
            remote=theirs,
            local=ours,
            ifindex=socket.if_nametoindex(UPLINK),
            source_mac=self.uplink_mac,
            gateway_mac=self.sink_mac,
            mtu=1500,
            port=4789 if encapsulation is Encapsulation.VXLAN else 4754,
            trailer=encapsulation is Encapsulation.GRE_UDP,
            oversize=Oversize.FRAGMENT,
        )
        return replace(made, **changes)  # type: ignore[arg-type]

    def set_underlay_mtu(self, mtu: int) -> None:
        """Of both ends, which are made with 1,500."""
        ip("link", "set", UPLINK, "mtu", str(mtu))
        with Inside(self.sink):
            ip("link", "set", SINK, "mtu", str(mtu))

    def plane(
        self,
        program: TapProgram | None = None,
        destination: Destination | None = None,
        peer_sets: Mapping[int, frozenset[str]] | None = None,
    ) -> DataPlane:
        """One pod, tapped in both directions by one tap: slot 0 ingress, slot 1 egress."""
        return DataPlane(
            mirrors={key: Mirror(key, frozenset()) for key in (INGRESS, EGRESS)},
            sources=(Source(INGRESS, 0, POD_MAC, False, (0,)), Source(EGRESS, 0, POD_MAC, False, (1,))),
            points=(point(0, Direction.INGRESS), point(1, Direction.EGRESS)),
            programs={"shop/web": program or TapProgram(Action.INCLUDE, ())},
            destinations={"c": destination or self.destination()},
            peer_sets=peer_sets or {},
        )

    def capture(self) -> Capture:
        """What arrives at the sink from now on, IPv6 chatter of its own stack apart."""
        with Inside(self.sink):
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            handle.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            handle.bind((SINK, ETH_P_ALL))
        return Capture(handle)

    def writer(self, key: Feed, offload: bool = False) -> socket.socket:
        """A packet socket at the switch's end, as Open vSwitch's: with `offload` a virtio_net_hdr precedes each frame."""
        known = self._writers.get((key, offload))
        if known is None:
            known = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            if offload:
                known.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            known.bind((self.ports[key].switch, 0))
            self._writers[key, offload] = known
        return known

    def forget_writers(self) -> None:
        """After tap ports were made anew."""
        for handle in self._writers.values():
            handle.close()
        self._writers.clear()

    def tap(self, key: Feed, frame: bytes) -> None:
        self.writer(key).send(frame)

    def counters(self, slot: int) -> PointCounters:
        return self.pipeline.counters().points[slot]

    def settled(self, slot: int) -> PointCounters:
        """Counters once every packet seen has met its fate."""
        wait_until(lambda: open_accounts(self.counters(slot)) == 0, f"the ledger of slot {slot} closes: {self.counters(slot)}")
        return self.counters(slot)


def open_accounts(c: PointCounters) -> int:
    return c.seen - c.excluded - c.unsampled - c.limited - sum(c.dropped.values()) - c.sent
