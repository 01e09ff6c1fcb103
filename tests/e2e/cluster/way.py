"""How clusters are made on this machine, found out by looking."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Literal

from tests.e2e.cluster import versions
from tests.e2e.cluster.commands import ClusterError, succeeds

Runtime = Literal["docker", "podman"]
_PULL_TIMEOUT = 900.0


@dataclass(frozen=True)
class Way:
    """The container runtime, whether the node image comes from its publisher or is built here, and why, in a sentence."""

    runtime: Runtime
    is_public: bool
    reason: str


def choose_way(wanted: str | None = None) -> Way:
    """VTAP_E2E_IMAGES=public|built decides if set; else public images where a registry gives them, else built ones."""
    wanted = wanted or os.environ.get("VTAP_E2E_IMAGES", "")
    if wanted not in ("", "public", "built"):
        raise ClusterError(f"VTAP_E2E_IMAGES is {wanted}; it may be public or built")
    if wanted != "built":
        for runtime in _working_runtimes():
            if _has_image(runtime, versions.PUBLIC_NODE) or _pulls(runtime, versions.PUBLIC_NODE):
                return Way(runtime, True, f"{runtime} has {versions.PUBLIC_NODE}, so nodes are made from it")
    if wanted == "public":
        raise ClusterError(f"VTAP_E2E_IMAGES is public, but neither docker nor podman can pull {versions.PUBLIC_NODE}")
    if os.geteuid() != 0:
        raise ClusterError(f"{versions.PUBLIC_NODE} can't be pulled, and building a node image in its place needs root")
    return Way("podman", False, f"{versions.PUBLIC_NODE} can't be pulled, so all images are built here from package registries")


def _working_runtimes() -> list[Runtime]:
    """docker counts only with its daemon; podman's own sockets and shims by that name are told apart by `docker info`."""
    names: tuple[Runtime, ...] = ("docker", "podman")
    return [name for name in names if shutil.which(name) and succeeds([name, "info"], timeout=20)]


def _has_image(runtime: Runtime, name: str) -> bool:
    return succeeds([runtime, "image", "inspect", name], timeout=20)


def _pulls(runtime: Runtime, name: str) -> bool:
    return succeeds([runtime, "pull", "--quiet", name], timeout=_PULL_TIMEOUT)
