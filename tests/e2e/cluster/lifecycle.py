"""Clusters come and go: build, up, down, load."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from tests.e2e.cluster import ground, upstream
from tests.e2e.cluster.binaries import build_command, build_kubernetes
from tests.e2e.cluster.cache import CHECKOUT, Cache
from tests.e2e.cluster.commands import ClusterError, run
from tests.e2e.cluster.images import node_image, pods_image, save_images
from tests.e2e.cluster.kubectl import Kubectl
from tests.e2e.cluster.machine import provide_podman
from tests.e2e.cluster.networks import Flavour, NodePlace, join_script, pod_conflist
from tests.e2e.cluster.progress import say, step
from tests.e2e.cluster.way import Way, choose_way
from vtap_lab.errors import comes_true

_CREATE_TIMEOUT = 600.0
_READY_TIMEOUT = 240.0
_CONTROL_PLANE = "-control-plane"
"""How kind ends the name of a node that pods go to only if they tolerate its taint."""
_NAMED_BY_CONTENT = re.compile(r":(e2e-)?[0-9a-f]{12}$")


@dataclass(frozen=True)
class Built:
    """What a cluster is made of."""

    cache: Cache
    way: Way
    node_image: str
    pods_image: str

    def program(self, name: str) -> str:
        """The path of kind, kubectl or helm."""
        return _program(self.cache, self.way, name)


def build(cache: Cache) -> Built:
    """Everything that clusters need; a second or two when it is all there."""
    way = choose_way()
    say(f"{way.reason}.")
    if not way.is_public:
        provide_podman()
    for name in ("kind", "helm", "kubectl"):
        _program(cache, way, name)
    return Built(cache, way, node_image(cache, way), pods_image(cache, way))


def up(built: Built, name: str, flavour: Flavour = "local", kubeconfig: Path | None = None) -> Kubectl:
    """Create a cluster whose nodes are Ready and whose pods have both networks; `kubeconfig` gets a copy of the way to it.

    On failure the cluster is left for a look.
    """
    environment = _environment(built.cache, built.way)
    own = built.cache.kubeconfig(name)
    configuration = built.cache.cluster(name) / "kind.yaml"
    configuration.write_text(yaml.safe_dump(cluster_configuration(built.way)))
    with step(f"creating cluster {name}"):
        create = [
            "create",
            "cluster",
            "--name",
            name,
            "--image",
            built.node_image,
            "--config",
            configuration,
            "--kubeconfig",
            own,
        ]
        run([built.program("kind"), *create, "--retain", "--quiet"], timeout=_CREATE_TIMEOUT, env=environment)
    if not built.way.is_public:
        ground.start_forwarding(built.cache, name, _api_port(own))
    kubectl = Kubectl(built.program("kubectl"), own)
    with step("joining its networks"):
        _wait_until_registered(kubectl, len(cluster_configuration(built.way)["nodes"]))
        join_networks(built.way, kubectl, flavour)
        kubectl.wait("condition=Ready", "nodes", "--all", timeout=_READY_TIMEOUT)
    with step("waiting for its name server"):
        kubectl.rollout("deployment/coredns", "kube-system", _READY_TIMEOUT)
    if flavour == "upstream":
        upstream.install(kubectl)
    load(built, name, built.pods_image, workers_only=True)
    if kubeconfig is not None:
        shutil.copy(own, kubeconfig)
    return kubectl


def _wait_until_registered(kubectl: Kubectl, count: int) -> None:
    """A node that is not there is none that could be waited for to be Ready; kind does not look."""
    if not comes_true(lambda: len(kubectl.list("nodes")) == count, _READY_TIMEOUT, every=1):
        names = ", ".join(node["metadata"]["name"] for node in kubectl.list("nodes"))
        raise ClusterError(f"of {count} nodes only {names} came; the others' `journalctl -u kubelet` says why")


def down(cache: Cache, name: str) -> None:
    """Delete a cluster, or what is left of one. No error when there is none."""
    way = _way_of_present(cache)
    with step(f"deleting cluster {name}"):
        delete = ["delete", "cluster", "--name", name, "--kubeconfig", cache.kubeconfig(name), "--quiet"]
        run([_program(cache, way, "kind"), *delete], timeout=300, env=_environment(cache, way))
        if not way.is_public:
            ground.stop_forwarding(cache, name)
            ground.clear(cache)
        shutil.rmtree(cache.root / "clusters" / name, ignore_errors=True)


def load(built: Built, name: str, *images: str, workers_only: bool = False) -> None:
    """Bring images from the runtime's store into the nodes of a cluster. Those named by their content are not brought twice."""
    environment = _environment(built.cache, built.way)
    found = run([built.program("kind"), "get", "nodes", "--name", name], env=environment).split()
    nodes = [node for node in found if not (workers_only and node.endswith(_CONTROL_PLANE))]
    if not nodes:
        raise ClusterError(f"there is no cluster {name}; make it by: python -m tests.e2e.cluster up {name}")
    present = [
        run([built.way.runtime, "exec", node, "ctr", "--namespace", "k8s.io", "images", "list", "-q"]).split() for node in nodes
    ]
    wanted = [image for image in images if not (_NAMED_BY_CONTENT.search(image) and all(image in there for there in present))]
    if not wanted:
        return
    archive = built.cache.cluster(name) / "images.tar"
    with step(f"loading {', '.join(wanted)}"):
        save_images(built.way, archive, *wanted)
        run(
            [built.program("kind"), "load", "image-archive", archive, "--name", name, "--nodes", ",".join(nodes)],
            timeout=600,
            env=environment,
        )
        archive.unlink()


