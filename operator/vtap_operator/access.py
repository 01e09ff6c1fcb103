"""How to reach the API server: as a pod by its service account, else by a kubeconfig file. Files that change are read again."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kopf
import yaml

from vtap_operator.errors import OperatorError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REREAD = timedelta(minutes=1)
"""How long what was read from files is believed; the kubelet rotates tokens long before they expire."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What was in the files. PEM texts; empty where there is none."""

    ca: str = ""
    token: str = ""
    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how we prove who we are. Paths are None where data is given or there is none."""

    server: str
    ca_file: Path | None = None
    token_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    inline: Credentials = Credentials()
    insecure: bool = False

    def credentials(self) -> Credentials:
        """What the files say now. Raises OperatorError."""
        given = self.inline
        return Credentials(
            ca=_text(self.ca_file) or given.ca,
            token=(_text(self.token_file) or given.token).strip(),
            certificate=_text(self.certificate_file) or given.certificate,
            key=_text(self.key_file) or given.key,
        )

    def ssl_context(self, credentials: Credentials) -> ssl.SSLContext | None:
        """None for a server that speaks plain HTTP."""
        if not self.server.startswith("https:"):
            return None
        context = ssl.create_default_context(cadata=credentials.ca or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if credentials.certificate:
            _load_client_certificate(context, credentials)
        return context

    def for_kopf(self) -> kopf.ConnectionInfo:
        """For kopf, which asks again when it expires."""
        now = self.credentials()
        return kopf.ConnectionInfo(
            server=self.server,
            ca_data=base64.b64encode(now.ca.encode()).decode() if now.ca else None,
            insecure=self.insecure or None,
            token=now.token or None,
            certificate_data=base64.b64encode(now.certificate.encode()).decode() if now.certificate else None,
            private_key_data=base64.b64encode(now.key.encode()).decode() if now.key else None,
            expiration=datetime.now(UTC) + REREAD,
        )


def _load_client_certificate(context: ssl.SSLContext, credentials: Credentials) -> None:
    """`ssl` takes files only; this one lives as long as it is read."""
    with tempfile.NamedTemporaryFile("w", prefix="vtap-operator-") as file:
        file.write(credentials.certificate + "\n" + credentials.key)
        file.flush()
        context.load_cert_chain(file.name)


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text()
    except OSError as error:
        raise OperatorError(f"{path} cannot be read ({error.strerror}); it is needed to reach the API server") from None


def find_access(environment: Mapping[str, str] = os.environ, service_account: Path = SERVICE_ACCOUNT) -> Access:
    """A pod's service account, else $KUBECONFIG or ~/.kube/config. Raises OperatorError where there is neither."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if host and (service_account / "token").exists():
        shown = f"[{host}]" if ":" in host else host
        return Access(f"https://{shown}:{port}", service_account / "ca.crt", service_account / "token")
    named = environment.get("KUBECONFIG", "").split(os.pathsep)[0]
    file = Path(named) if named else Path.home() / ".kube" / "config"
    if not file.exists():
        raise OperatorError(f"there is no service account and no {file}; run in a pod, or set KUBECONFIG")
    return from_kubeconfig(file)


def from_kubeconfig(file: Path) -> Access:
    """By the file's current context. Raises OperatorError."""
    try:
        config: Any = yaml.safe_load(file.read_text())
        context = _named(config, "contexts", "context", config["current-context"])
        cluster = _named(config, "clusters", "cluster", context["cluster"])
        user = _named(config, "users", "user", context["user"])
        server = cluster["server"].rstrip("/")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{file} is no usable kubeconfig file ({type(error).__name__}: {error})") from None
    if "exec" in user or "auth-provider" in user:
        raise OperatorError(f"{file}: this user logs in by a program; give one with a token or a client certificate")

    def path(entry: Mapping[str, Any], key: str) -> Path | None:
        return file.parent / entry[key] if entry.get(key) else None

    def data(entry: Mapping[str, Any], key: str) -> str:
        return base64.b64decode(entry.get(key) or "").decode()

    return Access(
        server=server,
        ca_file=path(cluster, "certificate-authority"),
        token_file=path(user, "tokenFile"),
        certificate_file=path(user, "client-certificate"),
        key_file=path(user, "client-key"),
        inline=Credentials(
            ca=data(cluster, "certificate-authority-data"),
            token=user.get("token") or "",
            certificate=data(user, "client-certificate-data"),
            key=data(user, "client-key-data"),
        ),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
    )


def _named(config: Mapping[str, Any], section: str, kind: str, name: str) -> Mapping[str, Any]:
    for entry in config[section]:
        if entry["name"] == name:
            return entry[kind] or {}
    raise KeyError(f"{kind} {name}")
