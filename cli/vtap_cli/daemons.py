"""HTTP over Unix sockets: to the daemons of one machine, and through `kubectl proxy` to what a cluster serves."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vtap_cli.errors import CliError

TIMEOUT = 10.0
"""Seconds that an answer may take to begin."""
CHUNK = 1 << 18


def _no_headers() -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of our daemons: what it is called, where it listens, and how it is started.

    `prefix` stands before every path and `headers` go with every request, for one that is reached through another.
    """

    name: str
    socket: Path
    start: str
    prefix: str = ""
    headers: Mapping[str, str] = field(default_factory=_no_headers)

    def absent(self, why: str) -> CliError:
        """The sentence for a daemon that does not answer."""
        return CliError(
            f"{self.name} does not answer at {self.socket} ({why}); start it with `{self.start}`, or say where with --run-dir"
        )

    def refused(self, path: str, status: int, body: bytes) -> CliError:
        """The sentence for an answer that is a refusal: the daemon's own where it gives one."""
        try:
            sentence = json.loads(body)["error"]
        except (ValueError, LookupError, TypeError):
            sentence = f"{path}: {status} {http.client.responses.get(status, '')}".rstrip()
        return CliError(f"{self.name} refuses: {sentence}")


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
    return exchange(daemon, "GET", path, query)


def exchange(daemon: Daemon, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Any:
    """Send `body`, unless None, as JSON; returns the JSON of the answer. Raises CliError for anything else."""
    with _answer(daemon, method, path, query, body) as (_, response):
        text = _read(daemon, response)
    try:
        return json.loads(text)
    except ValueError as error:
        raise CliError(f"{daemon.name} answers {path} with something that is not JSON; is it of another version?") from error


def get_text(daemon: Daemon, path: str) -> str:
    """The text a daemon answers with. Raises CliError."""
    with _answer(daemon, "GET", path, None, None) as (_, response):
        return _read(daemon, response).decode(errors="replace")


def get_chunks(daemon: Daemon, path: str, query: Mapping[str, str] | None = None, until: float | None = None) -> Iterator[bytes]:
    """The body as it arrives, for as long as the daemon sends, or until `until` on the monotonic clock.

    Raises CliError where it breaks off.
    """
    with _answer(daemon, "GET", path, query, None) as (connection, response):
        while chunk := _read_some(daemon, connection, response, until):
            yield chunk


@contextmanager
def _answer(
    daemon: Daemon, method: str, path: str, query: Mapping[str, str] | None, body: Any
) -> Iterator[tuple[socket.socket | None, http.client.HTTPResponse]]:
    connection = _UnixConnection(daemon.socket)
    target = daemon.prefix + (f"{path}?{urlencode(query)}" if query else path)
    headers = dict(daemon.headers)
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            sock = connection.sock  # the response takes it over where the daemon closes the connection after it
            response = connection.getresponse()
        except FileNotFoundError as error:
            raise daemon.absent("there is no such socket") from error
        except PermissionError as error:
            raise CliError(f"{daemon.socket} may not be read by this user; use sudo") from error
        except (OSError, http.client.HTTPException) as error:
            raise daemon.absent(str(error) or type(error).__name__) from error
        if not 200 <= response.status < 300:
            raise daemon.refused(path, response.status, _refusal_text(response))
        yield sock, response
    finally:
        connection.close()


def _refusal_text(response: http.client.HTTPResponse) -> bytes:
    """What was said beside the status; nothing where that breaks off."""
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException):
        return b""


def _read(daemon: Daemon, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise daemon.absent("it broke off in the middle of an answer") from error


def _read_some(daemon: Daemon, sock: socket.socket | None, response: http.client.HTTPResponse, until: float | None) -> bytes:
    """Empty at the end, or once it is `until`."""
    if sock is not None and sock.fileno() >= 0:
        # Silence is no failure: a tap may have nothing to show for hours.
        sock.settimeout(None if until is None else max(0.001, until - time.monotonic()))
    try:
        return response.read1(CHUNK)
    except TimeoutError:
        return b""
    except (OSError, http.client.HTTPException) as error:
        raise CliError(f"{daemon.name} broke off in the middle of the packets; what arrived before is good") from error
