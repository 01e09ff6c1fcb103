"""The generated CRDs obey the rules an API server enforces, and the generated files are current."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtap_api.generate import generated_files, main, stale_files
from vtap_api.schema import DEFINITIONS, Definition, Schema, custom_resource_definition

ROOT = Path(__file__).resolve().parents[3]
ALLOWED_KEYS = {
    "additionalProperties", "default", "description", "enum", "format", "items", "maxItems", "maxLength", "maxProperties",
    "maximum", "minItems", "minLength", "minimum", "nullable", "pattern", "properties", "required", "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-validations",
}  # fmt: skip


def crd(kind: str) -> Schema:
    return next(custom_resource_definition(item) for item in DEFINITIONS if item.kind == kind)


def root_schema(document: Schema) -> Schema:
    return document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def at_every_node(check: Callable[[Schema], None]) -> Callable[[Definition], None]:
    """A test that runs `check` on each node of each kind's schema, and names the node where it fails."""

    @pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda item: item.kind)
    def run(definition: Definition) -> None:
        visited = 0
        for path, schema in nodes(root_schema(custom_resource_definition(definition))):
            if path != ".metadata":
                visited += 1
                try:
                    check(schema)
                except AssertionError as error:
                    raise AssertionError(f"{definition.kind}{path}: {error}") from error
        assert visited > 10

    return run


@at_every_node
def test_node_is_structural(schema: Schema):
    assert set(schema) <= ALLOWED_KEYS
    typed, int_or_string = "type" in schema, bool(schema.get("x-kubernetes-int-or-string"))
    assert typed != int_or_string, "a node has a type, or is an integer or string"
    assert not ("properties" in schema and "additionalProperties" in schema)
    for key, kind in (("items", "array"), ("properties", "object"), ("additionalProperties", "object"), ("maxItems", "array")):
        if key in schema:
            assert schema["type"] == kind, key
    assert isinstance(schema.get("items", {}), dict)


@at_every_node
def test_node_is_bounded(schema: Schema):
    match schema.get("type"):
        case "array":
            assert 0 < schema["maxItems"] <= 4096
            assert schema["x-kubernetes-list-type"] in ("atomic", "set", "map")
        case "string":
            assert "enum" in schema or "maxLength" in schema or schema["description"].startswith("`"), (
                "apiVersion and kind are bounded anyway"
            )
        case "integer":
            assert schema["minimum"] <= schema["maximum"]
            assert schema["format"] == ("int32" if schema["maximum"] < 2**31 else "int64")
        case "object":
            assert "properties" in schema or schema["maxProperties"] <= 256
        case None:
            assert schema["maxLength"] <= 32


@at_every_node
def test_node_says_what_it_means(schema: Schema):
    if "properties" in schema:
        for name, child in schema["properties"].items():
            assert name == "metadata" or child["description"].endswith("."), name


@at_every_node
def test_patterns_are_anchored_and_plain(schema: Schema):
    """The API server uses RE2, which has neither look-around nor back-references."""
    if "pattern" in schema:
        assert schema["pattern"].startswith("^") and schema["pattern"].endswith("$")
        assert not re.search(r"\(\?|\\[1-9]", schema["pattern"])


@at_every_node
def test_defaults_hold_no_nulls_and_fit_their_type(schema: Schema):
    kinds = {"string": str, "object": dict, "array": list, "boolean": bool, "integer": int}
    if "default" in schema:
        either = schema.get("x-kubernetes-int-or-string", False)
        assert isinstance(schema["default"], (int, str) if either else kinds[schema["type"]])
        assert None not in (schema["default"].values() if isinstance(schema["default"], dict) else ())
        if schema.get("type") == "object":
            assert set(schema["default"]) <= set(schema["properties"])


@at_every_node
def test_map_lists_have_required_keys(schema: Schema):
    if schema.get("x-kubernetes-list-type") == "map":
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])
    if schema.get("x-kubernetes-list-type") == "set":
        assert schema["items"]["type"] == "string"


