"""A real API server's judgement of what the chart renders (dry runs: nothing is changed)."""

from __future__ import annotations

import pytest
import yaml

from tests.e2e.cases.asked import kubectl, reachable
from tests.unit.chart.conftest import VALUE_SETS, Manifest, Render, helm, render

__all__ = ["helm", "reachable", "render"]
"""Fixtures: the chart as it renders, and the cluster to ask."""
pytestmark = pytest.mark.usefixtures("reachable")
OTHERS = "monitoring.coreos.com/"
"""Kinds that the Prometheus operator brings."""
HELMS_OWN = "is missing the kubectl.kubernetes.io/last-applied-configuration annotation"
"""Said of whatever is installed already: Helm did it, and not kubectl."""


def _known(manifest: Manifest) -> bool:
    if not manifest["apiVersion"].startswith(OTHERS):
        return True
    group, kind = OTHERS.rstrip("/"), manifest["kind"].lower()
    return f"{kind}s.{group}" in kubectl("api-resources", "--api-group", group, "-o", "name").stdout


@pytest.mark.parametrize("name", VALUE_SETS)
def test_all_of_it_would_be_taken_without_a_warning(render: Render, name: str) -> None:
    manifests = [each for each in render(name) if _known(each)]
    for each in manifests:
        # A namespace that is there for certain.
        if each["metadata"].get("namespace"):
            each["metadata"] = {**each["metadata"], "namespace": "default"}
    done = kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if HELMS_OWN not in line] == []
    assert len(done.stdout.splitlines()) == len(manifests)
