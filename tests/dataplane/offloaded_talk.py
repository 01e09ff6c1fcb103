"""A talk that a kernel hands on in super-packets and with checksums left to an offload; both sides know all that is to be said.

Run inside of pods as ``python offloaded_talk.py listen`` and ``… connect ADDRESS``: one TCP connection and datagrams, what one
side says answered by the other's. Each ends with status 0 once it has heard everything, in order and to the byte.
"""

from __future__ import annotations

import random
import socket
import sys

LISTENER, CALLER = "listen", "connect"
TCP_PORT, UDP_PORT = 7000, 7001
CHUNKS = 60
CHUNK = 20_000
"""Bytes of a chunk of the stream, some fourteen segments: two, one each way, fill a third of the queue that copies wait in."""
SIZES = (1, 2, 17, 18, 99, 100, 1000, 1451, 1452)
"""Bytes of single datagrams: odd and even, too small for Ethernet's least frame, as large as fits an MTU of 1,500 over IPv6."""
SEGMENT, SEGMENTED = 1200, 9 * 1200 + 701
"""Bytes of each but the last of the datagrams that the kernel makes of one `send`, and of all together."""
SOL_UDP, UDP_SEGMENT = 17, 103
PATIENCE = 30.0


def chunks(side: str) -> list[bytes]:
    """What a side says over TCP."""
    return [random.Random(f"{side} chunk {number}").randbytes(CHUNK) for number in range(CHUNKS)]


def singles(side: str) -> list[bytes]:
    """What a side sends as datagrams of their own."""
    return [random.Random(f"{side} datagram {size}").randbytes(size) for size in SIZES]


def segmented(side: str) -> bytes:
    """What a side leaves to the kernel to cut into datagrams (udp(7), UDP_SEGMENT)."""
    return random.Random(f"{side} segmented").randbytes(SEGMENTED)


def cut(data: bytes) -> list[bytes]:
    return [data[at : at + SEGMENT] for at in range(0, len(data), SEGMENT)]


def all_datagrams(side: str) -> list[bytes]:
    """Every payload of a side's datagrams."""
    return singles(side) + cut(segmented(side))


def exactly(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = stream.recv(count - len(data))
        assert more, "the other side hung up"
        data += more
    return bytes(data)


def over_tcp(stream: socket.socket, side: str) -> None:
    """The caller says a chunk, the listener answers with one of its own."""
    stream.settimeout(PATIENCE)
    for theirs, ours in zip(chunks(CALLER), chunks(LISTENER), strict=True):
        said, heard = (theirs, ours) if side == CALLER else (ours, theirs)
        if side == CALLER:
            stream.sendall(said)
        assert exactly(stream, CHUNK) == heard
        if side == LISTENER:
            stream.sendall(said)


def send_segmented(datagrams: socket.socket, data: bytes) -> None:
    datagrams.setsockopt(SOL_UDP, UDP_SEGMENT, SEGMENT)
    datagrams.send(data)
    datagrams.setsockopt(SOL_UDP, UDP_SEGMENT, 0)


def calling(datagrams: socket.socket) -> None:
    for said, heard in zip(singles(CALLER), singles(LISTENER), strict=True):
        datagrams.send(said)
        assert datagrams.recv(65535) == heard
    send_segmented(datagrams, segmented(CALLER))
    assert [datagrams.recv(65535) for _ in cut(segmented(LISTENER))] == cut(segmented(LISTENER))


def answering(datagrams: socket.socket) -> None:
    for heard, said in zip(singles(CALLER), singles(LISTENER), strict=True):
        data, caller = datagrams.recvfrom(65535)
        assert data == heard
        datagrams.connect(caller)
        datagrams.send(said)
    assert [datagrams.recv(65535) for _ in cut(segmented(CALLER))] == cut(segmented(CALLER))
    send_segmented(datagrams, segmented(LISTENER))


def listen() -> None:
    with (
        socket.create_server(("", TCP_PORT), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.settimeout(PATIENCE)
        datagrams.bind(("::", UDP_PORT))
        print("ready", flush=True)
        stream, _ = server.accept()
        with stream:
            over_tcp(stream, LISTENER)
        answering(datagrams)


def connect(address: str) -> None:
    with socket.create_connection((address, TCP_PORT), PATIENCE) as stream:
        over_tcp(stream, CALLER)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(PATIENCE)
        datagrams.connect((address, UDP_PORT))
        calling(datagrams)


if __name__ == "__main__":
    if sys.argv[1] == LISTENER:
        listen()
    else:
        connect(sys.argv[2])
