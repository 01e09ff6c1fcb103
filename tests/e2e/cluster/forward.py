"""Carries TCP connections from a loopback port here to the same loopback port in another network namespace.

`python -m tests.e2e.cluster.forward NAMESPACE-PATH PORT`, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

_CHUNK = 1 << 16
_CLONE_NEWNET = 0x40000000
LOOPBACK = "127.0.0.1"


def main(namespace: str, port: int) -> None:
    listener = socket.create_server((LOOPBACK, port))  # A socket stays in the namespace in which it was made …
    _enter(namespace)  # … so what is made from here on belongs to the other one.
    asyncio.run(_serve(listener, port))


def _enter(namespace: str) -> None:
    """setns(2); `os.setns` came with Python 3.12."""
    with Path(namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), namespace)


async def _serve(listener: socket.socket, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:  # The API server is down; so is then the connection, as it would be without us.
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        for end in (there_writer, writer):
            end.close()

    server = await asyncio.start_server(carry, sock=listener)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
    try:
        await server.serve_forever()
    except asyncio.CancelledError:
        return


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, its end included."""
    try:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
