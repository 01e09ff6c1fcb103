"""Running other programs, with their complaint when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT = 600.0


class MachineError(Exception):
    """`str()` is a sentence that says what failed."""


def run(argv: Sequence[str | Path], *, cwd: Path | None = None) -> bytes:
    """What the program wrote to standard output. Raises MachineError with its complaint."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError as missing:
        raise MachineError(f"{words[0]} is not installed; scripts/setup test-kernel installs it") from missing
    if done.returncode != 0:
        complaint = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise MachineError(f"{' '.join(words)}: {complaint or f'status {done.returncode}'}")
    return done.stdout
