"""What is made from something else is as that says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from vtap_api import kinds

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "vtap"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("charts_generate", ROOT / "charts" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_readme_and_crds_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "charts/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_value_without_a_comment_is_named() -> None:
    with pytest.raises(ValueError, match=r"values\.yaml: agent\.port has no comment"):
        list(_generator().documented_values("agent:\n  # no mark\n  port: 1\n"))


def test_a_stale_copy_is_named(tmp_path: Path) -> None:
    for folder in ("crds", "charts/vtap/files/crds"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("Chart.yaml", "values.yaml", "README.md"):
        (tmp_path / "charts" / "vtap" / name).write_text((CHART / name).read_text())
    (tmp_path / "crds" / "new.yaml").write_text("a: 1\n")
    (tmp_path / "charts" / "vtap" / "files" / "crds" / "gone.yaml").write_text("a: 1\n")
    assert sorted(path.name for path in _generator().stale_files(tmp_path)) == ["gone.yaml", "new.yaml"]


def _paths(value: Any, above: str = "") -> Iterator[str]:
    for key, below in value.items():
        yield f"{above}{key}"
        if isinstance(below, dict):
            yield from _paths(below, f"{above}{key}.")


def _schema_paths(schema: dict[str, Any], root: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, below in schema.get("properties", {}).items():
        yield f"{above}{key}"
        while "$ref" in below:
            below = root["definitions"][below["$ref"].rsplit("/", 1)[1]]
        yield from _schema_paths(below, root, f"{above}{key}.")


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(_schema_paths(schema, schema))
    given = set(_paths(yaml.safe_load((CHART / "values.yaml").read_text())))
    free = ("nodeSelector.", "resources.requests.", "resources.limits.")
    assert {path for path in given - known if not any(part in path for part in free)} == set()
    allowed = r"global|defaultDestination\.spec\..*|.*(Profile\.localhostProfile|rollingUpdate\.maxUnavailable)"
    assert {path for path in known - given if not re.fullmatch(allowed, path)} - {
        f"{part}.resources.{kind}" for part in ("agent", "operator", "collector") for kind in ("requests", "limits")
    } == set()


def test_artifact_hub_hears_of_every_kind() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    assert {each["kind"] for each in yaml.safe_load(annotations["artifacthub.io/crds"])} == {
        kind.__name__ for kind in kinds.KINDS
    }


def test_the_chart_and_the_images_are_of_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert set(re.findall(r"ARG VERSION=(\S+)", dockerfile)) == {chart["appVersion"]}
    for part in ("agent", "operator", "collector"):
        assert tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"]["version"] == chart["appVersion"]


def test_the_images_are_built_from_the_whole_workspace_with_the_same_uv() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    members = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    assert set(re.findall(r"^COPY (\S+)/pyproject.toml", dockerfile, re.MULTILINE)) == set(members)
    (version,) = re.findall(r"UV_VERSION=(\S+)", (ROOT / "scripts" / "setup").read_text())
    assert re.findall(r"ARG UV_VERSION=(\S+)", dockerfile) == [version]


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rules = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    asked = {name for group in rules["groups"] for rule in group["rules"] for name in re.findall(r"\bvtap_\w+", rule["expr"])}
    agent = (ROOT / "agent/vtap_agent/report/metrics.py").read_text()
    collector = (ROOT / "collector/vtap_collector/metrics.py").read_text()
    for name in asked:
        stem = name.removesuffix("_total")
        own = stem.removeprefix("vtap_collector_")
        assert f'"{stem}"' in agent or (own != stem and f'"{own}"' in collector) or f"_{own}" in collector, name
