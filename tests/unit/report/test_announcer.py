"""A collector learns every stream before it is needed, hears totals, and is told again after it was away."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vtap_agent.plan.dataplane import Direction, PointCounters, TapPointName
from vtap_agent.plan.streams import ControlEndpoint, Stream, StreamSet
from vtap_agent.report import announcer as module
from vtap_agent.report import arrival
from vtap_agent.report.announcer import Announcer, Totals


class Collector:
    """Speaks the collector's side of the control channel and keeps what it was told."""

    def __init__(self, token: str | None, port: int = 0, *, keep_alive: bool = False) -> None:
        self.streams: dict[int, str] = {}
        self.totals: dict[int, int] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.offset: int | None = None
        self.heard: list[str] = []
        self.connections: list[socket.socket] = []
        self.says: dict[str, Any] = {}
        """Its answer to streams."""
        self.refuses = 0
        """The status with which it refuses streams."""
        self.received: dict[int, int] | None = None
        """By key, for its answer to totals; None where it is of a version that says nothing."""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

            def setup(self) -> None:
                super().setup()
                collector.connections.append(self.connection)

            def _body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def _finish(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_PUT(self) -> None:
                if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                    self._finish(401)
                    return
                collector.heard.append("streams")
                body = self._body()
                collector.offset = body["taiOffset"]
                self._finish(*collector.take_streams(body["streams"]))

            def do_POST(self) -> None:
                collector.heard.append("totals")
                self._finish(*collector.take_totals(self._body()["streams"]))

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def take_streams(self, rows: list[dict[str, Any]]) -> tuple[int, bytes]:
        if self.refuses:
            return self.refuses, json.dumps({"error": "no room", **self.says}).encode()
        self.streams = {row["key"]: row["incarnation"] for row in rows}
        return (200, json.dumps(self.says).encode()) if self.says else (204, b"")

    def take_totals(self, rows: list[dict[str, Any]]) -> tuple[int, bytes]:
        for row in rows:
            self.totals[row["key"]] = row["nextSequence"]
            self.rows[row["key"]] = row
        if self.received is None:
            return 204, b""
        said = [
            {"key": row["key"], "incarnation": row["incarnation"], "received": self.received.get(row["key"], 0)} for row in rows
        ]
        return 200, json.dumps({"streams": said}).encode()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # It may have ended by itself.
                connection.shutdown(socket.SHUT_RDWR)
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


def test_a_stream_that_ends_while_its_collector_is_away_gets_its_last_word_when_it_is_back(
    announcer: Announcer, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.2)
    first = Collector("secret")
    port = first.server.server_address[1]
    announcer.submit(wanted(first.url, token, 1, 2))
    eventually(lambda: len(announcer.acknowledgements()["default"].streams) == 2)
    first.stop()
    announcer.submit(wanted(first.url, token, 2))
    ended = time.monotonic()
    announcer.report({stream(1).id: Totals(9, 9)})
    eventually(lambda: "does not answer" in announcer.acknowledgements()["default"].problem)
    eventually(lambda: time.monotonic() > ended + 1)
    second = Collector("secret", port)
    try:
        eventually(lambda: second.totals.get(1) == 9)
        eventually(lambda: set(second.streams) == {2})
    finally:
        second.stop()


def test_totals_that_nobody_has_any_more_hold_up_no_leave(
    announcer: Announcer, collector: Collector, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.2)
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: len(announcer.acknowledgements()["default"].streams) == 1)
    collector.stop()
    announcer.report({stream(1).id: Totals(9, 9)})
    announcer.submit({})
    (worker,) = announcer._workers.values()
    eventually(lambda: bool(worker.acknowledgement.problem))
    assert worker.is_alive()
    announcer.report({})
    eventually(lambda: not worker.is_alive())


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


