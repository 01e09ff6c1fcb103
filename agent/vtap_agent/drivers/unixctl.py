"""ovs-vswitchd's control socket: what `ovs-appctl` speaks, JSON-RPC over a Unix socket (ovs-appctl(8))."""

from __future__ import annotations

import errno
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtap_agent.drivers import openflow
from vtap_agent.errors import Retry, Wait

TIMEOUT = 5.0
_ID = 0
"""Of the one request on a connection."""


@dataclass(frozen=True, slots=True)
class DatapathCounters:
    """Packets of a datapath port, seen from the switch: `received` came from the port, `transmitted` were given to it."""

    received: int
    transmitted: int
    transmit_dropped: int


@dataclass(frozen=True, slots=True)
class PollThread:
    """What a poll-mode thread of the userspace datapath has done since it started or its counters were cleared.

    Cycles are of the time stamp counter, and go on while the thread is not running; `idle_cycles` are polls that found nothing.
    """

    numa: int
    core: int
    packets: int
    idle_cycles: int
    busy_cycles: int


class Vswitchd:
    """The vswitchd whose pid file lies in `run_dir`. Each call connects anew, so that restarts need no care. Thread-safe."""

    def __init__(self, run_dir: Path, timeout: float = TIMEOUT) -> None:
        self._run_dir = run_dir
        self._timeout = timeout
        self._version: tuple[int | None, str] = (None, "")

    @property
    def run_dir(self) -> Path:
        """Where its sockets lie, those of bridges among them."""
        return self._run_dir

    def pid(self) -> int | None:
        """What the pid file says; it stays when the daemon is killed. None where there is no pid file."""
        try:
            return int((self._run_dir / "ovs-vswitchd.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def is_running(self) -> bool:
        """Whether somebody listens on the control socket. Works across pid namespaces, where the pid itself says nothing."""
        pid = self.pid()
        if pid is None:
            return False
        return is_listening(self._socket(pid))

    def version(self) -> str:
        """Like "3.1.0"; empty where vswitchd says none. The database's `ovs_version` is whatever the start script wrote."""
        pid = self.pid()
        if self._version[0] != pid:
            found = re.search(r"\d+\.\d+\S*", self.call("version"))
            self._version = (pid, found[0] if found else "")
        return self._version[1]

    def call(self, command: str, *arguments: str) -> str:
        """Run a control command and return what it prints. Raises Wait where vswitchd is down, Retry where it does not answer."""
        pid = self.pid()
        if pid is None:
            raise Wait(f"ovs-vswitchd does not run: there is no pid file in {self._run_dir}")
        deadline = time.monotonic() + self._timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            try:
                connection.connect(str(self._socket(pid)))
                answer = _exchange(connection, command, list(arguments), deadline)
            except TimeoutError as error:
                raise Retry(f"ovs-vswitchd did not answer {command} within {self._timeout:g} s") from error
            except OSError as error:
                raise Wait(f"ovs-vswitchd does not run: {error.strerror or error} at {self._socket(pid)}") from error
        if answer is None:
            raise Wait(f"ovs-vswitchd ended while it ran {command}")
        if answer.get("error") is not None:
            raise Retry(f"ovs-vswitchd refused {command}: {str(answer['error']).strip()}")
        return str(answer.get("result", ""))

    def purge_flows(self) -> None:
        """Forget every flow of every datapath, so that each is translated anew by its next packet. Everybody's flows."""
        self.call("revalidator/purge")

    def port_counters(self) -> dict[str, DatapathCounters]:
        """Of every port of every datapath, as of now (the database's own are up to 5 s old)."""
        return parse_ports(self.call("dpctl/show", "-s"))

    def poll_threads(self) -> tuple[PollThread, ...]:
        """Those of the userspace datapath; none where no port of it is polled. Raises as `call`."""
        return parse_poll_threads(self.call("dpif-netdev/pmd-stats-show"))

    def flows(self, bridge: str) -> str:
        """Every OpenFlow flow of a bridge, a line each. Ports are numbers. Groups are not told. Long where there are many."""
        return self.call("bridge/dump-flows", bridge)

    def never_flood_to(self, bridge: str, port: str) -> bool:
        """As `openflow.never_flood_to`."""
        return openflow.never_flood_to(self._run_dir, bridge, port)

    def coverage(self) -> Mapping[str, int]:
        """How often each of vswitchd's events has happened since it started."""
        return parse_coverage(self.call("coverage/show"))

    def _socket(self, pid: int) -> Path:
        return self._run_dir / f"ovs-vswitchd.{pid}.ctl"


def _exchange(connection: socket.socket, command: str, arguments: list[str], deadline: float) -> Mapping[str, Any] | None:
    """The answer to a JSON-RPC request (RFC 7047, section 4), None where the other end closes first. Raises OSError."""
    connection.sendall(json.dumps({"id": _ID, "method": command, "params": arguments}).encode())
    received = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(1 << 16)
        if not part:
            return None
        received += part
        # An answer is one object; only a byte that could end it makes trying worth while.
        if part.rstrip().endswith(b"}"):
            try:
                return json.loads(received)
            except ValueError:
                continue


def is_listening(path: Path) -> bool:
    """Whether somebody accepts connections at a Unix socket."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with probe:
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN, errno.EINPROGRESS)


_PORT = re.compile(r"^  port \d+: (\S+)")
_RECEIVED = re.compile(r"^    RX packets:(\d+)")
_TRANSMITTED = re.compile(r"^    TX packets:(\d+) errors:\S+ dropped:(\d+|\?)")


def parse_ports(text: str) -> dict[str, DatapathCounters]:
    """The output of `dpctl/show -s`, by interface name. Ports whose counters the datapath does not know ("?") are left out."""
    counters: dict[str, DatapathCounters] = {}
    name, received = "", None
    for line in text.splitlines():
        if found := _PORT.match(line):
            name, received = found[1], None
        elif found := _RECEIVED.match(line):
            received = int(found[1])
        elif (found := _TRANSMITTED.match(line)) and received is not None:
            counters[name] = DatapathCounters(received, int(found[1]), 0 if found[2] == "?" else int(found[2]))
    return counters


_COVERAGE = re.compile(r"^(\w+)\s.*total: (\d+)$")


def parse_coverage(text: str) -> Mapping[str, int]:
    """The output of `coverage/show`: totals by event."""
    return {found[1]: int(found[2]) for line in text.splitlines() if (found := _COVERAGE.match(line))}


_THREAD = re.compile(r"^pmd thread numa_id (\d+) core_id (\d+):$")
_THREAD_COUNTS = {"packets received": "packets", "idle cycles": "idle_cycles", "processing cycles": "busy_cycles"}
_COUNT = re.compile(r"^  ([a-z ]+): (\d+)")


def parse_poll_threads(text: str) -> tuple[PollThread, ...]:
    """The output of `dpif-netdev/pmd-stats-show`. The main thread's part is left out: it measures no cycles."""
    found: dict[tuple[int, int], dict[str, int]] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        if thread := _THREAD.match(line):
            counts = found[int(thread[1]), int(thread[2])] = dict.fromkeys(_THREAD_COUNTS.values(), 0)
        elif not line.startswith(" "):
            counts = {}  # Of no poll-mode thread.
        elif (count := _COUNT.match(line)) and count[1] in _THREAD_COUNTS:
            counts[_THREAD_COUNTS[count[1]]] = int(count[2])
    return tuple(PollThread(numa, core, **values) for (numa, core), values in found.items())
