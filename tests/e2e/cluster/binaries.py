"""Kubernetes, etcd, kind, Helm and CoreDNS, built from their published Go modules."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.cluster import versions
from tests.e2e.cluster.cache import HERE, Cache, digest
from tests.e2e.cluster.commands import run
from tests.e2e.cluster.progress import step
from tests.e2e.cluster.toolchain import find_go

MODULE = HERE / "gomod"
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubeadm", "kubectl")
_BUILD_TIMEOUT = 3600.0
_ENVIRONMENT = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
_STRIPPED = "-s -w"


def build_kubernetes(cache: Cache) -> None:
    """All of `KUBERNETES`, and etcd, into the cache; nothing when they are there already."""
    key = digest(MODULE, _kubernetes_flags())
    if cache.is_current("kubernetes", key) and all((cache.bin / name).exists() for name in (*KUBERNETES, "etcd")):
        return
    go = find_go(cache)
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES]
    with step(f"building Kubernetes {versions.KUBERNETES}"):
        _go_build(go, _kubernetes_flags(), f"{cache.bin}/", *packages)
    with step("building etcd"):
        _go_build(go, _STRIPPED, str(cache.bin / "etcd"), "go.etcd.io/etcd/server/v3")
    cache.mark_current("kubernetes", key)


def build_command(cache: Cache, name: str) -> Path:
    """One of `versions.GO_COMMANDS`."""
    module, built = versions.GO_COMMANDS[name], cache.bin / name
    if not (cache.is_current(name, digest(module)) and built.exists()):
        with step(f"building {module.rpartition('/')[2]}"):
            environment = {**_ENVIRONMENT, "GOBIN": str(cache.bin)}
            install = ["install", "-trimpath", "-buildvcs=false", f"-ldflags={_STRIPPED}", module]
            # Outside of any module, so that the command's own go.mod alone decides.
            run(["nice", find_go(cache), *install], timeout=_BUILD_TIMEOUT, env=environment, cwd=Path("/"))
        cache.mark_current(name, digest(module))
    return built


def _go_build(go: Path, flags: str, output: str, *packages: str) -> None:
    build = ["build", "-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={flags}", "-o", output]
    run(["nice", go, *build, *packages], timeout=_BUILD_TIMEOUT, env=_ENVIRONMENT, cwd=MODULE)


def _kubernetes_flags() -> str:
    """Kubernetes' own release build sets these: kubeadm compares versions and refuses v0.0.0."""
    major, minor, _ = versions.KUBERNETES.split(".")
    told = {"gitVersion": f"v{versions.KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join([_STRIPPED, *(f"-X {package}.{name}={value}" for package in packages for name, value in told.items())])
