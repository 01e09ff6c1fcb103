"""Every example is accepted by the models and by the schema an API server gets; every invalid one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vtap_api.load import load_file
from vtap_api.schema import DEFINITIONS, openapi_schema

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
INVALID = EXAMPLES / "invalid"
GOOD = sorted(path for path in EXAMPLES.rglob("*.yaml") if INVALID not in path.parents)
BAD = sorted(INVALID.glob("*.yaml"))
MODELS = {definition.kind: definition.model for definition in DEFINITIONS}


def relative(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def as_json_schema(node: Any) -> Any:
    """Kubernetes' int-or-string has no JSON schema of its own name."""
    if isinstance(node, list):
        return [as_json_schema(child) for child in node]
    if not isinstance(node, dict):
        return node
    extra = {"type": ["integer", "string"]} if node.get("x-kubernetes-int-or-string") else {}
    closed = {"additionalProperties": False} if "properties" in node else {}
    return {key: as_json_schema(value) for key, value in node.items()} | extra | closed


def schema_of(kind: str) -> dict[str, Any]:
    schema = as_json_schema(openapi_schema(MODELS[kind]))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def test_there_are_enough_examples():
    assert len(GOOD) >= 12
    assert len(BAD) >= 18


@pytest.mark.parametrize("path", GOOD, ids=relative)
def test_example_is_accepted(path: Path):
    loaded = load_file(path, standalone=True)
    assert not loaded.problems
    assert loaded.documents


@pytest.mark.parametrize("path", GOOD, ids=relative)
def test_example_fits_the_generated_schema(path: Path):
    for document in yaml.safe_load_all(path.read_text()):
        jsonschema.Draft202012Validator(schema_of(document["kind"])).validate(document)


@pytest.mark.parametrize("path", GOOD, ids=relative)
def test_example_means_the_same_after_a_round_trip(path: Path):
    for located in load_file(path).documents:
        document = located.document
        dumped = document.model_dump(mode="json", exclude_none=True)
        assert type(document).model_validate(dumped, by_alias=True, by_name=False) == document
        jsonschema.Draft202012Validator(schema_of(document.kind)).validate(dumped)


@pytest.mark.parametrize("path", BAD, ids=relative)
def test_invalid_example_is_refused_with_the_sentence_in_its_first_line(path: Path):
    loaded = load_file(path)
    assert [problem.sentence for problem in loaded.problems] == [path.read_text().splitlines()[0].removeprefix("# ")]
    assert not loaded.documents


def test_schema_alone_refuses_what_it_can_say():
    """Spot check that the schema is not simply permissive: these mistakes need no CEL."""
    refused = {
        "direction-unknown",
        "vlan-out-of-range",
        "port-out-of-range",
        "protocol-unknown",
        "unknown-field",
        "selector-missing",
    }
    for name in refused:
        document = yaml.safe_load((INVALID / f"{name}.yaml").read_text())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema_of(document["kind"])).validate(document)
