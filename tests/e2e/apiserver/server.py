"""etcd and kube-apiserver on loopback, in a temporary folder, for as long as a test needs them.

There is no controller manager, so that nothing is garbage-collected and no Deployment gets pods: tests play those parts.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.cluster.cache import the_cache

STARTS_WITHIN = 60.0
CRDS = Path(__file__).parents[3] / "crds"


def why_not() -> str:
    """Why there can be no API server here; empty where there can."""
    missing = [name for name in ("etcd", "kube-apiserver") if not (the_cache().root / "bin" / name).exists()]
    return f"{' and '.join(missing)} not built yet; `make e2e` builds them" if missing else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    status: int
    body: Any


class ApiServer:
    """Use as a context manager. `token` is an admin's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.port = free_port()
        self._etcd_port = free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._tokens = {self.token: ("admin", "admin", "system:masters")}

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "server.crt"))

    def __enter__(self) -> ApiServer:
        _write_certificate(self.folder)
        self._start_etcd()
        self.start()
        self.install_crds()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()

    def _start_etcd(self) -> None:
        peer = free_port()
        client = f"http://127.0.0.1:{self._etcd_port}"
        self._etcd = self._run(
            "etcd", "--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"default=http://127.0.0.1:{peer}", "--log-level", "error",
        )  # fmt: skip

    def start(self) -> None:
        """kube-apiserver, over the etcd that runs; for the second time after `stop`."""
        self._write_tokens()
        folder = self.folder
        self._server = self._run(
            "kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{self._etcd_port}", "--bind-address", "127.0.0.1",
            "--secure-port", str(self.port), "--tls-cert-file", str(folder / "server.crt"),
            "--tls-private-key-file", str(folder / "server.key"), "--cert-dir", str(folder / "certs"),
            "--service-account-key-file", str(folder / "server.key"),
            "--service-account-signing-key-file", str(folder / "server.key"),
            "--service-account-issuer", "https://kubernetes.default.svc", "--service-cluster-ip-range", "10.96.0.0/16",
            "--authorization-mode", "RBAC", "--token-auth-file", str(folder / "tokens"), "--anonymous-auth=false",
            "--disable-admission-plugins", "ServiceAccount", "--v", "0",
        )  # fmt: skip
        deadline = time.monotonic() + STARTS_WITHIN
        while self._ready() is not True:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("kube-apiserver does not start:\n" + (folder / "kube-apiserver.log").read_text()[-3000:])
            time.sleep(0.1)

    def stop(self) -> None:
        """kube-apiserver alone."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def _run(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            return subprocess.Popen([the_cache().bin / name, *arguments], stdout=log, stderr=log, cwd=self.folder)

    def _ready(self) -> bool:
        try:
            return self.ask("GET", "/readyz").status == 200
        except OSError:
            return False

    def _write_tokens(self) -> None:
        lines = [f"{token},{user},{uid},{group}" for token, (user, uid, group) in self._tokens.items()]
        (self.folder / "tokens").write_text("\n".join(lines) + "\n")

    def install_crds(self) -> None:
        """Ours, and wait until they are served."""
        import yaml

        for file in sorted(CRDS.glob("*.yaml")):
            self.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(file.read_text()))
        deadline = time.monotonic() + STARTS_WITHIN
        for plural in ("virtualtaps", "tapdestinations", "tapnodes", "tappeerslices"):
            while self.ask("GET", f"/apis/vtap.dev/v1alpha1/{plural}").status != 200:
                assert time.monotonic() < deadline, f"{plural} are not served"
                time.sleep(0.1)

    def kubeconfig(self, token: str = "") -> Path:
        """A file for a token's user, an admin by default."""
        config = {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {
                "server": self.url,
                "certificate-authority-data": base64.b64encode((self.folder / "server.crt").read_bytes()).decode(),
            }}],
            "users": [{"name": "test", "user": {"token": token or self.token}}],
        }  # fmt: skip
        file = self.folder / f"kubeconfig-{secrets.token_hex(4)}"
        file.write_text(json.dumps(config))
        return file

    def ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json", token: str = "") -> Answer:
        """`body` is sent as JSON; a text is sent as it is."""
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": content_type}
        data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, context=self._context, timeout=30) as answer:
                return Answer(answer.status, _parsed(answer.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _parsed(error.read()))

    def get(self, path: str) -> dict[str, Any] | None:
        answer = self.ask("GET", path)
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        return answer.body

    def make(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.ask("POST", path, body)
        assert answer.status in (200, 201), answer
        return answer.body

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.ask("PATCH", path, body, "application/merge-patch+json")
        assert answer.status == 200, answer
        return answer.body

    def delete(self, path: str) -> None:
        answer = self.ask("DELETE", path, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"})
        assert answer.status in (200, 202, 404), answer

    def service_account_token(self, namespace: str, name: str) -> str:
        """Of a ServiceAccount, which is made."""
        answer = self.ask(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts",
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        )
        assert answer.status in (201, 409), answer
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        made = self.make(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        return made["status"]["token"]


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")


def _write_certificate(folder: Path) -> None:
    """Signed by itself, for loopback; its key signs ServiceAccounts' tokens too."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(private)
    (folder / "server.key").chmod(0o600)
