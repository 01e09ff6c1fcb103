"""What is on this node, by looking, and a call whenever it may be different."""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from vtap_agent.drivers.netlink import Event, EventSocket, Netlink, NetlinkError
from vtap_agent.errors import TellUser, VtapError
from vtap_agent.inventory import rtnetlink
from vtap_agent.inventory.attachment import NamespaceView, pod_interfaces
from vtap_agent.inventory.next_hops import PROBE_INTERVAL, NextHops
from vtap_agent.inventory.port_owners import Ports, ports_of
from vtap_agent.inventory.rtnetlink import Link
from vtap_agent.plan.inventory_model import Inventory, Pod, PodInterface, PodRef, Switch

log = logging.getLogger(__name__)

_OWN_NAMESPACE = "/proc/thread-self/ns/net"
_EVERYWHERE = (
    rtnetlink.GROUP_LINK,
    rtnetlink.GROUP_IPV4_ADDRESS,
    rtnetlink.GROUP_IPV6_ADDRESS,
    rtnetlink.GROUP_NSID,
)
_NODE_ONLY = (
    rtnetlink.GROUP_NEIGH,
    rtnetlink.GROUP_IPV4_ROUTE,
    rtnetlink.GROUP_IPV6_ROUTE,
    rtnetlink.GROUP_IPV4_RULE,
    rtnetlink.GROUP_IPV6_RULE,
    rtnetlink.GROUP_NEXTHOP,
)
_NEIGHBOUR_KINDS = frozenset({rtnetlink.RTM_NEWNEIGH, rtnetlink.RTM_DELNEIGH})
_NAMESPACE_KINDS = frozenset({rtnetlink.RTM_NEWLINK, rtnetlink.RTM_DELLINK, rtnetlink.RTM_NEWADDR, rtnetlink.RTM_DELADDR})

_AFTER_ERROR = 1.0

Identity = tuple[int, int]
"""(st_dev, st_ino) of a network namespace's file, the same for every path to it."""


def give_back_neighbours() -> None:
    """Undo what an observer that was killed has left in this network namespace. Raises NetlinkError."""
    with Netlink() as netlink:
        left = NextHops(netlink, dict[int, Link])
        left.open()
        left.close()


class SwitchSource(Protocol):
    """Tells the Open vSwitch of this node: `drivers.ovsdb.OvsdbConnection`, or a fake of it."""

    def snapshot(self) -> Switch: ...

    def on_change(self, callback: Callable[[], None]) -> None: ...


class PodsHere(Protocol):
    """What a source of pods holds."""

    @property
    def pods(self) -> tuple[Pod, ...]: ...

    @property
    def problems(self) -> tuple[str, ...]: ...


