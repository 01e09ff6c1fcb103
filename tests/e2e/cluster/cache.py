"""Where what was built is kept between runs, outside the checkout."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.commands import ClusterError

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[2]


@dataclass(frozen=True)
class Cache:
    """Folders below `root`, made when they are asked for."""

    root: Path

    def folder(self, *names: str) -> Path:
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def bin(self) -> Path:
        """kind, kubectl, helm and what the node image takes in."""
        return self.folder("bin")

    def cluster(self, name: str) -> Path:
        """What belongs to one cluster: its kubeconfig and its configuration."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
            raise ClusterError(
                f"{name} can't be a cluster's name: only lower-case letters, digits, dots and hyphens can be in it"
            )
        return self.folder("clusters", name)

    def kubeconfig(self, name: str) -> Path:
        return self.cluster(name) / "kubeconfig"

    def is_current(self, what: str, key: str) -> bool:
        """Whether `what` was last built from inputs with this digest."""
        stamp = self.folder("stamps") / what
        return stamp.exists() and stamp.read_text() == key

    def mark_current(self, what: str, key: str) -> None:
        (self.folder("stamps") / what).write_text(key)


def the_cache() -> Cache:
    """VTAP_E2E_CACHE, else vtap-e2e in the user's cache folder."""
    if own := os.environ.get("VTAP_E2E_CACHE"):
        return Cache(Path(own))
    return Cache(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtap-e2e")


def digest(*inputs: str | Path) -> str:
    """12 hex digits that change with any of the strings, files or (recursively) folders."""
    total = hashlib.sha256()
    for one in inputs:
        for path in _files(one) if isinstance(one, Path) else ():
            total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        if isinstance(one, str):
            total.update(one.encode() + b"\0")
    return total.hexdigest()[:12]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [path]
