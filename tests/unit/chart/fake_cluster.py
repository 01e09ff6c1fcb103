"""An API server for the chart's jobs, with the controllers that they wait for. It allows what given roles allow."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
NAMESPACE = "vtap-system"
CLEANUP = "cleanup"
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?"
)


@dataclass(frozen=True)
class Asked:
    """One request, in RBAC's terms."""

    group: str
    resource: str
    verb: str
    name: str
    namespace: str


@dataclass(frozen=True)
class Rule:
    """One rule of a role; `namespace` empty for a ClusterRole."""

    groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    names: tuple[str, ...]
    namespace: str

    def allows(self, asked: Asked) -> bool:
        return (
            asked.group in self.groups
            and asked.resource in self.resources
            and asked.verb in self.verbs
            and (not self.names or asked.name in self.names)
            and self.namespace in ("", asked.namespace)
        )


@dataclass
class Cluster:
    """Objects by path of their collection and name. `hindered` are nodes whose cleanup fails, with what it says."""

    rules: tuple[Rule, ...]
    hindered: Mapping[str, str] = field(default_factory=dict)
    collections: dict[str, dict[str, Object]] = field(default_factory=dict)
    used: set[tuple[Rule, str, str]] = field(default_factory=set)
    refused: list[Asked] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    coming: list[Object] = field(default_factory=list)
    """Pods that are being replaced: the next look but one sees them."""
    away: bool = False
    """Whether every list is refused as by an API server that restarts."""
    _looks: int = 0

    def put(self, collection: str, name: str, **content: Any) -> Object:
        made: Object = {**content, "metadata": {"name": name, **content.get("metadata", {})}}
        self.collections.setdefault(collection, {})[name] = made
        return made

    def names(self, collection: str) -> set[str]:
        return set(self.collections.get(collection, {}))

    def ready_nodes(self) -> set[str]:
        nodes = self.collections["/api/v1/nodes"].items()
        return {name for name, node in nodes if node["status"]["conditions"][0]["status"] == "True"}

    def settle(self) -> None:
        """What controllers and kubelets do between two looks: pods of nodes that answer follow their template."""
        pods = self.collections[f"/api/v1/namespaces/{NAMESPACE}/pods"]
        self._looks += 1
        if self._looks > 2:
            pods.update({pod["metadata"]["name"]: pod for pod in self.coming})
            self.coming = []
        daemonset = self.collections[f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"].get("vtap-agent")
        for pod in list(pods.values()):
            component, node = pod["metadata"]["labels"]["vtap.dev/component"], pod["spec"]["nodeName"]
            if component == "agent" and daemonset and node in self.ready_nodes():
                self._follow(pod, daemonset, node)
        if daemonset:
            self._start(pods, daemonset)
        operator = self.collections[f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"].get("vtap-operator")
        if operator and operator["spec"]["replicas"] == 0:
            pods.pop("vtap-operator-x", None)

    def _start(self, pods: dict[str, Object], daemonset: Object) -> None:
        """Pods of nodes that the template names and that have none."""
        required = daemonset["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
        terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
        for node in {value for term in terms for one in term["matchFields"] for value in one["values"]}:
            if node in self.ready_nodes() and f"vtap-agent-{node}" not in pods:
                labels = {"vtap.dev/component": "agent"}
                meta = {"name": f"vtap-agent-{node}", "labels": labels, "annotations": {}}
                pods[meta["name"]] = {"metadata": meta, "spec": {"nodeName": node}, "status": {"phase": "Pending"}}

    def _follow(self, pod: Object, daemonset: Object, node: str) -> None:
        template = daemonset["spec"]["template"]
        first = [container["name"] for container in template["spec"].get("initContainers", [])]
        if pod["metadata"]["annotations"] != template["metadata"]["annotations"]:
            pod["metadata"]["annotations"] = dict(template["metadata"]["annotations"])
            pod["status"] = {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}
        elif CLEANUP in first and node in self.hindered:
            ended = {"terminated": {"exitCode": 1, "message": self.hindered[node]}}
            pod["status"]["initContainerStatuses"] = [{"name": CLEANUP, "state": ended}]
        else:
            pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def merged(into: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(into) if isinstance(into, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def answer(cluster: Cluster, method: str, path: str, body: Any) -> tuple[int, Object]:
    """Status and body of one request, after asking the rules."""
    parts = urlsplit(path)
    found = _PATH.fullmatch(parts.path)
    if not found:
        return 404, {"message": f"no such path: {path}"}
    name = found["name"] or ""
    verb = (_OF_ONE if name else _OF_MANY)[method]
    asked = Asked(found["group"] or "", found["resource"], verb, name, found["namespace"] or "")
    allowing = [rule for rule in cluster.rules if rule.allows(asked)]
    cluster.used |= {(rule, asked.resource, asked.verb) for rule in allowing}
    if not allowing:
        cluster.refused.append(asked)
        return 403, {"message": f"forbidden: {asked}"}
    if cluster.away and asked.resource == "nodes":
        return 503, {"message": "the server is currently unable to handle the request"}
    if name:
        return _of_one(cluster.collections.setdefault(parts.path.removesuffix(f"/{name}"), {}), asked, body)
    return _of_many(cluster, cluster.collections.setdefault(parts.path, {}), asked, parse_qs(parts.query), body)


_OF_ONE = {"GET": "get", "PATCH": "patch", "DELETE": "delete"}
_OF_MANY = {"GET": "list", "POST": "create", "DELETE": "deletecollection"}


def _of_one(there: dict[str, Object], asked: Asked, body: Any) -> tuple[int, Object]:
    if asked.name not in there:
        return 404, {"message": f"{asked.resource} {asked.name!r} not found"}
    if asked.verb == "delete":
        return 200, there.pop(asked.name)
    if asked.verb == "patch":
        there[asked.name] = merged(there[asked.name], body)
    return 200, there[asked.name]


def _of_many(
    cluster: Cluster, there: dict[str, Object], asked: Asked, query: Mapping[str, list[str]], body: Any
) -> tuple[int, Object]:
    if asked.verb == "list":
        cluster.settle()
        key, _, value = query.get("labelSelector", [""])[0].partition("=")
        return 200, {
            "items": [each for each in there.values() if not key or each["metadata"].get("labels", {}).get(key) == value]
        }
    if asked.verb == "create":
        name = body["metadata"].get("name") or body["metadata"]["generateName"] + str(len(there))
        there[name] = body
        return 201, body
    there.clear()
    return 200, {}


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def _serve(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
            with cluster.lock:
                status, said = answer(cluster, self.command, self.path, body)
                data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve

    return Handler


@contextmanager
def served(cluster: Cluster) -> Iterator[str]:
    """The server's URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rules_of(roles: Iterable[Object]) -> tuple[Rule, ...]:
    """From Role and ClusterRole manifests."""
    return tuple(
        Rule(
            tuple(rule["apiGroups"]),
            tuple(rule["resources"]),
            tuple(rule["verbs"]),
            tuple(rule.get("resourceNames", ())),
            role["metadata"].get("namespace", ""),
        )
        for role in roles
        for rule in role["rules"]
    )
