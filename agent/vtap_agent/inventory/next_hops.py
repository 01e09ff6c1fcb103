"""The way to each remote address, as the kernel's route and neighbour tables say, with the neighbour kept resolved.

`send` redirects copies straight to a device, so nobody else would ask for the next hop's MAC: we have to. What we write are
neighbour entries, and only where no administrator or control plane already has one:

    entry before          while needed                                    afterwards
    none, or failed       made, managed by the kernel, marked MADE        deleted
    resolved by ARP/ND    managed by the kernel, marked BORROWED          no longer managed; else untouched
    static, or learned    read only                                       untouched

The kernel resolves managed entries by itself (NTF_EXT_MANAGED, Linux ≥ 5.16) but may take a minute to notice that a neighbour
has gone (RFC 4861's timers); so an entry not confirmed for `probe_interval` seconds is probed (one unicast ARP or ND request; the
kernel gives up after three), and a failed one is asked for each second. The mark is the entry's protocol number, which survives
the agent.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vtap_agent.drivers.netlink import Netlink, NetlinkError
from vtap_agent.inventory import rtnetlink
from vtap_agent.inventory.attachment import address_text, mac_text
from vtap_agent.inventory.rtnetlink import Link, Neighbour, NeighbourKey, NeighbourState, Route
from vtap_agent.plan.inventory_model import NextHop, NextHopState

log = logging.getLogger(__name__)

MADE, BORROWED = 118, 119
"""Protocol numbers (rtm_protocol, NDA_PROTOCOL) that nobody else uses; `ip -d neigh` shows them as "proto 118"."""
PROBE_INTERVAL = 5.0
RETRY_INTERVAL = 1.0
ROUTE_LIFETIME = 5.0
"""Seconds. A path MTU that the kernel learns changes its answer without an event."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What can be said of one remote. `problem` is a sentence, empty where there is none."""

    hop: NextHop
    key: NeighbourKey | None = None
    problem: str = ""


def way(remote: str, route: Route | None, links: Mapping[int, Link]) -> Answer:
    """What the routes say, before the neighbour is known: the hop is NoRoute, Loop or NoNeighbour. Pure."""
    no_route = NextHop(remote, NextHopState.NO_ROUTE)
    if route is None:
        return Answer(no_route)
    if route.type == rtnetlink.RTN_LOCAL:
        return Answer(NextHop(remote, NextHopState.LOOP, source=address_text(route.source)))
    link = links.get(route.ifindex)
    if route.type != rtnetlink.RTN_UNICAST:
        return Answer(no_route, problem=f"copies can't be sent to {remote}, which is no unicast address on this node")
    if link is None:
        return Answer(no_route)
    if not link.is_ethernet or link.is_loopback:
        sentence = f"copies to {remote} would leave through {link.name}, which is no Ethernet device; route them through one"
        return Answer(no_route, problem=sentence)
    hop = NextHop(
        remote=remote,
        state=NextHopState.NO_NEIGHBOUR,
        ifindex=link.index,
        ifname=link.name,
        source=address_text(route.source),
        source_mac=mac_text(link.mac),
        mtu=route.mtu or link.mtu,
        gateway=address_text(route.gateway),
    )
    return Answer(hop, NeighbourKey(link.index, route.gateway or ipaddress.ip_address(remote).packed))


def reached(hop: NextHop, neighbour: Neighbour | None) -> NextHop:
    """The hop with what the neighbour table says. Pure."""
    if neighbour is None or not neighbour.usable:
        return hop
    return NextHop(
        remote=hop.remote,
        state=NextHopState.REACHABLE,
        ifindex=hop.ifindex,
        ifname=hop.ifname,
        source=hop.source,
        source_mac=hop.source_mac,
        gateway_mac=mac_text(neighbour.mac),
        mtu=hop.mtu,
        gateway=hop.gateway,
    )


def is_left_alone(neighbour: Neighbour | None) -> bool:
    """Whether an entry belongs to somebody who keeps it: an administrator, a routing daemon, another manager. Pure."""
    if neighbour is None:
        return False
    fixed = NeighbourState.PERMANENT | NeighbourState.NOARP
    ours = neighbour.protocol in (MADE, BORROWED)
    of_others = not ours and (neighbour.managed or neighbour.protocol != 0)
    return bool(neighbour.state & fixed) or neighbour.learned_elsewhere or of_others


def needs_probe(neighbour: Neighbour, interval: float) -> bool:
    """Whether a resolved neighbour has been silent for so long that it should be asked. Pure."""
    idle = NeighbourState.REACHABLE | NeighbourState.STALE | NeighbourState.DELAY
    return bool(neighbour.state & idle) and neighbour.confirmed >= interval


