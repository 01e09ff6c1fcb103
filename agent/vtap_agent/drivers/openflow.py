"""The little OpenFlow that we speak: the configuration of one port of a bridge (OpenFlow Switch Specification 1.0.0, section 5).

Version 1.0, since later ones have no OFPPC_NO_FLOOD. The socket is the bridge's own management socket, as `ovs-ofctl` uses it, so
that neither a controller nor its connection is touched.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from vtap_agent.errors import Retry, TellUser, Wait

TIMEOUT = 5.0
VERSION = 1
HELLO, ERROR, ECHO_REQUEST, ECHO_REPLY, PORT_MOD, STATS_REQUEST, STATS_REPLY, BARRIER_REQUEST, BARRIER_REPLY = (
    *(0, 1, 2, 3, 15),
    *(16, 17, 18, 19),
)
OFPST_PORT_DESC = 13
OFPC_STATS_MORE = 1
OFPPC_NO_FLOOD = 1 << 4
_HEADER = struct.Struct("!BBHI")
_STATS = struct.Struct("!HH")
_PORT = struct.Struct("!H6s16sI20x")
_PORT_MOD = struct.Struct("!H6sIII4x")
_ERROR = struct.Struct("!HH")


def never_flood_to(run_dir: Path, bridge: str, port: str) -> bool:
    """Leave `port` out of what the bridge's flows send to FLOOD. Returns whether it was not left out before.

    Raises Wait where vswitchd or the port is not there, Retry where it refuses or does not answer, TellUser where the bridge does
    not speak OpenFlow 1.0.
    """
    path = run_dir / f"{bridge}.mgmt"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(str(path))
            return _Dialogue(connection, bridge).never_flood_to(port)
        except TimeoutError as error:
            raise Retry(f"bridge {bridge} did not answer over OpenFlow within {TIMEOUT:g} s") from error
        except OSError as error:
            raise Wait(f"bridge {bridge} cannot be reached at {path}: {error.strerror or error}") from error


class _Dialogue:
    def __init__(self, connection: socket.socket, bridge: str) -> None:
        self._connection = connection
        self._bridge = bridge
        self._received = b""

    def never_flood_to(self, port: str) -> bool:
        self._greet()
        number, address, config = self._port(port)
        if config & OFPPC_NO_FLOOD:
            return False
        self._send(PORT_MOD, _PORT_MOD.pack(number, address, OFPPC_NO_FLOOD, OFPPC_NO_FLOOD, 0))
        self._send(BARRIER_REQUEST)
        self._await(BARRIER_REPLY)
        return True

    def _greet(self) -> None:
        self._send(HELLO)
        version, kind, _ = self._receive()
        if version < VERSION or kind != HELLO:
            raise self._unspoken()
        # Each end takes the lower of both versions; who allows no 1.0 answers with an error and closes, perhaps before we have
        # asked on: its reason can be read all the same.
        with contextlib.suppress(BrokenPipeError):
            self._send(ECHO_REQUEST)
        self._await(ECHO_REPLY)

    def _unspoken(self) -> TellUser:
        return TellUser(
            f"bridge {self._bridge} speaks no OpenFlow 1.0, so that flows which flood reach our tap port too and their packets "
            f"are copied twice; allow it (ovs-vsctl add bridge {self._bridge} protocols OpenFlow10), or let no flow say FLOOD"
        )

    def _port(self, name: str) -> tuple[int, bytes, int]:
        for number, address, found, config in self._ports():
            if found.rstrip(b"\0").decode(errors="replace") == name:
                return number, address, config
        raise Wait(f"bridge {self._bridge} has no port {name} yet")

    def _ports(self) -> Iterator[tuple[int, bytes, bytes, int]]:
        self._send(STATS_REQUEST, _STATS.pack(OFPST_PORT_DESC, 0))
        more = True
        while more:
            body = self._await(STATS_REPLY)
            more = bool(_STATS.unpack_from(body)[1] & OFPC_STATS_MORE)
            yield from _PORT.iter_unpack(body[_STATS.size :])

    def _send(self, kind: int, body: bytes = b"") -> None:
        self._connection.sendall(_HEADER.pack(VERSION, kind, _HEADER.size + len(body), kind) + body)

    def _await(self, wanted: int) -> bytes:
        while True:
            _, kind, body = self._receive()
            if kind == wanted:
                return body
            if kind == ERROR:
                category, code = _ERROR.unpack_from(body)
                if category == 0:  # OFPET_HELLO_FAILED
                    raise self._unspoken()
                raise Retry(f"bridge {self._bridge} refuses what we ask over OpenFlow: error {category}, {code}")
            if kind == ECHO_REQUEST:
                self._send(ECHO_REPLY, body)

    def _receive(self) -> tuple[int, int, bytes]:
        version, kind, length, _ = _HEADER.unpack(self._exactly(_HEADER.size))
        return version, kind, self._exactly(max(0, length - _HEADER.size))

    def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            part = self._connection.recv(1 << 16)
            if not part:
                raise self._unspoken()
            self._received += part
        taken, self._received = self._received[:count], self._received[count:]
        return taken
