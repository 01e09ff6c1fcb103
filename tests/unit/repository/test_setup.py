"""On a system that can't be served, setting up says one sentence and fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _setup(part: str, *, folder: Path | None = None, under: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """scripts/setup, with the programs in `folder` before the system's."""
    path = f"{folder}:{os.environ['PATH']}" if folder else os.environ["PATH"]
    command = [*under, "scripts/setup", part]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )


def _program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def _refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence."""
    assert done.returncode != 0
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    return sentence


@pytest.mark.parametrize(
    ("system", "release", "said"),
    [
        ("Darwin", "23.1.0", "runs on Linux only"),
        ("Linux", "5.10.0-28-amd64", "Linux 6.1 or newer"),
        ("Linux", "6.0", "6.1 or newer"),
    ],
)
def test_foreign_or_old_kernel(tmp_path: Path, system: str, release: str, said: str) -> None:
    _program(tmp_path, "uname", f"case $1 in -s) echo {system};; -r) echo {release};; *) echo x86_64;; esac")
    assert said in _refusal(_setup("demo", folder=tmp_path))


def test_old_python(tmp_path: Path) -> None:
    _program(tmp_path, "python3", "case $2 in *version_info*) exit 1;; *) echo 3.9.2;; esac")
    assert "Python 3.11 or newer is needed, and python3 is 3.9.2" in _refusal(_setup("check", folder=tmp_path))


def test_not_root() -> None:
    # In a user namespace without a mapping one is nobody, and still may read the checkout.
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("user namespaces are not allowed here")
    assert "need root" in _refusal(_setup("demo", under=("unshare", "--user")))


def test_namespaces_forbidden(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gets as far as that")
    _program(tmp_path, "unshare", "exit 1")
    assert "may not create network namespaces" in _refusal(_setup("demo", folder=tmp_path))


def test_unknown_part() -> None:
    assert "unknown part 'everything'" in _refusal(_setup("everything"))


def test_help_names_every_target_once() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    targets = [line.split()[1] for line in shown]
    assert {"help", "setup", "demo", "test", "test-kernel", "check", "e2e", "bench", "clean"} == set(targets)
    assert len(targets) == len(set(targets))
    assert all(len(line.split(maxsplit=2)) == 3 for line in shown)
