"""The API server as a pod sees it, by the standard library alone: what the chart's jobs speak."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REQUEST_TIMEOUT = 15.0
"""Seconds for one answer."""
PATIENCE = 60.0
"""Seconds for which a request is made again where nobody answers."""

Object = dict[str, Any]


class ApiError(Exception):
    """A request failed: `status` is HTTP's, or 0 where nobody answered; `str()` is what the API server says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def in_cluster() -> str:
    """Where the kubelet says that it is, so that no name server is needed; by its name where nothing is said."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return "https://kubernetes.default.svc"
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


class Api:
    """Requests with the pod's own token. Every method raises ApiError."""

    def __init__(self, server: str = "", account: Path = ACCOUNT, patience: float = PATIENCE) -> None:
        self._server = server or in_cluster()
        self._account = account
        self._patience = patience

    def _open(self, request: urllib.request.Request) -> bytes:
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt")) if self._server.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT, context=context) as answer:
            return answer.read()

    def _request(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Object:
        """Again where nobody answers: none of these requests means more when it is made twice."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return self._request_once(method, path, body, kind)
            except ApiError as error:
                if error.status or time.monotonic() >= deadline:
                    raise
            time.sleep(1.0)

    def _request_once(self, method: str, path: str, body: object, kind: str) -> Object:
        # Read each time: the kubelet renews the token.
        headers = {"Authorization": f"Bearer {(self._account / 'token').read_text().strip()}", "Accept": "application/json"}
        data = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), kind
        try:
            return json.loads(self._open(urllib.request.Request(self._server + path, data, headers, method=method)))
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, _message(error.read()) or str(error)) from None
        except (OSError, ValueError) as error:
            raise ApiError(0, f"the API server can't be reached ({error})") from None

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path)

    def find(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def post(self, path: str, body: Object) -> Object:
        return self._request("POST", path, body)

    def patch(self, path: str, body: Object) -> Object:
        """A JSON merge patch (RFC 7386): lists are replaced as a whole."""
        return self._request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str, query: Mapping[str, str] | None = None) -> bool:
        """Whether there was something to delete."""
        try:
            self._request("DELETE", f"{path}?{urlencode(query)}" if query else path)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        return ""


def poll(done: Callable[[], bool], deadline: float, every: float = 1.0) -> bool:
    """Ask until it is so, or the deadline (time.monotonic) has passed. Times when the API server is away are passed over."""
    while True:
        try:
            if done():
                return True
        except ApiError as error:
            if error.status not in (0, 429, 500, 502, 503, 504):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)


def condition(resource: Object, kind: str) -> Object:
    """The condition of this type; empty where there is none."""
    conditions = resource.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})
