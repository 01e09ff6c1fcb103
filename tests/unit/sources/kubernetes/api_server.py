"""An API server in memory that speaks the real protocol over HTTP: lists in pages, watches with bookmarks and compaction,
field selectors, metadata only, and patches of the status. Objects are plain data."""

from __future__ import annotations

import itertools
import json
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vtap_agent.sources.kubernetes.access import Access

Object = dict[str, Any]
NAMESPACED = frozenset({"virtualtaps", "tappeerslices", "pods"})


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    base = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        base.pop(key, None) if value is None else base.__setitem__(key, merged(base.get(key), value))
    return base


class ApiServer:
    """`with ApiServer() as server:`, then `put` and `delete` as a cluster's users would; `asked` lists (verb, resource)."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.changed = threading.Condition()
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        """(version, resource, kind of event, object)"""
        self.version = 100
        self.oldest = 0
        """Watches and pages from before this version are refused with 410."""
        self.token = ""
        self.page_size = 500
        self.refuse: tuple[int, str] | None = None
        self.refuse_resource = ""
        self.cut = 0
        """Counts how often every watch was to be cut without a word."""
        self.bookmarks = True
        self.asked: list[tuple[str, str]] = []
        self.queries: list[tuple[str, dict[str, str]]] = []
        self.watches = 0
        self._uids = itertools.count(1)
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.api = self
        if context is not None:
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.port = self._http.server_address[1]
        self._thread: threading.Thread | None = None
        self.stopping = False

    def __enter__(self) -> ApiServer:
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self._http.shutdown()
        self._http.server_close()

    @property
    def access(self) -> Access:
        return Access("127.0.0.1", self.port, secure=False, token=self.token)

    def put(self, resource: str, item: Object) -> Object:
        """Create or replace; the generation counts changes of the spec."""
        with self.changed:
            metadata = item["metadata"]
            key = (resource, metadata.get("namespace", ""), metadata["name"])
            before = self.objects.get(key)
            self.version += 1
            old = before["metadata"] if before else {"uid": f"uid-{next(self._uids)}", "generation": 0}
            raised = before is None or before.get("spec") != item.get("spec")
            full = {
                **item,
                "metadata": {
                    "uid": old["uid"],
                    "creationTimestamp": old.get("creationTimestamp", "2026-01-31T12:00:00Z"),
                    "generation": old["generation"] + raised,
                    **metadata,
                    "resourceVersion": str(self.version),
                },
            }
            self.objects[key] = full
            self.history.append((self.version, resource, "MODIFIED" if before else "ADDED", full))
            self.changed.notify_all()
            return full

    def delete(self, resource: str, name: str, namespace: str = "") -> None:
        with self.changed:
            self.version += 1
            gone = self.objects.pop((resource, namespace, name))
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, resource, "DELETED", gone))
            self.changed.notify_all()

    def get(self, resource: str, name: str, namespace: str = "") -> Object:
        with self.changed:
            return self.objects[(resource, namespace, name)]

    def compact(self) -> None:
        """Forget all history, and end every watch."""
        with self.changed:
            self.oldest = self.version = self.version + 1
            self.cut += 1
            self.changed.notify_all()

    def cut_watches(self) -> None:
        with self.changed:
            self.cut += 1
            self.changed.notify_all()

    def patch_status(self, resource: str, name: str, namespace: str, patch: Object) -> Object | None:
        with self.changed:
            before = self.objects.get((resource, namespace, name))
            if before is None:
                return None
            return self.put(resource, {**before, "status": merged(before.get("status"), patch.get("status"))})


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    api: ApiServer


def _selected(item: Object, selector: str) -> bool:
    if not selector:
        return True
    path, _, value = selector.partition("=")
    found: Any = item
    for part in path.split("."):
        found = (found or {}).get(part, "")
    return found == value


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def api(self) -> ApiServer:
        return self.server.api  # pyright: ignore[reportAttributeAccessIssue]

    def log_message(self, format: str, *args: object) -> None: ...

    def _place(self) -> tuple[str, str, str, str]:
        """(resource, namespace, name, subresource) of the path."""
        parts = urlsplit(self.path).path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces" and len(parts) > 2:
            namespace, parts = parts[1], parts[2:]
        parts += [""] * (3 - len(parts))
        return parts[0], namespace, parts[1], parts[2]

    def _refused(self, verb: str, resource: str) -> bool:
        api = self.api
        with api.changed:
            api.asked.append((verb, resource))
            refuse = api.refuse if api.refuse_resource in ("", resource.split("/")[0]) else None
        if api.token and self.headers.get("Authorization") != f"Bearer {api.token}":
            refuse = (401, "Unauthorized")
        if refuse is not None:
            self._fail(*refuse)
        return refuse is not None

    def _fail(self, code: int, message: str) -> None:
        self._json({"kind": "Status", "code": code, "message": message}, code)

    def _json(self, body: Any, code: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        resource, namespace, _, _ = self._place()
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        verb = "watch" if query.get("watch") else "list"
        self.api.queries.append((resource, query))
        if self._refused(verb, resource):
            return
        if verb == "watch":
            self._watch(resource, namespace, query)
        else:
            self._list(resource, namespace, query)

    def do_PATCH(self) -> None:
        resource, namespace, name, subresource = self._place()
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused("patch", f"{resource}/{subresource}".rstrip("/")):
            return
        done = self.api.patch_status(resource, name, namespace, patch)
        self._json(done) if done is not None else self._fail(404, f'{resource} "{name}" not found')

    def _shown(self, item: Object) -> Object:
        if "as=PartialObjectMetadata" in self.headers.get("Accept", ""):
            return {"kind": "PartialObjectMetadata", "metadata": item["metadata"]}
        return item

    def _list(self, resource: str, namespace: str, query: Mapping[str, str]) -> None:
        api = self.api
        with api.changed:
            version, start = api.version, 0
            if token := query.get("continue"):
                version, start = map(int, token.split("-"))
                if version < api.oldest:
                    return self._fail(410, "the provided continue parameter is too old")
            items = [
                item
                for (kind, where, _), item in sorted(api.objects.items())
                if kind == resource and namespace in ("", where) and _selected(item, query.get("fieldSelector", ""))
            ]
            size = min(int(query["limit"]), api.page_size) if "limit" in query else len(items)
        page, metadata = items[start : start + size], {"resourceVersion": str(version)}
        if start + size < len(items):
            metadata["continue"] = f"{version}-{start + size}"
        return self._json({"kind": "List", "metadata": metadata, "items": [self._shown(item) for item in page]})

    def _watch(self, resource: str, namespace: str, query: Mapping[str, str]) -> None:
        api = self.api
        seen, selector = int(query["resourceVersion"]), query.get("fieldSelector", "")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with api.changed:
            cut = api.cut
            api.watches += 1
            gone = seen < api.oldest
        if gone:
            self._event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
            self._chunk(b"")
            return
        while True:
            with api.changed:
                due = [event for event in api.history if event[0] > seen]
                if not due and api.cut == cut and not api.stopping:
                    api.changed.wait(5)
                if api.cut != cut or api.stopping:
                    self.close_connection = True
                    return
            try:
                for version, kind_of, kind, item in due:
                    seen = version
                    where = item["metadata"].get("namespace", "")
                    if kind_of == resource and namespace in ("", where) and _selected(item, selector):
                        self._event(kind, self._shown(item))
                if due and api.bookmarks and query.get("allowWatchBookmarks"):
                    self._event("BOOKMARK", {"kind": "X", "metadata": {"resourceVersion": str(seen)}})
            except OSError:
                self.close_connection = True
                return

    def _event(self, kind: str, item: Object) -> None:
        self._chunk(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
