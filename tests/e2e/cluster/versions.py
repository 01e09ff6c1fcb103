"""What the clusters are made of, each version in this one place (Kubernetes' modules: gomod/go.mod)."""

from __future__ import annotations

KUBERNETES = "1.34.4"
"""The last minor version that starts on cgroup v1 unasked. gomod/go.mod requires the same one; a test compares them."""

GO = "1.26.4"
"""Go to fetch where there is none; GO_MINIMUM is what a present one must have (it fetches newer toolchains by itself)."""
GO_MINIMUM = (1, 24)

GO_COMMANDS = {
    "kind": "sigs.k8s.io/kind@v0.30.0",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.19.0",
    "coredns": "github.com/coredns/coredns@v1.14.7",
}
"""Installed one by one, each with the dependencies that its own go.mod names."""

PUBLIC_NODE = "docker.io/kindest/node:v1.34.0"
DEBIAN = "docker.io/library/debian:bookworm-slim"
DEBIAN_SUITE = "bookworm"

MULTUS = "https://raw.githubusercontent.com/k8snetworkplumbingwg/multus-cni/v4.2.4/deployments/multus-daemonset.yml"
OVS_CNI = "https://raw.githubusercontent.com/k8snetworkplumbingwg/ovs-cni/v0.32.0/examples/ovs-cni.yml"
