"""Where the network namespaces of this node's pods are, followed as sandboxes come and go.

A pod's namespace is named by its oldest process, which a pidfd tells the end of: a sandbox that is killed and made anew under
the same UID is found anew. Nothing of ours keeps a namespace alive.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.drivers import procs
from vtap_agent.drivers.procs import PROC

log = logging.getLogger(__name__)

RETRY_FIRST, RETRY_LAST = 0.1, 5.0
"""Seconds between looks for pods that are not found yet, growing: a sandbox is made within some seconds, or never."""
NOT_TOO_OFTEN = 0.05
"""Seconds between looks, however many events ask for one."""


@dataclass(frozen=True, slots=True)
class _Sandbox:
    path: str
    pidfd: int


class Sandboxes:
    """Use: construct in the node's network namespace; `start`; `want` and `look_again` from any thread; `paths`; `stop`.

    `changed` is called on the following thread when `paths` differ.
    """

    def __init__(self, changed: Callable[[], None], proc: Path = PROC) -> None:
        self._changed = changed
        self._proc = proc
        self._node = procs.network_of("/proc/thread-self/ns/net")
        self._lock = threading.Lock()
        self._wanted: frozenset[str] = frozenset()
        self._looked_for: frozenset[str] = frozenset()
        self._asked = False
        self._stopping = False
        self._found: dict[str, _Sandbox] = {}
        self._paths: Mapping[str, str] = {}
        self._retry = RETRY_FIRST
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = select.poll()
        self._poller.register(self._wake, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="sandboxes", daemon=True)
        self.problem = ""
        """A sentence while processes can't be looked at."""

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close what it holds."""
        with self._lock:
            self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()
        for sandbox in self._found.values():
            os.close(sandbox.pidfd)
        self._found.clear()
        os.close(self._wake)

    def want(self, pods: frozenset[str]) -> None:
        """Find the pods with these UIDs, and forget others."""
        with self._lock:
            if pods == self._wanted:
                return
            self._wanted = pods
            self._asked = True
        os.eventfd_write(self._wake, 1)

    def look_again(self, *_reason: object) -> None:
        """Something happened on the node: a pod that is not found yet may be there now."""
        with self._lock:
            if self._stopping or self._wanted == self._paths.keys():
                return
            self._asked = True
        os.eventfd_write(self._wake, 1)

    def paths(self) -> Mapping[str, str]:
        """Of each pod that was found, by UID, a path that setns(2) takes. The same object as long as nothing has changed."""
        with self._lock:
            return self._paths

    @property
    def settled(self) -> bool:
        """Whether every pod that is wanted has been looked for."""
        with self._lock:
            return self._wanted == self._looked_for

    def _run(self) -> None:
        looked_at = 0.0
        while True:
            ended = self._wait()
            with self._lock:
                if self._stopping:
                    return
                wanted, asked, self._asked = self._wanted, self._asked, False
            if asked:
                self._retry = RETRY_FIRST
                pause = looked_at + NOT_TOO_OFTEN - time.monotonic()
                if pause > 0:
                    time.sleep(pause)
            self._forget(ended, wanted)
            missing = wanted - self._found.keys()
            if missing:
                looked_at = time.monotonic()
                try:
                    self._look_for(missing)
                except OSError as error:  # such as too many open files; the next look is soon, as pods are missing still
                    self._tell(error)
                    wanted = self._looked_for
            self._publish(wanted)

    def _wait(self) -> frozenset[int]:
        """Until something happens; the pidfds whose processes have ended."""
        with self._lock:
            missing, asked = self._wanted - self._found.keys(), self._asked
        timeout: float | None = 0.0 if asked else self._retry * 1000 if missing else None
        ready = {descriptor for descriptor, _ in self._poller.poll(timeout)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        elif missing and not asked:
            self._retry = min(RETRY_LAST, self._retry * 2)
        return frozenset(ready - {self._wake})

    def _forget(self, ended: frozenset[int], wanted: frozenset[str]) -> None:
        for uid, sandbox in list(self._found.items()):
            if sandbox.pidfd in ended or uid not in wanted:
                self._poller.unregister(sandbox.pidfd)
                os.close(sandbox.pidfd)
                del self._found[uid]

    def _look_for(self, missing: frozenset[str]) -> None:
        processes = procs.processes_of(missing, self._proc)
        found, refused = procs.first_with_own_network(processes, self._node, self._proc)
        for uid, process in found.items():
            self._take(uid, process.pid)
        self._tell(refused)

    def _take(self, uid: str, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return  # It has ended.
        if procs.uid_of(pid, self._proc) != uid:
            os.close(pidfd)  # Another process has got its number.
            return
        self._found[uid] = _Sandbox(procs.network_path(pid, self._proc), pidfd)
        self._poller.register(pidfd, select.POLLIN)

    def _tell(self, refused: OSError | None) -> None:
        sentence = ""
        if refused is not None:
            why = os.strerror(refused.errno or 0)
            sentence = f"pods' processes can't be looked at ({why}): no tap can be had; give the agent hostPID and CAP_SYS_PTRACE"
        if sentence and sentence != self.problem:
            log.warning("%s", sentence)
        self.problem = sentence

    def _publish(self, wanted: frozenset[str]) -> None:
        paths = {uid: sandbox.path for uid, sandbox in sorted(self._found.items())}
        with self._lock:
            self._looked_for = wanted
            changed = paths != self._paths
            if changed:
                self._paths = paths
        if changed:
            self._changed()
