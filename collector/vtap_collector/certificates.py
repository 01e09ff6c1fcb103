"""TLS for the collector's HTTP, from files that change while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from vtap_collector.errors import CollectorError

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
FILES = ("ca.crt", "tls.crt", "tls.key")


class Certificates:
    """`context` serves what is in the directory: ca.crt (whose clients are known), tls.crt and tls.key (who we are).

    A client may come without a certificate; one that shows a certificate of another CA is turned away by TLS. New
    connections get new files as soon as `follow` has seen them. A CA that was trusted stays so until the process ends, which is
    what rotation needs, since for a while both are in use.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self._stamps = self._stamp()
        self._load()

    def _stamp(self) -> tuple[tuple[int, int], ...]:
        """Raises CollectorError."""
        try:
            found = [(self._directory / name).stat() for name in FILES]
        except OSError as error:
            raise CollectorError(f"--tls {self._directory}: {error.filename or ''}: {error.strerror}") from error
        return tuple((status.st_mtime_ns, status.st_ino) for status in found)

    def _load(self) -> None:
        authority, certificate, key = (self._directory / name for name in FILES)
        try:
            # Tried on another context first: half of a new pair in the one that serves would be worse than the old one.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                context.load_cert_chain(certificate, key)
                context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as error:
            raise CollectorError(
                f"--tls {self._directory}: the certificate, its key or its CA cannot be used ({error})"
            ) from error

    async def follow(self) -> None:
        """For ever: load files that have changed. Files that make no sense leave the last good ones in use."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Once."""
        try:
            stamps = self._stamp()
            if stamps == self._stamps:
                return
            self._load()
        except CollectorError as error:
            log.warning("%s; the last good certificate stays in use", error)
            return
        self._stamps = stamps
        log.info("a new certificate is in use")
