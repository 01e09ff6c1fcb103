"""A stand-in for the API server that speaks its list and watch protocol, with as many objects as a measurement wants.

Lists come in pages with continue tokens, of whole objects or of metadata only; watches go on from a resource version, send
bookmarks, and answer 410 Gone where it is too old. Objects are written by POST, merge patch and server-side apply (which here
replaces what it gives), and deleted.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from vtap_operator import resources as known
from vtap_operator.resources import Resource

Object = dict[str, Any]
Name = tuple[str, str]
"""Namespace, empty for what is the cluster's, and name."""
HISTORY = 10_000
"""Events that a watch may go back."""
RESOURCES = (
    known.VIRTUAL_TAPS, known.TAP_DESTINATIONS, known.TAP_NODES, known.TAP_PEER_SLICES, known.NODES, known.NAMESPACES, known.PODS,
    known.SERVICES, known.SERVICE_ACCOUNTS, known.SECRETS, known.CLAIMS, known.EVENTS, known.DEPLOYMENTS, known.NETWORK_POLICIES,
    known.CLUSTER_ROLE_BINDINGS,
)  # fmt: skip


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass
class Clock:
    """One resource version for all objects, as etcd has."""

    version: int = 1000
    created: int = 0

    def tick(self) -> int:
        self.version += 1
        return self.version


@dataclass
class Collection:
    """Objects of one kind, what happened to them lately, and who watches."""

    resource: Resource
    clock: Clock
    objects: dict[Name, Object] = field(default_factory=dict)
    history: deque[tuple[int, str, Object]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    watchers: set[asyncio.Queue[tuple[int, str, Object] | None]] = field(default_factory=set)
    oldest: int = 0
    """Versions below are too old to watch from."""
    pages: int = 0
    """Pages that were asked for."""

    def put(self, body: Object) -> Object:
        """Make or replace an object, and tell watchers."""
        meta = body["metadata"]
        at = (meta.get("namespace", ""), meta["name"])
        held = self.objects.get(at)
        self.clock.created += 1
        before = held["metadata"] if held else {}
        filled = {"uid": before.get("uid", f"uid-{self.clock.created}"), "creationTimestamp": "2026-01-01T00:00:00Z", **meta}
        changed = held is None or held.get("spec") != body.get("spec")
        filled["generation"] = before.get("generation", 0) + changed
        filled["resourceVersion"] = str(self.clock.tick())
        made = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, **body, "metadata": filled}
        self.objects[at] = made
        self.tell("MODIFIED" if held else "ADDED", made)
        return made

    def drop(self, at: Name) -> None:
        gone = self.objects.pop(at)
        gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.clock.tick())}}
        self.tell("DELETED", gone)

    def tell(self, kind: str, body: Object) -> None:
        """All who watch, and those who will go on from before."""
        event = (int(body["metadata"]["resourceVersion"]), kind, body)
        self.history.append(event)
        for watcher in self.watchers:
            watcher.put_nowait(event)

    def forget(self) -> None:
        """What happened so far is too old to watch from; running watches end."""
        self.history.clear()
        self.oldest = self.clock.tick()
        for watcher in self.watchers:
            watcher.put_nowait(None)

    def select(self, namespace: str, selector: str) -> list[Object]:
        wanted = label_selector(selector)
        return [
            one for (where, _), one in sorted(self.objects.items())
            if (not namespace or where == namespace) and wanted(one["metadata"].get("labels") or {})
        ]  # fmt: skip

    def page(self, namespace: str, selector: str, start: int, limit: int) -> tuple[Iterator[bytes], int]:
        """(objects as JSON, how many there are after this page)."""
        self.pages += 1
        chosen = self.select(namespace, selector)
        part = chosen[start : start + limit] if limit else chosen[start:]
        return (json.dumps(one).encode() for one in part), max(0, len(chosen) - start - len(part))


