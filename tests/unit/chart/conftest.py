"""The chart, rendered by the real Helm."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "vtap"
VALUE_SETS = sorted(path.stem for path in (Path(__file__).parent / "values").glob("*.yaml"))
NAMESPACE = "vtap-system"
KUBE_VERSION = "1.34.0"

Manifest = dict[str, Any]
Render = Callable[..., list[Manifest]]


@cache
def helm_program() -> str | None:
    """Helm on the PATH, or where the end-to-end tests build it."""
    built = Path(os.environ.get("VTAP_E2E_CACHE", Path.home() / ".cache" / "vtap-e2e")) / "bin" / "helm"
    return shutil.which("helm") or (str(built) if built.is_file() else None)


def value_file(name: str) -> Path:
    """A value set by its name."""
    return Path(__file__).parent / "values" / f"{name}.yaml"


@pytest.fixture(scope="session")
def helm() -> Callable[[Sequence[str | Path]], subprocess.CompletedProcess[str]]:
    """Runs Helm with these arguments."""
    program = helm_program()
    if program is None:
        pytest.skip("needs Helm 3 on the PATH (https://helm.sh/docs/intro/install), or `make e2e` once, which builds it")

    def run(arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        # Neither a cluster nor somebody's repositories are looked at.
        environment = {**os.environ, "KUBECONFIG": "/dev/null", "HELM_NO_PLUGINS": "1"}
        command = [program, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture(scope="session")
def render(helm: Callable[[Sequence[str | Path]], subprocess.CompletedProcess[str]]) -> Render:
    """Manifests of the chart with a value set and `--set` pairs on top."""

    @cache
    def rendered(name: str, settings: tuple[str, ...], release: str) -> list[Manifest]:
        sets = [word for pair in settings for word in ("--set", pair)]
        done = helm(["template", release, CHART, "-n", NAMESPACE, "--kube-version", KUBE_VERSION, "-f", value_file(name), *sets])
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    def call(name: str = "default", *settings: str, release: str = "vtap") -> list[Manifest]:
        return rendered(name, settings, release)

    return call


def of_kind(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    """Those of a kind, and of a name where one is given."""
    return [each for each in manifests if each["kind"] == kind and name in (None, each["metadata"]["name"])]


def only(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one manifest of this kind and name."""
    (found,) = of_kind(manifests, kind, name)
    return found
