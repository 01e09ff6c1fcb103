"""What rewriting and recovering programs share with the agent is the same in C and in Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from vtap_agent.pipeline import recover_layout
from vtap_agent.pipeline.compiler import SOURCES
from vtap_agent.pipeline.recover import message, read_message
from vtap_agent.plan import recover

CONSTANTS = {name: getattr(recover_layout, name) for name in dir(recover_layout) if name.startswith(("REWRITE_", "RECOVER_"))}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("layout")
    lines = [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    for name, kind in recover_layout.STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));' for field, *_ in kind._fields_]
    source, program = directory / "layout.c", directory / "layout"
    head = '#include <stddef.h>\n#include <stdio.h>\n#include "rewrite_layout.h"\n'
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    subprocess.run([compiler, f"-I{SOURCES}", str(source), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("name", recover_layout.STRUCTURES)
def test_structure(printed: dict[str, int], name: str) -> None:
    kind = recover_layout.STRUCTURES[name]
    assert printed[name] == ctypes.sizeof(kind)
    offsets = {field: getattr(kind, field).offset for field, *_ in kind._fields_}
    assert {field: printed[f"{name}.{field}"] for field in offsets} == offsets


def test_constants(printed: dict[str, int]) -> None:
    assert {name: printed[name] for name in CONSTANTS} == CONSTANTS
    assert recover.ID_OCTET == recover_layout.REWRITE_ID
    assert int.from_bytes(recover.ALIAS_OCTETS, "big") == recover_layout.REWRITE_ALIAS


def test_every_structure_of_the_header_is_mirrored() -> None:
    text = (Path(SOURCES) / "rewrite_layout.h").read_text()
    assert {line.split()[1] for line in text.splitlines() if line.startswith("struct ")} == set(recover_layout.STRUCTURES)


def test_a_message_is_as_long_as_the_shortest_frame_and_reads_back() -> None:
    made = message(recover_layout.REWRITE_PROBE, b"\x0e\x76\1\2\3\4", b"\2\0\0\0\0\1")
    assert len(made) == 60 and made[12:14] == b"\x88\xb5"
    read = read_message(made)
    assert read is not None and read.kind == recover_layout.REWRITE_PROBE and bytes(read.to) == made[:6]
    assert read_message(made[:59]) is None
    assert read_message(made[:14] + b"x" + made[15:]) is None
