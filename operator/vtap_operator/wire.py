"""Objects as the API server sends them, as far as the operator reads them. What is not named here is skipped while decoding."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec
from msgspec import Raw, Struct, field

NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
"""What Multus writes of a pod's networks (the Network Plumbing Working Group's specification 1.3)."""
FINISHED = frozenset({"Succeeded", "Failed"})
"""Phases of pods without packets."""


class Wire(Struct, rename="camel", omit_defaults=True, gc=False, frozen=True):
    """What is not sent has its default."""


class ListMeta(Wire, frozen=True):
    """Of a list."""

    resource_version: str = ""
    continue_: str = field(default="", name="continue")


class Owner(Wire, frozen=True):
    """An object that another goes with."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class Meta(Wire, frozen=True):
    """Of any object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    owner_references: list[Owner] | None = None


class PodAnnotations(Wire, frozen=True):
    """The one annotation that says where else a pod is."""

    network_status: str = field(default="", name=NETWORK_STATUS)


class PodMeta(Meta, frozen=True):
    """Of a pod."""

    annotations: PodAnnotations | None = None


class PodSpec(Wire, frozen=True):
    """Of a pod."""

    host_network: bool | None = None
    node_name: str = ""


class PodAddress(Wire, frozen=True):
    """One of a pod's."""

    ip: str = ""


class Waiting(Wire, frozen=True):
    """Why a container does not run."""

    reason: str = ""
    message: str = ""


class ContainerState(Wire, frozen=True):
    """Of a container."""

    waiting: Waiting | None = None


class ContainerStatus(Wire, frozen=True):
    """Of a container."""

    state: ContainerState | None = None


class PodCondition(Wire, frozen=True):
    """Of a pod."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class PodStatus(Wire, frozen=True):
    """Of a pod."""

    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodAddress] | None = field(default=None, name="podIPs")
    conditions: list[PodCondition] | None = None
    container_statuses: list[ContainerStatus] | None = None


class SmallPodStatus(Wire, frozen=True):
    """Of a pod, as far as peers need it."""

    phase: str = ""
    pod_ip: str = field(default="", name="podIP")
    pod_ips: list[PodAddress] | None = field(default=None, name="podIPs")


class Pod(Wire, frozen=True):
    """A pod as far as peers need it."""

    metadata: PodMeta
    spec: PodSpec = PodSpec()
    status: SmallPodStatus = SmallPodStatus()


class WholePod(Wire, frozen=True):
    """A pod of ours: whether it works, and if not, why."""

    metadata: PodMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServiceSpec(Wire, frozen=True):
    """Of a Service."""

    selector: dict[str, str] | None = None
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    type: str = ""


class Service(Wire, frozen=True):
    """A Service."""

    metadata: Meta
    spec: ServiceSpec = ServiceSpec()


class Bare(Wire, frozen=True):
    """An object of which only metadata matters."""

    metadata: Meta


class SliceSpec(Wire, frozen=True):
    """Of a TapPeerSlice."""

    tap_namespace: str = ""
    pod_selector: Raw = Raw(b"")
    namespace_selector: Raw = Raw(b"")
    index: int = 0
    count: int = 1
    addresses: list[str] | None = None


class PeerSlice(Wire, frozen=True):
    """A TapPeerSlice."""

    metadata: Meta
    spec: SliceSpec = SliceSpec()


class KeyBlock(Wire, frozen=True):
    """Of a TapNode."""

    first: int = 0
    size: int = 0


class TapNodeSpec(Wire, frozen=True):
    """Of a TapNode."""

    key_block: KeyBlock | None = None


class KeyedNode(Wire, frozen=True):
    """A TapNode as far as key blocks need it."""

    metadata: Meta
    spec: TapNodeSpec = TapNodeSpec()


Item = TypeVar("Item")


class Page(Wire, Generic[Item], frozen=True):
    """A part of a list."""

    metadata: ListMeta = ListMeta()
    items: list[Item] | None = None


class Event(Wire, frozen=True):
    """Of a watch."""

    type: str
    object: Raw


class EventObject(Wire, frozen=True):
    """Of a bookmark, or of an error."""

    metadata: ListMeta = ListMeta()
    code: int = 0
    reason: str = ""
    message: str = ""


class _Network(Wire, frozen=True):
    ips: list[str] | None = None


_NETWORKS = msgspec.json.Decoder(list[_Network])


def pod_addresses(pod: Pod | WholePod) -> Iterator[str]:
    """Addresses on every network; none of a pod that has finished or uses its node's network. Some may come twice."""
    if pod.spec.host_network or pod.status.phase in FINISHED:
        return
    if pod.status.pod_ip:
        yield pod.status.pod_ip
    for one in pod.status.pod_ips or ():
        yield one.ip
    annotations = pod.metadata.annotations
    if annotations is not None and annotations.network_status:
        yield from _network_addresses(annotations.network_status)


def _network_addresses(text: str) -> Iterator[str]:
    """Whoever may annotate a pod may write anything there: what is no address that a slice may hold is left out."""
    try:
        networks = _NETWORKS.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return
    for network in networks:
        for written in network.ips or ():
            address = _plain_address(written.partition("/")[0])
            if address is not None:
                yield address


def _plain_address(text: str) -> str | None:
    """Without a zone, and not mapped to IPv6: the API server would refuse the whole slice."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 4:
        return str(address)
    return None if address.scope_id is not None else str(address.ipv4_mapped or address)


def cluster_ips(service: Service) -> Iterator[str]:
    """ClusterIPs; a headless Service has none."""
    for address in dict.fromkeys((service.spec.cluster_ip, *(service.spec.cluster_ips or ()))):
        if address and address != "None":
            yield address