def label_selector(text: str) -> Callable[[Mapping[str, str]], bool]:
    """`a=b`, `a in (b,c)`, `a notin (b)`, `a` and `!a`, joined by commas."""
    tests: list[Callable[[Mapping[str, str]], bool]] = []
    for part in re.findall(r"[^,(]+(?:\([^)]*\))?", text):
        tests.append(_requirement(part.strip()))
    return lambda labels: all(test(labels) for test in tests)


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if listed := re.fullmatch(r"(\S+) (in|notin) \((.*)\)", text):
        key, values, inside = listed[1], {one.strip() for one in listed[3].split(",")}, listed[2] == "in"
        return lambda labels: (labels.get(key) in values) == inside
    if "=" in text:
        key, value = text.replace("==", "=").split("=")
        return lambda labels: labels.get(key) == value
    return (lambda labels: text[1:] not in labels) if text.startswith("!") else (lambda labels: text in labels)


def metadata_only(body: Object) -> Object:
    """As PartialObjectMetadata."""
    return {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": body["metadata"]}


class StandIn:
    """Use as an asynchronous context manager; `url` is where it is then."""

    def __init__(self, collections: Iterable[Collection] = (), clock: Clock | None = None, bookmarks: float = 30.0) -> None:
        self.clock = clock or Clock()
        self.bookmarks = bookmarks
        given = {one.resource: one for one in collections}
        self.collections = {one: given.get(one) or Collection(one, self.clock) for one in RESOURCES}
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.failing: deque[int] = deque()
        """Statuses for the next requests, in the place of answers."""
        self.on_apply: Callable[[Resource, Object], None] = lambda resource, body: None
        self._runner: web.AppRunner | None = None

    def __getitem__(self, resource: Resource) -> Collection:
        return self.collections[resource]

    async def __aenter__(self) -> StandIn:
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        (address,) = self._runner.addresses
        self.url = f"http://127.0.0.1:{address[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in self.collections.values():
            one.forget()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        try:
            if self.failing:
                raise Refused(self.failing.popleft(), "InternalError", "asked to fail")
            if (found := self._discovery(request.path)) is not None:
                return web.json_response(found)
            resource, namespace, name, _ = self._parse(request.path)
            if request.method == "GET" and not name:
                one = self.collections[resource]
                return await (self._watch if "watch" in request.query else self._list)(request, one, namespace)
            return web.json_response(await self._change(request, resource, namespace, name))
        except Refused as refused:
            status = {"kind": "Status", "reason": refused.reason, "message": str(refused), "code": refused.status}
            return web.json_response(status, status=refused.status)

    def _parse(self, path: str) -> tuple[Resource, str, str, str]:
        """(kind, namespace, name, subresource)."""
        for resource in self.collections:
            base = resource.path()
            group, _, plural = base.rpartition("/")
            found = re.fullmatch(rf"{group}(?:/namespaces/([^/]+))?/{plural}(?:/([^/]+))?(?:/(status))?", path)
            if found:
                return resource, found[1] or "", found[2] or "", found[3] or ""
        raise Refused(404, "NotFound", f"no such path: {path}")

    def _discovery(self, path: str) -> Object | None:
        groups: dict[str, list[Resource]] = {}
        for resource in self.collections:
            groups.setdefault(resource.api_version, []).append(resource)
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            named = [version.split("/") for version in groups if "/" in version]
            return {"groups": [
                {"name": group, "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                 "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version}}
                for group, version in named
            ]}  # fmt: skip
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version not in groups:
            return None
        return {"groupVersion": version, "resources": [
            {"name": name, "kind": one.kind, "singularName": one.kind.lower(), "namespaced": one.namespaced,
             "verbs": ["get", "list", "watch", "patch", "create", "delete"]}
            for one in groups[version] for name in (one.plural, f"{one.plural}/status")
        ]}  # fmt: skip

    async def _list(self, request: web.Request, one: Collection, namespace: str) -> web.StreamResponse:
        query = request.query
        limit = int(query.get("limit", "0"))
        version, _, start = query.get("continue", f"{self.clock.version}.0").partition(".")
        if int(version) < one.oldest:
            raise Refused(410, "Expired", "The provided continue parameter is too old")
        bare = "PartialObjectMetadata" in request.headers.get("Accept", "")
        found, rest = one.page(namespace, query.get("labelSelector", ""), int(start), limit)
        items = [json.dumps(metadata_only(json.loads(item))).encode() for item in found] if bare else list(found)
        following = f"{version}.{int(start) + len(items)}" if rest else ""
        head = json.dumps({"resourceVersion": version, "continue": following, "remainingItemCount": rest})
        kind = "PartialObjectMetadataList" if bare else f"{one.resource.kind}List"
        body = b'{"kind":"%s","apiVersion":"%s","metadata":%s,"items":[' % (
            kind.encode(), one.resource.api_version.encode(), head.encode(),
        )  # fmt: skip
        return web.Response(body=body + b",".join(items) + b"]}", content_type="application/json")

    async def _watch(self, request: web.Request, one: Collection, namespace: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion", "0") or 0)
        if since < one.oldest:
            raise Refused(410, "Expired", "too old resource version")
        wanted = label_selector(request.query.get("labelSelector", ""))
        bare = "PartialObjectMetadata" in request.headers.get("Accept", "")
        queue: asyncio.Queue[tuple[int, str, Object] | None] = asyncio.Queue()
        for event in one.history:
            if event[0] > since:
                queue.put_nowait(event)
        one.watchers.add(queue)
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        try:
            await asyncio.wait_for(self._send_events(answer, one, queue, namespace, wanted, bare), _seconds(request))
        except (TimeoutError, ConnectionError):
            pass
        finally:
            one.watchers.discard(queue)
        return answer

    async def _send_events(
        self, answer: web.StreamResponse, one: Collection, queue: asyncio.Queue[tuple[int, str, Object] | None],
        namespace: str, wanted: Callable[[Mapping[str, str]], bool], bare: bool,
    ) -> None:  # fmt: skip
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), self.bookmarks)
            except TimeoutError:
                meta = {"resourceVersion": str(self.clock.version)}
                bookmark = {"kind": one.resource.kind, "apiVersion": one.resource.api_version, "metadata": meta}
                await answer.write(_line("BOOKMARK", bookmark))
                continue
            if event is None:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
                await answer.write(_line("ERROR", gone))
                return
            _, kind, body = event
            meta = body["metadata"]
            if (not namespace or meta.get("namespace") == namespace) and wanted(meta.get("labels") or {}):
                await answer.write(_line(kind, metadata_only(body) if bare else body))

    async def _change(self, request: web.Request, resource: Resource, namespace: str, name: str) -> Object:
        one = self.collections[resource]
        at = (namespace, name)
        body = await request.json() if request.can_read_body else {}
        if request.method == "POST":
            body["metadata"].setdefault("namespace", namespace)
            if (namespace, body["metadata"]["name"]) in one.objects:
                raise Refused(409, "AlreadyExists", f"{body['metadata']['name']} already exists")
            return one.put(body)
        if request.method == "PATCH" and "apply" in request.content_type:
            body["metadata"].setdefault("namespace", namespace)
            made = one.put(body)
            self.on_apply(resource, body)
            return made
        if at not in one.objects:
            raise Refused(404, "NotFound", f"{name} not found")
        if request.method == "DELETE":
            one.drop(at)
            return {"kind": "Status", "status": "Success"}
        if request.method == "PATCH":
            return one.put(merged(one.objects[at], body))
        return one.objects[at]


def merged(held: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(held) if isinstance(held, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _line(kind: str, body: Object) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def _seconds(request: web.Request) -> float:
    return float(request.query.get("timeoutSeconds", "300"))
