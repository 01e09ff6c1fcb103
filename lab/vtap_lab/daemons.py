"""The agent and the collector as processes of a lab, and what their sockets answer."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

from vtap_api import ledger
from vtap_lab.errors import PATIENCE, LabError
from vtap_lab.processes import LabProcess

_ANSWER_TIMEOUT = 5.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_TIMEOUT * PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def read(unix_socket: Path, path: str) -> bytes:
    """GET from a daemon, again for a while when it is busy; LabError when it doesn't answer 200."""
    status, body = _get(unix_socket, path)
    deadline = time.monotonic() + _ANSWER_TIMEOUT * PATIENCE
    while status == HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < deadline:
        time.sleep(0.1)
        status, body = _get(unix_socket, path)
    if status != HTTPStatus.OK:
        raise LabError(f"GET {path} on {unix_socket}: {status} {body.decode(errors='replace').strip()}")
    return body


def _get(unix_socket: Path, path: str) -> tuple[int, bytes]:
    connection = _UnixConnection(unix_socket)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as broken:
        raise LabError(f"GET {path} on {unix_socket}: {broken}") from broken
    finally:
        connection.close()


@dataclass
class Daemon:
    """A daemon that serves HTTP on a Unix socket."""

    process: LabProcess
    socket: Path

    def answers(self) -> bool:
        """Whether it says that it is well."""
        try:
            read(self.socket, "/healthz")
        except LabError:
            return False
        return True

    def get(self, path: str) -> Any:
        """What it answers to GET, decoded from JSON; LabError with its last lines when it doesn't."""
        try:
            return json.loads(read(self.socket, path))
        except LabError as problem:
            raise LabError(f"{problem}\n{self.process.last_lines()}") from problem

    def metrics(self) -> str:
        """Its metrics in Prometheus' text format."""
        return read(self.socket, "/metrics").decode()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self.process.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()


@dataclass
class Agent(Daemon):
    """vtap-agent."""


@dataclass
class Collector(Daemon):
    """vtap-collector. Copies go to `address`, the control channel is `url`."""

    directory: Path
    address: str
    url: str
    token: Path

    def as_destination(self, name: str = "default", **spec: object) -> str:
        """The TapDestination file that leads to it; `spec` adds fields such as ``oversize="Truncate"``."""
        control = {"url": self.url, "tokenFile": str(self.token)}
        resource = {
            "apiVersion": "vtap.dev/v1alpha1",
            "kind": "TapDestination",
            "metadata": {"name": name},
            "spec": {"collector": {"address": self.address, "control": control}, **spec},
        }
        return yaml.safe_dump(resource, sort_keys=False)

    def captures(self) -> list[Path]:
        """The pcapng files it has written, oldest first."""
        return sorted(self.directory.glob("*/*/*.pcapng"), key=lambda path: path.stat().st_mtime_ns)


def joint_ledger(agent: Agent, collector: Collector | None) -> tuple[ledger.Row, ...]:
    """Both sides of every tap point; without a collector, the agent's alone."""
    received = ledger.parse_collector(collector.get("/v1/ledger")) if collector else None
    return ledger.join([ledger.parse_agent(agent.get("/v1/ledger"))], received)
