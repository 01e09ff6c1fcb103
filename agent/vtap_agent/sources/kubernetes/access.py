"""Where the API server is and who we are to it: from inside a pod, or from a kubeconfig file for development."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from vtap_agent.errors import Retry, TellUser

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Access:
    """`ca` and the client's certificate and key are PEM; empty where there is none. A token file is read for each connection."""

    host: str
    port: int
    secure: bool = True
    prefix: str = ""
    """Path in front of every request's."""
    ca_file: Path | None = None
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""
    token_file: Path | None = None
    server_name: str = ""
    verify: bool = True

    @property
    def url(self) -> str:
        """For sentences."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.prefix}"

    def bearer(self) -> str:
        """The token as it is now: kubelet writes a new one before the old one expires. Empty for none. Raises Retry."""
        if self.token_file is None:
            return self.token
        try:
            return self.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise Retry(f"{self.token_file}: the service account's token cannot be read ({error}); is it mounted?") from error

    def tls(self) -> ssl.SSLContext:
        """What a connection is secured with. Raises Retry where a certificate can't be read."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca.decode("ascii") or None)
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate:
                with _readable(self.certificate) as certificate, _readable(self.key) as key:
                    context.load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            raise Retry(f"the certificates for {self.url} cannot be used ({error})") from error
        return context


@contextmanager
def _readable(content: bytes) -> Iterator[str]:
    """A path that reads as `content`, since OpenSSL takes keys from files only; nothing is written to a disk."""
    descriptor = os.memfd_create("vtap-pem", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def in_cluster(environment: Mapping[str, str], directory: Path = SERVICE_ACCOUNT) -> Access:
    """As every pod finds it. Raises TellUser outside of one."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port.isdecimal() or not (directory / "ca.crt").exists():
        raise TellUser(
            "--kubernetes: this is no pod with a service account; run the agent in a cluster, or give --kubeconfig FILE"
        )
    return Access(host, int(port), ca_file=directory / "ca.crt", token_file=directory / "token")


def from_kubeconfig(path: Path) -> Access:
    """The current context of a kubeconfig file, with a client certificate or a token. Raises TellUser."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(data, "contexts", "context", data["current-context"])
        cluster = _named(data, "clusters", "cluster", context["cluster"])
        user = _named(data, "users", "user", context["user"])
        return _access(cluster, user, path.parent)
    except (OSError, yaml.YAMLError) as error:
        raise TellUser(f"--kubeconfig {path}: cannot be read ({error})") from error
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        wrong = f"has no {error}" if isinstance(error, KeyError) else f"is not as kubectl writes it ({error})"
        raise TellUser(f"--kubeconfig {path}: {wrong}; try kubectl --kubeconfig {path} version") from error


def _named(data: Mapping[str, Any], kind: str, field: str, name: str) -> Mapping[str, Any]:
    for item in data[kind]:
        if item["name"] == name:
            return item[field] or {}
    raise ValueError(f"{kind} has no {name!r}")


def _access(cluster: Mapping[str, Any], user: Mapping[str, Any], beside: Path) -> Access:
    if "exec" in user or "auth-provider" in user:
        raise ValueError("its user comes from a program; use a token or a client certificate")
    parts = urlsplit(cluster["server"])
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"server {cluster['server']!r} is not a URL")
    secure = parts.scheme == "https"
    token_file = user.get("tokenFile")
    return Access(
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        secure=secure,
        prefix=parts.path.rstrip("/"),
        ca=_content(cluster, "certificate-authority", beside),
        certificate=_content(user, "client-certificate", beside),
        key=_content(user, "client-key", beside),
        token=user.get("token", ""),
        token_file=beside / token_file if token_file else None,
        server_name=cluster.get("tls-server-name", ""),
        verify=not cluster.get("insecure-skip-tls-verify", False),
    )


def _content(entry: Mapping[str, Any], field: str, beside: Path) -> bytes:
    """PEM from ``FIELD-data`` or the file that ``FIELD`` names."""
    if inline := entry.get(f"{field}-data"):
        return base64.b64decode(inline, validate=True)
    return (beside / entry[field]).read_bytes() if entry.get(field) else b""
