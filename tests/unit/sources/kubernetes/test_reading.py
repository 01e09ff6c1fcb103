"""An object that the agent cannot take is left out with what `vtap validate` says of it, whatever a CRD let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vtap_agent.sources.kubernetes.reading import NEWER, NONE, Readings, compact, read
from vtap_api import TapDestination, VirtualTap
from vtap_api.load import load_file

INVALID = Path(__file__).parents[4] / "examples" / "invalid"
NEVER_AN_OBJECT = {"api-version-unknown", "duplicate-field", "kind-unknown", "name-malformed", "not-yaml"}
"""What no API server stores, whatever a CRD says."""
STORED = sorted(path for path in INVALID.glob("*.yaml") if path.stem not in NEVER_AN_OBJECT)
MODELS: dict[str, Any] = {"VirtualTap": VirtualTap, "TapDestination": TapDestination}


def stored(document: dict[str, Any], generation: int = 1) -> bytes:
    metadata = {**document["metadata"], "uid": "u1", "generation": generation, "resourceVersion": "7", "generateName": "w-"}
    raw = compact({**document, "metadata": metadata})
    assert raw is not None
    return raw


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_an_invalid_object_is_left_out_with_a_sentence(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    (problem,) = load_file(path).problems
    reading = read(MODELS[document["kind"]], stored(document))
    assert reading.good is None
    assert f": {problem.path}: {problem.wrong}" in reading.problem
    assert NONE in reading.problem


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_it_said_before_stays_in_force(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    model = MODELS[document["kind"]]
    spec = {"podSelector": {}} if model is VirtualTap else {"gre": {"address": "192.0.2.9"}}
    good = stored({**document, "spec": spec})
    readings = Readings(model)
    readings.read({"it": good})
    assert readings.problems == ()
    readings.read({"it": stored(document, 2)})
    (kept,) = readings.models
    assert kept.metadata.generation == 1
    assert kept.spec == model.model_validate({**json.loads(good)}).spec
    assert NEWER in readings.problems[0]
