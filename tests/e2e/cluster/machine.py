"""What the machine itself has to have before images are built and nodes run on it with podman."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.e2e.cluster.commands import ClusterError, run
from tests.e2e.cluster.progress import step

_PROGRAMS = {
    "podman": "podman",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "runc": "runc",
    "gcc": "gcc",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "ip": "iproute2",
}
_FILES = {Path("/usr/lib/podman/netavark"): "netavark", Path("/usr/lib/podman/aardvark-dns"): "aardvark-dns"}
_FILES_LIMIT = 20000
_CAP_SYS_RESOURCE = 24
_WATCHES = Path("/proc/sys/fs/inotify/max_user_instances")
_WATCHES_WANTED = 1024
"""A node takes some 40 of them; the usual limit of 128 for all of root's makes kubelets of a second cluster fail."""


def provide_podman() -> None:
    """Install what is missing, from the distribution's packages."""
    missing = sorted(
        {package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
        | {package for file, package in _FILES.items() if not file.exists()}
    )
    if missing:
        _install(["libc6-dev", *missing])
    Path("/lib/modules").mkdir(exist_ok=True)  # kind mounts it into every node.


def _install(packages: list[str]) -> None:
    if shutil.which("apt-get") is None:
        raise ClusterError(f"these programs are needed and there is no apt-get to install them: {' '.join(packages)}")
    with step(f"installing {' '.join(packages)}"):
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "-qq", "update"], timeout=300)
        run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages], timeout=900, env=environment)


def raise_watch_limit(record: Path) -> None:
    """Let root have enough inotify instances; what the limit was before is kept in the file `record`."""
    before = int(_WATCHES.read_text())
    if before < _WATCHES_WANTED:
        record.write_text(str(before))
        _WATCHES.write_text(str(_WATCHES_WANTED))


def restore_watch_limit(record: Path) -> None:
    """As it was before `raise_watch_limit`, if that changed it."""
    if record.exists():
        _WATCHES.write_text(record.read_text())
        record.unlink()


def containers_conf() -> str:
    """The configuration with which podman can run nodes here, in place of the machine's own.

    podman raises the limit of open files to a million, which root without CAP_SYS_RESOURCE may not. crun refuses a cgroup v1 that
    has a cgroup v2 with controllers beside it; runc takes both.
    """
    limits = "" if _may_raise_limits() else f'default_ulimits=["nofile={_FILES_LIMIT}:{_FILES_LIMIT}","nproc=8192:8192"]\n'
    return f'[containers]\n{limits}[engine]\nruntime="runc"\n'


def _may_raise_limits() -> bool:
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
