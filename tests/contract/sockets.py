"""Packet sockets in network namespaces: what leaves a port is what arrives at the far end of its veth."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.contract.frames import Frame

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA = 263, 6, 8
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 8 << 20
"""Bytes; when vswitchd has rested, what waited comes all at once."""
_TP_STATUS_VLAN_VALID = 0x10
_QUIET = 0.1
"""Seconds without a frame after which no more are expected."""
_libc = ctypes.CDLL(None, use_errno=True)


class PacketSocket:
    """Sends and receives whole frames on one device, tags included."""

    def __init__(self, namespace: str, device: str) -> None:
        self._socket = _open_in(namespace)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def lost(self) -> int:
        """Frames that this socket itself dropped since the last call, so that no loss of ours is taken for the switch's."""
        _, dropped = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        return dropped

    def send(self, frame: Frame) -> None:
        self._socket.send(frame.encode())

    def receive(self) -> list[Frame]:
        """Our frames that have arrived; what else the network says is passed over."""
        frames: list[Frame] = []
        while True:
            try:
                data, ancillary, _, address = self._socket.recvmsg(65536, socket.CMSG_SPACE(20))
            except BlockingIOError:
                return frames
            if address[2] != socket.PACKET_OUTGOING:
                frame = Frame.decode(_with_tag(data, ancillary))
                frames += [] if frame is None else [frame]

    def close(self) -> None:
        self._socket.close()


def gather(sockets: Mapping[str, PacketSocket], expected: int, timeout: float = 5.0) -> dict[str, list[Frame]]:
    """What arrives, by name of the socket: until `expected` frames are there or the time is up, and then until it is quiet."""
    arrived: dict[str, list[Frame]] = {}
    deadline = time.monotonic() + timeout
    while True:
        enough = sum(map(len, arrived.values())) >= expected
        ready, _, _ = select.select(list(sockets.values()), [], [], _QUIET)
        if not ready and (enough or time.monotonic() > deadline):
            return arrived
        for name, end in sockets.items():
            if end in ready and (frames := end.receive()):
                arrived.setdefault(name, []).extend(frames)


def _open_in(namespace: str) -> socket.socket:
    """A socket belongs to the namespace of the thread that opens it; the thread is not used again."""
    opened: list[socket.socket | OSError] = []

    def work() -> None:
        handle = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
        try:
            if _libc.setns(handle, 0):
                raise OSError(ctypes.get_errno(), f"setns to {namespace}")
            opened.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)))
        except OSError as error:
            opened.append(error)
        finally:
            os.close(handle)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(opened[0], OSError):
        raise opened[0]
    return opened[0]


def _with_tag(data: bytes, ancillary: list[tuple[int, int, bytes]]) -> bytes:
    """The kernel keeps the outer tag beside the frame: packet(7), PACKET_AUXDATA, struct tpacket_auxdata."""
    for _, _, auxiliary in ancillary:
        status, _, _, _, _, tci, protocol = struct.unpack("=IIIHHHH", auxiliary[:20])
        if status & _TP_STATUS_VLAN_VALID:
            return data[:12] + struct.pack("!HH", protocol or 0x8100, tci) + data[12:]
    return data
