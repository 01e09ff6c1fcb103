"""Compiles the preprocessor.

The object lies in a cache beside the package (or `VTAP_CACHE`) under the hash of its sources, so that a changed source never runs
an old object and nothing is compiled twice.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from vtap_agent.errors import TellUser

SOURCES = Path(__file__).resolve().parent.parent / "bpf"
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror")


def source_hash() -> str:
    """12 hex digits over every source file and the compiler's flags."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def cache_directory() -> Path:
    """Where objects are kept: `VTAP_CACHE`, else beside the sources."""
    return Path(os.environ.get("VTAP_CACHE", str(SOURCES / ".cache")))


def _multiarch_include() -> list[str]:
    """Where Debian and Ubuntu keep asm/types.h, which a compiler for the bpf target doesn't look for."""
    path = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"
    return [f"-I{path}"] if path.is_dir() else []


def _run(command: list[str], package: str) -> None:
    if not shutil.which(command[0]):
        raise TellUser(f"{command[0]} is missing: install the package {package} to build the preprocessor")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TellUser(f"{command[0]} could not build the preprocessor: {done.stderr.strip()[:2000]}")


def build(directory: Path | None = None) -> Path:
    """The object file for the sources as they are, compiled if it isn't there. `TellUser` when that can't be done."""
    target = (directory or cache_directory()) / f"preprocessor-{source_hash()}.o"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        compile_object(SOURCES / "preprocessor.bpf.c", part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def compile_object(source: Path, target: Path) -> None:
    """One eBPF source to one object file, our headers within reach. `TellUser` when that can't be done."""
    command = ["clang", *FLAGS, *_multiarch_include(), f"-I{SOURCES}", "-c", str(source), "-o", str(target)]
    _run(command, "clang")
    _run(["llvm-strip", "-g", str(target)], "llvm")
