"""What is written can be read: by a strict reader of our own and by Wireshark's tools, byte for byte."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.collector.copies import Capture, copy, number_of, numbered_frame, read_by_wireshark, read_pcapng
from tests.unit.collector.core_library import NODE_ADDRESS, idle_core, stream
from vtap_collector.native import Direction, Selection, scan

needs_wireshark = pytest.mark.skipif(not shutil.which("editcap"), reason="needs Wireshark's editcap, capinfos and tshark")
TIMES = st.integers(10**9, 4 * 10**18)

packets = st.lists(
    st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=300), st.integers(0, 70000), TIMES), min_size=1, max_size=40
)


def store(directory: Path, sent: list[tuple[int, bytes, int, int]]) -> Path:
    sequences = [0, 0, 0, 0]
    with idle_core(directory) as core:
        for key in range(4):
            core.open_stream(key, stream(key, direction=Direction.Ingress if key % 2 else Direction.Egress))
        for key, frame, more, time_ns in sent:
            core.ingest(0, NODE_ADDRESS, copy(key, sequences[key], frame, time_ns, len(frame) + more))
            sequences[key] += 1
        core.stop()
        assert sum(core.stream_counts(key).stored for key in range(4)) == len(sent)
    (file,) = directory.glob("shop/checkout/*.pcapng")
    return file


@needs_wireshark
@settings(max_examples=25, deadline=None)
@given(packets)
def test_round_trip(sent: list[tuple[int, bytes, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = store(Path(directory), sent)
        capture = read_pcapng(file.read_bytes())
        names = [interface[2].decode() for interface in capture.interfaces]
        assert [(names[p.interface], p.frame, p.original, p.time_ns) for p in capture.packets] == [
            (f"shop/web-{key}/eth0 egress", frame, len(frame) + more, time_ns) for key, frame, more, time_ns in sent
        ]
        assert [p.flags for p in capture.packets] == [1 if key % 2 else 2 for key, *_rest in sent]
        in_range = [p for p in sent if p[3] < 2**32 * 10**9]  # a pcap file's seconds end in 2106
        if len(in_range) == len(sent):
            assert read_by_wireshark(file) == [(time_ns, len(f) + more, f) for _key, f, more, time_ns in sent]


@needs_wireshark
def test_capinfos_shows_who_and_how_many(tmp_path: Path) -> None:
    file = store(tmp_path, [(key, numbered_frame(number), 0, 10**18 + number) for number in range(100) for key in range(4)])
    said = subprocess.run(["capinfos", str(file)], capture_output=True, text=True, check=True).stdout
    assert "Number of packets:   400" in said
    assert "Name = shop/web-3/eth0 egress" in said
    assert "Capture application: vtap-collector" in said
    assert "Time precision = nanoseconds" in said


def test_statistics_close_the_file(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:
        core.open_stream(0, stream(0))
        for sequence in (0, 1, 2, 2, 3):
            core.ingest(0, NODE_ADDRESS, copy(0, sequence, numbered_frame(sequence)))
    (file,) = tmp_path.glob("*/*/*.pcapng")
    received, dropped, accepted, by_system, delivered = (
        read_pcapng(file.read_bytes()).statistics[0][code] for code in (4, 5, 6, 7, 8)
    )
    assert (received, dropped, accepted, by_system, delivered) == (4, 0, 4, 0, 4)


def test_rotation_by_count_and_size(tmp_path: Path) -> None:
    with idle_core(tmp_path, rotate_packets=30) as core:
        core.open_stream(0, stream(0))
        for sequence in range(100):
            core.ingest(0, NODE_ADDRESS, copy(0, sequence, numbered_frame(sequence)))
    files = sorted(tmp_path.glob("*/*/*.pcapng"), key=lambda file: int(file.stem.rpartition("-")[2]))
    assert [len(read_pcapng(file.read_bytes()).packets) for file in files] == [30, 30, 30, 10]

    other = tmp_path / "by-size"
    other.mkdir()
    with idle_core(other, rotate_bytes=10_000) as core:
        core.open_stream(0, stream(0))
        for sequence in range(1000):
            core.ingest(0, NODE_ADDRESS, copy(0, sequence, numbered_frame(sequence)))
    files = list(other.glob("*/*/*.pcapng"))
    assert sum(len(read_pcapng(file.read_bytes()).packets) for file in files) == 1000
    assert len(files) > 10 and all(file.stat().st_size < 10_500 for file in files)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200))
def test_a_cut_file_reads_up_to_the_cut(missing: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = store(Path(directory), [(0, numbered_frame(number), 0, 10**18) for number in range(10)])
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) - missing])
        with file.open("rb") as reader:
            summary = scan(reader.fileno())
        assert summary.whole_bytes <= len(whole) - missing
        assert len(read_pcapng(file.read_bytes()[: summary.whole_bytes]).packets) == summary.packets


def test_files_rotate_before_pods_that_come_and_go_fill_them(tmp_path: Path) -> None:
    with idle_core(tmp_path, rotate_interfaces=4) as core:
        core.open_stream(1, stream(1000))
        for pod in range(21):
            core.open_stream(0, stream(pod))
            for key in (pod, 1000):
                core.ingest(0, NODE_ADDRESS, copy(key, 0 if key == pod else pod, numbered_frame(pod)))
    captures = [read_pcapng(file.read_bytes()) for file in sorted(tmp_path.glob("*/*/*.pcapng"))]
    assert len(captures) == 7 and all(len(capture.interfaces) <= 4 for capture in captures)
    assert sum(len(capture.packets) for capture in captures) == 42


def test_a_tap_with_many_open_streams_does_not_rotate_for_each(tmp_path: Path) -> None:
    with idle_core(tmp_path, rotate_interfaces=1) as core:
        for slot in range(8):
            core.open_stream(slot, stream(slot))
        for number in range(50):
            for key in range(8):
                core.ingest(0, NODE_ADDRESS, copy(key, number, numbered_frame(number)))
    (file,) = tmp_path.glob("*/*/*.pcapng")
    assert len(read_pcapng(file.read_bytes()).packets) == 400


def test_a_reader_begins_another_section_before_numbering_pods_for_ever(tmp_path: Path) -> None:
    pods = 4096 + 100
    ours, theirs = socket.socketpair()
    with idle_core(tmp_path) as core, ours:
        core.open_live(0, Selection(), theirs.detach())
        core.open_stream(1, stream(1_000_000))  # keeps the file's section from ending with each pod
        for pod in range(pods):
            core.open_stream(0, stream(pod))
            core.ingest(0, NODE_ADDRESS, copy(pod, 0, numbered_frame(pod)))
            if pod % 500 == 0:
                core.write()
        core.write()
        ours.settimeout(10)
        data = b""
        while sum(len(section.packets) for section in whole_sections(data)) < pods:
            data += ours.recv(4 << 20)
    sections = whole_sections(data)
    assert [len(section.interfaces) >= most for section, most in zip(sections, (4096, 100), strict=True)] == [True, True]
    assert max(len(section.interfaces) for section in sections) == 4096
    assert [number_of(p.frame) for section in sections for p in section.packets] == list(range(pods))


def whole_sections(data: bytes) -> list[Capture]:
    """Up to the last whole block."""
    starts: list[int] = []
    at = 0
    while len(data) - at >= 8:
        kind, length = struct.unpack_from("<II", data, at)
        if len(data) - at < length:
            break
        if kind == 0x0A0D0D0A:
            starts.append(at)
        at += length
    return [read_pcapng(data[start:end]) for start, end in pairwise([*starts, at])]
