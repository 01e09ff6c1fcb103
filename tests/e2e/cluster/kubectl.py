"""kubectl as typed functions with deadlines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.cluster.commands import ClusterError, run
from vtap_lab.errors import comes_true

Resource = dict[str, Any]
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Kubectl:
    """One cluster, as one user. Every call has a deadline, in seconds, and raises ClusterError with what the API server said."""

    program: str
    kubeconfig: Path
    user: str = ""
    """Whom to impersonate, such as "system:serviceaccount:shop:dev"; nobody when empty."""
    groups: tuple[str, ...] = ()

    def as_user(self, user: str, *groups: str) -> Kubectl:
        return Kubectl(self.program, self.kubeconfig, user, groups)

    def argv(self, *arguments: str, namespace: str = "") -> list[str]:
        """The command line, for who wants to run it otherwise."""
        words = [self.program, f"--kubeconfig={self.kubeconfig}"]
        if self.user:
            words += [f"--as={self.user}", *(f"--as-group={group}" for group in self.groups)]
        return words + ([f"--namespace={namespace}"] if namespace else []) + list(arguments)

    def run(self, *arguments: str, namespace: str = "", timeout: float = _TIMEOUT, stdin: str | None = None) -> str:
        """What kubectl printed."""
        return run(self.argv(*arguments, namespace=namespace), timeout=timeout, stdin=stdin)

    def get(self, kind: str, name: str, namespace: str = "") -> Resource:
        return json.loads(self.run("get", kind, name, "-o", "json", namespace=namespace))

    def find(self, kind: str, name: str, namespace: str = "") -> Resource | None:
        """None when there is no such resource."""
        text = self.run("get", kind, name, "-o", "json", "--ignore-not-found", namespace=namespace)
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str = "", selector: str = "") -> list[Resource]:
        """Of all namespaces unless one is named."""
        where = [] if namespace else ["--all-namespaces"]
        chosen = [f"--selector={selector}"] if selector else []
        return json.loads(self.run("get", kind, "-o", "json", *where, *chosen, namespace=namespace))["items"]

    def apply(self, *resources: Resource, timeout: float = _TIMEOUT) -> None:
        """Create or change, by server-side apply."""
        text = yaml.safe_dump_all(resources)
        self.run(
            "apply", "--server-side", "--force-conflicts", "--field-manager=vtap-e2e", "-f", "-", stdin=text, timeout=timeout
        )

    def apply_file(self, source: str | Path, namespace: str = "", timeout: float = _TIMEOUT) -> None:
        """A file, folder or address."""
        self.run("apply", "--server-side", "--force-conflicts", "-f", str(source), namespace=namespace, timeout=timeout)

    def refusal(self, *resources: Resource) -> str:
        """What the API server says against these resources; empty when it would take them. Nothing is kept."""
        try:
            self.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(resources))
        except ClusterError as refused:
            return str(refused)
        return ""

    def delete(
        self, kind: str, *names: str, namespace: str = "", wait: bool = True, timeout: float = 120, grace: int | None = None
    ) -> None:
        """Gone when it returns, if told to wait; what is not there is no error."""
        how = [f"--wait={'true' if wait else 'false'}", f"--timeout={timeout:g}s", "--ignore-not-found"]
        if grace is not None:
            how += [f"--grace-period={grace}", *(["--force"] if grace == 0 else [])]
        self.run("delete", kind, *names, *how, namespace=namespace, timeout=timeout + 10)

    def patch(self, kind: str, name: str, patch: Mapping[str, Any], namespace: str = "") -> None:
        """RFC 7386 merge patch."""
        self.run("patch", kind, name, "--type=merge", "-p", json.dumps(patch), namespace=namespace)

    def exec(
        self, pod: str, *argv: str, namespace: str, container: str = "", timeout: float = _TIMEOUT, stdin: str | None = None
    ) -> str:
        """Run a program in a pod to its end; what it wrote to standard output."""
        how = [*(["-c", container] if container else []), *(["-i"] if stdin is not None else [])]
        return self.run("exec", pod, *how, "--", *argv, namespace=namespace, timeout=timeout, stdin=stdin)

    def wait(self, what: str, *targets: str, namespace: str = "", timeout: float = 120) -> None:
        """`kubectl wait --for=WHAT`, such as condition=Ready, of targets such as "pod/web" or ("pods", "--all")."""
        self.run("wait", f"--for={what}", *targets, f"--timeout={timeout:g}s", namespace=namespace, timeout=timeout + 10)

    def rollout(self, target: str, namespace: str, timeout: float = 180) -> None:
        """Wait until a Deployment, DaemonSet or StatefulSet ("deployment/x") has what it wants."""
        self.run("rollout", "status", target, f"--timeout={timeout:g}s", namespace=namespace, timeout=timeout + 10)

    def until(
        self, kind: str, name: str, holds: Callable[[Resource], bool], what: str, *, namespace: str = "", timeout: float = 60
    ) -> Resource:
        """The resource once `holds(resource)`; ClusterError that `what` did not happen, with its status as it was last.

        Failing to reach the API server counts as not yet.
        """
        seen: list[Resource | None] = [None]

        def look() -> bool:
            try:
                seen[0] = self.find(kind, name, namespace)
            except ClusterError:
                return False
            return seen[0] is not None and holds(seen[0])

        if comes_true(look, timeout, every=0.3) and seen[0] is not None:
            return seen[0]
        status = json.dumps((seen[0] or {}).get("status"), indent=1)
        raise ClusterError(f"{kind} {namespace}/{name}: {what}: not within {timeout:g} s; status: {status[:2000]}")


def condition(resource: Resource, kind: str) -> Resource:
    """The status condition of this type; {} when there is none."""
    conditions: Sequence[Resource] = resource.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), {})