class NextHops:
    """Resolves remotes and holds their neighbour entries. Not thread-safe; `Observer` calls it under its lock.

    `links` tells the node's devices by ifindex. Call `open` first and `close` last; `routes_changed`, `neighbour_changed` when
    events say so; `refresh` afterwards; `probe` when the time it returned has passed.
    """

    def __init__(self, netlink: Netlink, links: Callable[[], Mapping[int, Link]], probe_interval: float = PROBE_INTERVAL) -> None:
        self._netlink = netlink
        self._links = links
        self._probe_interval = probe_interval
        self._remotes: frozenset[str] = frozenset()
        self._held: dict[NeighbourKey, int] = {}
        self._ways: dict[str, Answer] = {}
        self._neighbours: dict[NeighbourKey, Neighbour | None] = {}
        self._ways_age = 0.0
        self._stale_ways = True
        self._stale_neighbours: set[NeighbourKey] = set()
        self.hops: Mapping[str, NextHop] = {}
        self.problems: tuple[str, ...] = ()

    def open(self) -> None:
        """Take over the entries that an agent before us left marked; those not wanted go with the first `resolve`."""
        for found in rtnetlink.neighbours(self._netlink):
            if found.protocol == MADE or (found.protocol == BORROWED and found.managed):
                self._held[found.key] = found.protocol

    def close(self) -> None:
        """Give back every entry."""
        self._release(tuple(self._held))
        self._remotes = frozenset()

    def resolve(self, remotes: frozenset[str]) -> Mapping[str, NextHop]:
        """The next hop of each remote, now. Entries of remotes that are no longer named are given back."""
        if remotes != self._remotes:
            self._remotes = remotes
            self._stale_ways = True
        self.refresh()
        return self.hops

    def routes_changed(self) -> None:
        """A route, rule, address or device of the node may be different."""
        self._stale_ways = True

    def neighbour_changed(self, key: NeighbourKey) -> None:
        """An entry of the ARP or ND table may be different."""
        if key in self._neighbours:
            self._stale_neighbours.add(key)

    def everything_changed(self) -> None:
        """Events were lost."""
        self._stale_ways = True
        self._stale_neighbours.update(self._neighbours)

    def refresh(self) -> bool:
        """Look again at what may be different; True where an answer is."""
        if self._stale_ways or (self._remotes and time.monotonic() - self._ways_age > ROUTE_LIFETIME):
            self._look_up_ways()
        for key in self._stale_neighbours & self._neighbours.keys():
            self._keep(key)
        self._stale_neighbours.clear()
        before, self.hops = self.hops, {remote: self._hop(answer) for remote, answer in self._ways.items()}
        return before != self.hops

    def probe(self) -> float:
        """Ask neighbours that have been silent, or have failed. Returns after how many seconds to call again."""
        for key in self._held:
            try:
                self._probe(key)
            except NetlinkError as error:
                log.debug("probing %s: %s", address_text(key.address), error)
        return min(RETRY_INTERVAL, self._probe_interval)

    def _look_up_ways(self) -> None:
        links = self._links()
        self._ways = {remote: self._way(remote, links) for remote in sorted(self._remotes)}
        self._ways_age = time.monotonic()
        self._stale_ways = False
        self.problems = tuple(answer.problem for answer in self._ways.values() if answer.problem)
        wanted = {answer.key for answer in self._ways.values() if answer.key is not None}
        self._release(self._held.keys() - wanted)
        self._neighbours = {key: self._neighbours.get(key) for key in wanted}
        self._stale_neighbours |= wanted

    def _way(self, remote: str, links: Mapping[int, Link]) -> Answer:
        try:
            destination = ipaddress.ip_address(remote)
        except ValueError:
            sentence = f"copies can't be sent to {remote!r}, which is no IP address"
            return Answer(NextHop(remote, NextHopState.NO_ROUTE), problem=sentence)
        try:
            route = rtnetlink.route_to(self._netlink, destination.packed)
        except NetlinkError as error:
            log.debug("no route to %s: %s", remote, error)
            route = None
        return way(remote, route, links)

    def _hop(self, answer: Answer) -> NextHop:
        return reached(answer.hop, self._neighbours.get(answer.key)) if answer.key is not None else answer.hop

    def _keep(self, key: NeighbourKey) -> None:
        """See to it that the entry is there and kept resolved, then remember what it says."""
        try:
            self._neighbours[key] = self._kept(key)
        except NetlinkError as error:  # Most likely the device has just gone; its event brings us back.
            log.debug("neighbour %s: %s", address_text(key.address), error)
            self._neighbours[key] = None

    def _kept(self, key: NeighbourKey) -> Neighbour | None:
        found = rtnetlink.neighbour(self._netlink, key)
        if is_left_alone(found):
            self._held.pop(key, None)
            return found
        if found is not None and found.managed:
            self._held[key] = found.protocol
            return found
        mark = self._held.get(key) or (BORROWED if found is not None and found.usable else MADE)
        rtnetlink.set_neighbour(self._netlink, key, managed=True, protocol=mark)
        self._held[key] = mark
        return rtnetlink.neighbour(self._netlink, key)

    def _probe(self, key: NeighbourKey) -> None:
        found = rtnetlink.neighbour(self._netlink, key)
        if found is None or is_left_alone(found):
            self._stale_neighbours.add(key)
        elif found.state in (NeighbourState.FAILED, NeighbourState.NONE):
            rtnetlink.set_neighbour(self._netlink, key, managed=True, use=True)
        elif needs_probe(found, self._probe_interval):
            # The kernel takes either a state or the managed flag, hence two requests.
            rtnetlink.set_neighbour(self._netlink, key, managed=False, state=NeighbourState.PROBE)
            rtnetlink.set_neighbour(self._netlink, key, managed=True)

    def _release(self, keys: Iterable[NeighbourKey]) -> None:
        for key in tuple(keys):
            mark = self._held.pop(key)
            try:
                self._give_back(key, mark)
            except NetlinkError as error:
                log.debug("giving back %s: %s", address_text(key.address), error)

    def _give_back(self, key: NeighbourKey, mark: int) -> None:
        found = rtnetlink.neighbour(self._netlink, key)
        if found is None or is_left_alone(found):
            return
        if mark == MADE:
            rtnetlink.delete_neighbour(self._netlink, key)
        else:
            rtnetlink.set_neighbour(self._netlink, key, managed=False, use=True)
