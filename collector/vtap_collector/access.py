"""Who may ask the collector what: a token on one machine, certificates and the API server's judgement in a cluster.

`docs/cluster.md` and decision 0024 have the rules. An `Access` raises Refused: 401 for who is not known, 403 for who may not.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from vtap_collector.announcements import TapName
from vtap_collector.errors import CollectorError, Refused

log = logging.getLogger(__name__)

AGENT_NAME = "vtap-agent"
"""Common name of the certificate that agents show."""
BEHIND_PROXY = "X-Vtap-Authorization"
"""Carries what Authorization would, past a proxy that keeps that header for itself, as the API server's does."""
_OPEN_PATHS = frozenset({"/healthz", "/metrics"})
_TOKEN_NEEDED = "a valid bearer token is needed"


Recheck = Callable[[], Awaitable[None]]
"""Judges again whoever was let in, who may have lost the right. Raises Refused."""


class Access(Protocol):
    """Judges one request. `trusted`: it came by the Unix socket, whose mode has judged already who may read."""

    async def check(self, request: web.Request, tap: TapName | None, trusted: bool) -> Recheck | None:
        """Raises Refused. `tap` is the one asked about, None for all. None where the right is for good."""
        ...


class Judge(Protocol):
    """Knows who may read packets: `reviews.Reviewer`."""

    async def admit(self, token: str, tap: TapName | None, source: str) -> Recheck: ...


class Token:
    """The bearer token in a file, read again when the file changes, so that it can be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._value = b""
        self._refresh()

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp:
                return
            value = self._path.read_bytes().strip()
        except OSError as error:
            raise CollectorError(f"--token-file {self._path}: {error.strerror}") from None
        if not value:
            raise CollectorError(f"--token-file {self._path} is empty")
        self._stamp, self._value = stamp, value

    def admits(self, authorization: str) -> bool:
        """Compares in constant time."""
        try:
            self._refresh()
        except CollectorError as error:
            log.warning("%s; the last token stays valid", error)
        return hmac.compare_digest(_bearer(authorization).encode(errors="replace"), self._value)


class TokenAccess:
    """One machine: whoever holds the token may do everything. Without a token only the Unix socket is served."""

    def __init__(self, token: Token | None) -> None:
        self._token = token

    async def check(self, request: web.Request, tap: TapName | None, trusted: bool) -> Recheck | None:
        """Where a token is set, agents need it on the Unix socket too."""
        if is_open(request) or (trusted and (_reads(request) or self._token is None)):
            return None
        if self._token is None or not self._token.admits(request.headers.get("Authorization", "")):
            raise Refused(_TOKEN_NEEDED, 401)
        return None


class ClusterAccess:
    """A cluster: agents show their certificate, readers a token that the API server judges."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def check(self, request: web.Request, tap: TapName | None, trusted: bool) -> Recheck | None:
        """The Unix socket is for reading only: whoever has it may exec into the collector's pod already."""
        if is_open(request) or (trusted and _reads(request)):
            return None
        if not _reads(request):
            _check_agent(request)
            return None
        token = _bearer(request.headers.get(BEHIND_PROXY) or request.headers.get("Authorization", ""))
        if not token:
            raise Refused(f"{_TOKEN_NEEDED}: send it as Authorization: Bearer, or behind a proxy as {BEHIND_PROXY}: Bearer", 401)
        return await self._judge.admit(token, tap, request.remote or "")


def is_open(request: web.Request) -> bool:
    """Shows no packet and no name of one: anybody may ask."""
    return request.path in _OPEN_PATHS


def _reads(request: web.Request) -> bool:
    return request.method in ("GET", "HEAD")


def _check_agent(request: web.Request) -> None:
    if common_name(request.get_extra_info("peercert")) != AGENT_NAME:
        raise Refused(f"only an agent may do this: a client certificate of {AGENT_NAME} is needed", 403)


def common_name(certificate: Any) -> str:
    """Of a verified peer's certificate as the ssl module gives it; empty without one."""
    subject = (certificate or {}).get("subject", ())
    return next((value for part in subject for key, value in part if key == "commonName"), "")


def _bearer(authorization: str) -> str:
    scheme, _space, given = authorization.partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""
