"""The structures in Python are those that the C compiler sees."""

from __future__ import annotations

import pytest

from tests.unit.pipeline.c_layout import compiled, declared, in_python
from vtap_agent.pipeline import layout
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
    return compiled("layout.h", layout.STRUCTURES, CONSTANTS, tmp_path_factory.mktemp("layout"))


@pytest.mark.parametrize("name", layout.STRUCTURES)
def test_structure(printed: dict[str, int], name: str) -> None:
    expected = in_python(name, layout.STRUCTURES[name])
    assert {part: printed[part] for part in expected} == expected


def test_constants(printed: dict[str, int]) -> None:
    assert {name: printed[name] for name in CONSTANTS} == {name: int(value) for name, value in CONSTANTS.items()}


def test_every_structure_of_the_header_is_mirrored() -> None:
    assert declared("layout.h") == set(layout.STRUCTURES)
