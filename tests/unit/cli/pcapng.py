"""Small pcapng files, made here byte by byte (draft-ietf-opsawg-pcapng), and read by tshark."""

from __future__ import annotations

import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

NOON = 1_700_000_000 * 10**9
WAIT = 30


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


SECTION = _block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(name: str) -> bytes:
    return _block(1, struct.pack("<HHI", 1, 0, 0) + _option(2, name.encode()) + _option(9, b"\x09") + _option(0, b""))


def packet(index: int, time_ns: int, frame: bytes) -> bytes:
    return _block(6, struct.pack("<IIIII", index, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), len(frame)) + frame)


def datagram(port: int, payload: bytes) -> bytes:
    udp = struct.pack(">HHHH", 40000, port, 8 + len(payload), 0) + payload
    addresses = bytes([10, 1, 0, 1, 10, 1, 0, 2])
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    return bytes.fromhex("020000000001020000000002 0800") + header + addresses + udp


STORED = (
    SECTION
    + interface("shop/web-0 eth0 Egress")
    + interface("shop/web-1 eth0 Ingress")
    + packet(0, NOON, datagram(9999, b"one"))
    + packet(1, NOON + 10**6, datagram(9998, b"two"))
    + packet(0, NOON + 2 * 10**6, datagram(9999, b"three"))
)


def udp_ports(file: Path) -> list[str]:
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-e", "udp.dstport"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT).stdout.split()


def wait_until(condition: Callable[[], object], timeout: float = WAIT) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
