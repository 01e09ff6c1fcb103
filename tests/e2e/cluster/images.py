"""Container images: built from packages with buildah where no registry is reached, else on top of the public ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.cluster import versions
from tests.e2e.cluster.binaries import build_command, build_kubernetes
from tests.e2e.cluster.cache import CHECKOUT, HERE, Cache, digest
from tests.e2e.cluster.commands import run, succeeds
from tests.e2e.cluster.progress import step
from tests.e2e.cluster.way import Way

OWN = "localhost/vtap-e2e"
"""Every image of ours is named OWN/KIND:DIGEST-OF-ITS-INPUTS, so that it is built anew only when something changed."""

_NODE = HERE / "node"
_PODS = HERE / "pods"
_DATAGRAMS = CHECKOUT / "lab" / "vtap_lab"
_BUILD_TIMEOUT = 1800.0
_PULLED_BY_NODES = "registry.k8s.io/"


def node_image(cache: Cache, way: Way) -> str:
    """The name of the image that nodes run, with Open vSwitch in it; built if need be."""
    base = versions.PUBLIC_NODE if way.is_public else _built_base(cache)
    name = f"{OWN}/node:{digest(_NODE / 'switch', base)}"
    if not has_image(way, name):
        with step("building the node image"):
            build_image(way, _NODE / "switch", name, {"BASE": base})
    return name


def pods_image(cache: Cache, way: Way) -> str:
    """The name of the image of the tests' pods: Python, iproute2, iperf3, and the lab's numbered datagrams."""
    programs = ("__init__.py", "datagrams.py")
    name = f"{OWN}/pods:{digest(_PODS, *(_DATAGRAMS / program for program in programs))}"
    if not has_image(way, name):
        provide_debian(cache, way)
        context = _fresh(cache.root / "pods")
        shutil.copytree(_PODS, context, dirs_exist_ok=True)
        for program in programs:
            _copy(_DATAGRAMS / program, context / "vtap_lab" / program)
        with step("building the pods' image"):
            build_image(way, context, name, {})
    return name


def build_image(
    way: Way,
    context: Path,
    name: str,
    arguments: Mapping[str, str],
    *,
    dockerfile: Path | None = None,
    target: str = "",
    secrets: Mapping[str, Path] | None = None,
) -> None:
    """Build a Dockerfile, with `secrets` (id → file) at hand while it is built. Images are pulled only where that can be done."""
    told = ["--quiet", "--tag", name, "--file", str(dockerfile or context / "Dockerfile")]
    told += [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    told += [word for key, file in (secrets or {}).items() for word in ("--secret", f"id={key},src={file}")]
    told += ["--target", target] if target else []
    if way.runtime == "docker":
        run(["docker", "build", *told, context], timeout=_BUILD_TIMEOUT, env={"DOCKER_BUILDKIT": "1"})
        return
    pull = "--pull=missing" if way.is_public else "--pull=never"
    run(["nice", *_buildah("bud", pull, "--isolation", "chroot", "--layers"), *told, context], timeout=_BUILD_TIMEOUT)


def has_image(way: Way, name: str) -> bool:
    return succeeds([way.runtime, "image", "inspect", name])


def save_images(way: Way, archive: Path, *names: str) -> None:
    """As one archive that `docker load` and containerd read; layers that images share are in it once."""
    archive.unlink(missing_ok=True)
    podman = ["podman", "save", "--quiet", "--format", "docker-archive", "--multi-image-archive"]
    run([*(["docker", "save"] if way.runtime == "docker" else podman), "--output", archive, *names], timeout=600)


def provide_debian(cache: Cache, way: Way) -> None:
    """The public Debian image, or one of its name made from packages, so that a Dockerfile's FROM line finds it."""
    if way.is_public or has_image(way, versions.DEBIAN):
        return
    with step("building the Debian base image"):
        archive = cache.root / "debian.tar"
        unread = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
        bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase", *unread, versions.DEBIAN_SUITE, archive]
        run(["nice", *bootstrap], timeout=900)
        with _from_scratch() as container:
            run(_buildah("add", "--quiet", container, str(archive), "/"), timeout=300)
            run(_buildah("config", "--cmd", '["bash"]', container))
            run(_buildah("commit", "--quiet", container, versions.DEBIAN), timeout=300)
        archive.unlink()


# --- what plays kindest/node


def _built_base(cache: Cache) -> str:
    """The name of the image that plays the public node image."""
    built = Way("podman", False, "")
    binaries = digest(HERE / "gomod", versions.KUBERNETES, versions.GO_COMMANDS["coredns"])
    name = f"{OWN}/node-base:{digest(_NODE / 'base', binaries)}"
    if has_image(built, name):
        return name
    build_kubernetes(cache)
    build_command(cache, "coredns")
    provide_debian(cache, built)
    context = _fresh(cache.root / "node-base")
    shutil.copytree(_NODE / "base", context, dirs_exist_ok=True)
    references = _control_plane_references(cache)
    with step("building the control plane's images"):
        _control_plane_archives(cache, context, references)
    for program in ("kubelet", "kubeadm", "kubectl"):
        _copy(cache.bin / program, context / "bin" / program)
    with step("building the base of the node image"):
        build_image(built, context, name, {"VERSION": f"v{versions.KUBERNETES}", "PAUSE": references["pause"]})
    shutil.rmtree(context)
    return name


def _control_plane_references(cache: Cache) -> dict[str, str]:
    """The images that kubeadm will ask for, by their last name: {"etcd": "registry.k8s.io/etcd:3.6.5-0", …}."""
    listed = run([cache.bin / "kubeadm", "config", "images", "list", "--kubernetes-version", f"v{versions.KUBERNETES}"])
    return {line.rpartition("/")[2].partition(":")[0]: line for line in listed.split() if line.startswith(_PULLED_BY_NODES)}


def _control_plane_archives(cache: Cache, context: Path, references: Mapping[str, str]) -> None:
    archives = context / "images"
    archives.mkdir()
    pause = context / "pause"
    run(["gcc", "-static", "-Os", "-s", "-o", pause, _NODE / "base" / "pause.c"])
    alone = {
        name: cache.bin / name for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns")
    }
    for name, binary in {**alone, "pause": pause}.items():
        _archive_of_binary(references[name], binary, archives / f"{name}.tar")
    _copy(cache.bin / "kube-proxy", context / "kube-proxy")
    built = Way("podman", False, "")
    build_image(built, context, references["kube-proxy"], {}, dockerfile=context / "kube-proxy.Dockerfile")
    save_images(built, archives / "kube-proxy.tar", references["kube-proxy"])


def _archive_of_binary(reference: str, binary: Path, archive: Path) -> None:
    """An image with one static binary and nothing else."""
    inside = f"/usr/local/bin/{binary.name}"
    with _from_scratch() as container:
        run(_buildah("copy", "--quiet", container, str(binary), inside), timeout=300)
        run(_buildah("config", "--entrypoint", json.dumps([inside]), container))
        run(_buildah("commit", "--quiet", "--format", "docker", container, f"docker-archive:{archive}:{reference}"), timeout=300)


@contextmanager
def _from_scratch() -> Iterator[str]:
    container = run(_buildah("from", "scratch")).strip()
    try:
        yield container
    finally:
        run(_buildah("rm", container))


def _buildah(*words: str) -> list[str]:
    return ["buildah", *words]


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
