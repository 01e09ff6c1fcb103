"""What runs before the chart goes: every node is cleaned and seen to be clean, then the collectors go.

The DaemonSet of the agents is turned into one that runs `vtap-agent --cleanup` first and then does nothing: a pod of it that is
ready means a clean node. The DaemonSet itself is for Helm to delete. A node that does not answer is named in an Event and left
out: its programs stop copying by their lease, and what is pinned there ends with its next start.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from kube import Api, ApiError, Object, condition, poll

MODE = "vtap.dev/mode"
CLEANUP = "cleanup"
UNREACHABLE_PATIENCE = 20.0
"""Seconds that nodes which are not ready get once all others are clean."""
OPERATOR_PATIENCE = 60.0


@dataclass(frozen=True)
class Left:
    """A node that is not clean yet, and why."""

    node: str
    why: str
    reachable: bool


def cleaning(daemonset: Object, elsewhere: frozenset[str] = frozenset()) -> Object:
    """A merge patch that turns agents into cleaners; each container runs with what the agent has, as it undoes what that did.

    With `elsewhere`, they run on these nodes alone, whatever is said of where agents run: else they follow the agents.
    """
    spec = daemonset["spec"]["template"]["spec"]
    (agent,) = (each for each in spec["containers"] if each["name"] == "agent")
    kept = ("image", "imagePullPolicy", "env", "securityContext", "volumeMounts")
    same = {key: agent[key] for key in kept if key in agent}
    first = {**same, "name": CLEANUP, "args": [*agent["args"], "--cleanup"]}
    # Whatever lies in our own two directories is of no use any more; they themselves are mount points here.
    forget = {**same, "name": "forget", "command": ["find", "/run/vtap", "/var/lib/vtap", "-xdev", "-mindepth", "1", "-delete"]}
    idle = {
        "name": "clean",
        "image": agent["image"],
        "imagePullPolicy": agent.get("imagePullPolicy", "IfNotPresent"),
        "command": ["sleep", "infinity"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    template = {
        "metadata": {"annotations": {MODE: CLEANUP}},
        "spec": {
            "initContainers": [*spec.get("initContainers", []), first, forget],
            "containers": [idle],
            "terminationGracePeriodSeconds": min(spec.get("terminationGracePeriodSeconds", 30), 30),
            **(_on(elsewhere) if elsewhere else {}),
        },
    }
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0}}
    return {"spec": {"updateStrategy": strategy, "template": template}}


def _on(nodes: frozenset[str]) -> Object:
    """Of a pod's spec: on these nodes, and no others."""
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]} for node in sorted(nodes)]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    affinity = {"nodeAffinity": required, "podAffinity": None, "podAntiAffinity": None}
    return {"nodeSelector": None, "affinity": affinity, "tolerations": [{"operator": "Exists"}]}


def is_cleaning(daemonset: Object) -> bool:
    return daemonset["spec"]["template"]["metadata"].get("annotations", {}).get(MODE) == CLEANUP


def _is_clean(pod: Object) -> bool:
    return pod["metadata"].get("annotations", {}).get(MODE) == CLEANUP and condition(pod, "Ready").get("status") == "True"


def _trouble(pod: Object | None) -> str:
    """What keeps a pod from having cleaned its node, as far as it says so."""
    if pod is None:
        return "no pod has started there yet"
    if pod["metadata"].get("annotations", {}).get(MODE) != CLEANUP:
        return "its agent has not ended yet"
    status = pod.get("status", {})
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        for state in (container.get("lastState", {}).get("terminated"), container.get("state", {}).get("terminated")):
            if state and state.get("exitCode"):
                said = (state.get("message") or state.get("reason") or "").strip()
                where = f"kubectl logs {pod['metadata']['name']} -c {container['name']}"
                return f"{container['name']} failed with status {state['exitCode']}: {said}; see {where}"
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{container['name']}: {waiting['reason']} {waiting.get('message', '')}".strip()
    return f"its pod is {status.get('phase', 'Pending')}"


def left_to_clean(pods: list[Object], nodes: list[Object], wanted: frozenset[str]) -> list[Left]:
    """Nodes of `wanted` that are not seen to be clean. Nodes that are gone have nothing left on them."""
    by_node: dict[str, Object] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName", "")
        # An agent that still ends stands before its successor.
        if node not in by_node or not _is_clean(pod):
            by_node[node] = pod
    ready = {node["metadata"]["name"]: condition(node, "Ready").get("status") == "True" for node in nodes}
    unclean = (name for name in sorted(wanted) if name in ready and not (name in by_node and _is_clean(by_node[name])))
    return [Left(name, _trouble(by_node.get(name)) if ready[name] else "the node is not ready", ready[name]) for name in unclean]


