"""Whatever goes wrong in an answer, the client gets a sentence and the server goes on."""

from __future__ import annotations

import http.client
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vtap_agent.errors import Retry, TellUser
from vtap_agent.report.server import Answer, Server, as_json


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def bug() -> Answer:
    raise RuntimeError("Set changed size during iteration")


def busy() -> Answer:
    raise Retry("the agent is busy; ask again")


@pytest.fixture
def get() -> Iterator[Callable[[str], tuple[int, dict[str, str]]]]:
    with tempfile.TemporaryDirectory(prefix="vtap-") as directory:
        path = Path(directory) / "agent.sock"
        server = Server({"/ok": lambda: as_json({"fine": "yes"}), "/bug": bug, "/busy": busy}, path)
        server.start()

        def ask(target: str) -> tuple[int, dict[str, str]]:
            connection = Connection(path)
            connection.request("GET", target)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            connection.close()
            return answer.status, body

        yield ask
        server.stop()


def test_a_failure_is_a_sentence_and_the_next_answer_comes(get: Callable[[str], tuple[int, dict[str, str]]]) -> None:
    assert get("/bug") == (500, {"error": "the agent failed to answer; its log says why"})
    assert get("/busy") == (503, {"error": "the agent is busy; ask again"})
    assert get("/nowhere")[0] == 404
    assert get("/ok") == (200, {"fine": "yes"})


def test_a_run_directory_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(TellUser, match="cannot listen on"):
        Server({}, deep / "agent.sock")


def test_tcp_tells_metrics_and_not_who_is_tapped() -> None:
    with tempfile.TemporaryDirectory(prefix="vtap-") as directory:
        routes = {"/metrics": lambda: Answer(b"vtap_map_bytes 1\n", "text/plain"), "/v1/keys": lambda: as_json({"keys": []})}
        server = Server(routes, Path(directory) / "agent.sock", "127.0.0.1:0")
        server.start()
        try:
            statuses: dict[str, int] = {}
            for path in routes:
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
                connection.request("GET", path)
                statuses[path] = connection.getresponse().status
                connection.close()
        finally:
            server.stop()
    assert statuses == {"/metrics": 200, "/v1/keys": 404}


def test_who_leaves_before_the_answer_is_no_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked, left = threading.Event(), threading.Event()

    def slow() -> Answer:
        asked.set()
        assert left.wait(5)
        return Answer(b"x" * 10_000_000, "text/plain")

    server = Server({"/healthz": slow}, tmp_path / "agent.sock")
    server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "agent.sock"))
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert asked.wait(5)
    left.set()
    server.stop()
    assert "Traceback" not in capfd.readouterr().err
