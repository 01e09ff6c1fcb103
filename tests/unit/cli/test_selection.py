"""N packets of each interface in each T seconds, by capture time."""

from __future__ import annotations

import io
import json
import struct

import pytest

from tests.unit.cli.pcapng import NOON, STORED, packet
from vtap_cli.errors import CliError
from vtap_cli.selection import Selection, json_array, lines, pcapng

SECOND = 10**9


def test_each_interface_has_windows_of_its_own_that_its_first_packet_begins() -> None:
    selection = Selection(2, 10 * SECOND)
    times = [(0, 3), (1, 3), (0, 4), (0, 5), (1, 12), (0, 12.9), (0, 13), (1, 13), (0, 39), (0, 42), (0, 43)]
    admitted = [(i, t) for i, t in times if selection.admits(i, NOON + int(t * SECOND))]
    assert admitted == [(0, 3), (1, 3), (0, 4), (1, 12), (0, 13), (1, 13), (0, 39), (0, 42), (0, 43)]
    assert not selection.is_complete


def test_without_windows_it_is_complete_after_as_many() -> None:
    selection = Selection(2, 0)
    assert [selection.admits(i, NOON) for i in (0, 1)] == [True, True]
    assert selection.is_complete


def test_pcapng_keeps_what_is_no_packet() -> None:
    assert b"".join(pcapng(io.BytesIO(STORED), Selection(9, 0))) == STORED
    # NOON + 2 ms is in the window of the first packet of its interface
    assert b"".join(pcapng(io.BytesIO(STORED), Selection(1, SECOND))) == STORED[: -len(packet(0, 0, b"x" * 47))]


def test_pcapng_in_microseconds_and_in_the_other_byte_order() -> None:
    def block(kind: int, body: bytes) -> bytes:
        return struct.pack(">II", kind, len(body) + 12) + body + struct.pack(">I", len(body) + 12)

    head = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack(">HHI", 1, 0, 0))
    packets = [block(6, struct.pack(">IIIII", 0, 0, second * 10**6, 0, 0)) for second in range(6)]
    assert (
        b"".join(pcapng(io.BytesIO(head + b"".join(packets)), Selection(1, 2 * SECOND)))
        == head + packets[0] + packets[2] + packets[4]
    )


def test_a_block_that_is_cut_ends_it() -> None:
    assert b"".join(pcapng(io.BytesIO(STORED[:-5]), Selection(9, 0))) == STORED[: -len(packet(0, 0, b"x" * 47))]


def test_lines_lose_their_marks() -> None:
    marked = b"0 1700000000.000000000     1 first\n0 1700000000.5     2 second\n1 1700000001     3 third\n"
    assert list(lines(io.BytesIO(marked), Selection(1, SECOND))) == [b"    1 first\n", b"    3 third\n"]


@pytest.mark.parametrize("form", [lines, json_array])
def test_what_has_no_marks_is_refused(form) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CliError, match="not understood"):
        list(form(io.BytesIO(b"  {\n  }\n"), Selection(1, SECOND)))


def test_json_stays_an_array() -> None:
    def packets(*seconds: int) -> bytes:
        frames = [
            {"layers": {"frame": {"frame.interface_id": "0", "frame.time_epoch": f"{second}.000000000"}}} for second in seconds
        ]
        return json.dumps(frames, indent=2).encode()

    def kept(count: int, *seconds: int) -> list[str]:
        found = json.loads(b"".join(json_array(io.BytesIO(packets(*seconds)), Selection(count, 10 * SECOND))))
        return [frame["layers"]["frame"]["frame.time_epoch"].partition(".")[0] for frame in found]

    assert kept(1, 1, 2, 10, 11, 25) == ["1", "11", "25"]
    assert kept(1) == []
