"""A collector learns every stream before it is needed, hears totals, and is told again after it was away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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
        self.offset: int | None = None
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
                body = self._body()
                collector.offset = body["taiOffset"]
                collector.streams = {row["key"]: row["incarnation"] for row in body["streams"]}
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


def test_a_collector_that_is_new_hears_how_far_streams_are_that_rest(
    announcer: Announcer, collector: Collector, token: str
) -> None:
    announcer.report({stream(1).id: Totals(7, 7)})
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: collector.totals == {1: 7})


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


def test_a_stream_stays_announced_as_long_as_it_is_leaving(
    announcer: Announcer, collector: Collector, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.05)
    announcer.submit(wanted(collector.url, token, 1, 2))
    eventually(lambda: len(announcer.acknowledgements()["default"].streams) == 2)
    announcer.submit({}, frozenset({stream(1).id}))
    eventually(lambda: set(collector.streams) == {1})
    announcer.submit({}, frozenset({stream(1).id}))
    heard = len(collector.heard)
    announcer.report({stream(1).id: Totals(3, 3)})
    eventually(lambda: collector.totals == {1: 3})
    assert set(collector.streams) == {1} and len(collector.heard) > heard
    announcer.submit({})
    eventually(lambda: collector.streams == {})


def test_two_destinations_of_one_collector_are_told_together(
    announcer: Announcer, collector: Collector, token: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("secret")
    second = {"second": replace(wanted(collector.url, str(other), 2)["default"], destination="second")}
    announcer.submit(wanted(collector.url, token, 1) | second)
    eventually(lambda: set(collector.streams) == {1, 2})
    eventually(lambda: announcer.acknowledgements()["second"].streams == {stream(1).id, stream(2).id})


def test_a_collector_that_took_the_place_of_another_unnoticed_is_told_everything(announcer: Announcer, token: str) -> None:
    """A server that closes each connection after its answer is never seen to go."""
    first = Collector("secret")
    announcer.submit(wanted(first.url, token, 1))
    eventually(lambda: set(first.streams) == {1})
    first.streams = {}
    announcer.report({stream(1).id: Totals(5, 5)})
    eventually(lambda: first.totals == {1: 5} and set(first.streams) == {1})
    assert announcer.acknowledgements()["default"].problem == ""
    first.stop()


def test_a_clock_that_learns_of_leap_seconds_is_announced(
    announcer: Announcer, collector: Collector, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "tai_offset", lambda: 0)
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: collector.offset == 0)
    monkeypatch.setattr(module, "tai_offset", lambda: 37)
    eventually(lambda: collector.offset == 37)


@pytest.mark.parametrize("content", ["two\nlines", "caf\u00e9"])
def test_a_token_that_is_none_is_said_in_a_sentence(
    announcer: Announcer, collector: Collector, tmp_path: Path, content: str
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(content)
    announcer.submit(wanted(collector.url, str(wrong), 1))
    eventually(lambda: "the token cannot be read" in announcer.acknowledgements()["default"].problem)


def test_a_url_that_leads_nowhere_is_said_in_a_sentence(announcer: Announcer, token: str) -> None:
    announcer.submit(wanted("http://127.0.0.1:99999", token, 1))
    eventually(lambda: "127.0.0.1:99999" in announcer.acknowledgements()["default"].problem)
