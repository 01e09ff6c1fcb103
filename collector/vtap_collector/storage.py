"""The collector's directory: capture files by namespace and tap, and `.state`. Never follows a symbolic link out of it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtap_collector.announcements import TapName
from vtap_collector.errors import CollectorError
from vtap_collector.native import FileSummary, scan

_STATE = ".state"
_FILE = re.compile(r"^.+-(?P<stamp>\d{8}T\d{6}Z)-(?P<number>\d{1,20})\.pcapng$")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED_SUMMARIES = 4096


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A capture file; `order` sorts a tap's files by age."""

    namespace: str
    tap: str
    name: str
    bytes: int
    modified_ns: int
    inode: int
    order: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Retained:
    """What retention left, in bytes, and how many files it deleted; `deleted_open` of them were being written."""

    left: int
    deleted: int
    deleted_open: int


class Storage:
    """Everything that Python does in the directory. `descriptor` stays open for the process's life."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory where it is missing. Raises CollectorError."""
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            self.descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(FileExistsError):
                os.mkdir(_STATE, 0o700, dir_fd=self.descriptor)
        except OSError as error:
            raise CollectorError(f"--directory {directory}: {error.strerror}") from None
        self._summaries: dict[tuple[int, int, int], FileSummary] = {}

    # ---- state ----

    @contextlib.contextmanager
    def _below(self, *names: str) -> Iterator[int]:
        descriptor = os.dup(self.descriptor)
        try:
            for name in names:
                inner = os.open(name, _DIRECTORY_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def read_state(self, name: str) -> bytes | None:
        with self._below(_STATE) as state:
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=state)
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as file:
                return file.read()

    def write_state(self, name: str, content: bytes) -> None:
        """Atomically: after a crash the file is the old one or the new one. Raises OSError."""
        with self._below(_STATE) as state:
            fresh = f"{name}.new"
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=state)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, name, src_dir_fd=state, dst_dir_fd=state)
            os.fsync(state)

    def put_aside(self, name: str) -> None:
        with self._below(_STATE) as state:
            os.rename(name, f"{name}.bad", src_dir_fd=state, dst_dir_fd=state)

    # ---- capture files ----

    def files(self, tap: TapName | None = None) -> list[StoredFile]:
        """Oldest first. What is no capture file of ours is passed over."""
        found: list[StoredFile] = []
        namespaces = [tap.namespace] if tap else self._directories()
        for namespace in namespaces:
            for name in [tap.name] if tap else self._directories(namespace):
                found.extend(self._files_of(namespace, name))
        return sorted(found, key=lambda file: file.order)

    def _directories(self, *below: str) -> list[str]:
        try:
            with self._below(*below) as parent, os.scandir(parent) as entries:
                return [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _files_of(self, namespace: str, tap: str) -> Iterator[StoredFile]:
        try:
            with self._below(namespace, tap) as parent, os.scandir(parent) as entries:
                for entry in entries:
                    match = _FILE.match(entry.name)
                    if match is None or not entry.is_file(follow_symlinks=False):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # retention may run at the same time
                        status = entry.stat(follow_symlinks=False)
                        order = (match["stamp"], int(match["number"]))
                        yield StoredFile(namespace, tap, entry.name, status.st_size, status.st_mtime_ns, status.st_ino, order)
        except (FileNotFoundError, NotADirectoryError):
            return

    def open(self, file: StoredFile) -> int:
        """A descriptor to read from. Raises FileNotFoundError where retention was faster."""
        with self._below(file.namespace, file.tap) as parent:
            return os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)

    def summary(self, file: StoredFile) -> FileSummary:
        """Reads the whole file, once: run it in a thread."""
        key = (file.inode, file.bytes, file.modified_ns)
        known = self._summaries.get(key)
        if known is not None:
            return known
        descriptor = self.open(file)
        try:
            summary = scan(descriptor)
        finally:
            os.close(descriptor)
        if len(self._summaries) >= _CACHED_SUMMARIES:
            self._summaries.clear()
        self._summaries[key] = summary
        return summary

    def retain(self, limit: int, is_open: Callable[[StoredFile], bool]) -> Retained:
        """Where files take more than `limit` bytes, delete until they take a sixteenth less: the oldest closed ones, then, should
        that not do, the open ones begun first. 0 keeps all."""
        files = self.files()
        left = sum(file.bytes for file in files)
        deleted = deleted_open = 0
        room = limit - limit // 16
        if limit and left > limit:
            opened = {file.inode for file in files if is_open(file)}
            for file in sorted(files, key=lambda file: file.inode in opened):
                if left <= room:
                    break
                with self._below(file.namespace, file.tap) as parent, contextlib.suppress(FileNotFoundError):
                    os.unlink(file.name, dir_fd=parent)
                    deleted += 1
                    deleted_open += file.inode in opened
                left -= file.bytes
        return Retained(left, deleted, deleted_open)
