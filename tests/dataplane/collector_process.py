"""A vtap-collector of the test's own on loopback, and somebody who plays the agent and the sender."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.unit.collector.copies import TAI_OFFSET, Capture, copy, numbered_frame, read_pcapng
from vtap_lab.processes import in_namespace

TOKEN = "correct horse"
DEADLINE = 15.0
TAP = {"namespace": "shop", "name": "checkout"}


def wait_until(condition: object, what: str, deadline: float = DEADLINE) -> None:
    assert callable(condition)
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline:g} s"
        time.sleep(0.02)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(str(self._path))


def a_stream(key: int, incarnation: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "incarnation": f"{incarnation:016x}",
        "trailer": True,
        "tap": TAP,
        "pod": {"namespace": "shop", "name": f"web-{key}", "uid": "0b5c"},
        "interface": "eth0",
        "direction": "Egress",
        "snapLength": 0,
        **more,
    }


class CollectorProcess:
    """Keeps its directory over restarts. `sender` is bound to 127.0.0.1, the address that node-a announces."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        store: Path | None = None,
        data: str = "127.0.0.1:0",
        namespace: str = "",
        through: Sequence[str] = (),
    ) -> None:
        self.through = through
        self.base, self.options, self.data_option, self.namespace = directory, options, data, namespace
        self.store = store or directory / "captures"
        self.run_dir = directory / "run"
        (directory / "token").write_text(TOKEN + "\n")
        self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.bind(("127.0.0.1", 0))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_reason: object) -> None:
        self.sender.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def start(self) -> None:
        argv = [
            *(in_namespace(self.namespace, []) if self.namespace else []),
            *self.through,
            str(Path(sys.executable).with_name("vtap-collector")),
            f"--directory={self.store}",
            f"--run-dir={self.run_dir}",
            f"--listen-data={self.data_option}",
            "--listen=127.0.0.1:0",
            f"--token-file={self.base / 'token'}",
            "--grace=0.3",
            "--max-streams=64",
            *self.options,
        ]
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_until(self._answers, "the collector answers")
        self.about = self.get("/healthz")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the collector ended: {self.log()}"
        try:
            return self.request("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def log(self) -> str:
        return (self.base / "log").read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    # ---- HTTP ----

    def request(
        self, method: str, path: str, body: object = None, token: str | None = TOKEN, raw: bytes | None = None
    ) -> tuple[int, bytes]:
        connection = UnixConnection(self.run_dir / "collector.sock")
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        try:
            connection.request(method, path, raw if raw is not None else json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def over_tcp(self, path: str, token: str | None) -> int:
        address, _colon, port = self.about["listen"].rpartition(":")
        connection = http.client.HTTPConnection(address, int(port), timeout=DEADLINE)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            return connection.getresponse().status
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def metric(self, name: str, **labels: str) -> float:
        status, body = self.request("GET", "/metrics")
        assert status == 200
        for line in body.decode().splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {name} {labels} in /metrics")

    # ---- the agent ----

    def announce(self, *streams: Mapping[str, Any], node: str = "node-a", addresses: Iterable[str] = ("127.0.0.1",)) -> None:
        body = {"version": 1, "addresses": list(addresses), "taiOffset": TAI_OFFSET, "streams": list(streams)}
        assert self.request("PUT", f"/v1/nodes/{node}/streams", body)[0] == 200

    def totals(self, key: int, sent: int, incarnation: int = 1, node: str = "node-a", next_sequence: int | None = None) -> None:
        numbers = {"sent": sent, "nextSequence": sent if next_sequence is None else next_sequence}
        body = {"streams": [{"key": key, "incarnation": f"{incarnation:016x}", **numbers}]}
        assert self.request("POST", f"/v1/nodes/{node}/totals", body) == (204, b"")

    # ---- the sender ----

    def endpoint(self, index: int = 0) -> tuple[str, int]:
        address, _colon, port = self.about["data"][index].rpartition(":")
        return address.strip("[]"), int(port)

    def send(self, key: int, numbers: Iterable[int], size: int = 64) -> None:
        target = self.endpoint()
        for number in numbers:
            self.sender.sendto(copy(key, number, numbered_frame(number, size), time.time_ns()), target)

    # ---- what came of it ----

    def row(self, key: int, incarnation: int = 1) -> dict[str, Any]:
        rows = self.get("/v1/ledger")["streams"]
        return next(row for row in rows if (row["key"], row["incarnation"]) == (key, f"{incarnation:016x}"))

    def at_rest(self, key: int, received: int, incarnation: int = 1) -> dict[str, Any]:
        """The row once so many copies were received and none is in flight or on its way to the disk."""

        def rested() -> bool:
            row = self.row(key, incarnation)
            return (
                row["received"] == received
                and not row["inFlight"]
                and row["received"] == row["stored"] + sum(row["dropped"].values())
            )

        try:
            wait_until(rested, f"{received} copies received and at rest")
        except AssertionError:
            raise AssertionError(f"not at rest: {self.get('/v1/ledger')}") from None
        return self.row(key, incarnation)

    def files(self) -> list[Path]:
        return sorted(self.store.glob("*/*/*.pcapng"), key=lambda file: int(file.stem.rpartition("-")[2]))

    def captures(self) -> list[Capture]:
        """Of all files, read strictly: no partial block is forgiven."""
        return [read_pcapng(file.read_bytes()) for file in self.files()]
