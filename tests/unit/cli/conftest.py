from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.unit.cli.pcapng import NOON, STORED, WAIT, datagram, packet
from vtap_cli.main import main

Answer = Callable[["Reply"], object]


class Reply(BaseHTTPRequestHandler):
    """Answers as a daemon does: JSON with a length, packets in chunks."""

    protocol_version = "HTTP/1.1"
    server: UnixServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.server.asked.append((parts.path, dict(parse_qsl(parts.query))))
        answer = self.server.answers.get(parts.path)
        if answer is None:
            self.json({"error": f"there is no {parts.path}"}, 404)
        else:
            answer(self)

    def json(self, data: Any, status: int = 200) -> None:
        self.raw(json.dumps(data).encode(), status)

    def raw(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what was asked."""


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        super().__init__(str(path), Reply)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is part of what is tested."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class Run:
    """A run directory with servers on its sockets, and `vtap` run against it."""

    directory: Path
    capture: pytest.CaptureFixture[str]
    servers: list[UnixServer] = field(default_factory=list)

    def serve(self, name: str, **answers: Any) -> UnixServer:
        """A server on `name`.sock; an answer is JSON, or a function of the reply. `v1_ledger` stands for /v1/ledger."""
        server = UnixServer(self.directory / f"{name}.sock")
        for path, answer in answers.items():
            act = answer if callable(answer) else (lambda reply, data=answer: reply.json(data))
            server.answers["/" + path.replace("_", "/")] = act
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.servers.append(server)
        return server

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vtap_cli", *arguments, "--run-dir", str(self.directory)]

    def vtap(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it in this process, with what it and its children print caught at the file descriptors."""
        self.capture.readouterr()
        arguments = (*arguments, "--run-dir", str(self.directory))
        try:
            code = main(arguments)
        except SystemExit as wrong_command_line:
            code = int(wrong_command_line.code or 0)
        out, err = self.capture.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    def refused(self, *arguments: str) -> str:
        """The one sentence on standard error of a run that fails as a user should see it."""
        completed = self.vtap(*arguments)
        assert completed.returncode == 1, completed
        (line,) = completed.stderr.splitlines()
        assert line.startswith("vtap: ")
        return line.removeprefix("vtap: ")

    @property
    def environment(self) -> dict[str, str]:
        """Times in UTC, texts in UTF-8."""
        return {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    # Not tmp_path: a Unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="vtap-cli-") as directory:
        made = Run(Path(directory), capfd)
        yield made
        for server in made.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def stale_socket(run: Run) -> Path:
    """A socket file that nobody listens on, as a killed daemon leaves it."""
    path = run.directory / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    return path


@pytest.fixture
def live(run: Run) -> Iterator[threading.Event]:
    """A live stream that has sent one packet and then stays silent until told to go on."""
    go_on = threading.Event()

    def answer(reply: Reply) -> None:
        reply.begin()
        reply.chunk(STORED)
        go_on.wait(WAIT)
        reply.chunk(packet(0, NOON + 3 * 10**6, datagram(7777, b"four")))
        go_on.clear()
        go_on.wait(WAIT)

    run.serve("collector", v1_live=answer)
    yield go_on
    go_on.set()
