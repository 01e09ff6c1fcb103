"""The structures in Python are those that the C compiler sees."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from vtap_agent.pipeline import layout
from vtap_agent.pipeline.compiler import SOURCES
from vtap_agent.plan import dataplane

CONSTANTS = {
    "LAYOUT_VERSION": layout.LAYOUT_VERSION,
    "MAX_SLOTS": dataplane.MAX_SLOTS,
    "MAX_MATCHES": dataplane.MAX_MATCHES,
    "MAX_POINTS": dataplane.MAX_POINTS_PER_SOURCE,
    "MAX_FLOOD": dataplane.MAX_FLOOD_ENTRIES,
    "ANY_VLAN": dataplane.ANY_VLAN,
    "SAMPLE_ALL": dataplane.SamplingType.ALL,
    "SAMPLE_PER_INTERVAL": dataplane.SamplingType.PER_INTERVAL,
    "SAMPLE_ONE_IN": dataplane.SamplingType.ONE_IN,
    "SAMPLE_FLOWS": dataplane.SamplingType.FLOWS,
    "ENCAP_GRE_UDP": dataplane.Encapsulation.GRE_UDP,
    "ENCAP_GRE": dataplane.Encapsulation.GRE,
    "ENCAP_VXLAN": dataplane.Encapsulation.VXLAN,
    "ENCAP_ERSPAN2": dataplane.Encapsulation.ERSPAN2,
    "ENCAP_REWRITE": dataplane.Encapsulation.REWRITE,
} | {
    name: getattr(layout, name)
    for name in dir(layout)
    if name.startswith(("META_", "PROGRAM_", "POINT_", "DESTINATION_", "QUICK_", "SOURCE_", "MAX_TAGS", "MAX_HEADER"))
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("layout")
    lines = [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    for name, kind in layout.STRUCTURES.items():
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, *_ in kind._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    source = directory / "layout.c"
    includes = ["<stddef.h>", "<stdio.h>", '"layout.h"']
    head = "".join(f"#include {name}\n" for name in includes)
    source.write_text(head + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    program = directory / "layout"
    subprocess.run([compiler, f"-I{SOURCES}", str(source), "-o", str(program)], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize("name", layout.STRUCTURES)
def test_structure(printed: dict[str, int], name: str) -> None:
    kind = layout.STRUCTURES[name]
    assert printed[name] == ctypes.sizeof(kind)
    assert {field: printed[f"{name}.{field}"] for field, *_ in kind._fields_} == {
        field: getattr(kind, field).offset for field, *_ in kind._fields_
    }


def test_constants(printed: dict[str, int]) -> None:
    assert {name: printed[name] for name in CONSTANTS} == {name: int(value) for name, value in CONSTANTS.items()}


def test_every_structure_of_the_header_is_mirrored() -> None:
    text = (Path(SOURCES) / "layout.h").read_text()
    declared = {line.split()[1] for line in text.splitlines() if line.startswith("struct ")}
    assert declared == set(layout.STRUCTURES)
