"""TapPeerSlice: addresses that a filter's peer selector resolves to, in slices as EndpointSlices are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vtap_api.base import API_VERSION, Model, Unique, list_of, rules
from vtap_api.meta import LabelSelector, NamespacedMeta
from vtap_api.problems import fault
from vtap_api.values import Between, DnsLabel, IPAddress

MAX_ADDRESSES = 1000
MAX_SLICES = 1024


class TapPeerSliceSpec(Model):
    """A peer selector and addresses that it resolves to."""

    model_config = rules(
        ("has(self.podSelector) || has(self.namespaceSelector)", "write podSelector, namespaceSelector or both"),
    )

    tap_namespace: Annotated[str, DnsLabel]
    """The namespace of the taps whose rules use this selector: what a podSelector alone refers to."""
    pod_selector: LabelSelector | None = None
    """As in the rules that use it."""
    namespace_selector: LabelSelector | None = None
    """As in the rules that use it."""
    index: Annotated[int, Between(0, MAX_SLICES - 1)] = 0
    """Which of the selector's slices this is."""
    count: Annotated[int, Between(1, MAX_SLICES)] = 1
    """How many slices the selector has; agents wait for all of them."""
    addresses: Annotated[
        tuple[Annotated[str, IPAddress()], ...], Field(max_length=MAX_ADDRESSES, json_schema_extra=list_of("atomic")), Unique
    ] = ()
    """Addresses of the selected pods on every network, and ClusterIPs of Services that lead to them."""

    @model_validator(mode="after")
    def _selects(self) -> TapPeerSliceSpec:
        if self.pod_selector is None and self.namespace_selector is None:
            raise fault("selects nobody", "write podSelector, namespaceSelector or both")
        return self


class TapPeerSlice(Model):
    """Addresses a peer selector resolves to, at most 1,000. The operator makes it in its own namespace; agents watch it."""

    api_version: Literal["vtap.dev/v1alpha1"] = API_VERSION
    """`vtap.dev/v1alpha1`."""
    kind: Literal["TapPeerSlice"] = "TapPeerSlice"
    """`TapPeerSlice`."""
    metadata: NamespacedMeta
    """Name, namespace, labels."""
    spec: TapPeerSliceSpec
    """The selector and its addresses."""

    def __str__(self) -> str:
        return f"TapPeerSlice {self.metadata.namespace}/{self.metadata.name}"
