"""A real API server's judgement of what the chart renders (dry runs: nothing is changed)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.cases.installation import Installation
from tests.unit.chart.conftest import VALUE_SETS, Manifest, Render, helm, render

__all__ = ["helm", "render"]
"""Fixtures that render the chart."""
OTHERS = "monitoring.coreos.com/"
"""Kinds that the Prometheus operator brings."""


@pytest.fixture(scope="module", autouse=True)
def reachable(installed: Installation) -> Iterator[None]:
    """kubectl asks the cluster that the chart is installed on: policies work when they are stored, and are the cluster's."""
    kubectl = installed.cluster.kubectl
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(kubectl.kubeconfig))
        patch.setenv("PATH", f"{Path(kubectl.program).parent}:{os.environ['PATH']}")
        yield


def _kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    program = shutil.which("kubectl")
    assert program, "kubectl is not on the PATH"
    command = [program, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=110, check=False)


def _known(manifest: Manifest) -> bool:
    if not manifest["apiVersion"].startswith(OTHERS):
        return True
    group, kind = OTHERS.rstrip("/"), manifest["kind"].lower()
    return f"{kind}s.{group}" in _kubectl("api-resources", "--api-group", group, "-o", "name").stdout


@pytest.mark.parametrize("name", VALUE_SETS)
def test_all_of_it_would_be_taken_without_a_warning(render: Render, name: str) -> None:
    manifests = [each for each in render(name) if _known(each)]
    for each in manifests:
        # A namespace that is there for certain.
        if each["metadata"].get("namespace"):
            each["metadata"] = {**each["metadata"], "namespace": "default"}
    done = _kubectl("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert len(done.stdout.splitlines()) == len(manifests)
