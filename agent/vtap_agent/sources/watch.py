"""Watching paths: a thread that looks again whenever inotify(7) or the mount table says that something is different."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inotify_simple import INotify, flags

from vtap_agent.errors import TellUser

log = logging.getLogger(__name__)

_MASK = (
    *(flags.CLOSE_WRITE, flags.CREATE, flags.DELETE, flags.MOVED_FROM, flags.MOVED_TO, flags.ATTRIB),
    *(flags.DELETE_SELF, flags.MOVE_SELF, flags.ONLYDIR),
)
_FIRST_RECHECK, _LAST_RECHECK = 0.001, 0.25
_UNWATCHED_RECHECK = 1.0
_MOUNT_TABLE = "/proc/self/mountinfo"

Names = frozenset[str] | None
"""Names in a directory that matter; None for all."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look found out.

    `changed`: the outcome is another than before. `directories`: what to watch for the next one. `unsettled`: somebody is just
    writing a file, so look again soon.
    """

    changed: bool
    directories: Mapping[Path, Names] = field(default_factory=dict[Path, Names])
    unsettled: bool = False


def anchors(path: Path) -> dict[Path, Names]:
    """The directories in which `path` can appear, vanish or be replaced: its own, else the nearest that exists."""
    path = path.absolute()
    for ancestor in path.parents:
        if ancestor.is_dir():
            return {ancestor: frozenset({path.relative_to(ancestor).parts[0]})}
    return {}


def merged(*several: Mapping[Path, Names]) -> dict[Path, Names]:
    """All directories of several, with all names that matter to any."""
    union: dict[Path, Names] = {}
    for directories in several:
        for directory, names in directories.items():
            if names is None or union.get(directory, frozenset[str]()) is None:
                union[directory] = None
            else:
                union[directory] = names | (union.get(directory) or frozenset())
    return union


def _inotify() -> INotify:
    try:
        return INotify(nonblocking=True)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise TellUser(f"files can't be watched ({why}); raise the sysctl fs.inotify.max_user_instances") from error


class Watch:
    """Calls `look` in `start`, and afterwards on a thread of its own whenever something in the watched directories changes.

    With `mounts` it also looks when a file system is mounted or unmounted in this mount namespace: `ip netns add` makes a file
    and then mounts the namespace over it, which inotify doesn't tell. `changed` is called after each look that found a change,
    except the first. Raises TellUser where the system has no more inotify instances to give.
    """

    def __init__(self, name: str, look: Callable[[], Looked], changed: Callable[[], None], *, mounts: bool = False) -> None:
        self._look = look
        self._changed = changed
        self._inotify = _inotify()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._mounts = os.open(_MOUNT_TABLE, os.O_RDONLY | os.O_CLOEXEC) if mounts else None
        self._watches: dict[int, Names] = {}
        self._unwatchable: frozenset[Path] = frozenset()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._recheck: float | None = None

    def start(self) -> None:
        """Look once, then follow."""
        self._settle()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close what it watched with."""
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        self._inotify.close()
        os.close(self._wake)
        if self._mounts is not None:
            os.close(self._mounts)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._inotify.fileno(), select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        if self._mounts is not None:
            poller.register(self._mounts, select.POLLPRI)
        while True:
            ready = {descriptor for descriptor, _ in poller.poll(None if self._recheck is None else self._recheck * 1000)}
            if self._wake in ready:
                return
            try:
                matters = self._drain()
                if (matters or self._mounts in ready or not ready) and self._settle():
                    self._changed()
            except Exception:
                log.exception(
                    "looking at %s failed unexpectedly; what was read before holds, and it is tried again", self._thread.name
                )
                self._recheck = _UNWATCHED_RECHECK

    def _drain(self) -> bool:
        """Take all events; True where one matters."""
        matters = False
        for event in self._inotify.read(timeout=0):
            names = self._watches.get(event.wd, frozenset[str]())
            about_directory = event.mask & (flags.Q_OVERFLOW | flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED)
            matters = matters or bool(about_directory) or names is None or event.name in names
        return matters

    def _settle(self) -> bool:
        """Look until all directories to watch were watched before the look; True where any look found a change."""
        changed = False
        while True:
            looked = self._look()
            changed = changed or looked.changed
            if not self._watch(looked.directories):
                break
        if looked.unsettled:
            # The kernel tells of the close before it forgets the writer; and a writer may never be told of at all.
            self._recheck = min(_LAST_RECHECK, 2 * self._recheck) if self._recheck else _FIRST_RECHECK
        else:
            self._recheck = _UNWATCHED_RECHECK if self._unwatchable else None
        return changed

    def _watch(self, directories: Mapping[Path, Names]) -> bool:
        """Watch these and no others; True where one is new."""
        wanted: dict[int, Names] = {}
        unwatchable: dict[Path, OSError] = {}
        for directory, names in directories.items():
            try:
                descriptor = self._inotify.add_watch(directory, sum(_MASK))
            except (FileNotFoundError, NotADirectoryError):
                continue  # Gone since the look; the directory above tells when it returns.
            except OSError as error:
                unwatchable[directory] = error
                continue
            # Two paths may lead to one directory.
            known = wanted.get(descriptor, frozenset[str]())
            wanted[descriptor] = None if names is None or known is None else names | known
        for directory in unwatchable.keys() - self._unwatchable:
            why = os.strerror(unwatchable[directory].errno or 0)
            log.warning("%s can't be watched (%s); it is looked at each second instead", directory, why)
        self._unwatchable = frozenset(unwatchable)
        new = wanted.keys() - self._watches.keys()
        for descriptor in self._watches.keys() - wanted.keys():
            try:
                self._inotify.rm_watch(descriptor)
            except OSError as error:
                log.debug("watch %d had gone: %s", descriptor, error)
        self._watches = wanted
        return bool(new)
