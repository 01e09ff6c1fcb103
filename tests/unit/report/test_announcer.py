"""A collector learns every stream before it is needed, hears totals, and is told again after it was away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vtap_agent.plan.dataplane import Direction, TapPointName
from vtap_agent.plan.streams import ControlEndpoint, Stream, StreamSet
from vtap_agent.report import announcer as module
from vtap_agent.report.announcer import Announcer, Totals


class Collector:
    """Speaks the collector's side of the control channel and keeps what it was told."""

    def __init__(self, token: str, port: int = 0) -> None:
        self.streams: dict[int, str] = {}
        self.totals: dict[int, int] = {}
        self.heard: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def _body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def _finish(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {token}":
                    self._finish(401)
                    return
                collector.heard.append("streams")
                collector.streams = {row["key"]: row["incarnation"] for row in self._body()["streams"]}
                self._finish(204)

            def do_POST(self) -> None:
                collector.heard.append("totals")
                for row in self._body()["streams"]:
                    collector.totals[row["key"]] = row["nextSequence"]
                self._finish(204)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def stream(key: int) -> Stream:
    name = TapPointName("shop", "web", "shop", f"web-{key}", f"uid-{key}", "eth0", Direction.EGRESS)
    return Stream(key, f"{key:016x}", name, 0, trailer=True)


@pytest.fixture
def token(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text("secret\n")
    return str(file)


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector("secret")
    yield server
    server.stop()


@pytest.fixture
def announcer() -> Iterator[Announcer]:
    made = Announcer("node-1", lambda: None)
    yield made
    made.stop()


def wanted(url: str, token: str, *keys: int) -> dict[str, StreamSet]:
    return {"default": StreamSet("default", ControlEndpoint(url, token), ("10.0.0.1",), tuple(map(stream, keys)))}


def test_streams_are_acknowledged_and_totals_follow(announcer: Announcer, collector: Collector, token: str) -> None:
    announcer.submit(wanted(collector.url, token, 1, 2))
    eventually(lambda: announcer.acknowledgements()["default"].streams == {stream(1).id, stream(2).id})
    announcer.report({stream(1).id: Totals(5, 5)})
    eventually(lambda: collector.totals == {1: 5})


def test_a_stream_that_ends_gets_its_last_word_before_it_is_withdrawn(
    announcer: Announcer, collector: Collector, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 1.2)
    announcer.submit(wanted(collector.url, token, 1, 2))
    eventually(lambda: len(announcer.acknowledgements()["default"].streams) == 2)
    announcer.submit(wanted(collector.url, token, 2))
    announcer.report({stream(1).id: Totals(9, 9)})
    eventually(lambda: set(collector.streams) == {2})
    assert collector.totals[1] == 9


def test_a_wrong_token_is_said_in_a_sentence(announcer: Announcer, collector: Collector, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    announcer.submit(wanted(collector.url, str(wrong), 1))
    eventually(lambda: "refuses our token" in announcer.acknowledgements()["default"].problem)
    assert announcer.acknowledgements()["default"].streams == frozenset()


def test_a_collector_that_comes_back_is_told_everything_again(announcer: Announcer, token: str) -> None:
    first = Collector("secret")
    port = first.server.server_address[1]
    announcer.submit(wanted(first.url, token, 1))
    eventually(lambda: set(first.streams) == {1})
    first.stop()
    announcer.report({stream(1).id: Totals(5, 5)})
    eventually(lambda: "does not answer" in announcer.acknowledgements()["default"].problem)
    assert stream(1).id in announcer.acknowledgements()["default"].streams, "copies under way are still known to it"
    second = Collector("secret", port)
    try:
        eventually(lambda: set(second.streams) == {1} and announcer.acknowledgements()["default"].problem == "")
    finally:
        second.stop()
