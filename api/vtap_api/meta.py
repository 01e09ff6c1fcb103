"""What every Kubernetes object carries: metadata, label selectors, conditions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from vtap_api.base import Model, list_of, rules
from vtap_api.problems import fault
from vtap_api.values import LARGEST, Between, DnsLabel, DnsSubdomain, FrozenMap, LabelKey, LabelValue, StringMap, Text

Labels = Annotated[FrozenMap, StringMap()]
ANNOTATION_VALUE = Text(262144, "text")
GENERATIONS = Between(0, LARGEST)


class ObjectMeta(Model):
    """Metadata of any object. What the API server fills in is taken and kept."""

    name: Annotated[str, DnsSubdomain]
    """Unique among objects of the kind: a DNS name of at most 253 characters."""
    generate_name: Annotated[str, Text(253, "the beginning of a name")] = ""
    """What the API server made the name of."""
    labels: Labels = Field(default_factory=FrozenMap)
    """For selectors and people."""
    annotations: Annotated[FrozenMap, StringMap(ANNOTATION_VALUE, 256)] = Field(default_factory=FrozenMap)
    """For tools and people."""
    uid: Annotated[str, Text(64, "a UID")] = ""
    """Set by the API server."""
    generation: Annotated[int, GENERATIONS] = 0
    """Set by the API server: counts changes of the spec."""
    resource_version: Annotated[str, Text(64, "a resource version")] = ""
    """Set by the API server."""
    creation_timestamp: Annotated[str, Text(64, "a time")] = ""
    """Set by the API server."""
    deletion_timestamp: Annotated[str, Text(64, "a time")] = ""
    """Set by the API server."""
    deletion_grace_period_seconds: Annotated[int, GENERATIONS] = 0
    """Set by the API server."""
    finalizers: Annotated[tuple[Annotated[str, Text(317, "a finalizer")], ...], Field(max_length=64)] = ()
    """Who has to finish before the object goes."""
    owner_references: Annotated[tuple[dict[str, Any], ...], Field(max_length=64)] = ()
    """Objects that this one goes with."""
    managed_fields: Annotated[tuple[dict[str, Any], ...], Field(max_length=256)] = ()
    """Set by the API server."""


class ClusterMeta(ObjectMeta):
    """Metadata of a cluster-scoped object. A namespace says nothing there and is dropped, as the API server drops it."""

    @model_validator(mode="before")
    @classmethod
    def _drop_namespace(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        entries = cast("Mapping[str, Any]", data)
        return {key: value for key, value in entries.items() if key != "namespace"}


class NamespacedMeta(ObjectMeta):
    """Metadata of an object in a namespace."""

    namespace: Annotated[str, DnsLabel] = "default"
    """The namespace it belongs to, as for every Kubernetes object."""


class SelectorOperator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelSelectorRequirement(Model):
    """One comparison of a label."""

    model_config = rules(
        (
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values; Exists and DoesNotExist take none",
            ".values",
        )
    )

    key: Annotated[str, LabelKey()]
    """The label's key."""
    operator: SelectorOperator
    """`In` and `NotIn` compare with `values` (without the label is NotIn); `Exists` and `DoesNotExist` ask for the key alone."""
    values: Annotated[tuple[Annotated[str, LabelValue], ...], Field(max_length=64, json_schema_extra=list_of("atomic"))] = ()
    """What `In` and `NotIn` compare with."""

    @model_validator(mode="after")
    def _values_fit_operator(self) -> LabelSelectorRequirement:
        needs = self.operator in (SelectorOperator.IN, SelectorOperator.NOT_IN)
        if needs and not self.values:
            raise fault(f"is missing, which {self.operator} compares with", "write at least one value", ("values",))
        if not needs and self.values:
            raise fault(f"means nothing to {self.operator}", "remove it, or use In or NotIn", ("values",))
        return self


class LabelSelector(Model):
    """Selects by labels, as everywhere in Kubernetes: all parts must hold; an empty selector selects everything."""

    match_labels: Labels = Field(default_factory=FrozenMap)
    """Labels that must be there with exactly these values."""
    match_expressions: Annotated[
        tuple[LabelSelectorRequirement, ...], Field(max_length=64, json_schema_extra=list_of("atomic"))
    ] = ()
    """Comparisons that must hold."""


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """One aspect of the state, as Kubernetes' metav1.Condition."""

    type: Annotated[
        str, Text(316, "a condition type", "Programmed", rf"({DnsSubdomain.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
    ]
    """Which aspect; positive polarity, so that True is good."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[
        str, Text(1024, "a reason in one word", "Programmed", r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", min_length=1)
    ]
    """Why, in one word for programs."""
    message: Annotated[str, Text(32768, "text")]
    """Why, in one sentence for people."""
    last_transition_time: Annotated[
        str, Text(64, "a time", "2026-01-31T12:00:00Z", r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)")
    ]
    """When `status` last changed (RFC 3339)."""
    observed_generation: Annotated[int, GENERATIONS] = 0
    """The generation this was said of; an older one than the object's means that it is out of date."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
]

__all__ = [
    "ClusterMeta",
    "Condition",
    "ConditionStatus",
    "Conditions",
    "LabelSelector",
    "LabelSelectorRequirement",
    "Labels",
    "NamespacedMeta",
    "SelectorOperator",
]
