"""Models → structural OpenAPI v3 schemas and CustomResourceDefinitions, as an API server accepts them. Pure.

Structural means, among other things: no references, one type a node, validations beside types and never instead of them
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel

from vtap_api.base import API_GROUP, API_VERSION
from vtap_api.tapdestination import TapDestination
from vtap_api.tapnode import TapNode
from vtap_api.tappeerslice import TapPeerSlice
from vtap_api.virtualtap import VirtualTap

Schema = dict[str, Any]

MODEL = "x-model"
"""Names the model that a node comes from; for the reference page, never part of a CRD."""
_DROPPED = frozenset({"title", "examples", "anyOf", "$ref", "const", "$defs"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    description: str = ""
    wide: bool = False


def _condition(kind: str, description: str, *, wide: bool = False) -> Column:
    return Column(kind, f'.status.conditions[?(@.type=="{kind}")].status', description=description, wide=wide)


AGE = Column("Age", ".metadata.creationTimestamp", "date")


@dataclass(frozen=True, slots=True)
class Definition:
    """A kind, and how `kubectl` shows it."""

    model: type[BaseModel]
    plural: str
    short_names: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]
    status: bool = True

    @property
    def kind(self) -> str:
        """The kind's name."""
        return self.model.__name__


DEFINITIONS = (
    Definition(
        VirtualTap,
        "virtualtaps",
        ("vtap",),
        True,
        (
            Column("Pods", ".status.matchedPods", "integer", "Pods that the tap selects"),
            Column("Attached", ".status.attachedPods", "integer", "Pods whose packets are copied"),
            Column("Failed", ".status.failedPods", "integer", "Pods that can't be tapped"),
            Column("Destination", ".spec.destinationRef.name", description="Where copies go"),
            _condition("Programmed", "Whether all tap points copy"),
            _condition("Delivering", "Whether copies arrive"),
            Column("Direction", ".spec.direction", description="Which packets", wide=True),
            _condition("Accepted", "Whether the tap makes sense", wide=True),
            AGE,
        ),
    ),
    Definition(
        TapDestination,
        "tapdestinations",
        ("vtapdest",),
        False,
        (
            _condition("Accepted", "Whether the destination makes sense"),
            _condition("Ready", "Whether copies can be sent there"),
            Column("Namespaces", ".spec.allowedNamespaces.from", description="Whose taps may use it"),
            Column("Oversize", ".spec.oversize", description="What happens to copies that don't fit", wide=True),
            AGE,
        ),
    ),
    Definition(
        TapNode,
        "tapnodes",
        ("vtapnode",),
        False,
        (
            Column("FirstKey", ".spec.keyBlock.first", "integer", "The first of the node's stream keys"),
            Column("Switch", ".status.switchVersion", description="The version of Open vSwitch"),
            _condition("Ready", "Whether the agent works"),
            Column("Agent", ".status.agentVersion", description="The agent's version", wide=True),
            AGE,
        ),
    ),
    Definition(
        TapPeerSlice,
        "tappeerslices",
        ("vtappeers",),
        True,
        (Column("Namespace of taps", ".spec.tapNamespace", description="Whose taps use it"), AGE),
        status=False,
    ),
)


def annotated_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a kind, in which each node that is a model of ours names it under `MODEL`."""
    document = model.model_json_schema(by_alias=True, mode="validation")
    schema = _structural(document, cast("Mapping[str, Schema]", document.get("$defs", {})))
    properties = schema["properties"]
    for name in ("apiVersion", "kind"):
        properties[name] = {"type": "string", "description": properties[name]["description"]}
    properties["metadata"] = {"type": "object"}
    for part in properties.values():
        # An object without a status is not yet looked at: no default says otherwise.
        part.pop("default", None)
    schema["required"] = [name for name in schema.get("required", []) if name != "metadata"]
    if not schema["required"]:
        del schema["required"]
    return schema


def openapi_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a kind, as its CRD holds it."""
    return _without_models(annotated_schema(model))


def _without_models(node: Any) -> Any:
    if isinstance(node, dict):
        entries = cast("dict[str, Any]", node)
        return {key: _without_models(value) for key, value in entries.items() if key != MODEL}
    if isinstance(node, list):
        return [_without_models(value) for value in cast("list[Any]", node)]
    return node


def _structural(node: Schema, defs: Mapping[str, Schema]) -> Schema:
    node = _dereferenced(node, defs)
    result: Schema = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in node:
        result |= {"type": "string", "enum": [node["const"]]}
    default = _without_nulls(result.pop("default", None))
    if default or default is False:
        result["default"] = default
    if "properties" in result:
        result.pop("additionalProperties", None)
        result["properties"] = {name: _structural(child, defs) for name, child in result["properties"].items()}
    elif isinstance(result.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(result["additionalProperties"], defs)
    elif result.get("type") == "object":
        result.pop("additionalProperties", None)
    if "items" in result:
        result["items"] = _structural(result["items"], defs)
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    return result


def _without_nulls(default: Any) -> Any:
    if isinstance(default, dict):
        entries = cast("dict[str, Any]", default)
        return {key: _without_nulls(value) for key, value in entries.items() if value is not None}
    return default


def _dereferenced(node: Schema, defs: Mapping[str, Schema]) -> Schema:
    """Replace a reference or an optional value by what it stands for; what stands beside it (description, default) wins."""
    while "$ref" in node or "anyOf" in node:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            name = node["$ref"].removeprefix("#/$defs/")
            node = {MODEL: name, **defs[name], **beside}
        else:
            (choice,) = (option for option in node["anyOf"] if option.get("type") != "null")
            node = {**choice, **beside}
    return node


def custom_resource_definition(definition: Definition) -> Schema:
    """The CustomResourceDefinition (apiextensions.k8s.io/v1) of a kind."""
    version: Schema = {
        "name": API_VERSION.removeprefix(f"{API_GROUP}/"),
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_printer_column(column) for column in definition.columns],
        "schema": {"openAPIV3Schema": openapi_schema(definition.model)},
    }
    if definition.status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{definition.plural}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced" if definition.namespaced else "Cluster",
            "names": {
                "kind": definition.kind,
                "listKind": f"{definition.kind}List",
                "plural": definition.plural,
                "singular": definition.kind.lower(),
                "shortNames": list(definition.short_names),
                "categories": ["tapping"],
            },
            "versions": [version],
        },
    }


def _printer_column(column: Column) -> Schema:
    entry: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        entry["description"] = column.description
    if column.wide:
        entry["priority"] = 1
    return entry
