"""Label selectors, as Kubernetes evaluates them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from vtap_api.meta import LabelSelector, LabelSelectorRequirement, SelectorOperator

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""The label that Kubernetes puts on every namespace."""


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether an object with these labels is selected. All parts must hold; an empty selector selects everything."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        holds(requirement, labels) for requirement in selector.match_expressions
    )


def holds(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    """Whether one comparison holds."""
    value = labels.get(requirement.key)
    match requirement.operator:
        case SelectorOperator.IN:
            return value is not None and value in requirement.values
        case SelectorOperator.NOT_IN:
            return value is None or value not in requirement.values
        case SelectorOperator.EXISTS:
            return value is not None
        case SelectorOperator.DOES_NOT_EXIST:
            return value is None
        case _:
            assert_never(requirement.operator)