def _nodes_of(pods: list[Object]) -> frozenset[str]:
    return frozenset(pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName"))


class Uninstall:
    """The steps, each of which may be repeated after a failure of a later one."""

    def __init__(self, api: Api, namespace: str, timeout: float) -> None:
        self._api = api
        self._namespace = namespace
        self._timeout = timeout
        self._daemonset = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/vtap-agent"
        self._deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        self._core = f"/api/v1/namespaces/{namespace}"

    def _components(self, path: str, component: str) -> list[Object]:
        return self._api.get(path, {"labelSelector": f"vtap.dev/component={component}"})["items"]

    def clean_nodes(self) -> list[Left]:
        """What is left when time is up, or when only nodes that don't answer are left."""
        daemonset = self._api.find(self._daemonset)
        if daemonset is None:
            print("there is no DaemonSet vtap-agent: nothing to clean on the nodes")
            return []
        running = _nodes_of(self._components(f"{self._core}/pods", "agent"))
        lost = self._nodes_that_had_agents() - running
        wanted = running | lost
        if not is_cleaning(daemonset):
            self._api.patch(self._daemonset, cleaning(daemonset, wanted if lost else frozenset()))
            print(f"cleaning {len(wanted)} nodes")
        left = [Left(node, "nothing could be seen of it", True) for node in sorted(wanted)]
        only_unreachable_since: float | None = None

        def done() -> bool:
            nonlocal left, only_unreachable_since, wanted
            nodes = self._api.get("/api/v1/nodes")["items"]
            pods = self._components(f"{self._core}/pods", "agent")
            wanted |= _nodes_of(pods)
            left = left_to_clean(pods, nodes, wanted)
            # A pod that is just being replaced, as after a try that failed, is of no node for a moment.
            if any(each.reachable for each in left) or len(_nodes_of(pods)) < self._nodes_scheduled():
                only_unreachable_since = None
                return False
            only_unreachable_since = only_unreachable_since or time.monotonic()
            return not left or time.monotonic() - only_unreachable_since > UNREACHABLE_PATIENCE

        poll(done, time.monotonic() + self._timeout)
        return left

    def _nodes_that_had_agents(self) -> frozenset[str]:
        """As they said: one that lost its node to a changed nodeSelector has left its copies there as they were."""
        said = self._api.get("/apis/vtap.dev/v1alpha1/tapnodes")["items"]
        return frozenset(one["metadata"]["name"] for one in said if one.get("status", {}).get("agentVersion"))

    def _nodes_scheduled(self) -> int:
        """As many nodes as should have a pod of the DaemonSet."""
        status = (self._api.find(self._daemonset) or {}).get("status", {})
        return int(status.get("desiredNumberScheduled", 0))

    def stop_operator(self) -> None:
        """Else it would make again what is removed next. Raises ApiError."""
        path = f"{self._deployments}/vtap-operator"
        if self._api.find(path) is not None:
            self._api.patch(path, {"spec": {"replicas": 0}})
        pods = f"{self._core}/pods"
        if not poll(lambda: not self._components(pods, "operator"), time.monotonic() + OPERATOR_PATIENCE):
            print("the operator has not ended in time; what it runs is removed all the same")

    def remove_collectors(self, certificates: bool) -> None:
        """Their workloads, and certificates where these are ours. PersistentVolumeClaims stay: they hold what was captured."""
        networking = f"/apis/networking.k8s.io/v1/namespaces/{self._namespace}/networkpolicies"
        for deployment in self._components(self._deployments, "collector"):
            name = deployment["metadata"]["name"]
            for path in (
                f"{self._deployments}/{name}",
                f"{self._core}/services/{name}",
                f"{networking}/{name}",
                f"{self._core}/serviceaccounts/{name}",
                f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}.{self._namespace}",
            ):
                self._api.delete(path, {"propagationPolicy": "Background"})
            if certificates:
                self._api.delete(f"{self._core}/secrets/{name}-tls")
            print(f"removed {name}")
        for secret in ("vtap-agent-tls", "vtap-ca") if certificates else ():
            self._api.delete(f"{self._core}/secrets/{secret}")

    def remove_derived(self) -> None:
        """What the operator and the agents wrote for each other; taps and destinations are people's and stay."""
        for path in ("/apis/vtap.dev/v1alpha1/tapnodes", f"/apis/vtap.dev/v1alpha1/namespaces/{self._namespace}/tappeerslices"):
            self._api.delete(path)

    def tell(self, left: list[Left]) -> None:
        """On standard output and as Events of the namespace, since Helm shows no log of a job that went well."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for each in left:
            message = (
                f"node {each.node} was not cleaned: {each.why}. Copying there ends by itself within seconds; what is pinned "
                f"ends when the node starts again, or with `vtap-agent --cleanup` on it"
            )
            print(message)
            event = {
                "metadata": {"generateName": "vtap-uninstall-"},
                "type": "Warning",
                "reason": "NodeNotCleaned",
                "message": message[:1024],
                "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": each.node, "uid": each.node},
                "source": {"component": "vtap-uninstall"},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
            # An Event about something without a namespace belongs to `default`.
            self._api.post("/api/v1/namespaces/default/events", event)


def main() -> int:
    """0, also where only nodes that don't answer are left; 1 where a node that does is not clean, after saying why."""
    work = Uninstall(Api(), os.environ["POD_NAMESPACE"], float(os.environ["TIMEOUT_SECONDS"]))
    try:
        left = work.clean_nodes()
        work.tell(left)
        if any(each.reachable for each in left):
            print("not uninstalling; cure the above and run helm uninstall again, or with --no-hooks to leave things as they are")
            return 1
        work.stop_operator()
        work.remove_collectors(certificates=os.environ["REMOVE_CERTIFICATES"] == "true")
        work.remove_derived()
    except ApiError as error:
        print(f"uninstall: {error}", file=sys.stderr)
        return 1
    print("all nodes that answer are clean")
    return 0


if __name__ == "__main__":
    sys.exit(main())
