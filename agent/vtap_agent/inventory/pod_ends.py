"""Looks, now and then, at the counters of both ends of tapped pods' devices: whether packets pass the node's end by."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from vtap_agent.drivers.netlink import Netlink, NetlinkError
from vtap_agent.inventory import rtnetlink
from vtap_agent.plan.dataplane import Direction, Feed
from vtap_agent.plan.passers_by import Reading, Watch, watched

log = logging.getLogger(__name__)

LOOK_EVERY = 10.0
"""Seconds. A look takes three requests a device."""


class PodEnds:
    """One thread uses it, in the network namespace of the pods' host-side devices."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hooks = frozenset[Feed]()
        self._watches: Mapping[Feed, Watch] = {}
        self._found = frozenset[Feed]()
        self._looked_at = float("-inf")

    def passed_by(self, hooks: frozenset[Feed]) -> frozenset[Feed]:
        """Those of `hooks`, feeds at pods' devices, that packets pass by. Call it often: it looks where it is time to."""
        now = self._clock()
        is_due = now - self._looked_at >= LOOK_EVERY
        if is_due or hooks != self._hooks:
            self._look(hooks, hooks if is_due else hooks - self._hooks, now)
        return self._found

    def _look(self, hooks: frozenset[Feed], at_these: frozenset[Feed], now: float) -> None:
        """One that can't be read stays as it was: if its device has gone, it leaves `hooks` soon."""
        read = _readings({feed.ifindex for feed in at_these})
        watches = {feed: watch for feed, watch in self._watches.items() if feed in hooks}
        for feed in at_these:
            if (reading := read.get((feed.ifindex, feed.direction))) is not None:
                watches[feed] = watched(watches.get(feed), reading, now)
        self._hooks, self._watches = hooks, watches
        self._found = frozenset(feed for feed, watch in watches.items() if watch.seen_at is not None)
        if at_these == hooks:
            self._looked_at = now


def _readings(devices: set[int]) -> dict[tuple[int, Direction], Reading]:
    """By ifindex of the node's end and direction."""
    found: dict[tuple[int, Direction], Reading] = {}
    if not devices:
        return found
    with Netlink() as netlink:
        for ifindex in sorted(devices):
            try:
                found.update({(ifindex, direction): reading for direction, reading in _read(netlink, ifindex).items()})
            except NetlinkError as error:
                log.debug("the counters of device %d and its peer can't be read: %s", ifindex, error)
    return found


def _read(netlink: Netlink, ifindex: int) -> dict[Direction, Reading]:
    """Empty where the other end turns out not to be its peer any more."""
    before = rtnetlink.traffic(netlink, ifindex)
    if not before.peer:
        return {}
    pod = rtnetlink.traffic(netlink, before.peer, before.peer_nsid)
    after = rtnetlink.traffic(netlink, ifindex)
    if pod.peer != ifindex or (after.peer, after.peer_nsid) != (before.peer, before.peer_nsid):
        return {}
    return {
        Direction.INGRESS: Reading(before.sent, pod.received, after.sent),
        Direction.EGRESS: Reading(before.received, pod.sent, after.received),
    }
