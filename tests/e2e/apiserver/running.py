"""The operator as a process of its own against a real API server, with just the rights that the chart gives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.apiserver.server import ApiServer, free_port
from vtap_operator.permissions import COLLECTOR_ROLE, cluster_rules, namespace_rules

NAMESPACE = "vtap-system"
PATIENCE = 90.0
VTAP = "/apis/vtap.dev/v1alpha1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Operator:
    """The process; it can be stopped and started again."""

    def __init__(self, api: ApiServer, token: str) -> None:
        self.api = api
        self.port = free_port()
        self.log = api.folder / "operator.log"
        self._kubeconfig = api.kubeconfig(token)
        self._process: subprocess.Popen[bytes] | None = None
        self._metrics_before = ""

    def start(self) -> None:
        command = Path(sys.executable).with_name("vtap-operator")
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [command, "--namespace", NAMESPACE, "--listen", f"127.0.0.1:{self.port}", "--default-destination"],
                env={**os.environ, "KUBECONFIG": str(self._kubeconfig)}, stdout=output, stderr=output,
            )  # fmt: skip

    def metrics(self) -> str:
        """Of all its lives."""
        return self._metrics_before + self.get("/metrics")

    def stop(self) -> int:
        assert self._process is not None
        self._metrics_before += self.get("/metrics")
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.read().decode()


def until(what: str, holds: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, f"this did not happen within {PATIENCE:g} s: {what}"
        time.sleep(0.1)
    return found


def grant(api: ApiServer) -> str:
    """The token of a ServiceAccount with the rights of `vtap_operator.permissions`, as the chart gives them."""
    token = api.service_account_token(NAMESPACE, "vtap-operator")
    subjects = [{"kind": "ServiceAccount", "name": "vtap-operator", "namespace": NAMESPACE}]
    group = "rbac.authorization.k8s.io"
    reviews = [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]
    for name, rules in (("vtap-operator", cluster_rules()), (COLLECTOR_ROLE, reviews)):
        api.make(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
    bound = {"metadata": {"name": "vtap-operator"}, "subjects": subjects}
    api.make(
        f"{RBAC}/clusterrolebindings", {**bound, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "vtap-operator"}}
    )
    own = f"{RBAC}/namespaces/{NAMESPACE}"
    api.make(f"{own}/roles", {"metadata": {"name": "vtap-operator"}, "rules": namespace_rules()})
    api.make(f"{own}/rolebindings", {**bound, "roleRef": {"apiGroup": group, "kind": "Role", "name": "vtap-operator"}})
    return token


@contextmanager
def running_operator(api: ApiServer) -> Iterator[Operator]:
    """On two nodes without agents."""
    api.make("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for name in ("node-a", "node-b"):
        api.make("/api/v1/nodes", {"metadata": {"name": name}})
    made = Operator(api, grant(api))
    made.start()
    try:
        until("the default destination is made", lambda: api.get(f"{VTAP}/tapdestinations/default"))
        yield made
    finally:
        made.kill()
        sys.stderr.write(made.log.read_text()[-5000:])


def condition(api: ApiServer, path: str, kind: str) -> tuple[str, str, str] | None:
    held = ((api.get(path) or {}).get("status") or {}).get("conditions") or []
    return next(((one["status"], one["reason"], one["message"]) for one in held if one["type"] == kind), None)


def tap_path(place: str, name: str = "tap") -> str:
    return f"{VTAP}/namespaces/{place}/virtualtaps/{name}"


def pod(
    api: ApiServer, place: str, name: str, address: str, labels: dict[str, str], *, node: str = "node-a", ready: bool = True
) -> None:
    """A pod as a node would report it."""
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "none"}]}
    path = f"/api/v1/namespaces/{place}/pods"
    api.make(path, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
    api.patch(f"{path}/{name}/status", {"status": status})
