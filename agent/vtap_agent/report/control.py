"""One kept-alive connection to a collector's control channel (docs/architecture.md): plain HTTP, a Unix socket, or mutual TLS."""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from vtap_agent.errors import Retry, TellUser
from vtap_agent.plan.streams import ControlEndpoint
from vtap_agent.report.identity import ClientIdentity

REQUEST_TIMEOUT = 2.0
MAX_ANSWER = 4 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What a collector answered: `body` is empty where it said nothing, `problem` a sentence where it refused."""

    body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: str = ""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=REQUEST_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(REQUEST_TIMEOUT)
        self.sock.connect(self._path)


class Client:
    """One kept-alive connection to one endpoint; another as soon as our certificate is another."""

    def __init__(self, identity: ClientIdentity | None = None) -> None:
        self._identity = identity
        self._endpoint: ControlEndpoint | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._secured: ssl.SSLContext | None = None

    def is_connected_to(self, endpoint: ControlEndpoint) -> bool:
        """Whether the next request goes over the same connection as the last: either end may have closed it."""
        if self._connection is None or self._connection.sock is None or _is_closed(self._connection.sock):
            return False
        return self._endpoint == endpoint and self._secured is self._secures(endpoint)

    def _secures(self, endpoint: ControlEndpoint) -> ssl.SSLContext | None:
        """None for plain HTTP. Raises Wait while there is no certificate."""
        if not endpoint.url.startswith("https:"):
            return None
        if self._identity is None:
            raise TellUser(f"the collector at {endpoint.url} asks for a certificate; give the agent --tls DIR")
        return self._identity.context()

    def request(self, endpoint: ControlEndpoint, method: str, path: str, body: Mapping[str, Any]) -> Answer:
        """Raises Retry where nobody answers, TellUser where what answers is no collector."""
        headers, secured = _headers(endpoint), self._secures(endpoint)
        try:
            connection = self._connect(endpoint, secured)
            connection.request(method, path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER).decode("utf-8", "replace")
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.close()
            raise Retry(
                f"the collector at {endpoint.url} does not answer ({error}); check that it runs and is reachable"
            ) from error
        if answer.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            cure = "token; give both the same file" if secured is None else f"certificate: {_error_of(text)}"
            return Answer(_object(text), f"the collector at {endpoint.url} refuses our {cure}")
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            return Answer(_object(text), f"the collector at {endpoint.url} refuses our streams: {_error_of(text)}")
        body = _object(text)
        if text and not body:
            raise TellUser(f"what answers at {endpoint.url} is no collector of this version; check the destination's URL")
        return Answer(body)

    def _connect(self, endpoint: ControlEndpoint, secured: ssl.SSLContext | None) -> http.client.HTTPConnection:
        if not self.is_connected_to(endpoint):
            self.close()
            self._endpoint, self._secured = endpoint, secured
            self._connection = _new_connection(endpoint.url, secured)
        assert self._connection is not None
        return self._connection

    def close(self) -> None:
        """The next request goes over another connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _is_closed(connection: socket.socket) -> bool:
    """Between an answer and the next request nothing comes but the end: a peer that has gone is noticed before it is needed."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _new_connection(url: str, secured: ssl.SSLContext | None) -> http.client.HTTPConnection:
    if url.startswith("unix:"):
        return _UnixConnection(url.removeprefix("unix:"))
    parts = urlsplit(url)
    if secured is not None:
        return http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=REQUEST_TIMEOUT, context=secured)
    return http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=REQUEST_TIMEOUT)


def _headers(endpoint: ControlEndpoint) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if endpoint.token_file:
        try:
            token = Path(endpoint.token_file).read_text(encoding="ascii").strip()
            if not token.isprintable():
                raise ValueError("it is not one line of text")
        except (OSError, ValueError) as error:
            raise TellUser(f"{endpoint.token_file}: the token cannot be read ({error}); create the file") from error
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _object(text: str) -> Mapping[str, Any]:
    """Empty for what is no JSON object."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}


def _error_of(text: str) -> str:
    return str(_object(text).get("error") or text[:200] or "no reason given")
