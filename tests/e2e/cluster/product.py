"""The images that users would install, built from the checkout's Dockerfile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from tests.e2e.cluster.cache import CHECKOUT, digest
from tests.e2e.cluster.images import build_image, has_image, provide_debian
from tests.e2e.cluster.lifecycle import Built
from tests.e2e.cluster.progress import step

Target = Literal["operator", "agent", "collector"]
TARGETS: tuple[Target, ...] = ("operator", "agent", "collector")
_SYSTEM_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_NOT_SOURCES = ("*.pyc", "*.so", "*.o")


@dataclass(frozen=True)
class ProductImages:
    """REGISTRY/vtap-TARGET:TAG each, as the chart puts names together."""

    registry: str
    tag: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name(target) for target in TARGETS)

    def name(self, target: Target) -> str:
        return f"{self.registry}/vtap-{target}:{self.tag}"

    @property
    def helm_arguments(self) -> tuple[str, ...]:
        """For `helm install`: these images, which the nodes have already."""
        return ("--set", f"image.registry={self.registry},image.tag={self.tag},image.pullPolicy=IfNotPresent")


def product_images(built: Built) -> ProductImages:
    """The three images in the runtime's store, built unless they are there with just these sources."""
    key = digest(*(part for path in _sources() for part in (str(path.relative_to(CHECKOUT)), path)))
    images = ProductImages("localhost", f"e2e-{key}")
    provide_debian(built.cache, built.way)
    for target in TARGETS:
        if not has_image(built.way, images.name(target)):
            with step(f"building the {target}'s image"):
                build_image(built.way, CHECKOUT, images.name(target), _passed_on(), target=target, secrets=_authorities())
    return images


def _sources() -> Iterator[Path]:
    """What .dockerignore lets through, and what says how to build it."""
    let_through = (line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!"))
    for name in ("Dockerfile", ".dockerignore", *sorted(let_through)):
        path = CHECKOUT / name
        yield from [path] if path.is_file() else sorted(file for file in path.rglob("*") if _is_source(file))


def _is_source(path: Path) -> bool:
    built = {"__pycache__", ".cache", "build"} & set(path.relative_to(CHECKOUT).parts)
    return path.is_file() and not built and not any(PurePath(path).match(pattern) for pattern in _NOT_SOURCES)


def _passed_on() -> dict[str, str]:
    """Where this machine's user fetches packages from, if it was set up otherwise than usual."""
    names = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "UV_DEFAULT_INDEX")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _authorities() -> dict[str, Path]:
    """The certificate authorities that this machine trusts: a company's proxy may sign with one of its own."""
    bundle = Path(os.environ.get("SSL_CERT_FILE") or _SYSTEM_AUTHORITIES)
    return {"ca": bundle} if bundle.is_file() else {}
