"""Parsers of what arrives."""

from __future__ import annotations

import ctypes
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.collector.copies import erspan, gre, numbered_frame, trailer, vxlan
from tests.unit.collector.core_library import WireCopy, WireTrailer
from vtap_collector.native import library

FRAME = numbered_frame(7)
GRE, VXLAN, ERSPAN = 0, 1, 2


def parse(function: str, data: bytes) -> tuple[WireCopy, bytes] | None:
    copy, buffer = WireCopy(), ctypes.create_string_buffer(data, len(data))
    parser = getattr(library(), function)
    parser.restype = ctypes.c_bool
    if not parser(buffer, ctypes.c_size_t(len(data)), ctypes.byref(copy)):
        return None
    return copy, ctypes.string_at(copy.frame, copy.frame_length)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=200))
def test_gre_with_key_and_sequence(key: int, sequence: int, frame: bytes) -> None:
    parsed = parse("wire_parse_gre", gre(key, sequence, frame))
    assert parsed is not None
    assert (parsed[0].key, parsed[0].sequence, parsed[0].has_sequence, parsed[0].encapsulation) == (key, sequence, True, GRE)
    assert parsed[1] == frame


def test_gre_with_a_checksum_and_no_sequence() -> None:
    parsed = parse("wire_parse_gre", struct.pack("!HHHHI", 0xA000, 0x6558, 0x1234, 0, 42) + FRAME)
    assert parsed is not None
    assert (parsed[0].key, parsed[0].has_sequence) == (42, False)
    assert parsed[1] == FRAME


@given(st.integers(0, 2**20 - 1), st.integers(0, 1023), st.integers(0, 2**32 - 1))
def test_erspan_type_two(index: int, session: int, sequence: int) -> None:
    parsed = parse("wire_parse_gre", erspan(index, session, sequence, FRAME))
    assert parsed is not None
    assert (parsed[0].key, parsed[0].session, parsed[0].sequence, parsed[0].encapsulation) == (index, session, sequence, ERSPAN)
    assert parsed[1] == FRAME


@given(st.integers(0, 2**24 - 1))
def test_vxlan(vni: int) -> None:
    parsed = parse("wire_parse_vxlan", vxlan(vni, FRAME))
    assert parsed is not None
    assert (parsed[0].key, parsed[0].has_sequence, parsed[1]) == (vni, False, FRAME)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30\x00\x65",
        gre(1, 2, b""),
        struct.pack("!HHI", 0x1000, 0x6558, 1) + FRAME,
        struct.pack("!HHII", 0x3001, 0x6558, 1, 2) + FRAME,
        struct.pack("!HHII", 0x7000, 0x6558, 1, 2) + FRAME,
        struct.pack("!HHII", 0x3000, 0x0800, 1, 2) + FRAME,
        struct.pack("!HHI", 0x1000, 0x88BE, 1) + bytes(8),
        struct.pack("!HHI", 0x1000, 0x88BE, 1) + b"\x20" + bytes(7) + FRAME,
    ],
    ids=["empty", "short", "no frame", "no key", "version 1", "routing", "not Ethernet", "ERSPAN without a frame", "ERSPAN III"],
)
def test_what_is_no_copy_is_refused(data: bytes) -> None:
    assert parse("wire_parse_gre", data) is None


def take_trailer(payload: bytes) -> tuple[WireTrailer, int] | None:
    buffer = ctypes.create_string_buffer(payload, len(payload))
    copy, found = WireCopy(frame=ctypes.addressof(buffer), frame_length=len(payload)), WireTrailer()
    function = library().wire_take_trailer
    function.restype = ctypes.c_bool
    return (found, copy.frame_length) if function(ctypes.byref(copy), ctypes.byref(found)) else None


def test_trailer() -> None:
    taken = take_trailer(FRAME + trailer(5 * 10**9, 1500, flags=3))
    assert taken is not None
    assert (taken[0].tai_ns, taken[0].original_length, taken[0].flags, taken[1]) == (42 * 10**9, 1500, 3, len(FRAME))


@pytest.mark.parametrize(
    "payload",
    [trailer(0, 0), FRAME, FRAME + trailer(0, 64, version=2), FRAME + trailer(0, 64, magic=1), FRAME + trailer(0, 63)],
    ids=["no frame", "none", "another version", "another magic", "frame longer than the original"],
)
def test_a_trailer_that_makes_no_sense_is_refused(payload: bytes) -> None:
    assert take_trailer(payload) is None
