"""`vtap wireshark`: pcapng as it arrives, into Wireshark."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vtap_cli.daemons import Daemon, get_chunks
from vtap_cli.errors import CliError
from vtap_cli.packets import Request

MACOS = Path("/Applications/Wireshark.app/Contents/MacOS/Wireshark")


def program() -> str:
    """Wireshark's path; empty where it is not installed."""
    return shutil.which("wireshark") or (str(MACOS) if MACOS.exists() else "")


def run(request: Request, source: Daemon, wireshark: str) -> int:
    """Until the window is closed, the collector has no more, or the user interrupts. Returns the exit status; raises CliError."""
    if request.selects_after_filter:
        raise CliError(
            "--count counts what --filter lets pass, which only Wireshark knows here; use --capture-filter, or -w FILE"
        )
    chunks = get_chunks(source, "/v1/live" if request.live else "/v1/stored", request.query())
    first = next(chunks, b"")
    command = [wireshark, "-k", "-i", "-"]
    if request.display_filter:
        command += ["-Y", request.display_filter]
    # In a session of its own an interrupt ends the stream, and the window stays with what it has.
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True) as shown:
            assert shown.stdin is not None
            with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
                for chunk in _with_first(first, chunks):
                    shown.stdin.write(chunk)
                    shown.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                shown.stdin.close()
    except OSError as error:
        raise CliError(f"{wireshark} cannot be run ({error.strerror}); write a file with -w FILE and open that") from error
    return 0


def _with_first(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
        yield from rest
