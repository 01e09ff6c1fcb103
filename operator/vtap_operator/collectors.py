"""Collectors that the operator runs: the objects that one needs, and what its pods say of it. Pure; templates are data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import yaml

from vtap_api.base import API_VERSION
from vtap_api.names import COMPONENT_LABEL, DESTINATION_LABEL, collector_name, label_value
from vtap_api.tapdestination import CollectorStorage, CollectorTarget, StorageKind, Transport
from vtap_api.values import Quantity
from vtap_operator.permissions import COLLECTOR_ROLE
from vtap_operator.records import Destination, Said
from vtap_operator.resources import (
    CLUSTER_ROLE_BINDINGS,
    DEPLOYMENTS,
    NETWORK_POLICIES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from vtap_operator.wire import FINISHED, WholePod

CONTROL_PORT = 9471
USER = 65532
"""Who the collector runs as: nobody in particular."""
ROTATE_BYTES = 256 << 20
KEEP = 0.9
"""Share of the storage that files may take: the rest is for what is being written."""
FILES = 8
"""At least as many files fit the storage, so that deleting the oldest deletes little."""
_RAW = frozenset({Transport.GRE, Transport.ERSPAN})
_NOT_DRAWN_UP = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CrashLoopBackOff", "CreateContainerConfigError"}
)


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """What the chart says of collectors' pods: `values` has image, and may have imagePullPolicy, imagePullSecrets, resources,
    nodeSelector, tolerations, affinity, priorityClassName and annotations, as in a pod."""

    namespace: str
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])


def objects(destination: Destination, template: PodTemplate) -> list[dict[str, Any]]:
    """All that its collector needs, in the order in which they are to be applied. They go with the TapDestination."""
    model = destination.model
    if model is None or model.spec.collector is None:
        return []
    target = model.spec.collector
    name = collector_name(destination.name)
    selector = {COMPONENT_LABEL: "collector", DESTINATION_LABEL: label_value(destination.name)}
    storage = target.storage or CollectorStorage()
    text = _templates().get_template("collector.yaml.j2").render(
        name=name,
        namespace=template.namespace,
        labels={
            **selector,
            "app.kubernetes.io/name": "vtap-collector",
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/managed-by": "vtap-operator",
        },
        selector=selector,
        owner=owner(destination),
        role=COLLECTOR_ROLE,
        user=USER,
        raw=target.transport in _RAW,
        control_port=CONTROL_PORT,
        data_port=target.data_port,
        claim=storage.type is StorageKind.PERSISTENT_VOLUME_CLAIM,
        storage_class=storage.storage_class_name,
        size=str(storage.size),
        pod=template.values,
        arguments=arguments(target, storage.size),
    )  # fmt: skip
    return [document for document in yaml.safe_load_all(text) if document]


def owner(destination: Destination) -> dict[str, Any]:
    """An ownerReference."""
    return {"apiVersion": API_VERSION, "kind": "TapDestination", "name": destination.name, "uid": destination.uid}


def arguments(target: CollectorTarget, size: Quantity) -> list[str]:
    """The collector's command line. The storage bounds how much is kept, and how large one file becomes."""
    transport = {
        Transport.GRE_IN_UDP: (),
        Transport.GRE: ("--gre",),
        Transport.ERSPAN: ("--erspan",),
        Transport.VXLAN: ("--vxlan", str(target.data_port)),
    }[target.transport]
    return [
        "--kubernetes",
        "--tls=/etc/vtap/tls",
        "--directory=/var/lib/vtap",
        "--run-dir=/run/vtap",
        f"--listen=[::]:{CONTROL_PORT}",
        "--own-addresses=$(POD_IPS)",
        f"--retain-bytes={int(size.value * KEEP)}",
        f"--rotate-size={min(ROTATE_BYTES, int(size.value * KEEP) // FILES)}",
        *transport,
    ]


def leftovers(destination: str, namespace: str) -> list[tuple[Resource, str, str]]:
    """(kind, namespace, name) of what a destination that is no collector of ours any more may have left.

    A claim stays until its TapDestination goes, as it holds what was captured.
    """
    name = collector_name(destination)
    kinds = (DEPLOYMENTS, SERVICES, NETWORK_POLICIES, SERVICE_ACCOUNTS)
    return [
        *((kind, namespace, name) for kind in kinds),
        (SECRETS, namespace, f"{name}-tls"),
        (CLUSTER_ROLE_BINDINGS, "", f"{name}.{namespace}"),
    ]


@dataclass(frozen=True, slots=True)
class CollectorPod:
    """A collector's pod. `trouble` says why it does not run, where that is known."""

    name: str
    uid: str
    destination: str
    created: str
    address: str
    ready: bool
    leaving: bool
    trouble: str = ""


def collector_pod(pod: WholePod) -> CollectorPod:
    """What matters of a pod of ours."""
    conditions = {one.type: one for one in pod.status.conditions or ()}
    ready = conditions.get("Ready")
    return CollectorPod(
        pod.metadata.name,
        pod.metadata.uid,
        (pod.metadata.labels or {}).get(DESTINATION_LABEL, ""),
        pod.metadata.creation_timestamp or "",
        pod.status.pod_ip if pod.status.phase not in FINISHED else "",
        ready is not None and ready.status == "True",
        pod.metadata.deletion_timestamp is not None,
        _trouble(pod),
    )


def _trouble(pod: WholePod) -> str:
    for one in pod.status.conditions or ():
        if one.type == "PodScheduled" and one.status == "False":
            return f"the collector's pod has no node: {one.message or one.reason}"
    for container in pod.status.container_statuses or ():
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason in _NOT_DRAWN_UP:
            return f"the collector's pod does not start: {waiting.reason}: {waiting.message}".rstrip(": ")
    return ""


@dataclass(frozen=True, slots=True)
class CollectorState:
    """Where agents are to send, if anywhere, and what is to be said of it."""

    address: str
    ready: Said


def follow(pods: Iterable[CollectorPod], published: str, failure: str) -> CollectorState:
    """`published` is the address that agents have; `failure` says why the collector's objects could not be applied.

    An address is given away when its pod is ready, and kept while that pod is there at all: copies on their way are better late
    than lost. When the pod is gone, so is the address, as it may soon be another pod's.
    """
    there = sorted(pods, key=lambda pod: (not pod.leaving, pod.ready, pod.created), reverse=True)
    ready = next((pod for pod in there if pod.ready and pod.address and not pod.leaving), None)
    if ready is not None:
        return CollectorState(ready.address, Said("True", "Ready", f"the collector receives copies at {ready.address}"))
    kept = next((pod.address for pod in there if pod.address and pod.address == published), "")
    if failure:
        return CollectorState(kept, Said("False", "ApplyFailed", failure))
    trouble = next((pod.trouble for pod in there if pod.trouble), "")
    if trouble:
        return CollectorState(kept, Said("False", "CollectorFailing", trouble))
    return CollectorState(kept, Said("False", "CollectorStarting", "the collector's pod is not ready yet"))


def pods_of(destination: str, pods: Iterable[CollectorPod]) -> Sequence[CollectorPod]:
    """Those that are its collector."""
    wanted = label_value(destination)
    return [pod for pod in pods if pod.destination == wanted]


def url(destination: str, namespace: str) -> str:
    """The control channel. The name is one that the collector's certificate has."""
    return f"https://{collector_name(destination)}.{namespace}.svc:{CONTROL_PORT}"


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vtap_operator"), undefined=jinja2.ChainableUndefined, trim_blocks=False, autoescape=False
    )
