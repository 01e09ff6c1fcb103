"""Programs run on a cluster's nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.e2e.cluster.commands import run
from tests.e2e.cluster.kubectl import Kubectl, Resource
from tests.e2e.cluster.way import Runtime

_TIMEOUT = 60.0


class Node(Protocol):
    """One node. `run` gives what the program wrote to standard output; ClusterError when it fails, unless not `check`."""

    @property
    def name(self) -> str: ...

    def run(self, *argv: str, timeout: float = _TIMEOUT, stdin: str | None = None, check: bool = True) -> str: ...


@dataclass(frozen=True)
class ContainerNode:
    """A node of a kind cluster on this machine; reached without the API server."""

    name: str
    runtime: Runtime

    def run(self, *argv: str, timeout: float = _TIMEOUT, stdin: str | None = None, check: bool = True) -> str:
        interactive = ["-i"] if stdin is not None else []
        return run([self.runtime, "exec", *interactive, self.name, *argv], timeout=timeout, stdin=stdin, check=check)


@dataclass(frozen=True)
class RemoteNode:
    """A node of any cluster, reached through a privileged pod on it (`node_shells`)."""

    name: str
    kubectl: Kubectl
    pod: str

    def run(self, *argv: str, timeout: float = _TIMEOUT, stdin: str | None = None, check: bool = True) -> str:
        enter = ["nsenter", "--target=1", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        interactive = ["-i"] if stdin is not None else []
        command = self.kubectl.argv("exec", self.pod, *interactive, "--", *enter, *argv, namespace=SHELLS_NAMESPACE)
        return run(command, timeout=timeout, stdin=stdin, check=check)


SHELLS_NAMESPACE = "vtap-e2e-nodes"


def node_shells(kubectl: Kubectl, image: str) -> list[Node]:
    """A handle for each node of a cluster that is not of our making. Its pods go with the namespace `SHELLS_NAMESPACE`."""
    labels = {"app": "node-shell"}
    privileged = {"pod-security.kubernetes.io/enforce": "privileged"}
    container: Resource = {"name": "shell", "image": image, "securityContext": {"privileged": True}}
    pod: Resource = {
        "hostPID": True,
        "hostNetwork": True,
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
    }
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHELLS_NAMESPACE, "labels": privileged}},
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "node-shell", "namespace": SHELLS_NAMESPACE},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
    )
    kubectl.rollout("daemonset/node-shell", SHELLS_NAMESPACE)
    pods = kubectl.list("pods", SHELLS_NAMESPACE, "app=node-shell")
    return [RemoteNode(one["spec"]["nodeName"], kubectl, one["metadata"]["name"]) for one in pods]


def container_nodes(kubectl: Kubectl, runtime: Runtime) -> list[Node]:
    """The nodes of a kind cluster on this machine, in the order of names."""
    return [ContainerNode(name, runtime) for name in sorted(one["metadata"]["name"] for one in kubectl.list("nodes"))]
