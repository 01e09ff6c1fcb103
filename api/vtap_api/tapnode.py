"""TapNode: what a node's agent may use and what it found and did. One object a node; only its agent writes the status."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from vtap_api.base import API_VERSION, Model, list_of, rules
from vtap_api.meta import ClusterMeta, Conditions
from vtap_api.values import LARGEST, Between, DnsLabel, DnsSubdomain, IPAddress, Text
from vtap_api.virtualtap import BackendName

MAX_TAPS = 1024
"""Taps that a node reports of."""
MAX_KEYS = 4096
"""Tap points a node can have, each with a key of its own."""
LAST_FIRST_KEY = 2**24 - MAX_KEYS
"""Keys fit a VXLAN network identifier."""

Name = Annotated[str, DnsSubdomain]
Namespace = Annotated[str, DnsLabel]
Word = Annotated[str, Text(63, "one word", "Attached", r"[A-Za-z0-9_.-]*")]
InterfaceName = Annotated[str, Text(15, "an interface name", "eth0")]
Sentence = Annotated[str, Text(1024, "text")]


class KeyBlock(Model):
    """The keys of a node's streams."""

    first: Annotated[int, Between(1, LAST_FIRST_KEY)]
    """The first key."""
    size: Annotated[int, Between(1, MAX_KEYS)] = MAX_KEYS
    """How many keys there are."""


class TapNodeSpec(Model):
    """What the operator grants."""

    model_config = rules(
        ("has(self.keyBlock) || !has(oldSelf.keyBlock)", "a key block stays, as streams are known by their keys"),
    )

    key_block: Annotated[
        KeyBlock | None,
        Field(
            json_schema_extra={"x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "a key block never changes"}]}
        ),
    ] = None
    """Set once by the operator, so that new pods are tapped while it is down."""


class BridgeStatus(Model):
    """A bridge on the node."""

    name: Word
    """Its name."""
    datapath_type: Word = ""
    """`system` (kernel) or `netdev` (userspace)."""
    mirrors: Annotated[int, Between(0, 32)] = 0
    """Mirrors on it, ours and others'; Open vSwitch allows 32."""
    controlled: Annotated[str, Text(253, "text")] = ""
    """Its controller, where it has one."""


class BackendStatus(Model):
    """Whether a backend can be used on the node."""

    name: BackendName
    """Which."""
    available: bool
    """Whether it can be used."""
    message: Sentence = ""
    """Why not, and what would help."""


class PointState(StrEnum):
    """How a tap point fares."""

    READY = "Ready"
    WAITING = "Waiting"
    REFUSED = "Refused"


class PointStatus(Model):
    """A tap point: one direction of one pod interface, for one tap."""

    tap_namespace: Namespace
    """The tap's namespace."""
    tap_name: Name
    """The tap's name."""
    pod_name: Name
    """The pod's name; its namespace is the tap's."""
    pod_uid: Annotated[str, Text(64, "a UID")] = ""
    """The pod's UID."""
    interface: InterfaceName = ""
    """The pod's interface."""
    direction: Annotated[Literal["Ingress", "Egress"], Field()]
    """Toward the pod, or from it."""
    key: Annotated[int, Between(0, 2**32 - 1)] = 0
    """The key of its stream; 0 where it has none."""
    backend: BackendName = BackendName.AUTO
    """How copies are made."""
    why: Sentence = ""
    """Why they are made so: what `Auto` takes here, and for what reason, or that the tap names it."""
    state: PointState
    """`Ready`: copies. `Waiting`: will copy when something else changes. `Refused`: someone has to change something."""
    reason: Word = ""
    """Why, in one word."""
    message: Sentence = ""
    """Why, and what would help."""


class TapOnNode(Model):
    """A tap as this node sees it: one entry for each tap that matches a pod here, or that the node has to say something of."""

    namespace: Namespace
    """The tap's namespace."""
    name: Name
    """The tap's name."""
    generation: Annotated[int, Between(0, LARGEST)] = 0
    """The tap's generation that this was said of."""
    matched_pods: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Pods of this node that it selects."""
    attached_pods: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Pods of which every wanted tap point copies packets."""
    failed_pods: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Pods of which some wanted tap point can't be had."""
    conditions: Conditions = ()
    """`Accepted`, `Programmed` and `Delivering`, of this node alone."""


class TapNodeStatus(Model):
    """What the node's agent found and did. No counters: those are metrics."""

    observed_generation: Annotated[int, Between(0, LARGEST)] = 0
    """The generation this was said of."""
    agent_version: Word = ""
    """The agent's version."""
    addresses: Annotated[tuple[Annotated[str, IPAddress()], ...], Field(max_length=64, json_schema_extra=list_of("set"))] = ()
    """Addresses that this node's copies come from."""
    switch_version: Word = ""
    """The version of Open vSwitch; empty where there is none."""
    bridges: Annotated[tuple[BridgeStatus, ...], Field(max_length=256, json_schema_extra=list_of("atomic"))] = ()
    """Bridges on the node."""
    backends: Annotated[tuple[BackendStatus, ...], Field(max_length=8, json_schema_extra=list_of("atomic"))] = ()
    """What can be used here."""
    taps: Annotated[tuple[TapOnNode, ...], Field(max_length=MAX_TAPS, json_schema_extra=list_of("atomic"))] = ()
    """Taps on the node."""
    points: Annotated[tuple[PointStatus, ...], Field(max_length=MAX_KEYS, json_schema_extra=list_of("atomic"))] = ()
    """Tap points on the node."""
    conditions: Conditions = ()
    """`Ready`: the agent works."""


class TapNode(Model):
    """A node as its agent and the operator see it. Made by the operator; people read it."""

    api_version: Literal["vtap.dev/v1alpha1"] = API_VERSION
    """`vtap.dev/v1alpha1`."""
    kind: Literal["TapNode"] = "TapNode"
    """`TapNode`."""
    metadata: ClusterMeta
    """Name: the node's."""
    spec: TapNodeSpec = TapNodeSpec()
    """What the operator grants."""
    status: TapNodeStatus = TapNodeStatus()
    """What the agent found and did."""

    def __str__(self) -> str:
        return f"TapNode {self.metadata.name}"
