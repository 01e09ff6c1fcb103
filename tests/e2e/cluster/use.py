"""The cluster that a run of the tests uses: one of its own, a kept one, or somebody's. Decided by the environment."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.cluster.cache import Cache, the_cache
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.handle import CONTROL_PLANE, Cluster
from tests.e2e.cluster.kubectl import Kubectl
from tests.e2e.cluster.lifecycle import Built, build, down, load, up
from tests.e2e.cluster.networks import Flavour
from tests.e2e.cluster.nodes import SHELLS_NAMESPACE, Node, container_nodes, node_shells
from tests.e2e.cluster.progress import say

_OWNER = "owner"
RUN_FOLDER = "VTAP_E2E_RUN_FOLDER"
"""Names a folder where the processes of one run tell each other things. The release of our chart then stays for the next."""


@contextmanager
def cluster_in_use() -> Iterator[Cluster]:
    """VTAP_E2E_CLUSTER empty: a new cluster, deleted afterwards unless VTAP_E2E_KEEP=1; NAME: that one of `up NAME`, which is
    left as it is; "existing": what KUBECONFIG names, with pods of VTAP_E2E_PODS_IMAGE. VTAP_E2E_NETWORK=local|upstream."""
    chosen = os.environ.get("VTAP_E2E_CLUSTER", "")
    if chosen == "existing":
        with _existing() as cluster:
            yield cluster
        return
    cache = the_cache()
    sweep(cache)
    built = build(cache)
    if chosen:
        yield _kept(cache, built, chosen)
        return
    name = f"vtap-{os.getpid()}-{secrets.token_hex(2)}"
    (cache.cluster(name) / _OWNER).write_text(str(os.getpid()))
    try:
        yield _handle(built, name, up(built, name, _flavour()))
    finally:
        if os.environ.get("VTAP_E2E_KEEP", "") in ("", "0", "no"):
            down(cache, name)
        else:
            (cache.cluster(name) / _OWNER).unlink()
            say(f"cluster {name} is kept: export KUBECONFIG={cache.kubeconfig(name)}")


def sweep(cache: Cache) -> None:
    """Delete the clusters of runs that were killed."""
    for owner in cache.folder("clusters").glob(f"*/{_OWNER}"):
        if not Path(f"/proc/{owner.read_text()}").exists():
            down(cache, owner.parent.name)


def _kept(cache: Cache, built: Built, name: str) -> Cluster:
    kubeconfig = cache.kubeconfig(name)
    if not kubeconfig.exists():
        raise ClusterError(f"there is no cluster {name}; make it by: python -m tests.e2e.cluster up {name}")
    cluster = _handle(built, name, Kubectl(built.program("kubectl"), kubeconfig))
    load(built, name, built.pods_image, workers_only=True)
    return cluster


def _handle(built: Built, name: str, kubectl: Kubectl) -> Cluster:
    nodes = tuple(container_nodes(kubectl, built.way.runtime))
    return Cluster(name, kubectl, nodes, _workers(kubectl, nodes), built.pods_image, built.program("helm"), built)


@contextmanager
def _existing() -> Iterator[Cluster]:
    kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    image = os.environ.get("VTAP_E2E_PODS_IMAGE", "")
    for path, what in (
        (kubeconfig.exists(), f"KUBECONFIG names no file ({kubeconfig})"),
        (image, "VTAP_E2E_PODS_IMAGE names no image"),
    ):
        if not path:
            raise ClusterError(f"an existing cluster is to be used, but {what}")
    kubectl = Kubectl(_present("kubectl"), kubeconfig)
    try:
        nodes = tuple(node_shells(kubectl, image))
        yield Cluster("existing", kubectl, nodes, _workers(kubectl, nodes), image, _present("helm"), None)
    finally:
        kubectl.delete("namespace", SHELLS_NAMESPACE)


def _workers(kubectl: Kubectl, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    leading = {one["metadata"]["name"] for one in kubectl.list("nodes") if CONTROL_PLANE in one["metadata"]["labels"]}
    return tuple(node for node in nodes if node.name not in leading)


def _flavour() -> Flavour:
    wanted = os.environ.get("VTAP_E2E_NETWORK", "") or "local"
    if wanted not in ("local", "upstream"):
        raise ClusterError(f"VTAP_E2E_NETWORK is {wanted}; for a new cluster it may be local or upstream")
    return wanted


def _present(program: str) -> str:
    if found := shutil.which(program):
        return found
    raise ClusterError(f"an existing cluster is to be used, but there is no {program} on the PATH")
