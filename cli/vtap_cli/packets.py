"""`vtap packets`: copies of a tap, stored or live, as decoded lines or as pcapng.

Packets never pass through Python one by one: chunks of pcapng go from the collector to a file, or to tshark.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from vtap_cli import selection
from vtap_cli.daemons import Daemon, get_chunks
from vtap_cli.errors import CliError
from vtap_cli.tables import tap_name

if TYPE_CHECKING:
    from vtap_api.values import Duration

COLUMNS = (
    ("No.", "%m"),
    ("Time", "%Yt"),
    ("Pod", "%Cus:frame.interface_name:0:R"),
    ("Source", "%s"),
    ("Destination", "%d"),
    ("Protocol", "%p"),
    ("Length", "%L"),
    ("Info", "%i"),
)
EMPTY_PCAPNG = bytes.fromhex("0a0d0d0a 1c000000 4d3c2b1a 0100 0000 ffffffffffffffff 1c000000")
"""A section header block and nothing else: what a display filter is tried on."""
STANDARD_OUTPUT = Path("-")
FIRST_CHUNK_TIMEOUT = 1.0
"""Seconds that an interrupt waits for the first of a stream."""


@dataclass(frozen=True, slots=True)
class Request:
    """Which packets, and what to do with them. Empty and zero mean "all"; `output` None prints decoded lines."""

    tap: str
    live: bool = False
    display_filter: str = ""
    capture_filter: str = ""
    every: Duration | None = None
    count: int = 0
    output: Path | None = None
    as_json: bool = False

    @property
    def selects_after_filter(self) -> bool:
        """What is to be counted is what tshark's filter lets pass, so that the collector can't count it."""
        return bool(self.display_filter and self.count)

    def query(self) -> dict[str, str]:
        """What the collector is asked for."""
        query = {"tap": "/".join(tap_name(self.tap))}
        if self.capture_filter:
            query["filter"] = self.capture_filter
        if self.selects_after_filter:
            return query
        if self.every is not None:
            query["every"] = f"{self.every.nanoseconds / 1e9:.9f}".rstrip("0").rstrip(".")
        if self.count:
            query["count"] = str(self.count)
        return query


def run(request: Request, source: Daemon, until: float | None = None) -> int:
    """Copy until the collector `source` has no more, it is `until` on the monotonic clock, or interrupted.

    Returns the exit status; raises CliError.
    """
    if request.display_filter or request.output is None:
        _require_tshark()
    if request.display_filter:
        _check_display_filter(request.display_filter)
    chunks = get_chunks(source, "/v1/live" if request.live else "/v1/stored", request.query(), until)
    first = next(chunks, b"")
    if request.output is not None and not request.display_filter:
        return _write(_again(first, chunks), request.output)
    if request.selects_after_filter:
        return _select_through_tshark(_again(first, chunks), request)
    return _through_tshark(_again(first, chunks), request)


def _again(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
        yield from rest


def _require_tshark() -> None:
    if shutil.which("tshark") is None:
        raise CliError(
            "tshark is not installed; install it (apt-get install tshark), or write pcapng with -w FILE and no --filter"
        )


def _check_display_filter(text: str) -> None:
    """Ask tshark before packets are fetched. Raises CliError with tshark's own words."""
    with tempfile.NamedTemporaryFile(suffix=".pcapng") as empty:
        empty.write(EMPTY_PCAPNG)
        empty.flush()
        tried = subprocess.run(
            ["tshark", "-n", "-r", empty.name, "-Y", text], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
    if tried.returncode != 0:
        said = [line.removeprefix("tshark: ").rstrip(".") for line in tried.stderr.splitlines() if line.startswith("tshark: ")]
        raise CliError(f"--filter: {said[0] if said else 'tshark refuses it'}; see man wireshark-filter, or use --capture-filter")


def _write(chunks: Iterable[bytes], output: Path) -> int:
    try:
        with _opened(output) as stream:
            _copy(chunks, stream)
    except OSError as error:
        raise CliError(f"{output} cannot be written ({error.strerror}); name another file") from error
    return 0


@contextlib.contextmanager
def _opened(output: Path) -> Iterator[IO[bytes]]:
    if output == STANDARD_OUTPUT:
        yield sys.stdout.buffer
    else:
        with output.open("wb") as stream:
            yield stream


def _copy(chunks: Iterable[bytes], stream: IO[bytes]) -> None:
    """Until the chunks end, the reader goes away, or the user interrupts: each is a normal end."""
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for chunk in chunks:
            stream.write(chunk)
            stream.flush()


def _through_tshark(chunks: Iterable[bytes], request: Request) -> int:
    command = _tshark(request, COLUMNS, request.output)
    # In a session of its own an interrupt reaches only us: we close its input, and it writes out what it holds.
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, start_new_session=True) as tshark:
            assert tshark.stdin is not None
            try:
                _copy(chunks, tshark.stdin)
            finally:
                with contextlib.suppress(BrokenPipeError):
                    tshark.stdin.close()
        _check_ended(tshark, errors)
    return 0


