"""What the C compiler makes of a header: sizes of structures, offsets of their fields, values of constants."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from vtap_agent.pipeline.compiler import SOURCES

Structures = Mapping[str, type[ctypes.Structure]]


def compiled(header: str, structures: Structures, constants: Iterable[str], directory: Path) -> dict[str, int]:
    """As `in_python` names them, and `constants` by theirs. Skips where there is no C compiler; `directory` is for its files."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in constants]
    for name, kind in structures.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));' for field, *_ in kind._fields_]
    source, program = directory / "layout.c", directory / "layout"
    head = f'#include <stddef.h>\n#include <stdio.h>\n#include "{header}"\n'
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    subprocess.run([compiler, f"-I{SOURCES}", str(source), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def in_python(name: str, kind: type[ctypes.Structure]) -> dict[str, int]:
    """A structure's size by its name, its fields' offsets by "name.field"."""
    return {name: ctypes.sizeof(kind)} | {f"{name}.{field}": getattr(kind, field).offset for field, *_ in kind._fields_}


def declared(header: str) -> set[str]:
    """The names of the structures in a header."""
    text = (Path(SOURCES) / header).read_text()
    return {line.split()[1] for line in text.splitlines() if line.startswith("struct ")}
