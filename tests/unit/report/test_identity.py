"""An agent shows collectors its certificate, knows theirs, and takes up new files without being started anew."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.waiting import eventually
from vtap_agent.errors import Wait
from vtap_agent.plan.dataplane import Direction, TapPointName
from vtap_agent.plan.streams import ControlEndpoint, Stream, StreamSet
from vtap_agent.report import announcer as module
from vtap_agent.report.announcer import Announcer
from vtap_agent.report.identity import ClientIdentity


class Authority:
    """A CA that signs as openssl(1) does."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir()
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
                      "-keyout", "ca.key", "-out", "ca.crt", "-subj", f"/CN={name}")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def issue(self, into: Path, name: str) -> Path:
        """ca.crt, tls.crt and tls.key in the directory `into`."""
        into.mkdir(exist_ok=True)
        (self.directory / "ext").write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\n")
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "tls.key",
                      "-out", "tls.csr", "-subj", f"/CN={name}")  # fmt: skip
        self._openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
                      "-extfile", "ext", "-out", "tls.crt")  # fmt: skip
        for file in ("ca.crt", "tls.crt", "tls.key"):
            shutil.copy(self.directory / file, into / file)
        return into


class Collector:
    """Takes announcements from clients with a certificate of its CA, and remembers their names."""

    def __init__(self, directory: Path) -> None:
        self.clients: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                found: Any = self.connection
                subject: Any = found.getpeercert()["subject"]
                collector.clients.append(dict(part[0] for part in subject)["commonName"])
                self.send_response(204)
                self.end_headers()

            do_POST = do_PUT

            def log_message(self, format: str, *args: object) -> None: ...

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
        context.load_verify_locations(directory / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl(1), to make certificates")
    return Authority(tmp_path, "ours")


@pytest.fixture
def collector(authority: Authority, tmp_path: Path) -> Iterator[Collector]:
    made = Collector(authority.issue(tmp_path / "server", "vtap-collector-default.vtap-system.svc"))
    yield made
    made.stop()


@pytest.fixture
def announcer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announcer]:
    for name in ("BACKOFF_FIRST", "BACKOFF_LAST", "TOTALS_EVERY", "TOTALS_IDLE_EVERY"):
        monkeypatch.setattr(module, name, 0.05)
    made = Announcer("node", lambda: None, ClientIdentity(tmp_path / "agent"))
    yield made
    made.stop()


def announced(url: str) -> dict[str, StreamSet]:
    name = TapPointName("shop", "web", "shop", "web-0", "uid", "eth0", Direction.EGRESS)
    stream = Stream(4096, f"{1:016x}", name, 0, trailer=True)
    return {"default": StreamSet("default", ControlEndpoint(url, ""), ("127.0.0.1",), (stream,))}


def problem(announcer: Announcer) -> str:
    return announcer.acknowledgements()["default"].problem


def test_an_agent_waits_for_its_certificate_and_then_is_known_by_it(
    authority: Authority, collector: Collector, announcer: Announcer, tmp_path: Path
) -> None:
    announcer.submit(announced(collector.url))
    eventually(lambda: "the operator makes it, in the Secret vtap-agent-tls" in problem(announcer))
    authority.issue(tmp_path / "agent", "vtap-agent")
    eventually(lambda: bool(announcer.acknowledgements()["default"].streams) and not problem(announcer))
    assert set(collector.clients) == {"vtap-agent"}


def test_new_files_are_used_at_once(authority: Authority, collector: Collector, announcer: Announcer, tmp_path: Path) -> None:
    authority.issue(tmp_path / "agent", "vtap-agent")
    announcer.submit(announced(collector.url))
    eventually(lambda: "vtap-agent" in collector.clients)
    authority.issue(tmp_path / "agent", "vtap-agent-renewed")
    eventually(lambda: "vtap-agent-renewed" in collector.clients)
    eventually(lambda: not problem(announcer))


def test_a_collector_of_another_authority_is_told_nothing(collector: Collector, announcer: Announcer, tmp_path: Path) -> None:
    Authority(tmp_path, "theirs").issue(tmp_path / "agent", "vtap-agent")
    announcer.submit(announced(collector.url))
    eventually(lambda: "certificate verify failed" in problem(announcer))
    assert collector.clients == []


def test_a_secret_that_is_switched_over_is_never_read_half(authority: Authority, tmp_path: Path) -> None:
    mount = tmp_path / "agent"
    mount.mkdir()
    for version in ("one", "two"):
        authority.issue(mount / version, "vtap-agent")
    (mount / "..data").symlink_to("one")
    for file in ("ca.crt", "tls.crt", "tls.key"):
        (mount / file).symlink_to(f"..data/{file}")
    identity = ClientIdentity(mount)
    first = identity.context()
    assert identity.context() is first
    (mount / "new").symlink_to("two")
    (mount / "new").rename(mount / "..data")
    assert identity.context() is not first


def test_files_that_make_no_sense_are_a_sentence(authority: Authority, tmp_path: Path) -> None:
    made = authority.issue(tmp_path / "agent", "vtap-agent")
    authority.issue(tmp_path / "other", "vtap-agent")
    shutil.copy(tmp_path / "other" / "tls.key", made / "tls.key")
    with pytest.raises(Wait, match=r"cannot be used .* delete the Secret vtap-agent-tls"):
        ClientIdentity(made).context()


def test_without_tls_the_sentence_says_what_to_give(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Announcer("node", lambda: None)
    plain.submit(announced(collector.url))
    eventually(lambda: "give the agent --tls DIR" in problem(plain))
    plain.stop()
