"""Kinds of objects that the operator reads or writes, and where the API server has them."""

from __future__ import annotations

from dataclasses import dataclass

from vtap_api.base import API_GROUP


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As in an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL's path; of all namespaces where none is given."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        parts += ["namespaces", namespace] if namespace and self.namespaced else []
        return "/" + "/".join(part for part in (*parts, self.plural, name, subresource) if part)


VIRTUAL_TAPS = Resource(API_GROUP, "v1alpha1", "virtualtaps", "VirtualTap")
TAP_DESTINATIONS = Resource(API_GROUP, "v1alpha1", "tapdestinations", "TapDestination", namespaced=False)
TAP_NODES = Resource(API_GROUP, "v1alpha1", "tapnodes", "TapNode", namespaced=False)
TAP_PEER_SLICES = Resource(API_GROUP, "v1alpha1", "tappeerslices", "TapPeerSlice")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
SECRETS = Resource("", "v1", "secrets", "Secret")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENTS = Resource("", "v1", "events", "Event")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False)

BY_KIND = {
    (resource.api_version, resource.kind): resource
    for resource in (
        SERVICES, SERVICE_ACCOUNTS, SECRETS, CLAIMS, DEPLOYMENTS, NETWORK_POLICIES, CLUSTER_ROLE_BINDINGS, TAP_DESTINATIONS,
        TAP_NODES, TAP_PEER_SLICES, VIRTUAL_TAPS,
    )
}  # fmt: skip
"""Kinds that templates make, by apiVersion and kind."""