def _tshark(request: Request, columns: Sequence[tuple[str, str]], output: Path | None) -> list[str]:
    command = ["tshark", "-n", "-l", "-r", "-"]
    if request.display_filter:
        command += ["-Y", request.display_filter]
    if output is not None:
        return [*command, "-F", "pcapng", "-w", str(output)]
    if request.as_json:
        return [*command, "-T", "json"]
    return [*command, "-o", "gui.column.format:" + ",".join(f'"{title}","{what}"' for title, what in columns)]


def _check_ended(tshark: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    errors.seek(0)
    said = errors.read().decode(errors="replace")
    if tshark.returncode > 0:
        sentence = next((line.removeprefix("tshark: ") for line in said.splitlines() if line.startswith("tshark: ")), "it failed")
        raise CliError(f"tshark: {sentence.rstrip('.')}")


# ---- counting what the display filter lets pass ----


class _Feeder(threading.Thread):
    """Copies the collector's chunks into tshark, so that its output can be read meanwhile."""

    def __init__(self, chunks: Iterable[bytes], tshark: IO[bytes]) -> None:
        super().__init__(name="feed tshark", daemon=True)  # it may wait for packets that never come
        self._chunks, self._tshark = chunks, tshark
        self._has_begun = threading.Event()
        self.error: CliError | None = None

    def run(self) -> None:
        try:
            with contextlib.suppress(OSError, ValueError):  # tshark has gone, or its input has been closed
                for chunk in self._chunks:
                    left = memoryview(chunk)
                    while left:
                        left = left[self._tshark.write(left) :]
                    self._has_begun.set()
        except CliError as error:
            self.error = error
        finally:
            self._has_begun.set()
            self.stop()

    def interrupt(self) -> None:
        """Let what has come already be written out."""
        self._has_begun.wait(FIRST_CHUNK_TIMEOUT)
        self.stop()

    def stop(self) -> None:
        """tshark then writes out what it holds, and ends."""
        with contextlib.suppress(OSError):
            self._tshark.close()


def _select_through_tshark(chunks: Iterable[bytes], request: Request) -> int:
    selected = selection.Selection(request.count, request.every.nanoseconds if request.every is not None else 0)
    form = selection.lines
    if request.output is not None:
        form = selection.pcapng
    elif request.as_json:
        form = selection.json_array
    command = _tshark(request, (*selection.MARKS, *COLUMNS), STANDARD_OUTPUT if request.output is not None else None)
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        ) as tshark:
            assert tshark.stdin is not None and tshark.stdout is not None
            feeder = _Feeder(chunks, tshark.stdin)
            feeder.start()
            try:
                with _interrupt_ends(feeder):
                    _write(
                        form(io.BufferedReader(cast("io.RawIOBase", tshark.stdout)), selected), request.output or STANDARD_OUTPUT
                    )
            finally:
                tshark.terminate()  # where it has not ended by itself
        if feeder.error is not None:
            raise feeder.error
        if not selected.is_complete:  # else we have ended it, and how it takes that says nothing
            _check_ended(tshark, errors)
    return 0


@contextlib.contextmanager
def _interrupt_ends(feeder: _Feeder) -> Iterator[None]:
    """The first interrupt ends the input, so that what has come is written out; a second one interrupts."""

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        feeder.interrupt()

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
