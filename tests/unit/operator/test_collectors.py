"""What the operator runs for a TapDestination, and what it says of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_api.names import collector_name, label_value
from vtap_operator import collectors
from vtap_operator.collectors import CollectorPod, PodTemplate, collector_pod, follow, objects
from vtap_operator.destination_keeper import conditions_of, not_run_here, published
from vtap_operator.permissions import PERMISSIONS, cluster_rules, granted, namespace_rules
from vtap_operator.records import Destination, read_destination
from vtap_operator.resources import BY_KIND
from vtap_operator.wire import PodCondition, PodMeta, PodStatus, WholePod

TEMPLATE = PodTemplate("vtap-system", {"image": "registry.example/vtap-collector:1", "nodeSelector": {"disk": "ssd"}})


def destination(spec: dict[str, Any], name: str = "default") -> Destination:
    meta = {"name": name, "uid": "u1", "generation": 1, "resourceVersion": "7"}
    return read_destination({"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": meta, "spec": spec})


def made(spec: dict[str, Any], name: str = "default") -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in objects(destination(spec, name), TEMPLATE)}


def container(made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return made["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def test_a_collector_is_one_replica_that_is_never_there_twice() -> None:
    all_of_it = made({"collector": {}})
    assert set(all_of_it) == {"ServiceAccount", "ClusterRoleBinding", "Service", "NetworkPolicy", "Deployment"}
    spec = all_of_it["Deployment"]["spec"]
    assert spec["replicas"] == 1 and spec["strategy"] == {"type": "Recreate"}
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert spec["template"]["metadata"]["labels"]["vtap.dev/component"] == "collector"
    assert spec["template"]["metadata"]["labels"]["vtap.dev/destination"] == "default"
    for one in all_of_it.values():
        assert one["metadata"]["ownerReferences"] == [
            {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "name": "default", "uid": "u1"}
        ]
        assert one["metadata"].get("namespace", "vtap-system") == "vtap-system"


def test_a_collector_has_no_privilege_unless_its_transport_needs_one() -> None:
    plain, raw = made({"collector": {}}), made({"collector": {"transport": "ERSPAN"}})
    for one in (plain, raw):
        context = container(one)["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"]["drop"] == ["ALL"]
    assert "add" not in container(plain)["securityContext"]["capabilities"]
    assert plain["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container(raw)["securityContext"]["capabilities"]["add"] == ["NET_RAW"]
    assert "--erspan" in container(raw)["args"]


def test_a_collector_knows_the_addresses_of_its_pod() -> None:
    for transport in ("GREInUDP", "VXLAN", "ERSPAN"):
        one = container(made({"collector": {"transport": transport}}))
        (given,) = [value for value in one["args"] if value.startswith("--own-addresses=")]
        (variable,) = [entry for entry in one["env"] if given == f"--own-addresses=$({entry['name']})"]
        assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIPs"}}


def test_storage_is_what_the_destination_says_and_files_stay_below_it() -> None:
    claimed = made({"collector": {"storage": {"type": "PersistentVolumeClaim", "size": "1Gi", "storageClassName": "fast"}}})
    claim = claimed["PersistentVolumeClaim"]["spec"]
    assert claim["storageClassName"] == "fast" and claim["resources"]["requests"]["storage"] == "1Gi"
    arguments = dict(one.split("=", 1) for one in container(claimed)["args"] if "=" in one)
    assert 0.8 * 2**30 < int(arguments["--retain-bytes"]) < 2**30
    assert int(arguments["--rotate-size"]) * 8 <= int(arguments["--retain-bytes"])
    volumes = {one["name"]: one for one in made({"collector": {}})["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["data"] == {"name": "data", "emptyDir": {"sizeLimit": "10Gi"}}


def test_the_network_policy_opens_what_the_collector_serves() -> None:
    (rule,) = made({"collector": {}})["NetworkPolicy"]["spec"]["ingress"]
    assert {(one["protocol"], one["port"]) for one in rule["ports"]} == {("TCP", 9471), ("UDP", 4754)}
    assert made({"collector": {"transport": "GRE"}})["NetworkPolicy"]["spec"]["ingress"] == [{}]


@settings(deadline=None)
@given(
    st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True).filter(
        lambda name: ".." not in name and "-." not in name and ".-" not in name
    )
)
def test_any_name_gives_names_that_kubernetes_takes(name: str) -> None:
    short = collector_name(name)
    assert len(short) + len("-tls") <= 63 and "." not in short and not short.endswith("-")
    assert short.startswith("vtap-collector-")
    assert len(label_value(name)) <= 63


def test_names_that_would_be_one_stay_two() -> None:
    assert collector_name("default") == "vtap-collector-default"
    assert len({collector_name(name) for name in ("a.b", "a-b", "x" * 100, "x" * 101)}) == 4


def test_a_value_cannot_become_yaml_of_its_own() -> None:
    template = PodTemplate("vtap-system", {"image": 'x"\n      hostNetwork: true #', "annotations": {"a": "{{ 7 * 7 }}\n- b"}})
    (deployment,) = [one for one in objects(destination({"collector": {}}), template) if one["kind"] == "Deployment"]
    assert "hostNetwork" not in deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == 'x"\n      hostNetwork: true #'
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {"a": "{{ 7 * 7 }}\n- b"}


def pod(address: str, *, ready: bool = True, leaving: bool = False, created: str = "1", trouble: str = "") -> CollectorPod:
    return CollectorPod(f"pod-{address}", address, "default", created, address, ready, leaving, trouble)


def test_agents_get_the_address_of_a_ready_pod() -> None:
    state = follow([pod("10.0.0.1")], "", "")
    assert (state.address, state.ready.status) == ("10.0.0.1", "True")


def test_an_address_is_kept_while_its_pod_is_there_and_taken_back_when_it_is_gone() -> None:
    waiting = follow([pod("10.0.0.1", ready=False)], "10.0.0.1", "")
    assert (waiting.address, waiting.ready.reason) == ("10.0.0.1", "CollectorStarting")
    assert follow([pod("10.0.0.1", ready=False, leaving=True)], "10.0.0.1", "").address == "10.0.0.1"
    assert follow([pod("10.0.0.2", ready=False)], "10.0.0.1", "").address == ""
    assert follow([], "10.0.0.1", "").address == ""


def test_a_collector_that_moves_is_followed() -> None:
    state = follow([pod("10.0.0.1", leaving=True), pod("10.0.0.2", created="2")], "10.0.0.1", "")
    assert state.address == "10.0.0.2"


def test_what_is_wrong_is_said() -> None:
    assert follow([], "", "the API server refuses …").ready.reason == "ApplyFailed"
    stuck = WholePod(
        metadata=PodMeta(name="p", labels={"vtap.dev/destination": "default"}),
        status=PodStatus(conditions=[PodCondition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available")]),
    )
    state = follow([collector_pod(stuck)], "", "")
    assert state.ready.message == "the collector's pod has no node: 0/3 nodes are available"


def test_other_endpoints_are_not_ours() -> None:
    elsewhere = destination({"gre": {"address": "192.0.2.9"}})
    assert not elsewhere.is_run_here and not_run_here(elsewhere).ready.status == "True"
    assert "192.0.2.9" in not_run_here(elsewhere).ready.message
    assert published(elsewhere, "", "vtap-system") is None
    assert published(destination({"collector": {}}), "10.0.0.1", "vtap-system") == (
        "10.0.0.1", 4754, "https://vtap-collector-default.vtap-system.svc:9471",
    )  # fmt: skip


def test_a_destination_that_cannot_be_read_says_so() -> None:
    odd = destination({"collector": {}, "gre": {"address": "192.0.2.9"}})
    accepted, ready = conditions_of(odd, not_run_here(odd))
    assert (accepted.status, accepted.reason) == ("False", "Invalid") and "has collector and gre" in accepted.message
    assert ready.status == "False"


@pytest.mark.parametrize(
    "kind",
    sorted(
        {one["kind"] for one in objects(destination({"collector": {"storage": {"type": "PersistentVolumeClaim"}}}), TEMPLATE)}
    ),
)
def test_what_is_made_may_be_made(kind: str) -> None:
    resource = next(one for (_, name), one in BY_KIND.items() if name == kind)
    own = kind != "ClusterRoleBinding"
    assert {(resource.group, resource.plural, verb, own) for verb in ("create", "patch")} <= granted()


def test_rules_are_whole() -> None:
    assert len(cluster_rules()) + len(namespace_rules()) == len(PERMISSIONS)
    assert not any("*" in rule["verbs"] or "*" in rule["resources"] for rule in (*cluster_rules(), *namespace_rules()))
    secrets = [rule for rule in cluster_rules() if "secrets" in rule["resources"]]
    assert not secrets, "Secrets of other namespaces are none of ours"
    assert collectors.leftovers("default", "vtap-system")
