"""HTTP to the API server: one kept-alive connection a client, JSON answers, and watches as streams of events.

A client belongs to one thread; only `abort` may be called from another.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from vtap_agent.errors import Retry
from vtap_agent.sources.kubernetes.access import Access

REQUEST_TIMEOUT = 30.0
CONNECT_TIMEOUT = 5.0
WATCH_SLACK = 30.0
"""Seconds that a watch may outlast the time it was asked for, before the connection counts as dead."""
KEEPALIVE_IDLE, KEEPALIVE_EVERY, KEEPALIVE_TRIES = 15, 5, 3
DEAD_AFTER_MS = 30_000
"""A server that vanished without a word is noticed within that time, though a watch may be silent for minutes."""
MAX_EVENT = 16 << 20
JSON = "application/json"


class ApiError(Retry):
    """The API server did not do what it was asked; `status` is the HTTP status, 0 where nothing came of the connection."""

    def __init__(self, sentence: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after


class Expired(ApiError):
    """What a list or watch went on from is no longer known (410 Gone): list anew."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    kind: str
    object: dict[str, Any]


class _TlsConnection(http.client.HTTPSConnection):
    """Verifies another name than the host's, where the kubeconfig says so."""

    def __init__(self, access: Access) -> None:
        super().__init__(access.host, access.port, timeout=CONNECT_TIMEOUT, context=access.tls())
        self._name = access.server_name or access.host
        self._tls = access.tls()

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


class ApiClient:
    """Raises ApiError (a Retry) for everything that goes wrong on the way, and Expired for 410."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def get(self, path: str, query: Mapping[str, str], accept: str = JSON) -> dict[str, Any]:
        """The object at `path`."""
        answer = self._request("GET", path, query, {"Accept": accept})
        return self._decoded(path, answer)

    def patch(self, path: str, body: Mapping[str, Any], content_type: str = "application/merge-patch+json") -> dict[str, Any]:
        """Patch the object at `path`; the object as it is now."""
        answer = self._request("PATCH", path, {}, {"Accept": JSON, "Content-Type": content_type}, json.dumps(body).encode())
        return self._decoded(path, answer)

    def watch(self, path: str, query: Mapping[str, str], seconds: float, accept: str = JSON) -> Iterator[Event]:
        """Events until the server ends the stream, as it does after `seconds`. The watch stands when this returns.

        The connection serves nothing else meanwhile; close the iterator to end it.
        """
        wanted = {**query, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(round(seconds))}
        answer = self._request("GET", path, wanted, {"Accept": accept})
        self._set_timeout(seconds + WATCH_SLACK)
        return self._events(path, answer)

    def _events(self, path: str, answer: http.client.HTTPResponse) -> Iterator[Event]:
        try:
            while line := answer.readline(MAX_EVENT):
                if line.strip():
                    yield self._event(path, line)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """End the connection; the next request makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """From another thread: whatever is under way fails soon, and so does all that follows."""
        self._aborted = True
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            try:
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                return  # It had ended by itself.

    def _request(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes | None = None
    ) -> http.client.HTTPResponse:
        target = self._access.prefix + path + ("?" + urlencode(query) if query else "")
        token = self._access.bearer()
        sent = {**headers, **({"Authorization": f"Bearer {token}"} if token else {})}
        try:
            answer = self._exchange(method, target, sent, body)
            if answer.status < HTTPStatus.BAD_REQUEST:
                return answer
            text = answer.read(65536)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        raise self._refused(method, path, answer, text)

    def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> http.client.HTTPResponse:
        """On the connection there is; where the server has closed that one meanwhile, on another."""
        reused = self._connection is not None
        try:
            connection = self._connected()
            connection.request(method, target, body, dict(headers))
            return connection.getresponse()
        except (ConnectionError, http.client.HTTPException):
            self.close()
            if not reused:
                raise
        connection = self._connected()
        connection.request(method, target, body, dict(headers))
        return connection.getresponse()

    def _connected(self) -> http.client.HTTPConnection:
        if self._aborted:
            raise ConnectionAbortedError("the agent stops")
        if self._connection is None:
            access = self._access
            made = _TlsConnection(access) if access.secure else http.client.HTTPConnection(access.host, access.port)
            made.timeout = CONNECT_TIMEOUT
            made.connect()
            _keep_alive(made.sock)
            self._connection = made
        self._set_timeout(REQUEST_TIMEOUT)
        return self._connection

    def _set_timeout(self, seconds: float) -> None:
        sock = self._connection.sock if self._connection is not None else None
        if sock is not None:
            sock.settimeout(seconds)

    def _decoded(self, path: str, answer: http.client.HTTPResponse) -> dict[str, Any]:
        try:
            return json.loads(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def _event(self, path: str, line: bytes) -> Event:
        data = json.loads(line)
        kind, found = data["type"], data["object"]
        if kind != "ERROR":
            return Event(kind, found)
        said = f"the watch of {path} at {self._access.url} was ended: {found.get('message', 'no reason given')}"
        status = found.get("code", 0)
        raise (Expired if status == HTTPStatus.GONE else ApiError)(said, status)

    def _broken(self, error: Exception) -> ApiError:
        self.close()
        return ApiError(f"the API server at {self._access.url} does not answer ({error or type(error).__name__})")

    def _refused(self, method: str, path: str, answer: http.client.HTTPResponse, text: bytes) -> ApiError:
        if not answer.isclosed():
            self.close()  # More of the answer is to come.
        status, said = answer.status, f"{_message(text)} ({answer.status})"
        url = self._access.url
        if status == HTTPStatus.UNAUTHORIZED:
            sentence = f"the API server at {url} does not know us: {said}; check the service account's token"
        elif status == HTTPStatus.FORBIDDEN:
            sentence = f"the API server at {url} does not let the agent {method} {path}: {said}; grant it as the chart does"
        elif status == HTTPStatus.NOT_FOUND and path.startswith("/apis/vtap.dev/"):
            sentence = f"the API server at {url} has no {path}: {said}; are our CRDs installed?"
        else:
            sentence = f"the API server at {url} refuses {method} {path}: {said}"
        kind = Expired if status == HTTPStatus.GONE else ApiError
        return kind(sentence, status, _seconds(answer.headers.get("Retry-After", "")))


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_TRIES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_MS)


def _message(text: bytes) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode("utf-8", "replace").strip() or "no reason given"


def _seconds(value: str) -> float:
    return float(value) if value.isdecimal() else 0.0
