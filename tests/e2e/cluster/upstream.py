"""The real Multus and OVS-CNI from their published manifests, for machines that reach them."""

from __future__ import annotations

import re
import urllib.request

from tests.e2e.cluster import versions
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.kubectl import Kubectl, Resource
from tests.e2e.cluster.networks import SECOND_NETWORKS, NodePlace, ovs_cni_configuration

_TIMEOUT = 60.0


def require() -> None:
    """ClusterError in one sentence where the manifests can't be fetched."""
    _manifest(versions.MULTUS)
    _manifest(versions.OVS_CNI)


def install(kubectl: Kubectl) -> None:
    """Apply both and wait for them; ClusterError in one sentence where they can't be fetched."""
    multus, ovs_cni = _manifest(versions.MULTUS), _manifest(versions.OVS_CNI)
    # Multus' manifests of a release name the image of the day (k8snetworkplumbingwg/multus-cni#1170).
    version = versions.MULTUS.split("/multus-cni/")[1].split("/")[0]
    multus = re.sub(r":snapshot\b", f":{version}", multus)
    for manifest in (multus, ovs_cni):
        kubectl.run("apply", "-f", "-", stdin=manifest)
    kubectl.rollout("daemonset/kube-multus-ds", "kube-system", 300)
    kubectl.rollout("daemonset/ovs-cni-amd64", "kube-system", 300)
    kubectl.apply(*(_definition(network.name) for network in SECOND_NETWORKS))


def node_script(node: NodePlace) -> str:
    """Each node's own configuration of each network: its addresses come from a range of its own."""
    folder = "/etc/cni/multus/net.d"
    files = {one.name.partition("/")[2]: ovs_cni_configuration(one, node) for one in SECOND_NETWORKS}
    written = "\n".join(f"cat > {folder}/{name}.conf <<'CONF'\n{text}\nCONF" for name, text in files.items())
    return f"set -eu\nmkdir -p {folder}\n{written}\n"


def _definition(name: str) -> Resource:
    """Without a configuration in it Multus takes the one of this name from the node's folder."""
    namespace, _, own = name.partition("/")
    return {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {
            "namespace": namespace,
            "name": own,
            "annotations": {"k8s.v1.cni.cncf.io/resourceName": "ovs-cni.network.kubevirt.io/br1"},
        },
        "spec": {},
    }


def _manifest(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
            return answer.read().decode()
    except OSError as cause:
        raise ClusterError(
            f"the upstream network plugins can't be had here: {address}: {cause}; take the local flavour"
        ) from cause
