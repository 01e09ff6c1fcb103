"""Pods of the tests: they send and receive numbered datagrams, by logs that outlive them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.kubectl import Kubectl, Resource
from tests.e2e.cluster.nodes import Node

NETWORKS = "k8s.v1.cni.cncf.io/networks"
STATUS = "k8s.v1.cni.cncf.io/network-status"
LOGS = "/var/log/vtap-e2e"
"""In each pod a folder of its own, which is LOGS/NAMESPACE/UID on the node: it stays when the pod goes."""


@dataclass(frozen=True)
class PodSpec:
    """A pod to be. `node` empty: the scheduler chooses; `networks`: second networks such as "default/ovs-net"."""

    name: str
    namespace: str
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    networks: tuple[str, ...] = ("default/ovs-net",)
    host_network: bool = False

    def manifest(self, image: str) -> Resource:
        metadata: Resource = {"name": self.name, "namespace": self.namespace, "labels": dict(self.labels)}
        if self.networks:
            metadata["annotations"] = {NETWORKS: ",".join(self.networks)}
        chosen = {"nodeName": self.node} if self.node else {}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {**self.template_spec(image), **chosen, "hostNetwork": self.host_network},
        }

    def template_spec(self, image: str) -> Resource:
        """What a Deployment's template needs, too."""
        uid = {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
        log = {"name": "log", "mountPath": LOGS, "subPathExpr": "$(POD_UID)"}
        container: Resource = {
            "name": "main",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "env": [uid],
            "volumeMounts": [log],
            "securityContext": {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
        }
        return {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [{"name": "log", "hostPath": {"path": f"{LOGS}/{self.namespace}", "type": "DirectoryOrCreate"}}],
        }


@dataclass(frozen=True)
class RunningPod:
    """A pod that is there, with what its networks gave it."""

    name: str
    namespace: str
    uid: str
    node: Node
    addresses: Mapping[str, str]
    """By interface: {"eth0": "10.244.1.7", "net1": "10.50.2.11"}."""
    macs: Mapping[str, str]

    @property
    def log_folder(self) -> str:
        """On its node."""
        return f"{LOGS}/{self.namespace}/{self.uid}"

    def read_log(self, name: str) -> str:
        """A file below LOGS of the pod, also after its end; empty when it was never begun."""
        return self.node.run("sh", "-c", f"cat {self.log_folder}/{name} 2>/dev/null || true")

    def spawn(self, kubectl: Kubectl, log: str, *argv: str) -> int:
        """Start a program in the pod that needs nobody outside to go on; its output goes to LOGS/`log`. Its number in the pod."""
        script = 'log=$1; shift; setsid "$@" >"$log" 2>&1 </dev/null & echo $!'
        told = kubectl.exec(self.name, "sh", "-c", script, "sh", f"{LOGS}/{log}", *argv, namespace=self.namespace)
        return int(told)

    def signal(self, kubectl: Kubectl, pid: int, name: str = "TERM") -> None:
        """To a program that `spawn` started; nothing when it has ended."""
        kubectl.exec(self.name, "sh", "-c", f"kill -{name} {pid} 2>/dev/null || true", namespace=self.namespace)

    def is_alive(self, kubectl: Kubectl, pid: int) -> bool:
        return (
            kubectl.exec(self.name, "sh", "-c", f"[ -d /proc/{pid} ] && echo yes || echo no", namespace=self.namespace).strip()
            == "yes"
        )


def running_pod(resource: Resource, node: Node) -> RunningPod:
    """Of a pod resource that is Ready."""
    metadata, status = resource["metadata"], resource["status"]
    entries: list[dict[str, Any]] = json.loads(metadata.get("annotations", {}).get(STATUS, "[]"))
    addresses = {entry["interface"]: entry["ips"][0] for entry in entries if entry.get("ips")}
    addresses.setdefault("eth0", status["podIP"])
    macs = {entry["interface"]: entry["mac"] for entry in entries if entry.get("mac")}
    return RunningPod(metadata["name"], metadata["namespace"], metadata["uid"], node, addresses, macs)


def is_ready(resource: Resource) -> bool:
    conditions = resource.get("status", {}).get("conditions", [])
    going = "deletionTimestamp" in resource["metadata"]
    return not going and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def need_interface(pod: RunningPod, interface: str) -> str:
    """Its address there; ClusterError when the pod has no such interface."""
    if interface not in pod.addresses:
        raise ClusterError(f"pod {pod.namespace}/{pod.name} has no address on {interface}, only on {', '.join(pod.addresses)}")
    return pod.addresses[interface]