@at_every_node
def test_rules_are_sentences(schema: Schema):
    for rule in schema.get("x-kubernetes-validations", []):
        assert rule["rule"] and rule["message"]
        assert "\n" not in rule["rule"] + rule["message"]


@at_every_node
def test_rules_blame_fields_that_exist(schema: Schema):
    for rule in schema.get("x-kubernetes-validations", []):
        node = schema
        for name in rule.get("fieldPath", "").split(".")[1:]:
            assert name in node["properties"], rule
            node = node["properties"][name]


def property_names(rule: str) -> set[str]:
    return set(re.findall(r"(?:self|oldSelf)\.([a-zA-Z]+)(?!\w*\()", rule)) - {"all", "exists", "filter", "map", "size"}


@at_every_node
def test_rules_name_fields_that_exist(schema: Schema):
    for rule in schema.get("x-kubernetes-validations", []) if "properties" in schema else ():
        assert property_names(rule["rule"]) <= set(schema["properties"])


def test_virtualtap_can_be_listed_by_its_short_name():
    names = crd("VirtualTap")["spec"]["names"]
    assert names["shortNames"] == ["vtap"]
    assert names["categories"]
    assert crd("VirtualTap")["spec"]["versions"][0]["subresources"] == {"status": {}}


@pytest.mark.parametrize(
    ("kind", "scope"),
    [("VirtualTap", "Namespaced"), ("TapDestination", "Cluster"), ("TapNode", "Cluster"), ("TapPeerSlice", "Namespaced")],
)
def test_scope(kind: str, scope: str):
    assert crd(kind)["spec"]["scope"] == scope


@pytest.mark.parametrize(
    ("path", "default"),
    [
        ("interfaces", ["*"]),
        ("direction", "Both"),
        ("backend", "Auto"),
        ("destinationRef", {"name": "default"}),
        ("packet", {"headersOnly": False}),
    ],
)
def test_defaults_are_the_documented_ones(path: str, default: Any):
    assert root_schema(crd("VirtualTap"))["properties"]["spec"]["properties"][path]["default"] == default


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda item: item.kind)
def test_columns_lead_to_fields_that_exist(definition: Any):
    document = custom_resource_definition(definition)
    for column in document["spec"]["versions"][0]["additionalPrinterColumns"]:
        plain = re.sub(r"\[\?\(@\.type==\"[A-Za-z]+\"\)\]", "", column["jsonPath"])
        node = {"properties": {**root_schema(document)["properties"], "metadata": {"properties": {"creationTimestamp": {}}}}}
        for name in plain.strip(".").split("."):
            node = node.get("items", node)["properties"][name]


def test_generated_files_are_current():
    assert stale_files(ROOT) == []


def test_crds_parse_back_to_what_was_generated():
    for path, text in generated_files().items():
        if path.endswith(".yaml"):
            assert yaml.safe_load(text)["kind"] == "CustomResourceDefinition"


def test_reference_names_every_field():
    page = generated_files()["docs/reference.md"]
    for field in (
        "spec.filter.rules[].peer.cidr",
        "spec.collector.control.tokenFile",
        "spec.keyBlock.first",
        "status.conditions",
    ):
        assert f"`{field}`" in page


def test_check_names_stale_files_and_fails(tmp_path: Path):
    assert main(["--root", str(tmp_path)]) == 0
    (tmp_path / "crds" / "virtualtaps.yaml").write_text("edited: by hand\n")
    (tmp_path / "crds" / "forgotten.yaml").write_text("old: true\n")
    command = [sys.executable, "-m", "vtap_api.generate", "--check", "--root", str(tmp_path)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 1
    assert [line.split(" is ")[0] for line in checked.stderr.splitlines()] == ["crds/virtualtaps.yaml", "crds/forgotten.yaml"]
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