class PodSource(Protocol):
    """Tells the pods of this node: the sources of `sources.pods`, later a watch of the API server."""

    def snapshot(self) -> PodsHere: ...

    def on_change(self, callback: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class _Looked:
    """A pod's namespace. `view` is None while it has to be looked at (again); `attached` is what came of what last."""

    nsid: int
    view: NamespaceView | None = None
    attached: tuple[PodRef, NamespaceView, NamespaceView, tuple[PodInterface, ...]] | None = None

    def interfaces(self, ref: PodRef, view: NamespaceView, node: NamespaceView, ports: Ports) -> tuple[PodInterface, ...]:
        """As `pod_interfaces`, worked out again only where something is different."""
        if self.attached is not None:
            last_ref, last_view, last_node, found = self.attached
            same = last_ref == ref and last_view is view and last_node is node
            deviceless = [item.port for item in ports.deviceless_of(ref)]
            same = same and deviceless == [item.port for item in found if item.port is not None and item.port.deviceless]
            if same and all(ports.of(ref, item.name, item.mac, item.host_name) == item.port for item in found):
                return found
        found = pod_interfaces(ref, view, node, ports)
        self.attached = (ref, view, node, found)
        return found


class Observer:
    """Produces the `Inventory` of the node whose network namespace the thread that calls `start` is in.

    Use: construct; `on_change(callback)`, called on some thread whenever a snapshot may differ (so it must return at once, as
    `Mailbox.changed` does); `start()`; then `snapshot(remotes)` as often as wanted, from any thread; `stop()`. Changes of pods
    and switch are passed on, but both are started and stopped by whoever made them.

    A snapshot takes account of everything that happened before the call. It asks the kernel only for what events say has
    changed. It never raises for what a pod or remote does: their troubles are sentences in `Inventory.problems`. It raises
    NetlinkError (a Retry) where the node itself can't be looked at.

    It writes neighbour entries, as `next_hops` describes, and gives pods' namespaces a number (RTM_NEWNSID), as the kernel does.
    """

    def __init__(self, switch: SwitchSource, pods: PodSource, probe_interval: float = PROBE_INTERVAL) -> None:
        self._switch = switch
        self._pods = pods
        self._probe_interval = probe_interval
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register before `start`."""
        self._callbacks.append(callback)
        self._switch.on_change(callback)
        self._pods.on_change(callback)

    def start(self) -> None:
        """Begin to follow this thread's network namespace. Raises NetlinkError, or TellUser where that isn't permitted."""
        if self._running is None:
            try:
                self._running = _Running(self._lock, self._notify, self._probe_interval)
            except OSError as error:
                why = os.strerror(error.errno or 0)
                raise TellUser(f"the node's network can't be followed ({why}); run the agent as root") from error
            self._running.start()

    def stop(self) -> None:
        """End the monitor, close all sockets, give back neighbour entries."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def snapshot(self, remotes: frozenset[str]) -> Inventory:
        """What is here now, and the way to each of `remotes` (addresses without prefix length or zone)."""
        running = self._running
        if running is None:
            raise RuntimeError("Observer.start comes before snapshot")
        here, switch = self._pods.snapshot(), self._switch.snapshot()
        with self._lock:
            return running.look(here, switch, remotes)

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()


class _Running:
    """The sockets, caches and monitor thread of a started observer. `lock` guards all but the thread."""

    def __init__(self, lock: threading.Lock, notify: Callable[[], None], probe_interval: float) -> None:
        self._lock = lock
        self._notify = notify
        self._own = _identity(_OWN_NAMESPACE)
        self._netlink = Netlink()
        self._everywhere = EventSocket(_EVERYWHERE, every_namespace=True)
        self._node_only = EventSocket(_NODE_ONLY)
        self._own_nsid = self._number(_OWN_NAMESPACE)
        self._node: NamespaceView | None = None
        self._looked: dict[Identity, _Looked] = {}
        self._next_hops = NextHops(self._netlink, lambda: self._node_view().links, probe_interval)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._follow, name="inventory-monitor", daemon=True)

    def start(self) -> None:
        self._next_hops.open()
        self._thread.start()

    def stop(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._lock:
            self._next_hops.close()
            for closing in (self._everywhere, self._node_only, self._netlink):
                closing.close()
            os.close(self._wake)

    # --- looking: under the lock -------------------------------------------------------------------------------------------

    def look(self, here: PodsHere, switch: Switch, remotes: frozenset[str]) -> Inventory:
        if not self._thread.is_alive():
            self._forget_everything()
        self._absorb()
        node, ports = self._node_view(), ports_of(switch)
        pods: list[Pod] = []
        interfaces: list[PodInterface] = []
        problems = list(here.problems)
        in_use: set[Identity] = set()
        for declared in here.pods:
            pod = declared
            try:
                identity = _identity(pod.netns) if pod.netns else None
                if identity == self._own:
                    pod = replace(pod, host_network=True)
                elif identity is not None and not pod.host_network:
                    in_use.add(identity)
                    looked, view = self._pod_view(identity, pod.netns)
                    interfaces += looked.interfaces(pod.ref, view, node, ports)
            except (OSError, NetlinkError) as error:
                problems.append(_unreadable(pod, error))
            pods.append(pod)
        self._looked = {identity: looked for identity, looked in self._looked.items() if identity in in_use}
        next_hops = self._next_hops.resolve(remotes)
        problems += self._next_hops.problems
        return Inventory(tuple(pods), tuple(interfaces), switch, next_hops, tuple(problems))

    def _node_view(self) -> NamespaceView:
        if self._node is None:
            self._node = _view(self._netlink, self._own_nsid, None)
        return self._node

    def _pod_view(self, identity: Identity, path: str) -> tuple[_Looked, NamespaceView]:
        looked = self._looked.get(identity)
        if looked is None:
            looked = self._looked[identity] = _Looked(self._number(path))
        if looked.view is None:
            try:
                looked.view = _view(self._netlink, looked.nsid, looked.nsid)
            except NetlinkError:
                del self._looked[identity]  # Its number may have been given to another namespace meanwhile.
                raise
        return looked, looked.view

    def _number(self, path: str) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return rtnetlink.number_namespace(self._netlink, descriptor)
        finally:
            os.close(descriptor)

    # --- following ---------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        poller = select.poll()
        for watched in (self._everywhere.fileno(), self._node_only.fileno(), self._wake):
            poller.register(watched, select.POLLIN)
        due = time.monotonic()
        while True:
            ready = {descriptor for descriptor, _ in poller.poll(max(0.0, due - time.monotonic()) * 1000)}
            if self._wake in ready:
                return
            try:
                with self._lock:
                    changed = self._absorb()
                    if time.monotonic() >= due:
                        due = time.monotonic() + self._next_hops.probe()
                    changed = self._next_hops.refresh() or changed
            except VtapError as error:
                log.warning("following the node's network: %s", error)
                changed, due = True, time.monotonic() + _AFTER_ERROR
            if changed:
                self._notify()

    def _absorb(self) -> bool:
        """Take in all events so far; True where pods or the node's devices and addresses may be different."""
        everywhere, node_only = self._everywhere.receive(), self._node_only.receive()
        if everywhere is None or node_only is None:
            self._forget_everything()
            return True
        changed = False
        for event in everywhere:
            changed = self._take(event) or changed
        for event in node_only:
            self._take_way(event)
        return changed

    def _take(self, event: Event) -> bool:
        kind, payload = event.message.kind, event.message.payload
        if kind == rtnetlink.RTM_DELNSID:
            return self._forget(rtnetlink.nsid_in(payload))
        if kind not in _NAMESPACE_KINDS:
            return False
        if event.nsid is None or event.nsid == self._own_nsid:
            self._node = None
            self._next_hops.routes_changed()
            return True
        return self._look_again(event.nsid)

    def _take_way(self, event: Event) -> None:
        if event.message.kind not in _NEIGHBOUR_KINDS:
            self._next_hops.routes_changed()
        elif (neighbour := rtnetlink.decode_neighbour(event.message)) is not None:
            self._next_hops.neighbour_changed(neighbour.key)

    def _look_again(self, nsid: int) -> bool:
        found = [looked for looked in self._looked.values() if looked.nsid == nsid]
        for looked in found:
            looked.view = None
        return bool(found)

    def _forget(self, nsid: int | None) -> bool:
        gone = [identity for identity, looked in self._looked.items() if looked.nsid == nsid]
        for identity in gone:
            del self._looked[identity]
        return bool(gone)

    def _forget_everything(self) -> None:
        self._node = None
        self._looked.clear()
        self._next_hops.everything_changed()


def _view(netlink: Netlink, nsid: int, target: int | None) -> NamespaceView:
    links: Mapping[int, Link] = {link.index: link for link in rtnetlink.links(netlink, target)}
    return NamespaceView(nsid, links, rtnetlink.addresses(netlink, target))


def _identity(path: str) -> Identity:
    found = os.stat(path)  # noqa: PTH116  once a pod and pass: making a Path takes longer than the call
    return found.st_dev, found.st_ino


def _unreadable(pod: Pod, error: OSError | NetlinkError) -> str:
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return f"pod {pod.ref}: its network namespace {pod.netns} is gone; its taps return with it"
    why = os.strerror(error.errno or 0)
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"pod {pod.ref}: its network namespace {pod.netns} can't be looked into ({why}); run the agent as root"
    return f"pod {pod.ref}: {pod.netns} can't be looked into ({why}); is it a network namespace?"
