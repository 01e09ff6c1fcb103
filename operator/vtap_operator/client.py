"""The API server, as far as the operator needs it: pages of lists, watches, server-side apply, merge patches of status.

Answers come as bytes, for msgspec to take only what is needed out of them. Requests that may pass are repeated for a while;
what then still fails is raised as ApiError.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import msgspec

from vtap_operator import metrics
from vtap_operator.access import REREAD, Access, Credentials
from vtap_operator.errors import ApiError
from vtap_operator.resources import Resource

FIELD_MANAGER = "vtap-operator"
REQUEST_TIMEOUT = 30.0
"""Seconds for one request that is no watch."""
BACKOFFS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between tries of one request; each is drawn from half to all of it."""
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
METADATA_ONLY = {
    "list": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json",
    "watch": "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json",
}
_REPEATED = frozenset({429, 500, 502, 503, 504})


class _Status(msgspec.Struct):
    """Kubernetes' answer to what it refuses."""

    reason: str = ""
    message: str = ""
    code: int = 0


class Client:
    """One session with the API server. Use as an asynchronous context manager."""

    def __init__(self, access: Access, connections: int = 64) -> None:
        self._access = access
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._read_at = 0.0
        self._credentials = Credentials()
        self._ssl: ssl.SSLContext | None = None
        self.used: set[tuple[str, str, str, str]] = set()
        """(group, resource with subresource, verb, namespace) of all requests so far."""

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT),
            json_serialize=lambda value: msgspec.json.encode(value).decode(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def _authority(self) -> tuple[dict[str, str], ssl.SSLContext | bool]:
        """Headers and TLS, from files that may have been rotated."""
        if time.monotonic() - self._read_at > REREAD.total_seconds() or not self._read_at:
            now = self._access.credentials()
            if (now.ca, now.certificate, now.key) != (
                self._credentials.ca, self._credentials.certificate, self._credentials.key,
            ) or self._ssl is None:  # fmt: skip
                self._ssl = self._access.ssl_context(now)
            self._credentials, self._read_at = now, time.monotonic()
        token = self._credentials.token
        return ({"Authorization": f"Bearer {token}"} if token else {}), (self._ssl if self._ssl is not None else True)

    async def _send(
        self, verb: str, method: str, resource: Resource, path: str, headers: Mapping[str, str], **extra: Any
    ) -> aiohttp.ClientResponse:
        """One try. Raises ApiError for anything but success; the answer is open."""
        assert self._session is not None, "the client is used as a context manager"
        authority, tls = self._authority()
        try:
            answer = await self._session.request(
                method, self._access.server + path, headers={**authority, **headers}, ssl=tls, **extra
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.REQUESTS.labels(verb, resource.plural, "none").inc()
            said = str(error) or type(error).__name__
            raise ApiError(0, "Unreachable", f"the API server does not answer: {said}") from None
        metrics.REQUESTS.labels(verb, resource.plural, str(answer.status)).inc()
        if answer.status < 400:
            return answer
        async with answer:
            if answer.status == 401:
                self._read_at = 0.0
            raise _refusal(answer.status, await _body(answer), answer.headers.get("Retry-After", ""))

    def _note(self, verb: str, resource: Resource, namespace: str, subresource: str) -> None:
        full = f"{resource.plural}/{subresource}" if subresource else resource.plural
        self.used.add((resource.group, full, verb, namespace))

    async def request(
        self,
        verb: str,
        method: str,
        resource: Resource,
        *,
        namespace: str = "",
        name: str = "",
        subresource: str = "",
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> bytes:
        """The answer's body. Repeated while that may help; raises ApiError. `verb` is Kubernetes' (RBAC) word for it."""
        self._note(verb, resource, namespace, subresource)
        path = resource.path(namespace, name, subresource)
        headers = {"Accept": accept}
        extra: dict[str, Any] = {"params": dict(params or {})}
        if body is not None:
            headers["Content-Type"] = content_type
            extra["data"] = msgspec.json.encode(body)
        for backoff in (*BACKOFFS, None):
            try:
                async with await self._send(verb, method, resource, path, headers, **extra) as answer:
                    return await _body(answer)
            except ApiError as error:
                if backoff is None or (error.status not in _REPEATED and error.status not in (0, 401)):
                    raise
                wait = error.retry_after
            await asyncio.sleep(max(wait, backoff * random.uniform(0.5, 1)))
        raise AssertionError("the last try raises")

    async def page(
        self, resource: Resource, *, namespace: str = "", params: Mapping[str, str] | None = None, metadata_only: bool = False
    ) -> bytes:
        """One page of a list."""
        accept = METADATA_ONLY["list"] if metadata_only else "application/json"
        return await self.request("list", "GET", resource, namespace=namespace, params=params, accept=accept)

    async def get(self, resource: Resource, name: str, namespace: str = "") -> bytes | None:
        """An object; None where there is none."""
        try:
            return await self.request("get", "GET", resource, namespace=namespace, name=name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, resource: Resource, body: Mapping[str, Any]) -> bytes:
        """Server-side apply: the object as it is to be, made where there is none. Ours are the fields that `body` has."""
        meta = body["metadata"]
        self._note("create", resource, meta.get("namespace", ""), "")
        return await self.request(
            "patch", "PATCH", resource, namespace=meta.get("namespace", ""), name=meta["name"], body=body,
            content_type=APPLY, params={"fieldManager": FIELD_MANAGER, "force": "true"},
        )  # fmt: skip

    async def merge(
        self, resource: Resource, name: str, body: Mapping[str, Any], *, namespace: str = "", subresource: str = ""
    ) -> bytes | None:
        """Merge patch (RFC 7386). None where the object is gone."""
        try:
            return await self.request(
                "patch", "PATCH", resource, namespace=namespace, name=name, subresource=subresource, body=body,
                content_type=MERGE, params={"fieldManager": FIELD_MANAGER},
            )  # fmt: skip
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, resource: Resource, body: Mapping[str, Any]) -> bool:
        """Whether it was made; it was not where there is one of that name already."""
        try:
            await self.request(
                "create", "POST", resource, namespace=body["metadata"].get("namespace", ""), body=body,
                params={"fieldManager": FIELD_MANAGER},
            )  # fmt: skip
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                return False
            raise
        return True

    async def delete(self, resource: Resource, name: str, namespace: str = "", uid: str = "") -> None:
        """An object that is gone already, or is another one by now (`uid`), is none of our business."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        preconditions = {"preconditions": {"uid": uid}} if uid else {}
        try:
            await self.request("delete", "DELETE", resource, namespace=namespace, name=name, body={**body, **preconditions})
        except ApiError as error:
            if error.status != 404 and not (uid and error.status == 409):
                raise

    async def watch(
        self, resource: Resource, *, namespace: str = "", params: Mapping[str, str], metadata_only: bool = False, silence: float
    ) -> AsyncIterator[list[bytes]]:
        """Events as lines of JSON, as many as came at once. Ends when the server ends it, or after `silence` seconds of it."""
        self._note("watch", resource, namespace, "")
        accept = METADATA_ONLY["watch"] if metadata_only else "application/json"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT, sock_read=silence)
        query = {**params, "watch": "true", "allowWatchBookmarks": "true"}
        answer = await self._send(
            "watch", "GET", resource, resource.path(namespace), {"Accept": accept}, params=query, timeout=timeout
        )
        rest = b""
        async with answer:
            try:
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    if lines:
                        yield [line for line in lines if line]
            except (aiohttp.ClientError, TimeoutError, OSError):
                return


def _refusal(status: int, body: bytes, retry_after: str) -> ApiError:
    try:
        said = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        said = _Status(message=body[:200].decode(errors="replace").strip())
    wait = min(float(retry_after), REQUEST_TIMEOUT) if retry_after.isdigit() else 0.0
    return ApiError(status, said.reason, said.message or f"the API server answered {status}", wait)


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    try:
        return await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        said = str(error) or type(error).__name__
        raise ApiError(0, "Unreachable", f"the API server's answer broke off: {said}") from None
