"""Who this agent is to collectors in a cluster: a client certificate in files that are replaced while it runs."""

from __future__ import annotations

import os
import ssl
import threading
from pathlib import Path

from vtap_agent.errors import Wait

FILES = ("ca.crt", "tls.crt", "tls.key")

Stamp = tuple[tuple[int, int, int], ...]


class ClientIdentity:
    """The certificate and key of a directory, and the CA that collectors' certificates have to come from. Thread-safe.

    A Secret's mount is switched over by its link ``..data``: all three files are read behind the same one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._known: tuple[Stamp, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """The same as long as the files are. Raises Wait where they are missing or make no sense."""
        with self._lock:
            paths = self._paths()
            stamp = self._stamp(paths)
            if self._known is None or self._known[0] != stamp:
                self._known = (stamp, self._load(paths))
            return self._known[1]

    def _paths(self) -> tuple[Path, ...]:
        switched = self._directory / "..data"
        real = Path(os.path.realpath(switched)) if switched.exists() else self._directory
        return tuple(real / name for name in FILES)

    def _stamp(self, paths: tuple[Path, ...]) -> Stamp:
        try:
            found = [path.stat() for path in paths]
        except OSError as error:
            name = Path(error.filename or "").name
            raise Wait(
                f"{self._directory / name}: the agent's certificate is not there yet ({error.strerror}); "
                "the operator makes it, in the Secret vtap-agent-tls"
            ) from error
        return tuple((status.st_dev, status.st_ino, status.st_mtime_ns) for status in found)

    def _load(self, paths: tuple[Path, ...]) -> ssl.SSLContext:
        authority, certificate, key = paths
        try:
            context = ssl.create_default_context(cafile=authority)
            context.load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            raise Wait(
                f"{self._directory}: the agent's certificate, its key or its CA cannot be used ({error}); "
                "delete the Secret vtap-agent-tls for the operator to make it anew"
            ) from error
        return context
