"""A cluster in the hands of a test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.commands import ClusterError, run
from tests.e2e.cluster.kubectl import Kubectl, Resource
from tests.e2e.cluster.lifecycle import Built, load
from tests.e2e.cluster.nodes import Node
from tests.e2e.cluster.pods import PodSpec, RunningPod, is_ready, running_pod
from tests.e2e.cluster.snapshot import Snapshot, take_snapshot
from vtap_lab.errors import wait_for

_READY_TIMEOUT = 120.0
_GONE_TIMEOUT = 180.0
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True)
class Cluster:
    """`built` is None for a cluster that is not of our making; images are then its owner's affair."""

    name: str
    kubectl: Kubectl
    nodes: tuple[Node, ...]
    workers: tuple[Node, ...]
    """Those where pods may be put by the tests."""
    pods_image: str
    helm_program: str
    built: Built | None

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def helm(self, *arguments: str, timeout: float = 300) -> str:
        """What Helm printed."""
        return run([self.helm_program, f"--kubeconfig={self.kubectl.kubeconfig}", *arguments], timeout=timeout)

    def load(self, *images: str) -> None:
        """Bring local images into all nodes."""
        if self.built is None:
            raise ClusterError("images of a cluster that is not of our making have to be in a registry that it reaches")
        load(self.built, self.name, *images)

    @contextmanager
    def namespace(self, prefix: str = "e2e") -> Iterator[str]:
        """A namespace with a name of its own, which goes afterwards with all that is in it; see `snapshots`."""
        name = f"{prefix}-{secrets.token_hex(3)}"
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        try:
            # Without it no pod is taken; controllers may need a while after the API server was away.
            self.kubectl.until("serviceaccount", "default", bool, "the controllers work", namespace=name, timeout=_READY_TIMEOUT)
            yield name
        finally:
            self.kubectl.delete("namespace", name, wait=False)

    def start_pods(self, *specs: PodSpec, timeout: float = _READY_TIMEOUT) -> list[RunningPod]:
        """Create pods and wait until each is Ready, in the order given."""
        self.kubectl.apply(*(spec.manifest(self.pods_image) for spec in specs))
        return [self.running(spec.name, spec.namespace, timeout) for spec in specs]

    def start_pod(self, spec: PodSpec, timeout: float = _READY_TIMEOUT) -> RunningPod:
        return self.start_pods(spec, timeout=timeout)[0]

    def running(self, name: str, namespace: str, timeout: float = _READY_TIMEOUT) -> RunningPod:
        """The pod of this name once it is Ready."""
        resource = self.kubectl.until("pod", name, is_ready, "Ready", namespace=namespace, timeout=timeout)
        return self._running(resource)

    def running_of(self, namespace: str, selector: str) -> list[RunningPod]:
        """The pods that match and are Ready now."""
        return [self._running(one) for one in self.kubectl.list("pods", namespace, selector) if is_ready(one)]

    def snapshots(self) -> list[Snapshot]:
        """Of all nodes once no namespace is on its way out; see `differences`."""
        wait_for(lambda: not self._going_namespaces(), _GONE_TIMEOUT, "the end of deleted namespaces", every=0.5)
        return [take_snapshot(node) for node in self.nodes]

    def _going_namespaces(self) -> list[str]:
        names = [one["metadata"] for one in self.kubectl.list("namespaces")]
        return [one["name"] for one in names if "deletionTimestamp" in one]

    def _running(self, resource: Resource) -> RunningPod:
        return running_pod(resource, self.node(resource["spec"]["nodeName"]))


def differences(before: Sequence[Snapshot], after: Sequence[Snapshot]) -> list[str]:
    """What came and went on the nodes; empty when they are the same."""
    later = {one.node: one for one in after}
    return [line for one in before for line in one.difference(later[one.node])]


def collect_evidence(cluster: Cluster, folder: Path) -> None:
    """What a person would look at after a failure, one file each. What can't be had says why in its file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, argv in _CLUSTER_EVIDENCE.items():
        _keep(folder / f"{name}.txt", cluster.kubectl.argv(*argv))
    for pod in _pods(cluster):
        metadata = pod["metadata"]
        for previous in ([], ["--previous"]):
            if previous and not any(one.get("restartCount") for one in pod["status"].get("containerStatuses", [])):
                continue
            argv = cluster.kubectl.argv(
                "logs", metadata["name"], "--all-containers", "--tail=2000", *previous, namespace=metadata["namespace"]
            )
            _keep(folder / f"log-{metadata['namespace']}-{metadata['name']}{'-previous' if previous else ''}.txt", argv)
    for node in cluster.nodes:
        (folder / f"node-{node.name}.txt").write_text(
            _or_why(lambda node=node: node.run("sh", "-s", stdin=_NODE_EVIDENCE, check=False))
        )


_CLUSTER_EVIDENCE = {
    "resources": ("get", "all", "--all-namespaces", "-o", "wide"),
    "taps": ("get", "vtap,tapdestinations,tapnodes", "--all-namespaces", "-o", "yaml"),
    "events": ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
    "pods": ("describe", "pods", "--all-namespaces"),
}

_NODE_EVIDENCE = """
exec 2>&1; set -x
ovs-vsctl show; ovs-vsctl list port; ovs-vsctl list mirror; ovs-vsctl list open_vswitch
ip -d link; ip address; ip route; tc qdisc show; bpftool net show; find /sys/fs/bpf /run/vtap
tail -n 200 /var/log/openvswitch/ovs-vswitchd.log
journalctl --no-pager --lines=300 -u kubelet -u containerd -u ovs-vswitchd -u ovsdb-server
"""


def _pods(cluster: Cluster) -> list[Resource]:
    try:
        return cluster.kubectl.list("pods")
    except ClusterError:  # The API server is down: `resources.txt` says so.
        return []


def _keep(path: Path, argv: Sequence[str]) -> None:
    path.write_text(_or_why(lambda: run(argv, timeout=60)))


def _or_why(get: object) -> str:
    assert callable(get)
    try:
        return str(get())
    except ClusterError as error:
        return f"{error}\n"
