"""The distribution's kernel for virtual machines: its package unpacked into a cache, not installed, and an initial RAM disk."""

from __future__ import annotations

import gzip
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernel_vm.commands import MachineError, run

HERE = Path(__file__).parent
_MODULES = ("virtio_pci", "virtiofs", "overlay")
"""What it takes to see the host's files; all others are loaded from there."""
_PACKED = {".xz": ["xz", "-dc"], ".zst": ["zstd", "-dcq"], ".gz": ["gzip", "-dc"]}


@dataclass(frozen=True)
class Kernel:
    """`root` holds boot/vmlinuz-VERSION and lib/modules/VERSION."""

    root: Path
    version: str
    initrd: Path

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.version}"

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.version


def the_kernel(cache: Path) -> Kernel:
    """The one in the cache, which is filled from apt's archive when it is empty. Raises MachineError."""
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / "root"
    if not root.exists():
        _fetch(root)
    version = _version(root)
    initrd = cache / f"initrd-{version}.gz"
    if not initrd.exists() or initrd.stat().st_mtime < max((HERE / name).stat().st_mtime for name in ("init", "kernel.py")):
        partial = initrd.with_suffix(".partial")
        partial.write_bytes(gzip.compress(_archive(root, version), 1))
        partial.rename(initrd)
    return Kernel(root, version, initrd)


def _fetch(root: Path) -> None:
    packages = sorted(_packages(_meta_package()))
    print(f"kernel-vm: fetching {', '.join(packages)} (unpacked into {root}, not installed)", flush=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=root.parent) as name:
        fresh = Path(name)
        run(["apt-get", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root", "download", *packages], cwd=fresh)
        for package in fresh.glob("*.deb"):
            run(["dpkg-deb", "-x", package, fresh / "root"])
        _merge_usr(fresh / "root")
        run(["depmod", "-b", fresh / "root", _version(fresh / "root")])
        (fresh / "root").rename(root)


def _version(root: Path) -> str:
    (modules,) = (root / "lib/modules").iterdir()
    return modules.name


def _merge_usr(root: Path) -> None:
    """Newer packages bring /usr/lib/modules, older ones /lib/modules: both by the old name."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")


def _meta_package() -> str:
    """The package that leads to the newest kernel for virtual machines, of Debian or of Ubuntu."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    for name in (f"linux-image-cloud-{architecture}", "linux-image-virtual"):
        if _dependencies(name):
            return name
    raise MachineError("apt knows neither Debian's linux-image-cloud nor Ubuntu's linux-image-virtual; run apt-get update")


def _dependencies(package: str) -> list[str]:
    """Packages of the same kernel that a package needs: Ubuntu keeps image and modules apart."""
    try:
        text = run(["apt-cache", "depends", "--no-recommends", "--no-suggests", package]).decode()
    except MachineError:  # apt-cache fails where it knows no such package.
        return []
    return same_kernel(text)


def same_kernel(depends: str) -> list[str]:
    """Of what `apt-cache depends` printed, the packages of the kernel itself."""
    return re.findall(r"^[ |]*Depends: (linux-(?:image|modules)-\S*\d\S*)$", depends, re.MULTILINE)


def _packages(package: str) -> set[str]:
    found: set[str] = set()
    waiting = _dependencies(package)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += _dependencies(one)
    return found


def _archive(root: Path, version: str) -> bytes:
    """What the kernel unpacks at its start: busybox, the modules in their order, and init."""
    busybox = shutil.which("busybox") or ""
    if not busybox:
        raise MachineError("busybox is not installed; scripts/setup test-kernel installs it")
    entries: list[tuple[str, int, bytes]] = [("init", 0o100755, (HERE / "init").read_bytes())]
    entries += [(name, 0o040755, b"") for name in ("bin", "proc", "sys", "dev", "modules", "lower", "layer", "root")]
    entries.append(("bin/busybox", 0o100755, Path(busybox).read_bytes()))
    for number, file in enumerate(_module_files(root, version)):
        entries.append((f"modules/{number:02}-{file.name.split('.ko')[0]}.ko", 0o100644, _unpacked(file)))
    return b"".join(newc(entries))


def _module_files(root: Path, version: str) -> list[Path]:
    """In the order in which they can be loaded; what is built in is left out."""
    files: dict[Path, None] = {}
    for module in _MODULES:
        lines = run(["modprobe", "-d", root, "-S", version, "--show-depends", module]).decode().splitlines()
        files |= {Path(line.split()[1]): None for line in lines if line.startswith("insmod ")}
    return list(files)


def _unpacked(module: Path) -> bytes:
    """busybox loads only plain modules."""
    how = _PACKED.get(module.suffix)
    return run([*how, module]) if how else module.read_bytes()


def newc(entries: list[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """cpio(5), "new ASCII format", of (name, mode, content)."""
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        yield header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)
