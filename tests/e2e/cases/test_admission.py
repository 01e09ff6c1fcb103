"""The admission policies, judged by a real API server: what each refuses, and that it lets everything else pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import yaml

from tests.e2e.cases.asked import kubectl, reachable
from tests.unit.chart.conftest import NAMESPACE, Manifest, Render, helm, render

__all__ = ["helm", "reachable", "render"]
"""Fixtures: the chart as it renders, and the cluster to ask."""
pytestmark = pytest.mark.usefixtures("reachable")
OPERATOR = f"system:serviceaccount:{NAMESPACE}:vtap-operator"


def _apply(*manifests: Manifest, dry: bool = True, user: str = "") -> str:
    """What kubectl says, the complaint too."""
    words = [
        "create" if user else "apply",
        *(["--dry-run=server"] if dry else []),
        *([f"--as={user}"] if user else []),
        "-f",
        "-",
    ]
    done = kubectl(*words, stdin=yaml.safe_dump_all(manifests))
    return done.stdout + done.stderr


@pytest.fixture
def closed() -> Iterator[tuple[str, str]]:
    """(destination that allows labelled namespaces only, a namespace that is not labelled), gone afterwards."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    allowed = {
        "from": "Selector",
        "selector": {"matchLabels": {name: "yes"}, "matchExpressions": [{"key": name, "operator": "NotIn", "values": ["no"]}]},
    }
    destination = {"gre": {"address": "192.0.2.1"}, "allowedNamespaces": allowed}
    try:
        _apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}, dry=False)
        said = _apply(_destination(name, destination), dry=False)
        assert "created" in said, said
        yield name, name
    finally:
        kubectl("delete", "tapdestination", name, "--ignore-not-found")
        kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def _destination(name: str, spec: Mapping[str, Any]) -> Manifest:
    return {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": name}, "spec": dict(spec)}


def _tap(namespace: str, destination: str) -> Manifest:
    spec = {"podSelector": {}, "destinationRef": {"name": destination}}
    return {
        "apiVersion": "vtap.dev/v1alpha1",
        "kind": "VirtualTap",
        "metadata": {"name": "t", "namespace": namespace},
        "spec": spec,
    }


def _until(said: str, tap: Manifest, *, there: bool) -> str:
    """The API server hears of namespaces and parameters by watching: soon, not at once."""
    deadline = time.monotonic() + 20
    while (said in (told := _apply(tap))) is not there and time.monotonic() < deadline:
        time.sleep(0.5)
    return told


def test_a_destination_that_is_not_allowed_is_said_at_once(closed: tuple[str, str]) -> None:
    destination, namespace = closed
    complaint = f"TapDestination '{destination}' does not allow namespace '{namespace}'"
    assert complaint in _until(complaint, _tap(namespace, destination), there=True)
    assert complaint not in _apply(_tap(namespace, "default"))
    kubectl("label", "namespace", namespace, f"{destination}=yes")
    assert complaint not in _until(complaint, _tap(namespace, destination), there=False)


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ({"url": "http://192.0.2.1:80", "tokenFile": "/proc/1/root/etc/shadow"}, "spec.collector.control.tokenFile"),
        ({"url": "http://192.0.2.1:80", "tokenFile": "/etc/vtap/../shadow"}, "spec.collector.control.tokenFile"),
        ({"unixSocket": "/run/containerd/containerd.sock"}, "spec.collector.control.unixSocket"),
        ({"url": "http://192.0.2.1:80", "tokenFile": "/etc/vtap/token"}, ""),
        ({"unixSocket": "/run/vtap/collector.sock"}, ""),
    ],
)
def test_destinations_name_no_file_of_the_node(control: Mapping[str, str], said: str) -> None:
    told = _apply(_destination("vtap-test-files", {"collector": {"address": "192.0.2.1", "control": dict(control)}}))
    assert said in told if said else "created" in told, told


@pytest.mark.parametrize(
    ("role", "account", "refused"),
    [("vtap-collector", NAMESPACE, False), ("vtap-collector", "kube-system", True), ("cluster-admin", NAMESPACE, True)],
)
def test_the_operator_binds_collectors_only(role: str, account: str, refused: bool) -> None:
    binding: Manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "vtap-test-binding"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "somebody", "namespace": account}],
    }
    told = _apply(binding, user=OPERATOR)
    assert ("forbidden" in told) is refused, told


def test_the_operator_deletes_no_binding_of_others() -> None:
    done = kubectl("delete", "clusterrolebinding", "cluster-admin", "--dry-run=server", f"--as={OPERATOR}")
    assert done.returncode != 0
    assert "vtap-collector only" in done.stderr


def _patch_status(node: str, token: str) -> str:
    """With an agent's token and nothing else."""
    view = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json").stdout)
    cluster = view["clusters"][0]["cluster"]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    program = shutil.which("kubectl")
    assert program
    # Server-side apply is a PATCH that reads nothing before.
    node_status: Manifest = {
        "apiVersion": "vtap.dev/v1alpha1", "kind": "TapNode", "metadata": {"name": node}, "status": {"agentVersion": "test"},
    }  # fmt: skip
    command = [
        program, "--kubeconfig", "/dev/stdin", "apply", "--server-side", "--force-conflicts", "--subresource=status",
        "--dry-run=server", "--validate=false", "-f", "/dev/fd/3",
    ]  # fmt: skip
    reading, writing = os.pipe()
    os.write(writing, yaml.safe_dump(node_status).encode())
    os.close(writing)
    try:
        done = subprocess.run(
            ["bash", "-c", f'exec 3<&{reading}; exec "$@"', "kubectl", *command],
            input=yaml.safe_dump(config), pass_fds=[reading], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(reading)
    return done.stdout + done.stderr


def _agents() -> Sequence[Manifest]:
    found = kubectl("get", "pods", "-n", NAMESPACE, "-l", "vtap.dev/component=agent", "-o", "json").stdout
    return [pod for pod in json.loads(found)["items"] if pod["status"]["phase"] == "Running"]


def test_an_agent_writes_its_own_tapnode_only() -> None:
    first, second = _agents()[:2]
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={first['metadata']['name']}"]
    token = kubectl("create", "token", "vtap-agent", "-n", NAMESPACE, *bound).stdout
    own, other = first["spec"]["nodeName"], second["spec"]["nodeName"]
    assert "serverside-applied" in _patch_status(own, token)
    assert f"this token is not of node {other}" in _patch_status(other, token)
    unbound = kubectl("create", "token", "vtap-agent", "-n", NAMESPACE).stdout
    assert f"this token is not of node {own}" in _patch_status(own, unbound)


def test_the_policies_have_no_type_errors(render: Render) -> None:
    names = {each["metadata"]["name"] for each in render() if each["kind"] == "ValidatingAdmissionPolicy"}
    found = json.loads(kubectl("get", "validatingadmissionpolicies", "-o", "json").stdout)["items"]
    warnings = {
        each["metadata"]["name"]: each.get("status", {}).get("typeChecking", {}).get("expressionWarnings", [])
        for each in found
        if each["metadata"]["name"] in names
    }
    assert set(warnings) == names
    assert [each for each in warnings.values() if each] == []
