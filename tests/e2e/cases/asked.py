"""kubectl as a person uses it, for cases that look at its own words: what it prints, and what it complains of."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cases.installation import Installation


@pytest.fixture(scope="module")
def reachable(installed: Installation) -> Iterator[None]:
    """kubectl asks the cluster that the chart is installed on: policies work when they are stored, and are the cluster's."""
    program = installed.cluster.kubectl
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(program.kubeconfig))
        patch.setenv("PATH", f"{Path(program.program).parent}:{os.environ['PATH']}")
        yield


def kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run it; what it says and whether it failed is the caller's to judge."""
    program = shutil.which("kubectl")
    assert program, "kubectl is not on the PATH"
    command = [program, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=110, check=False)
