"""Running other programs, with a deadline and a sentence when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtap_lab.errors import PATIENCE, LabError

_LAST_LINES = 12


class ClusterError(LabError):
    """`str()` is a sentence that says what failed and, where it is known, the cure."""


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 60,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> str:
    """What the program wrote to standard output; ClusterError with its complaint when it is late or, if `check`, fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout * PATIENCE,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as missing:
        raise ClusterError(f"{words[0]}: no such program; install it, or see docs/e2e.md") from missing
    except subprocess.TimeoutExpired as late:
        raise ClusterError(f"{_shown(words)}: still running after {timeout:g} s") from late
    if check and done.returncode != 0:
        complaint = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-_LAST_LINES:])
        raise ClusterError(f"{_shown(words)}: {complaint or f'status {done.returncode}'}")
    return done.stdout


def succeeds(argv: Sequence[str | Path], *, timeout: float = 60, env: Mapping[str, str] | None = None) -> bool:
    """Whether the program ran and ended with status 0 in time."""
    try:
        run(argv, timeout=timeout, env=env)
    except ClusterError:
        return False
    return True


def _shown(words: Sequence[str]) -> str:
    line = " ".join(words)
    return line if len(line) <= 200 else line[:200] + " …"
