"""The API server behind `kubectl proxy`, and its refusals as sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from vtap_cli.daemons import Daemon, exchange, get_json, get_text
from vtap_cli.errors import CliError

GROUP = "/apis/vtap.dev/v1alpha1"
PAGE = 500
"""Objects a list request asks for at a time."""
NOT_INSTALLED = (
    "VirtualTap isn't installed in this cluster; an admin installs it with "
    "`helm install vtap charts/vtap -n vtap-system --create-namespace`"
)


class Forbidden(CliError):
    """The API server knows the user and refuses."""


class NotFound(CliError):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class ApiServer(Daemon):
    """The API server; `context` and `server` are the kubeconfig's names for it."""

    context: str = ""
    server: str = ""

    def absent(self, why: str) -> CliError:
        """`kubectl proxy` itself is gone."""
        return CliError(f"`kubectl proxy` has ended ({why}); try again")

    def refused(self, path: str, status: int, body: bytes) -> CliError:
        """By what the API server says: a Status object, or text from kubectl where it could not even be asked."""
        try:
            said = json.loads(body)
            message, reason = str(said["message"]), str(said.get("reason", ""))
        except (ValueError, LookupError, TypeError, AttributeError):
            return self._without_words(path, status, body.decode(errors="replace").strip())
        return refusal(status, reason, message)

    def _without_words(self, path: str, status: int, text: str) -> CliError:
        if status == HTTPStatus.NOT_FOUND:
            return CliError(NOT_INSTALLED) if path.startswith(GROUP) else NotFound(f"the API server has no {path}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            where = f"{self.server} (context {self.context!r})"
            return CliError(f"the cluster at {where} cannot be asked: {text}; `kubectl version` shows whether kubectl can")
        return CliError(f"the API server answers {path} with {status}: {text}")


def refusal(status: int, reason: str, message: str) -> CliError:
    """The sentence for a Status object."""
    if status == HTTPStatus.UNAUTHORIZED:
        return CliError(f"the API server does not accept the kubeconfig's credentials ({message}); log in again")
    if status == HTTPStatus.FORBIDDEN:
        return Forbidden(f"not allowed: {message}{_role_for(message)}")
    if status == HTTPStatus.NOT_FOUND:
        return NotFound(message)
    return CliError(f"the API server refuses: {message}")


def _role_for(message: str) -> str:
    """What to ask an admin for, where the refusal is about something of ours."""
    if "virtualtaps" in message:
        role = "vtap-view" if any(f"cannot {verb} " in message for verb in ("get", "list", "watch")) else "vtap-edit"
    elif "tapdestinations" in message or "tapnodes" in message:
        role = "vtap-view"
    else:
        return ""
    return f"; ask an admin for the ClusterRole {role}"


def named(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def of_group(kind: str, namespace: str = "", name: str = "") -> str:
    """The path of objects of ours: ``virtualtaps`` and so on."""
    within = f"/namespaces/{named(namespace)}" if namespace else ""
    return f"{GROUP}{within}/{kind}" + (f"/{named(name)}" if name else "")


def of_core(kind: str, namespace: str = "", name: str = "") -> str:
    """The path of objects of the core group: ``pods`` and so on."""
    within = f"/namespaces/{named(namespace)}" if namespace else ""
    return f"/api/v1{within}/{kind}" + (f"/{named(name)}" if name else "")


@dataclass(frozen=True, slots=True)
class Api:
    """Requests to the API server. All raise CliError, Forbidden and NotFound among them."""

    server: ApiServer

    def get(self, path: str) -> dict[str, Any]:
        """One object."""
        return _object(get_json(self.server, path))

    def list(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """All objects of a list, page by page."""
        more = ""
        while True:
            page = {"limit": str(PAGE), **(query or {}), **({"continue": more} if more else {})}
            answer = _object(get_json(self.server, path, page))
            yield from answer.get("items") or ()
            more = (answer.get("metadata") or {}).get("continue") or ""
            if not more:
                return

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The object as it was made."""
        return _object(exchange(self.server, "POST", path, None, body))

    def delete(self, path: str) -> None:
        """Delete one object; one that is gone already is no error."""
        try:
            exchange(self.server, "DELETE", path)
        except NotFound:
            return

    def text(self, path: str) -> str:
        """What something behind the API server's proxy answers."""
        return get_text(self.server, path)


def _object(answer: Any) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise CliError("the API server answers with something that is no object; what does the kubeconfig point at?")
    return answer
