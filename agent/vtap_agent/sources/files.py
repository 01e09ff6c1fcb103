"""Reading files that others write: whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 1 << 20
_RACY_NS = 50_000_000
"""A file this young when read may be written again without its size or times showing it (git's "racy" entries)."""

Signature = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Content:
    """A file as read. `problem` is a sentence where it can't be read; `unsettled` where somebody is writing it just now."""

    text: str = ""
    problem: str = ""
    unsettled: bool = False


UNSETTLED = Content(unsettled=True)


@dataclass(frozen=True, slots=True)
class _Cached:
    signature: Signature
    content: Content
    is_final: bool


class FileReader:
    """Reads files again only when they may have changed. Not thread-safe."""

    def __init__(self) -> None:
        self._cache: dict[Path, _Cached] = {}

    def read(self, path: Path) -> Content | None:
        """The file's content; None where there is no regular file."""
        try:
            signature = _signature(path.stat())
            cached = self._cache.get(path)
            if cached is not None and cached.is_final and cached.signature == signature:
                return cached.content
            found = _read(path)
        except (FileNotFoundError, NotADirectoryError):
            self._cache.pop(path, None)
            return None
        except OSError as error:
            return Content(
                problem=f"{path}: can't be read ({os.strerror(error.errno or 0)}); let the agent read it, or remove it"
            )
        if found is None:
            self._cache.pop(path, None)
            return None
        self._cache[path] = found
        return found.content

    def forget_all_but(self, paths: set[Path]) -> None:
        """Keep memory to the files that are still there."""
        self._cache = {path: cached for path, cached in self._cache.items() if path in paths}


def _read(path: Path) -> _Cached | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if not _hold_off_writers(descriptor):
            return _Cached(_signature(status), UNSETTLED, is_final=False)
        status = os.fstat(descriptor)
        content = _content(path, descriptor, status.st_size)
        return _Cached(_signature(status), content, is_final=time.time_ns() - status.st_mtime_ns > _RACY_NS)
    finally:
        os.close(descriptor)  # Ends the lease.


def _hold_off_writers(descriptor: int) -> bool:
    """Take a read lease (fcntl(2)); False where somebody has the file open for writing.

    A writer that comes while we hold it waits in open(2) until we close, which is microseconds. File systems without leases
    (network ones) are read as they are.
    """
    try:
        # The default signal for a lease that is wanted back, SIGIO, would end the process; SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EBUSY)
    return True


def _content(path: Path, descriptor: int, size: int) -> Content:
    if size > MAX_BYTES:
        return Content(problem=f"{path}: has {size} bytes; a file may have at most {MAX_BYTES}, split it")
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(MAX_BYTES + 1)
    try:
        return Content(text=data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Content(problem=f"{path}: byte {error.start} is no UTF-8; save the file as UTF-8")


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
