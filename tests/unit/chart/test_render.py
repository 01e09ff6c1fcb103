"""What the chart makes of values, and which it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtap_api.names import collector_name
from vtap_operator.main import parse_options

from .conftest import CHART, KUBE_VERSION, NAMESPACE, VALUE_SETS, Manifest, Render, of_kind, only, value_file

Helm = Callable[[Sequence[str | Path]], subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_lint(helm: Helm, name: str) -> None:
    done = helm(["lint", "--strict", "--kube-version", KUBE_VERSION, "-f", value_file(name), CHART])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_is_ours_and_named_once(render: Render, name: str) -> None:
    manifests = render(name)
    identities = [(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in manifests]
    assert len(identities) == len(set(identities))
    for each in manifests:
        if each["kind"] != "CustomResourceDefinition":
            assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "vtap", each["metadata"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("agnet.privileged=true", "agnet"),
        ("agent.privileged=yes-please", "/agent/privileged"),
        ("agent.port=99999", "/agent/port"),
        ("agent.onExit=maybe", "/agent/onExit"),
        ("agent.exportCPUs=all", "/agent/exportCPUs"),
        ("agent.capabilities={CAP_BPF}", "/agent/capabilities/0"),
        ("agent.stateDirectory=/etc", "/agent/stateDirectory"),
        ("agent.updateStrategy.rollingUpdate.maxSurge=1", "/agent/updateStrategy/rollingUpdate"),
        ("agent.image.digest=sha256:abc", "/agent/image/digest"),
        ("agent.tolerations[0].operator=Any", "/agent/tolerations/0/operator"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("image.tag=a b", "/image/tag"),
        ("imagePullSecrets[0]=pull", "/imagePullSecrets/0"),
        ("operator.replicas=2", "replicas"),
        ("operator.logLevel=loud", "/operator/logLevel"),
        ("admission.destinationNotAllowed=Ask", "/admission/destinationNotAllowed"),
        ("metrics.podMonitor.interval=often", "/metrics/podMonitor/interval"),
        ("packets.viaAPIServer=true", "/packets/viaAPIServer"),
        ("uninstall.timeoutSeconds=0", "/uninstall/timeoutSeconds"),
        ("crds.keep=1", "/crds/keep"),
    ],
)
def test_wrong_values_are_refused_by_their_path(helm: Helm, setting: str, said: str) -> None:
    done = helm(["template", "vtap", CHART, "--kube-version", KUBE_VERSION, "--set", setting])
    assert done.returncode != 0
    assert said in done.stderr


def test_an_old_cluster_is_refused(helm: Helm) -> None:
    done = helm(["template", "vtap", CHART, "--kube-version", "1.29.4"])
    assert done.returncode != 0
    assert "requires kubeVersion: >= 1.31.0" in done.stderr


def test_crds_are_those_of_the_repository(render: Render) -> None:
    made = {each["metadata"]["name"]: each for each in of_kind(render(), "CustomResourceDefinition")}
    assert made
    for path in (CHART.parents[1] / "crds").glob("*.yaml"):
        original = yaml.safe_load(path.read_text())
        kept = made.pop(original["metadata"]["name"])
        assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        # To the last digit: a template engine that reads and writes numbers would round the largest int64.
        assert json.dumps(kept["spec"]) == json.dumps(original["spec"])
    assert made == {}


def test_crds_go_or_stay_away_when_told(render: Render) -> None:
    assert all("annotations" not in each["metadata"] for each in of_kind(render("full"), "CustomResourceDefinition"))
    assert of_kind(render("bare"), "CustomResourceDefinition") == []


def _pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for each in manifests:
        if each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]
        elif "template" in each.get("spec", {}):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_everything_but_the_agent_is_restricted(render: Render, name: str) -> None:
    """The rules of the Pod Security level `restricted`, and a root file system that nobody writes."""
    pods = dict(_pods(render(name)))
    agent = pods.pop("vtap-agent")
    assert "vtap-operator" in pods
    for spec in pods.values():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in agent["containers"])


def test_cpus_set_aside_come_with_the_place_to_say_so(render: Render) -> None:
    (container,) = _agent(render, "full")["containers"]
    assert "--export-cpus=1,2-3" in container["args"]
    assert {"name": "devices", "mountPath": "/sys/devices/virtual/net"} in container["volumeMounts"]
    (one,) = _agent(render, "default", "agent.exportCPUs=0")["containers"]
    assert "--export-cpus=0" in one["args"]
    (plain,) = _agent(render)["containers"]
    assert not any("export-cpus" in word for word in plain["args"])
    assert not any(mount["name"] == "devices" for mount in plain["volumeMounts"])


def _agent(render: Render, name: str = "default", *settings: str) -> Manifest:
    return only(render(name, *settings), "DaemonSet", "vtap-agent")["spec"]["template"]["spec"]


def test_the_agent_has_capabilities_rather_than_privilege(render: Render) -> None:
    (container,) = _agent(render)["containers"]
    context = container["securityContext"]
    assert "privileged" not in context
    assert context["capabilities"]["drop"] == ["ALL"]
    assert {"BPF", "NET_ADMIN", "PERFMON", "SYS_PTRACE"} <= set(context["capabilities"]["add"])
    assert "initContainers" not in _agent(render)


def test_the_agent_is_privileged_when_told(render: Render) -> None:
    spec = _agent(render, "privileged")
    assert spec["containers"][0]["securityContext"]["privileged"] is True
    assert "capabilities" not in spec["containers"][0]["securityContext"]
    (mounting,) = spec["initContainers"]
    assert mounting["volumeMounts"][0]["mountPropagation"] == "Bidirectional"


def test_the_agent_sees_its_node(render: Render) -> None:
    spec = _agent(render)
    assert spec["hostNetwork"] and spec["hostPID"]
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {"/run/openvswitch", "/sys/fs/bpf", "/run/vtap", "/var/lib/vtap"}
    (tls,) = (volume["secret"] for volume in spec["volumes"] if "secret" in volume)
    assert tls["secretName"] == "vtap-agent-tls" and tls["optional"] is True


def _operator_arguments(render: Render, name: str, tmp_path: Path) -> list[str]:
    """The operator's command line, with its configuration where this test can read it."""
    manifests = render(name)
    (tmp_path / "collector-pod.yaml").write_text(only(manifests, "ConfigMap", "vtap-operator")["data"]["collector-pod.yaml"])
    arguments = only(manifests, "Deployment", "vtap-operator")["spec"]["template"]["spec"]["containers"][0]["args"]
    return [each.replace("/etc/vtap/", f"{tmp_path}/").replace("$(POD_NAMESPACE)", NAMESPACE) for each in arguments]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_operator_understands_its_command_line(render: Render, tmp_path: Path, name: str) -> None:
    settings = parse_options(_operator_arguments(render, name, tmp_path)).settings
    assert settings.namespace == NAMESPACE


