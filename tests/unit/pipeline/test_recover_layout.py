"""What rewriting and recovering programs share with the agent is the same in C and in Python."""

from __future__ import annotations

import pytest

from tests.unit.pipeline.c_layout import compiled, declared, in_python
from vtap_agent.pipeline import recover_layout
from vtap_agent.pipeline.recover import message, read_message
from vtap_agent.plan import recover

CONSTANTS = {name: getattr(recover_layout, name) for name in dir(recover_layout) if name.startswith(("REWRITE_", "RECOVER_"))}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return compiled("rewrite_layout.h", recover_layout.STRUCTURES, CONSTANTS, tmp_path_factory.mktemp("layout"))


@pytest.mark.parametrize("name", recover_layout.STRUCTURES)
def test_structure(printed: dict[str, int], name: str) -> None:
    expected = in_python(name, recover_layout.STRUCTURES[name])
    assert {part: printed[part] for part in expected} == expected


def test_constants(printed: dict[str, int]) -> None:
    assert {name: printed[name] for name in CONSTANTS} == CONSTANTS
    assert recover.ID_OCTET == recover_layout.REWRITE_ID
    assert int.from_bytes(recover.ALIAS_OCTETS, "big") == recover_layout.REWRITE_ALIAS


def test_every_structure_of_the_header_is_mirrored() -> None:
    assert declared("rewrite_layout.h") == set(recover_layout.STRUCTURES)


def test_a_message_is_as_long_as_the_shortest_frame_and_reads_back() -> None:
    made = message(recover_layout.REWRITE_PROBE, b"\x0e\x76\1\2\3\4", b"\2\0\0\0\0\1")
    assert len(made) == 60 and made[12:14] == b"\x88\xb5"
    read = read_message(made)
    assert read is not None and read.kind == recover_layout.REWRITE_PROBE and bytes(read.to) == made[:6]
    assert read_message(made[:59]) is None
    assert read_message(made[:14] + b"x" + made[15:]) is None
