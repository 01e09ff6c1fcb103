"""Numbered datagrams: the truth about what pods sent and received, by the pods' own logs.

A datagram's UDP payload is ``vtapseq1`` (8 bytes) / sender (32 bits) / sequence (64 bits), network byte order, then zeros. Both
ends write one line ``SENDER SEQUENCE`` to a log for each datagram that the kernel took from or gave to them.

Run inside of pods as ``python -m vtap_lab.datagrams send|receive``; tests use `vtap_lab.exchange`.
"""

from __future__ import annotations

import argparse
import itertools
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

MAGIC = b"vtapseq1"
_HEADER = struct.Struct("!8sIQ")
HEADER_SIZE = _HEADER.size
READY = "ready"


@dataclass(frozen=True, slots=True, order=True)
class Datagram:
    """`sender` is unique within a run of the tests, `sequence` within a sender."""

    sender: int
    sequence: int

    def payload(self, size: int) -> bytes:
        """`size` bytes of UDP payload, HEADER_SIZE at least."""
        return _HEADER.pack(MAGIC, self.sender, self.sequence).ljust(size, b"\0")

    @classmethod
    def parse(cls, payload: bytes) -> Datagram | None:
        """None when the payload is no numbered datagram's."""
        if len(payload) < HEADER_SIZE or not payload.startswith(MAGIC):
            return None
        _, sender, sequence = _HEADER.unpack_from(payload)
        return cls(sender, sequence)


def read_log(path: Path) -> list[Datagram]:
    """In the order in which they were sent or received."""
    return [Datagram(*map(int, line.split())) for line in path.read_text().splitlines()]


def paced(count: int, rate: float) -> Iterator[int]:
    """0, 1, 2, … each no earlier than its time at `rate` a second (0: as fast as it goes); a delay is not made up by a burst."""
    due = time.monotonic()
    for number in itertools.count() if count == 0 else range(count):
        if rate:
            delay = due - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            due = max(due, time.monotonic() - 0.01) + 1 / rate
        yield number


class _Ending:
    """Becomes true at SIGTERM or SIGINT."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def __bool__(self) -> bool:
        return self.asked


def send(address: str, port: int, sender: int, sequences: Iterable[int], size: int, log: TextIO, ending: object = False) -> None:
    """Send one datagram for each sequence number; log those that the kernel took."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        out.connect((address, port))
        for sequence in sequences:
            if ending:
                return
            try:
                out.send(Datagram(sender, sequence).payload(size))
            except ConnectionRefusedError:  # Of an earlier datagram, by ICMP; this one was not sent. The receiver is gone.
                continue
            log.write(f"{sender} {sequence}\n")


def listening(port: int, group: str) -> socket.socket:
    """A socket for IPv4 and IPv6 that has joined the multicast group, if any."""
    inside = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    inside.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    inside.bind(("::", port))
    if ":" in group:
        request = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", socket.if_nametoindex("eth0"))
        inside.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
    elif group:
        request = struct.pack("@4s4si", socket.inet_aton(group), b"\0" * 4, socket.if_nametoindex("eth0"))
        inside.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
    inside.setblocking(False)
    return inside


def receive(inside: socket.socket, log: TextIO, ending: object) -> None:
    """Log what arrives until asked to end, and then what has arrived by then."""
    selector = selectors.DefaultSelector()
    selector.register(inside, selectors.EVENT_READ)
    while True:
        last_round = bool(ending)
        selector.select(0.1)
        for payload in _waiting(inside):
            if (datagram := Datagram.parse(payload)) is not None:
                log.write(f"{datagram.sender} {datagram.sequence}\n")
        log.flush()
        if last_round:
            return


def _waiting(inside: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield inside.recv(65535)
        except BlockingIOError:
            return


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vtap_lab.datagrams", description="Numbered datagrams")
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("send")
    sending.add_argument("address")
    sending.add_argument("port", type=int)
    sending.add_argument("--sender", type=int, required=True)
    sending.add_argument("--first", type=int, default=0)
    sending.add_argument("--count", type=int, default=0, help="0: until SIGTERM")
    sending.add_argument("--rate", type=float, default=1000, help="datagrams a second; 0: as fast as it goes")
    sending.add_argument("--size", type=int, default=HEADER_SIZE, help="bytes of UDP payload")
    sending.add_argument("--log", type=Path, required=True)
    receiving = commands.add_parser("receive")
    receiving.add_argument("port", type=int)
    receiving.add_argument("--group", default="", help="multicast group to join")
    receiving.add_argument("--log", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Send or receive until done or told to end."""
    options = _arguments(argv)
    ending = _Ending()
    with options.log.open("w", buffering=1) as log:
        if options.command == "send":
            sequences = (options.first + number for number in paced(options.count, options.rate))
            send(options.address, options.port, options.sender, sequences, options.size, log, ending)
        else:
            with listening(options.port, options.group) as inside:
                print(READY, flush=True)
                receive(inside, log, ending)
    return 0


if __name__ == "__main__":
    sys.exit(main())
