"""Asking a daemon on its Unix socket."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

from vtap_lab.errors import LabError


class _Local(HTTPConnection):
    """HTTP on a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket(AF_UNIX)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, url: str, body: object = None, token: str = "") -> Any:
    """One request to a daemon; LabError when it refuses."""
    connection = _Local(path)
    try:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, url, json.dumps(body) if body is not None else None, headers)
        answer = connection.getresponse()
        content = answer.read()
    except OSError as error:
        raise LabError(f"{path}: {error}") from error
    finally:
        connection.close()
    if answer.status >= 300:
        raise LabError(f"{url}: {answer.status} {content.decode(errors='replace')}")
    return json.loads(content) if content else None
