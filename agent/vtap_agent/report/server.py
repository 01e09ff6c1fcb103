"""Serves what the agent says over HTTP: on a Unix socket, and on TCP where asked to.

Answers are made by functions that the loop provides; each is called in the request's own thread.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from vtap_agent.errors import TellUser, VtapError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """A body and its media type."""

    body: bytes
    content_type: str = "application/json"
    status: HTTPStatus = HTTPStatus.OK


Routes = Mapping[str, Callable[[], Answer]]


def as_json(data: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """`data` as a JSON answer."""
    return Answer(json.dumps(data).encode() + b"\n", status=status)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        routes: Routes = self.server.routes  # pyright: ignore[reportAttributeAccessIssue]
        route = routes.get(urlsplit(self.path).path)
        if route is None:
            answer = as_json({"error": f"no such path; there are {', '.join(sorted(routes))}"}, HTTPStatus.NOT_FOUND)
        else:
            answer = _answer(route)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("http: " + format, *args)


def _answer(route: Callable[[], Answer]) -> Answer:
    try:
        return route()
    except VtapError as error:
        return as_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
    except Exception:
        log.exception("a request failed unexpectedly")
        return as_json({"error": "the agent failed to answer; its log says why"}, HTTPStatus.INTERNAL_SERVER_ERROR)


class _Quiet(socketserver.BaseServer):
    """Who asks may leave before the answer comes: that is no failure of ours."""

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("http: a request from %s ended early", client_address, exc_info=True)


class _TcpServer(_Quiet, socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class _TcpServer6(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(_Quiet, socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, str]:
        connection, _ = super().get_request()
        return connection, "local"


ON_TCP = frozenset({"/metrics", "/healthz", "/readyz"})
"""What anybody who reaches the TCP port may read. Who is tapped and where copies go is told on the Unix socket only."""


class Server:
    """Both listeners, each in a thread of its own. TCP serves `ON_TCP` alone."""

    def __init__(self, routes: Routes, socket_path: Path, listen: str = "") -> None:
        self._socket_path = socket_path
        socket_path.unlink(missing_ok=True)
        local = _unix_server(socket_path)
        local.routes = routes  # pyright: ignore[reportAttributeAccessIssue]
        self._servers: list[socketserver.BaseServer] = [local]
        self.port = 0
        if listen:
            remote = _tcp_server(listen)
            remote.routes = {path: route for path, route in routes.items() if path in ON_TCP}  # pyright: ignore[reportAttributeAccessIssue]
            self._servers.append(remote)
            self.port = remote.server_address[1]
        self._threads = [threading.Thread(target=server.serve_forever, name="http", daemon=True) for server in self._servers]

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop answering and remove the socket."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._socket_path.unlink(missing_ok=True)


def _handler_for(*, unix: bool) -> type[_Handler]:
    if not unix:
        return _Handler

    class UnixHandler(_Handler):
        def address_string(self) -> str:
            return "local"

    return UnixHandler


def _unix_server(path: Path) -> _UnixServer:
    try:
        return _UnixServer(str(path), _handler_for(unix=True))
    except OSError as error:
        raise TellUser(f"--run-dir: cannot listen on {path} ({error}); name another directory") from error


def _tcp_server(listen: str) -> _TcpServer:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        kind = _TcpServer6 if ":" in host else _TcpServer
        return kind((host, int(port)), _Handler)
    except (OSError, ValueError) as error:
        raise TellUser(f"--listen {listen}: cannot listen there ({error}); give ADDRESS:PORT of this host") from error
