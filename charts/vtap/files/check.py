"""`helm test`: whether a tap applied now would be taken, attached and received."""

from __future__ import annotations

import os
import sys
import time

from kube import Api, ApiError, Object, condition, poll

GROUP = "/apis/vtap.dev/v1alpha1"


def _tap(spec: Object) -> Object:
    return {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "vtap-helm-test"}, "spec": spec}


def taps_are_judged(api: Api, namespace: str) -> str:
    """The API server takes a good tap and refuses a bad one, by its field."""
    path = f"{GROUP}/namespaces/{namespace}/virtualtaps?dryRun=All"
    api.post(path, _tap({"podSelector": {}}))
    try:
        api.post(path, _tap({"podSelector": {}, "direction": "Sideways"}))
    except ApiError as error:
        return "" if error.status == 422 and "spec.direction" in str(error) else f"a tap with a wrong direction got: {error}"
    return "a tap with a wrong direction was taken; are the CRDs this chart's?"


def operator_runs(api: Api, namespace: str) -> str:
    """The operator's pod is available."""
    deployment = api.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/vtap-operator")
    if deployment.get("status", {}).get("availableReplicas"):
        return ""
    return "the operator is not available; see kubectl logs deployment/vtap-operator"


def agents_report(api: Api, namespace: str) -> str:
    """Every node that should have an agent has one, and its TapNode has keys and says Ready."""
    daemonset = api.get(f"/apis/apps/v1/namespaces/{namespace}/daemonsets/vtap-agent")
    status = daemonset.get("status", {})
    wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
    if not wanted or ready < wanted or status.get("observedGeneration") != daemonset["metadata"]["generation"]:
        return f"{ready} of {wanted} agents are ready; see kubectl get pods -l vtap.dev/component=agent"
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": "vtap.dev/component=agent"})["items"]
    nodes = {node["metadata"]["name"]: node for node in api.get(f"{GROUP}/tapnodes")["items"]}
    for name in sorted(pod["spec"].get("nodeName", "") for pod in pods):
        if name not in nodes:
            return f"node {name} has no TapNode; the operator makes it"
        if not nodes[name].get("spec", {}).get("keyBlock"):
            return f"TapNode {name} has no key block; the operator sets it"
        said = condition(nodes[name], "Ready")
        if said.get("status") != "True":
            return f"TapNode {name} is not Ready: {said.get('message', 'its agent has not reported')}"
    return ""


def default_destination_is_ready(api: Api, namespace: str) -> str:
    """Copies can be sent to the destination that taps use unless they name another."""
    del namespace  # It is the cluster's.
    destination = api.find(f"{GROUP}/tapdestinations/default")
    if destination is None:
        return "there is no TapDestination default"
    said = condition(destination, "Ready")
    return (
        "" if said.get("status") == "True" else f"TapDestination default is not Ready: {said.get('message', 'nothing said yet')}"
    )


def main() -> int:
    """0, or 1 after the first thing that does not become true in time."""
    api, namespace = Api(), os.environ["POD_NAMESPACE"]
    checks = [taps_are_judged, operator_runs, agents_report]
    if os.environ["DEFAULT_DESTINATION"] == "true":
        checks.append(default_destination_is_ready)
    deadline = time.monotonic() + float(os.environ["TIMEOUT_SECONDS"])
    for check in checks:
        said = ""

        def holds() -> bool:
            nonlocal said
            said = check(api, namespace)  # noqa: B023 - called within the same turn
            return not said

        try:
            if not poll(holds, deadline):
                print(f"FAILED  {check.__name__}: {said or 'the API server does not answer'}")
                return 1
        except ApiError as error:
            print(f"FAILED  {check.__name__}: {error}")
            return 1
        print(f"ok      {check.__name__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
