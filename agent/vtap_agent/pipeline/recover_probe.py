"""Asks the edges that this node sends to whether they are there, and tells when that changes.

One small frame a second and edge. The answer comes from the edge's eBPF program, not from the monitor, and leaves by
the monitor's port under the edge's MAC address: that is how switches learn the way of the copies.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from vtap_agent.pipeline.recover import message, read_message
from vtap_agent.pipeline.recover_layout import REWRITE_ANSWER, REWRITE_ETHERTYPE, REWRITE_PROBE
from vtap_agent.plan.recover import EdgeTarget

log = logging.getLogger(__name__)

PROBE_EVERY = 1.0
SILENT_AFTER = 3.5
"""Seconds without an answer after which an edge counts as gone: three probes may get lost."""
FIRST_ANSWER = 0.3
"""Seconds that a new target is waited for, so that an agent which starts anew interrupts nothing."""
UNPRIVILEGED = (
    "the edges of monitors can't be asked for without CAP_NET_RAW, so that no copy is rewritten: add NET_RAW to "
    "securityContext.capabilities of the agent"
)
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENETDOWN})


class EdgeProber:
    """`changed` is called on a thread of its own whenever `heard` may tell something else."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._targets: frozenset[EdgeTarget] = frozenset()
        self._sockets: dict[int, socket.socket] = {}
        self._heard_at: dict[EdgeTarget, float] = {}
        self._lock = threading.Condition()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.problem = ""
        """A sentence that says why nobody can be asked, empty where that can be done."""

    def watch(self, targets: frozenset[EdgeTarget]) -> frozenset[str]:
        """Ask these from now on; the monitors among them whose edges answer. A new target may take `FIRST_ANSWER` seconds."""
        with self._lock:
            new = targets - self._targets
            if targets != self._targets:
                self._targets = targets
                self._heard_at = {target: at for target, at in self._heard_at.items() if target in targets}
                self._start()
                os.eventfd_write(self._wake, 1)
            if new:
                self._lock.wait_for(lambda: new <= self._heard_at.keys(), FIRST_ANSWER)
            return self._answering()

    def stop(self) -> None:
        """End the thread and close its sockets."""
        with self._lock:
            self._stopping = True
            thread = self._thread
            os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join()
        os.close(self._wake)

    def _answering(self) -> frozenset[str]:
        now = time.monotonic()
        return frozenset(target.address for target, at in self._heard_at.items() if now - at < SILENT_AFTER)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="edge-prober", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        told: frozenset[str] = frozenset()
        due = 0.0
        while True:
            with self._lock:
                if self._stopping:
                    break
                targets = self._targets
            if time.monotonic() >= due:
                self._probe(targets)
                due = time.monotonic() + PROBE_EVERY
            if self._receive(max(0.0, due - time.monotonic())):
                due = 0.0  # other targets
            with self._lock:
                answering = self._answering()
            if answering != told:
                told = answering
                self._changed()
        for one in self._sockets.values():
            one.close()

    def _probe(self, targets: frozenset[EdgeTarget]) -> None:
        for gone in self._sockets.keys() - {target.ifindex for target in targets}:
            self._sockets.pop(gone).close()
        for target in targets:
            try:
                self._socket(target.ifindex).send(message(REWRITE_PROBE, target.alias, target.source_mac))
                self.problem = ""
            except PermissionError:
                self.problem = UNPRIVILEGED
            except OSError as error:
                log.debug("probing the edge of %s: %s", target.address, error)
                if error.errno in _GONE and target.ifindex in self._sockets:
                    self._sockets.pop(target.ifindex).close()

    def _socket(self, ifindex: int) -> socket.socket:
        known = self._sockets.get(ifindex)
        if known is None:
            known = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # nothing arrives before it is bound
            known.setblocking(False)
            known.bind((socket.if_indextoname(ifindex), REWRITE_ETHERTYPE))
            self._sockets[ifindex] = known
        return known

    def _receive(self, seconds: float) -> bool:
        """Take in what comes within that time, or until there are other targets: then True."""
        poller = select.poll()
        by_descriptor = {one.fileno(): one for one in self._sockets.values()}
        for descriptor in (self._wake, *by_descriptor):
            poller.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poller.poll(seconds * 1000)}
        for descriptor in ready & by_descriptor.keys():
            self._take(by_descriptor[descriptor])
        if self._wake in ready:
            os.eventfd_read(self._wake)
            return True
        return False

    def _take(self, one: socket.socket) -> None:
        try:
            answer = read_message(one.recv(2048))
        except OSError as error:
            log.debug("receiving an edge's answer: %s", error)
            return
        if answer is None or answer.kind != REWRITE_ANSWER:
            return
        sender, to = bytes(getattr(answer, "from")), bytes(answer.to)
        with self._lock:
            for target in self._targets:
                if target.alias == sender and target.source_mac == to:
                    self._heard_at[target] = time.monotonic()
                    self._lock.notify_all()
