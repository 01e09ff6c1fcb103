"""Uninstalling: every node is seen to be clean before the chart goes, with the rights of the hook's roles and no others."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import CHART, NAMESPACE, Render, of_kind, only
from .fake_cluster import Cluster, rules_of, served

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
DAEMONSETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
TAPS = "/apis/vtap.dev/v1alpha1/namespaces/shop/virtualtaps"
EVENTS = "/api/v1/namespaces/default/events"


@pytest.fixture(scope="module")
def uninstall() -> Iterator[ModuleType]:
    """The job's program, loaded as the job loads it: with its folder on the path."""
    folder = str(CHART / "files")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("vtap_chart_uninstall", CHART / "files" / "uninstall.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(folder)


def _cluster(render: Render, nodes: Mapping[str, bool], hindered: Mapping[str, str] | None = None) -> Cluster:
    """Installed, with a collector, a tap and a capture; nodes by whether they answer."""
    manifests = render()
    roles = [
        only(manifests, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for binding in (*of_kind(manifests, "ClusterRoleBinding"), *of_kind(manifests, "RoleBinding"))
        if binding["subjects"][0]["name"] == "vtap-uninstall"
    ]
    cluster = Cluster(rules_of(roles), hindered or {})
    daemonset = only(manifests, "DaemonSet", "vtap-agent")
    cluster.collections[DAEMONSETS] = {"vtap-agent": daemonset}
    for node, ready in nodes.items():
        cluster.put("/api/v1/nodes", node, status={"conditions": [{"type": "Ready", "status": str(ready)}]})
        labels = {"vtap.dev/component": "agent"}
        annotations = dict(daemonset["spec"]["template"]["metadata"]["annotations"])
        state = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        cluster.put(
            PODS,
            f"vtap-agent-{node}",
            metadata={"labels": labels, "annotations": annotations},
            spec={"nodeName": node},
            status=state,
        )
    cluster.put(DEPLOYMENTS, "vtap-operator", spec={"replicas": 1}, metadata={"labels": {"vtap.dev/component": "operator"}})
    cluster.put(PODS, "vtap-operator-x", metadata={"labels": {"vtap.dev/component": "operator"}}, spec={"nodeName": "a"})
    cluster.put(DEPLOYMENTS, "vtap-collector-default", metadata={"labels": {"vtap.dev/component": "collector"}})
    cluster.put(CLAIMS, "vtap-collector-default")
    cluster.put(TAPS, "checkout")
    cluster.put(BINDINGS, f"vtap-collector-default.{NAMESPACE}")
    cluster.put(BINDINGS, "somebody-elses")
    for secret in ("vtap-ca", "vtap-agent-tls", "vtap-collector-default-tls", "somebody-elses"):
        cluster.put(SECRETS, secret)
    cluster.put("/apis/vtap.dev/v1alpha1/tapnodes", "a")
    return cluster


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("POD_NAMESPACE", NAMESPACE)
    monkeypatch.setenv("TIMEOUT_SECONDS", "20")
    monkeypatch.setenv("REMOVE_CERTIFICATES", "true")
    return monkeypatch


def _run(uninstall: ModuleType, cluster: Cluster, environment: pytest.MonkeyPatch, folder: Path) -> int:
    (folder / "token").write_text("secret\n")
    kube = sys.modules["kube"]
    with served(cluster) as url:
        environment.setattr(uninstall, "Api", lambda: kube.Api(url, folder))
        return int(uninstall.main())


def test_a_node_that_lost_its_agent_is_cleaned_too(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a changed nodeSelector: what the agent left there is still there."""
    cluster = _cluster(render, {"a": True, "b": True, "never": True, "lost": True})
    for node in ("never", "lost"):
        del cluster.collections[PODS][f"vtap-agent-{node}"]
    cluster.put("/apis/vtap.dev/v1alpha1/tapnodes", "never")
    for node in ("lost", "gone"):
        cluster.put("/apis/vtap.dev/v1alpha1/tapnodes", node, status={"agentVersion": "1"})
    cluster.collections[DAEMONSETS]["vtap-agent"]["spec"]["template"]["spec"]["nodeSelector"] = {"tapped": "yes"}
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    assert cluster.refused == []
    cleaned = {name for name, pod in cluster.collections[PODS].items() if pod["metadata"]["annotations"]}
    assert cleaned == {"vtap-agent-a", "vtap-agent-b", "vtap-agent-lost"}
    spec = cluster.collections[DAEMONSETS]["vtap-agent"]["spec"]["template"]["spec"]
    assert not spec.get("nodeSelector") and spec["tolerations"] == [{"operator": "Exists"}]


def test_all_goes_and_what_is_peoples_stays(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = _cluster(render, {"a": True, "b": True})
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    assert "all nodes that answer are clean" in capsys.readouterr().out
    assert cluster.refused == []
    for node in ("a", "b"):
        pod = cluster.collections[PODS][f"vtap-agent-{node}"]
        assert pod["metadata"]["annotations"]["vtap.dev/mode"] == "cleanup"
    assert cluster.names(DEPLOYMENTS) == {"vtap-operator"}, "Helm removes that one"
    assert cluster.names(SECRETS) == {"somebody-elses"}
    assert cluster.names(BINDINGS) == {"somebody-elses"}
    assert cluster.names(CLAIMS) == {"vtap-collector-default"}
    assert cluster.names(TAPS) == {"checkout"}
    assert cluster.names("/apis/vtap.dev/v1alpha1/tapnodes") == set()
    assert cluster.names(EVENTS) == set()


def test_cleaners_have_what_agents_have(uninstall: ModuleType, render: Render) -> None:
    daemonset = only(render("privileged"), "DaemonSet", "vtap-agent")
    agent = daemonset["spec"]["template"]["spec"]["containers"][0]
    made = uninstall.cleaning(daemonset)["spec"]["template"]["spec"]
    mounting, cleanup, forget = made["initContainers"]
    assert mounting == daemonset["spec"]["template"]["spec"]["initContainers"][0]
    assert cleanup["args"] == [*agent["args"], "--cleanup"]
    for container in (cleanup, forget):
        assert container["volumeMounts"] == agent["volumeMounts"]
        assert container["securityContext"] == agent["securityContext"]
        assert not {"livenessProbe", "readinessProbe", "startupProbe", "ports"} & set(container), "init containers have none"
    (idle,) = made["containers"]
    assert idle["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "volumeMounts" not in idle


def test_a_node_that_does_not_answer_is_told_of_and_left_out(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setattr(uninstall, "UNREACHABLE_PATIENCE", 2.0)
    cluster = _cluster(render, {"a": True, "gone": False})
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    (event,) = cluster.collections[EVENTS].values()
    assert (event["reason"], event["involvedObject"]["name"]) == ("NodeNotCleaned", "gone")
    assert "node gone was not cleaned: the node is not ready" in event["message"]
    assert "vtap-agent --cleanup" in event["message"]
    assert cluster.names(DEPLOYMENTS) == {"vtap-operator"}


def test_a_node_that_cannot_be_cleaned_stops_it_with_its_own_words(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("TIMEOUT_SECONDS", "4")
    cluster = _cluster(render, {"a": True, "b": True}, {"b": "Open vSwitch does not answer"})
    assert _run(uninstall, cluster, environment, tmp_path) == 1
    said = capsys.readouterr().out
    assert (
        "node b was not cleaned: cleanup failed with status 1: Open vSwitch does not answer; see kubectl logs vtap-agent-b"
        in said
    )
    assert "node a was" not in said
    assert "helm uninstall again" in said
    # Nothing else is touched, and the next try goes on from here.
    assert "vtap-collector-default" in cluster.names(DEPLOYMENTS)
    cluster.hindered = {}
    environment.setenv("TIMEOUT_SECONDS", "20")
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    assert cluster.names(DEPLOYMENTS) == {"vtap-operator"}


def test_a_node_whose_pod_is_just_being_replaced_is_waited_for(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when a second try follows the first at once."""
    cluster = _cluster(render, {"a": True, "b": True})
    cluster.collections[DAEMONSETS]["vtap-agent"]["status"] = {"desiredNumberScheduled": 2}
    late = cluster.collections[PODS].pop("vtap-agent-b")
    cluster.coming = [late]
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    assert late["metadata"]["annotations"]["vtap.dev/mode"] == "cleanup" and late["status"]["phase"] == "Running"


def test_nothing_is_taken_for_clean_that_was_not_seen(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("TIMEOUT_SECONDS", "2")
    cluster = _cluster(render, {"a": True})
    cluster.away = True
    assert _run(uninstall, cluster, environment, tmp_path) == 1
    assert "node a was not cleaned" in capsys.readouterr().out
    assert "vtap-collector-default" in cluster.names(DEPLOYMENTS)


def test_a_release_without_agents_is_no_obstacle(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster = _cluster(render, {"a": True})
    del cluster.collections[DAEMONSETS]["vtap-agent"]
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    assert cluster.names(SECRETS) == {"somebody-elses"}


def test_certificates_of_others_stay(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("REMOVE_CERTIFICATES", "false")
    environment.setattr(uninstall, "UNREACHABLE_PATIENCE", 1.0)
    cluster = _cluster(render, {"a": True})
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    assert cluster.names(SECRETS) == {"vtap-ca", "vtap-agent-tls", "vtap-collector-default-tls", "somebody-elses"}
    (job,) = of_kind(render("full"), "Job", "vtap-uninstall")
    told = {each["name"]: each.get("value") for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert told["REMOVE_CERTIFICATES"] == "false"


def test_every_right_of_the_hook_is_used(
    uninstall: ModuleType, render: Render, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setattr(uninstall, "UNREACHABLE_PATIENCE", 1.0)
    cluster = _cluster(render, {"a": True, "gone": False})
    assert _run(uninstall, cluster, environment, tmp_path) == 0
    granted = {(rule, resource, verb) for rule in cluster.rules for resource in rule.resources for verb in rule.verbs}
    assert granted - cluster.used == set()
