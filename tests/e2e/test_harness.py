"""What the harness decides by itself, without a cluster."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.e2e.__main__ import Outcomes, listed, phases
from tests.e2e.cluster import versions
from tests.e2e.cluster.cache import CHECKOUT, HERE, Cache, digest
from tests.e2e.cluster.lifecycle import cluster_configuration
from tests.e2e.cluster.networks import SECOND_NETWORKS, NodePlace, join_script, ovs_cni_configuration, pod_conflist
from tests.e2e.cluster.pods import PodSpec
from tests.e2e.cluster.snapshot import Snapshot
from tests.e2e.cluster.way import Way

PLACES = [NodePlace(f"n{index}", f"10.89.0.{index + 2}", f"10.244.{index}.0/24", index) for index in range(3)]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("second_networks", str(HERE / "node" / "switch" / "second-networks"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)  # dataclasses look their module up there.
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("", []),
        ("default/ovs-net", [("default/ovs-net", "net1")]),
        ("ovs-net, default/other@lan", [("shop/ovs-net", "net1"), ("default/other", "lan")]),
        (
            '[{"name": "a"}, {"name": "b", "namespace": "default", "interface": "eth9"}]',
            [("shop/a", "net1"), ("default/b", "eth9")],
        ),
    ],
)
def test_a_pod_says_its_networks_as_to_multus(plugin: ModuleType, annotation: str, expected: list[tuple[str, str]]) -> None:
    assert plugin.wanted_networks(annotation, "shop") == expected


def test_no_two_nodes_hand_out_the_same_address() -> None:
    for network in SECOND_NETWORKS:
        ranges = [network.ipam(place)["ranges"][0][0] for place in PLACES]
        assert len({one["rangeStart"].rsplit(".", 1)[0] for one in ranges}) == len(PLACES)
        assert {one["subnet"] for one in ranges} == {network.subnet}


def test_both_flavours_give_pods_the_same_networks() -> None:
    plugins = json.loads(pod_conflist(PLACES[1], "local"))["plugins"]
    assert [one["type"] for one in json.loads(pod_conflist(PLACES[1], "upstream"))["plugins"]] == ["ptp", "portmap"]
    for network in SECOND_NETWORKS:
        ours, theirs = plugins[2]["networks"][network.name], json.loads(ovs_cni_configuration(network, PLACES[1]))
        assert (theirs["type"], theirs["bridge"], theirs["mtu"], theirs["ipam"]) == (
            "ovs",
            ours["bridge"],
            ours["mtu"],
            ours["ipam"],
        )
        assert theirs.get("vlan", 0) == ours["vlan"]


def test_each_node_is_joined_to_all_others_and_not_to_itself() -> None:
    script = join_script(PLACES[0], PLACES[1:], "{}")
    assert "for peer in 10.89.0.3 10.89.0.4; do" in script
    assert re.findall(r"^ip route replace (\S+) via (\S+)$", script, re.MULTILINE) == [
        ("10.244.1.0/24", "10.89.0.3"),
        ("10.244.2.0/24", "10.89.0.4"),
    ]


@pytest.mark.parametrize("is_public", [True, False])
def test_the_tests_cluster_has_the_nodes_of_the_users(is_public: bool) -> None:
    users = yaml.safe_load((CHECKOUT / "kind-config.yaml").read_text())
    ours = cluster_configuration(Way("podman", is_public, ""))
    assert [node["role"] for node in users["nodes"]] == ["control-plane", "worker", "worker"]
    assert ours["nodes"] == users["nodes"]
    assert ours["networking"]["disableDefaultCNI"]
    assert ("kubeadmConfigPatches" in ours) != is_public


def test_one_version_of_kubernetes() -> None:
    text = (HERE / "gomod" / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{versions.KUBERNETES}\n" in text
    staging = set(re.findall(r"^\tk8s.io/\S+ => k8s.io/\S+ (\S+)$", text, re.MULTILINE))
    assert staging == {f"v0.{versions.KUBERNETES.partition('.')[2]}"}


def test_what_is_built_is_built_again_only_when_an_input_changed(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path / "cache"), tmp_path / "source"
    source.write_text("first")
    cache.mark_current("thing", digest(source, "1.0"))
    assert cache.is_current("thing", digest(source, "1.0"))
    assert not cache.is_current("thing", digest(source, "1.1"))
    source.write_text("second")
    assert not cache.is_current("thing", digest(source, "1.0"))


def test_a_snapshot_tells_what_came_and_went_but_for_passing_pods() -> None:
    before = Snapshot(
        "n0", {"links": frozenset({"veth1 up", "eth0 up"}), "bpffs": frozenset({"/sys/fs/bpf/a"})}, frozenset({"veth1"})
    )
    after = Snapshot("n0", {"links": frozenset({"veth2 up", "eth0 up", "tap0 up"})}, frozenset({"veth2"}))
    assert before.difference(after) == ["n0: bpffs: - /sys/fs/bpf/a", "n0: links: + tap0 up"]
    assert before.difference(before) == []


def test_pods_ask_for_the_second_network_only_when_they_want_it() -> None:
    asking = PodSpec("a", "shop", networks=("default/ovs-net",)).manifest("image")
    assert asking["metadata"]["annotations"] == {"k8s.v1.cni.cncf.io/networks": "default/ovs-net"}
    assert "annotations" not in PodSpec("a", "shop", networks=()).manifest("image")["metadata"]


@pytest.mark.parametrize("several", [(), ("--numprocesses=2",)], ids=["one-process", "two"])
def test_outcomes_are_kept_of_cases_below_folders_with_plugins_of_their_own(tmp_path: Path, several: tuple[str, ...]) -> None:
    """pytest puts its plugins into a set where some folder's conftest.py is not for all of them."""
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "conftest.py").write_text("def pytest_runtest_logreport(report):\n    assert report\n")
        (tmp_path / folder / f"test_{folder}.py").write_text("def test_it():\n    assert True\n")
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", *several, "--rootdir", str(tmp_path), str(tmp_path)], plugins=[outcomes])
    names = {f"{folder}/test_{folder}.py::test_it" for folder in ("first", "second")}
    assert outcomes.verdicts == dict.fromkeys(names, "passed") and outcomes.collected == names


def test_neighbours_on_the_list_run_together_if_it_says_so_of_all_of_a_file() -> None:
    cases = list(listed((HERE.parent / "cases.txt").read_text().splitlines(), on_our_nodes=True))
    found = list(phases(cases))
    assert [case for _, phase in found for case in phase] == cases
    assert [together for together, _ in found] == [False, True, False]
    by_file = {case.file: {one.together for one in cases if one.file == case.file} for case in cases}
    assert all(len(said) == 1 for said in by_file.values())
    assert all(not case.together for case in cases if "fault" in case.file or "release" in case.file)