def join_networks(way: Way, kubectl: Kubectl, flavour: Flavour) -> None:
    """The pod network, and Open vSwitch bridged between the nodes; run again it repairs what a node's restart undid."""
    places = node_places(kubectl)
    for place in places:
        others = [other for other in places if other != place]
        script = join_script(place, others, pod_conflist(place, flavour))
        run([way.runtime, "exec", "-i", place.name, "sh", "-s"], stdin=script, timeout=120)
        if flavour == "upstream":
            run([way.runtime, "exec", "-i", place.name, "sh", "-s"], stdin=upstream.node_script(place), timeout=60)


def node_places(kubectl: Kubectl) -> list[NodePlace]:
    nodes = sorted(kubectl.list("nodes"), key=lambda node: node["metadata"]["name"])
    return [
        NodePlace(node["metadata"]["name"], _address(node), node["spec"]["podCIDR"], index) for index, node in enumerate(nodes)
    ]


def cluster_configuration(way: Way) -> dict[str, Any]:
    """kind-config.yaml of the checkout with a pod network of our own, and what nodes of our own image need."""
    configuration = cast("dict[str, Any]", yaml.safe_load((CHECKOUT / "kind-config.yaml").read_text()))
    del configuration["name"]
    configuration["networking"] = {"disableDefaultCNI": True, "kubeProxyMode": "iptables"}
    if not way.is_public:
        configuration["kubeadmConfigPatches"] = ["kind: KubeletConfiguration\ncgroupRoot: /\n"]
    return configuration


def _program(cache: Cache, way: Way, name: str) -> str:
    if way.is_public and (present := shutil.which(name)):
        return present
    if name == "kubectl":
        build_kubernetes(cache)
        return str(cache.bin / name)
    return str(build_command(cache, name))


def _way_of_present(cache: Cache) -> Way:
    """As clusters were made here: what is built here leaves its network namespace."""
    del cache
    return Way("podman", False, "") if ground.PATH.exists() else choose_way()


def _environment(cache: Cache, way: Way) -> dict[str, str]:
    if not way.is_public:
        return ground.prepare(cache)
    return {"KIND_EXPERIMENTAL_PROVIDER": way.runtime}


def _api_port(kubeconfig: Path) -> int:
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    port = urlsplit(server).port
    if port is None:
        raise ClusterError(f"{kubeconfig}: {server} has no port")
    return port


def _address(node: dict[str, Any]) -> str:
    return next(one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP")
