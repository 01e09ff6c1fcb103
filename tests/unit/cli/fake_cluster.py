"""A small API server that behaves: it keeps objects, pages lists, refuses as RBAC does, and proxies to collectors and agents.

The real kubectl talks to it over HTTP; nothing of the command line is replaced.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

GROUP = "/apis/vtap.dev/v1alpha1"
PATH = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([^/]+)(?:/([^/]+))?(/.*)?")
PREFIX = {
    "VirtualTap": (GROUP, "virtualtaps"),
    "TapDestination": (GROUP, "tapdestinations"),
    "TapNode": (GROUP, "tapnodes"),
    "Pod": ("/api/v1", "pods"),
    "Namespace": ("/api/v1", "namespaces"),
    "Service": ("/api/v1", "services"),
    "Deployment": ("/apis/apps/v1", "deployments"),
}

Object = dict[str, Any]
Answer = Callable[["Reply", dict[str, str]], None]


@dataclass
class Collector:
    """Behind a Service: judges tokens, and answers by path. `may_read` are namespaces, "*" for answers about all taps."""

    answers: dict[str, Answer] = field(default_factory=dict)
    tokens: frozenset[str] = frozenset({"user-token"})
    may_read: frozenset[str] = frozenset({"shop"})
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def serve(self, reply: Reply, path: str, query: dict[str, str]) -> None:
        token = reply.headers.get("X-Vtap-Authorization", "").removeprefix("Bearer ")
        namespace = query.get("tap", "*/").split("/")[0]
        self.asked.append((path, query))
        if token not in self.tokens:
            reply.json({"error": "a valid bearer token is needed"}, 401)
        elif namespace not in self.may_read:
            reply.json({"error": f"user alice cannot get virtualtaps/packets in namespace {namespace}"}, 403)
        elif path not in self.answers:
            reply.json({"error": f"there is no {path}"}, 404)
        else:
            self.answers[path](reply, query)


class FakeCluster:
    """Objects by kind; `forbidden` are (verb, plural) that RBAC refuses; `page` cuts lists, as a small limit would."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[tuple[str, str], Object]] = {}
        self.forbidden: set[tuple[str, str]] = set()
        self.installed = True
        self.page = 2
        self.collectors: dict[tuple[str, str], Collector] = {}
        self.metrics: dict[str, Callable[[], str]] = {}
        self.tokens_made: list[tuple[str, str, Object]] = []
        self.on_create: Callable[[Object], None] = lambda _: None
        self.deleted: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Reply,), {"cluster": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind: str, name: str, namespace: str = "", *, labels: dict[str, str] | None = None, **fields: Any) -> Object:
        made = {
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "labels": labels or {}, "uid": f"uid-{name}", "generation": 1},
            **fields,
        }
        self.objects.setdefault(PREFIX[kind], {})[namespace, name] = made
        return made

    def kind(self, kind: str) -> dict[tuple[str, str], Object]:
        return self.objects.get(PREFIX[kind], {})


class Reply(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: FakeCluster

    def do_GET(self) -> None:
        self._route("get")

    def do_POST(self) -> None:
        self._route("create")

    def do_DELETE(self) -> None:
        self._route("delete")

    def _route(self, verb: str) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        found = PATH.fullmatch(parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found is None or (found[1] == GROUP and not self.cluster.installed):
            self.raw(b"404 page not found\n", 404)
            return
        prefix, namespace, plural, name, rest = found.groups()
        if verb == "get" and not name:
            verb = "list"
        if (verb, f"{plural}{rest or ''}".split("/proxy")[0]) in self.cluster.forbidden:
            self.status(403, "Forbidden", f'{plural} is forbidden: User "alice" cannot {verb} resource "{plural}"')
        elif rest is not None and rest.startswith("/proxy"):
            self._proxy(namespace, plural, name, rest.removeprefix("/proxy"), query)
        elif rest == "/token":
            self._token(namespace, name, json.loads(body))
        elif verb == "list":
            self._list(prefix, plural, namespace, query)
        elif verb == "create":
            self._create(prefix, plural, namespace, json.loads(body))
        else:
            self._one(verb, prefix, plural, namespace or "", name)

    def _list(self, prefix: str, plural: str, namespace: str | None, query: dict[str, str]) -> None:
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        found = [
            item
            for (where, _), item in sorted(self.cluster.objects.get((prefix, plural), {}).items())
            if namespace in (None, where) and wanted.items() <= item["metadata"]["labels"].items()
        ]
        start = int(query.get("continue") or 0)
        end = start + min(self.cluster.page, int(query.get("limit") or 500))
        more = {"continue": str(end)} if end < len(found) else {}
        self.json({"kind": "List", "metadata": more, "items": found[start:end]})

    def _create(self, prefix: str, plural: str, namespace: str, made: Object) -> None:
        meta = made["metadata"]
        meta.setdefault("name", meta.pop("generateName", "") + "x7k2p")
        meta.update(namespace=namespace, uid=f"uid-{meta['name']}", generation=1, labels=meta.get("labels") or {})
        meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
        with self.cluster.lock:
            self.cluster.objects.setdefault((prefix, plural), {})[namespace, meta["name"]] = made
        self.cluster.on_create(made)
        self.json(made, 201)

    def _one(self, verb: str, prefix: str, plural: str, namespace: str, name: str) -> None:
        with self.cluster.lock:
            kept = self.cluster.objects.get((prefix, plural), {})
            found = kept.get((namespace, name))
            if found is not None and verb == "delete":
                del kept[namespace, name]
                self.cluster.deleted.append((namespace, name))
        if found is None:
            self.status(404, "NotFound", f'{plural} "{name}" not found')
        else:
            self.json(found)

    def _token(self, namespace: str, name: str, request: Object) -> None:
        self.cluster.tokens_made.append((namespace, name, request["spec"]))
        self.json({"kind": "TokenRequest", "status": {"token": f"token-of-{name}"}}, 201)

    def _proxy(self, namespace: str, plural: str, name: str, path: str, query: dict[str, str]) -> None:
        scheme, _, rest = name.partition(":")
        target, _, port = rest.partition(":")
        collector = self.cluster.collectors.get((namespace, target))
        if plural == "services" and (scheme, port) == ("https", "https") and collector is not None:
            collector.serve(self, path, query)
        elif plural == "services" and (namespace, target) in self.cluster.kind("Service"):
            self.status(503, "ServiceUnavailable", f'no endpoints available for service "{target}"')
        elif plural == "pods" and (scheme, port, path) == ("http", "9473", "/metrics") and target in self.cluster.metrics:
            self.raw(self.cluster.metrics[target]().encode(), 200)
        else:
            self.status(404, "NotFound", f'{plural} "{target}" not found')

    # ---- answers ----

    def status(self, code: int, reason: str, message: str) -> None:
        self.json({"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}, code)

    def json(self, data: Any, code: int = 200) -> None:
        self.raw(json.dumps(data).encode(), code, "application/json")

    def raw(self, body: bytes, code: int, kind: str = "text/plain") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what was asked."""
