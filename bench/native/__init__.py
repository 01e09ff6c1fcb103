"""Small programs in C that the measurements need where Python would itself be what is measured."""

from __future__ import annotations

import subprocess
from pathlib import Path

_HERE = Path(__file__).parent
_BUILD = _HERE.parents[1] / "build" / "bench"


def build(name: str) -> Path:
    """Compile NAME.c beside this file where it is newer than its program; the program."""
    source, program = _HERE / f"{name}.c", _BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        _BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
    return program
