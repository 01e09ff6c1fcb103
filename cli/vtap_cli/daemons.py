"""HTTP to the daemons over their Unix sockets."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vtap_cli.errors import CliError

TIMEOUT = 10.0
"""Seconds that an answer may take to begin."""
CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of our daemons: what it is called, where it listens, and how it is started."""

    name: str
    socket: Path
    start: str

    def absent(self, why: str) -> CliError:
        """The sentence for a daemon that does not answer."""
        return CliError(
            f"{self.name} does not answer at {self.socket} ({why}); start it with `{self.start}`, or say where with --run-dir"
        )


def agent(run_dir: Path) -> Daemon:
    """The agent of this node."""
    return Daemon("vtap-agent", run_dir / "agent.sock", "vtap-agent --taps DIR --pods FILE")


def collector(run_dir: Path) -> Daemon:
    """The collector of this machine."""
    return Daemon("vtap-collector", run_dir / "collector.sock", "vtap-collector --directory DIR")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get_json(daemon: Daemon, path: str, query: Mapping[str, str] | None = None) -> Any:
    """The JSON a daemon answers with. Raises CliError for anything else."""
    with _answer(daemon, path, query) as (_, response):
        body = _read(daemon, response)
    try:
        return json.loads(body)
    except ValueError as error:
        raise CliError(f"{daemon.name} answers {path} with something that is not JSON; is it of another version?") from error


def get_chunks(daemon: Daemon, path: str, query: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """The body as it arrives, for as long as the daemon sends. Raises CliError where it breaks off."""
    with _answer(daemon, path, query) as (connection, response):
        if connection.sock is not None:
            # Silence is no failure: a tap may have nothing to show for hours.
            connection.sock.settimeout(None)
        while chunk := _read_some(daemon, response):
            yield chunk


@contextmanager
def _answer(
    daemon: Daemon, path: str, query: Mapping[str, str] | None
) -> Iterator[tuple[_UnixConnection, http.client.HTTPResponse]]:
    connection = _UnixConnection(daemon.socket)
    target = f"{path}?{urlencode(query)}" if query else path
    try:
        try:
            connection.request("GET", target)
            response = connection.getresponse()
        except FileNotFoundError as error:
            raise daemon.absent("there is no such socket") from error
        except PermissionError as error:
            raise CliError(f"{daemon.socket} may not be read by this user; use sudo") from error
        except (OSError, http.client.HTTPException) as error:
            raise daemon.absent(str(error) or type(error).__name__) from error
        if response.status != http.client.OK:
            raise CliError(_refusal(daemon, path, response))
        yield connection, response
    finally:
        connection.close()


def _refusal(daemon: Daemon, path: str, response: http.client.HTTPResponse) -> str:
    """The daemon's own sentence where it gives one."""
    try:
        sentence = json.loads(response.read(1 << 16))["error"]
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        sentence = f"{path}: {response.status} {response.reason}"
    return f"{daemon.name} refuses: {sentence}"


def _read(daemon: Daemon, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise daemon.absent("it broke off in the middle of an answer") from error


def _read_some(daemon: Daemon, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise CliError(f"{daemon.name} broke off in the middle of the packets; what arrived before is good") from error