def test_a_collector_says_which_its_addresses_are(announcer: Announcer, collector: Collector, token: str) -> None:
    collector.says = {"addresses": ["10.0.0.7", "FD00::7"]}
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: announcer.acknowledgements()["default"].addresses == {"10.0.0.7", "fd00::7"})
    collector.says = {}
    announcer.submit(wanted(collector.url, token, 1, 2))
    eventually(lambda: len(announcer.acknowledgements()["default"].streams) == 2)
    assert announcer.acknowledgements()["default"].addresses is None, "an older one took its place"


def test_a_collector_that_refuses_says_so_too(announcer: Announcer, collector: Collector, token: str) -> None:
    collector.refuses, collector.says = 507, {"addresses": ["10.0.0.7"]}
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: announcer.acknowledgements()["default"].addresses == {"10.0.0.7"})
    assert "no room" in announcer.acknowledgements()["default"].problem
    heard = announcer.acknowledgements()["default"].heard_at
    eventually(lambda: announcer.acknowledgements()["default"].heard_at > heard)


def test_a_collector_that_takes_them_gets_all_terms_and_how_far_streams_were(
    announcer: Announcer, collector: Collector, token: str
) -> None:
    counters = PointCounters(seen=20, excluded=4, unsampled=3, limited=2, sent=9, dropped={"noRoute": 2, "pair": 0})
    announcer.report({stream(1).id: Totals(9, 9, counters)})
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: collector.totals == {1: 9})
    assert collector.rows[1].keys() == {"key", "incarnation", "sent", "nextSequence"}, "one that does not say so takes no more"
    collector.says = {"terms": True}
    announcer.report({stream(1).id: Totals(10, 10, replace(counters, seen=21, sent=10)), stream(2).id: Totals(0, 0)})
    announcer.submit(wanted(collector.url, token, 1, 2))
    eventually(lambda: collector.rows[1].get("terms", {}).get("seen") == 21)
    assert collector.rows[1]["terms"] == {"seen": 21, "excluded": 4, "unsampled": 3, "limited": 2, "dropped": {"noRoute": 2}}
    assert collector.rows[1]["before"] == 10
    announcer.report({stream(2).id: Totals(3, 3, counters)})
    eventually(lambda: collector.rows.get(2, {}).get("sent") == 3)


def test_addresses_that_are_none_are_said_in_a_sentence(announcer: Announcer, collector: Collector, token: str) -> None:
    collector.says = {"addresses": "here"}
    announcer.submit(wanted(collector.url, token, 1))
    eventually(lambda: "which its addresses are" in announcer.acknowledgements()["default"].problem)


def test_a_collector_that_ends_is_missed_though_there_is_nothing_to_tell(announcer: Announcer, token: str) -> None:
    first = Collector("secret", keep_alive=True)
    announcer.submit(wanted(first.url, token, 1))
    announcer.report({stream(1).id: Totals(5, 5)})
    eventually(lambda: first.totals == {1: 5} and announcer.acknowledgements()["default"].problem == "")
    first.stop()
    began = time.monotonic()
    eventually(lambda: "does not answer" in announcer.acknowledgements()["default"].problem)
    assert time.monotonic() - began < module.TOTALS_IDLE_EVERY


def test_copies_that_leave_and_never_arrive_are_noticed_until_one_does(
    announcer: Announcer, collector: Collector, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "TOTALS_EVERY", 0.05)
    monkeypatch.setattr(module, "TOTALS_IDLE_EVERY", 0.1)
    collector.received = {1: 0, 2: 0}
    announcer.submit(wanted(collector.url, token, 1, 2))
    announcer.report({stream(1).id: Totals(0, 0), stream(2).id: Totals(0, 0)})
    eventually(lambda: collector.totals == {1: 0, 2: 0})
    collector.received = {1: 0, 2: 7}
    announcer.report({stream(1).id: Totals(50, 50), stream(2).id: Totals(50, 50)})
    eventually(lambda: announcer.acknowledgements()["default"].unarriving == {stream(1).id})
    assert announcer.acknowledgements()["default"].problem == ""
    collector.received = {1: 1, 2: 7}
    eventually(lambda: stream(1).id not in announcer.acknowledgements()["default"].unarriving)
