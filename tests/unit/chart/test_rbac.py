"""Who may do what: as little as the code needs, and people only what their role says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from vtap_agent.main import FOR_REWRITING, NEEDED_IN_CLUSTER
from vtap_agent.sources.kubernetes import permissions as agent
from vtap_operator import permissions as operator

from .conftest import NAMESPACE, VALUE_SETS, Manifest, Render, of_kind, only

Right = tuple[str, str, str, str, bool]
"""API group, resource with subresource, verb, name ("" for all), in our namespace only."""


def _rights_of(role: Manifest) -> Iterator[Right]:
    for rule in role.get("rules", []):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames", [""]):
                        yield group, resource, verb, name, role["kind"] == "Role"


def _bound_to(manifests: Sequence[Manifest], account: str) -> list[Manifest]:
    """Roles that bindings give to a ServiceAccount of ours."""
    roles: list[Manifest] = []
    for binding in (*of_kind(manifests, "ClusterRoleBinding"), *of_kind(manifests, "RoleBinding")):
        for subject in binding["subjects"]:
            if subject["kind"] == "ServiceAccount" and subject["name"] == account:
                assert subject["namespace"] == NAMESPACE
                roles.append(only(manifests, binding["roleRef"]["kind"], binding["roleRef"]["name"]))
    return roles


def _rights(manifests: Sequence[Manifest], account: str) -> list[Right]:
    return [right for role in _bound_to(manifests, account) for right in _rights_of(role)]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_operator_has_what_it_uses_and_no_more(render: Render, name: str) -> None:
    used = {
        (one.resource.group, one.full_name, verb, each, one.own_namespace)
        for one in operator.PERMISSIONS
        for verb in one.verbs
        for each in one.names or ("",)
    }
    given = _rights(render(name), "vtap-operator")
    assert set(given) == used
    assert len(given) == len(used)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_agent_has_what_it_uses_and_no_more(render: Render, name: str) -> None:
    # It watches the slices of its own namespace only.
    used = {(one.group, one.resource, one.verb, "", one.resource == "tappeerslices") for one in agent.PERMISSIONS}
    given = _rights(render(name), "vtap-agent")
    assert set(given) == used
    assert len(given) == len(used)


def test_the_agent_has_the_capabilities_that_it_asks_for_and_no_more(render: Render) -> None:
    (container,) = only(render(), "DaemonSet", "vtap-agent")["spec"]["template"]["spec"]["containers"]
    assert sorted(container["securityContext"]["capabilities"]["add"]) == sorted((*NEEDED_IN_CLUSTER, *FOR_REWRITING))


def test_collectors_ask_and_read_nothing(render: Render) -> None:
    assert set(_rights_of(only(render(), "ClusterRole", operator.COLLECTOR_ROLE))) == {
        ("authentication.k8s.io", "tokenreviews", "create", "", False),
        ("authorization.k8s.io", "subjectaccessreviews", "create", "", False),
    }


@pytest.mark.parametrize("name", VALUE_SETS)
def test_nobody_gets_everything(render: Render, name: str) -> None:
    for role in (*of_kind(render(name), "ClusterRole"), *of_kind(render(name), "Role")):
        assert "aggregationRule" not in role
        for group, resource, verb, _, own in _rights_of(role):
            assert "*" not in (group, resource, verb), role["metadata"]["name"]
            # A right to read Secrets ends at our namespace, and nobody lists them.
            assert resource != "secrets" or (own and verb not in ("list", "watch")), role["metadata"]["name"]
            assert verb not in ("escalate", "impersonate"), role["metadata"]["name"]


def _people(render: Render) -> dict[str, set[tuple[str, str]]]:
    names = ("vtap-view", "vtap-edit", "vtap-packets", "vtap-admin")
    return {name: {(right[1], right[2]) for right in _rights_of(only(render(), "ClusterRole", name))} for name in names}


def test_only_one_role_of_people_reads_packets(render: Render) -> None:
    readers = {name for name, rights in _people(render).items() if ("virtualtaps/packets", "get") in rights}
    assert readers == {"vtap-packets"}
    assert _people(render)["vtap-packets"] == {("virtualtaps/packets", "get")}


def test_tenants_choose_no_destination_of_their_own_making(render: Render) -> None:
    people = _people(render)
    assert {resource for resource, _ in people["vtap-edit"]} == {"virtualtaps"}
    assert {verb for _, verb in people["vtap-view"]} == {"get", "list", "watch"}
    assert ("tapdestinations", "create") in people["vtap-admin"]


def test_taps_are_in_no_role_that_everybody_has(render: Render) -> None:
    """`edit` and `admin` of Kubernetes take in whatever is labelled for them."""
    labelled = {
        (role["metadata"]["name"], label)
        for role in of_kind(render(), "ClusterRole")
        for label in role["metadata"]["labels"]
        if label.startswith("rbac.authorization.k8s.io/aggregate-to-")
    }
    assert labelled == {("vtap-view", "rbac.authorization.k8s.io/aggregate-to-view")}
    apart = render("default", "rbac.aggregateToView=false")
    assert not any("aggregate" in label for label in only(apart, "ClusterRole", "vtap-view")["metadata"]["labels"])


def test_everybody_reaches_collectors_and_nothing_else(render: Render) -> None:
    everybody = [
        (binding["kind"], binding["roleRef"]["name"], subject["name"])
        for binding in (*of_kind(render(), "ClusterRoleBinding"), *of_kind(render(), "RoleBinding"))
        for subject in binding["subjects"]
        if subject["kind"] != "ServiceAccount"
    ]
    assert everybody == [("RoleBinding", "vtap-collector-proxy", "system:authenticated")]
    assert set(_rights_of(only(render(), "Role", "vtap-collector-proxy"))) == {("", "services/proxy", "get", "", True)}


def test_the_reader_is_for_admins_to_ask_for(render: Render) -> None:
    assert only(render(), "ServiceAccount", "vtap-reader")["automountServiceAccountToken"] is False
    assert _rights(render(), "vtap-reader") == [("vtap.dev", "virtualtaps/packets", "get", "", False)]
    for role in (*of_kind(render(), "ClusterRole"), *of_kind(render(), "Role")):
        assert all(right[1] != "serviceaccounts/token" for right in _rights_of(role))
    assert of_kind(render("bare"), "ServiceAccount", "vtap-reader") == []