def test_what_is_said_of_collectors_reaches_the_operator(render: Render, tmp_path: Path) -> None:
    settings = parse_options(_operator_arguments(render, "full", tmp_path)).settings
    assert settings.pods["image"] == "registry.example.com/vtap/vtap-collector:9"
    assert settings.pods["imagePullSecrets"] == [{"name": "pull"}]
    assert settings.pods["tolerations"] == [{"key": "role", "operator": "Exists"}]
    assert settings.pods["annotations"] == {"example.com/note": "here"}
    assert "nodeSelector" not in settings.pods
    assert settings.default_destination == {"gre": {"address": "192.0.2.9"}, "oversize": "Truncate"}
    assert settings.own_certificates is False


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_agent_understands_its_command_line(render: Render, name: str) -> None:
    (container,) = _agent(render, name)["containers"]
    program = [sys.executable, "-m", "vtap_agent.main", *container["args"], "--help"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    given = {each.split("=")[0] for each in container["args"]}
    assert {each for each in given if each not in done.stdout} == set()


def test_there_is_one_operator_at_a_time(render: Render) -> None:
    spec = only(render(), "Deployment", "vtap-operator")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def _images(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, below in value.items():
            if key == "image" and isinstance(below, str):
                yield below
            else:
                yield from _images(below)
    elif isinstance(value, list):
        for below in value:
            yield from _images(below)


def test_images(render: Render) -> None:
    assert set(_images(render())) == {"ghcr.io/virtualtap/vtap-operator:0.1.0", "ghcr.io/virtualtap/vtap-agent:0.1.0"}
    full = render("full")
    of_agent, of_operator = (f"registry.example.com/vtap/vtap-{name}@sha256:" for name in ("agent", "operator"))
    assert {image.split("sha256:")[0] + "sha256:" for image in _images(full)} == {of_agent, of_operator}
    arguments = only(full, "Deployment", "vtap-operator")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--collector-image=registry.example.com/vtap/vtap-collector:9" in arguments
    for _, spec in _pods(full):
        assert spec["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_selectors_survive_an_upgrade(render: Render, name: str) -> None:
    """They can't be changed later, so that nothing of a release or a version may be in them."""
    for kind, workload, component in (("DaemonSet", "vtap-agent", "agent"), ("Deployment", "vtap-operator", "operator")):
        made = only(render(name, release="other"), kind, workload)["spec"]
        assert made["selector"]["matchLabels"] == {"app.kubernetes.io/name": "vtap", "vtap.dev/component": component}
        assert made["selector"]["matchLabels"].items() <= made["template"]["metadata"]["labels"].items()


def test_monitors_are_there_only_when_told(render: Render) -> None:
    monitors = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
    assert monitors & {each["kind"] for each in render()} == set()
    full = [each for each in render("full") if each["kind"] in monitors]
    assert {each["kind"] for each in full} == monitors
    assert all(each["metadata"]["labels"]["release"] == "prometheus" for each in full)


def test_no_service_of_ours_is_behind_the_proxy(render: Render) -> None:
    """services/proxy is everybody's in our namespace: only collectors, which ask who you are, may be behind it."""
    for name in VALUE_SETS:
        assert of_kind(render(name), "Service") == []


def test_the_proxy_can_be_narrowed(render: Render) -> None:
    (rule,) = only(render("full"), "Role", "vtap-collector-proxy")["rules"]
    assert rule["resourceNames"] == ["https:vtap-collector-default:https", "https:vtap-collector-soc:https"]
    assert of_kind(render("bare"), "Role", "vtap-collector-proxy") == []


def test_the_proxy_is_narrowed_to_the_services_that_the_operator_makes(render: Render) -> None:
    names = ["default", "a.b", "a-b", "x" * 44, "x" * 45, "x" * 33 + "-" + "y" * 40, "a." * 60 + "z"]
    (rule,) = only(render("default", f"packets.viaAPIServer.destinations={{{','.join(names)}}}"), "Role", "vtap-collector-proxy")[
        "rules"
    ]
    assert rule["resourceNames"] == [f"https:{collector_name(name)}:https" for name in names]


def test_notes_show_the_next_command(helm: Helm, tmp_path: Path) -> None:
    # Helm shows notes only beside a cluster, so that a copy of the chart shows them in an object.
    chart = tmp_path / "vtap"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "files" / "notes.txt")
    (chart / "templates" / "shown.yaml").write_text('notes: {{ tpl (.Files.Get "files/notes.txt") . | toJson }}\n')
    done = helm(["template", "vtap", chart, "-n", NAMESPACE, "--kube-version", KUBE_VERSION, "-s", "templates/shown.yaml"])
    assert done.returncode == 0, done.stderr
    notes = yaml.safe_load(done.stdout)["notes"]
    assert "helm test vtap --namespace vtap-system" in notes
    assert "kubectl vtap packets first" in notes
