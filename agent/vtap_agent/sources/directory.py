"""Desired taps and destinations from a directory of YAML files, as the kubelet's static pods."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from vtap_agent.sources.desired import DesiredSnapshot, DirectoryState, Loader, advance, recalled, remembered
from vtap_agent.sources.files import Content, FileReader
from vtap_agent.sources.last_good import LastGood
from vtap_agent.sources.loading import load_documents
from vtap_agent.sources.watch import Looked, Names, Watch, anchors, merged

SUFFIXES = (".yaml", ".yml", ".json")
MOST_READS = 5
"""Of a directory whose links are switched over each time that it is read; the watch then comes again anyway."""


def is_wanted(name: str) -> bool:
    """Whether a file of this name holds documents: not hidden, not an editor's, and YAML or JSON."""
    return not name.startswith((".", "#", "~")) and name.endswith(SUFFIXES)


class TapDirectory:
    """The VirtualTaps and TapDestinations in the files of a directory (not below it), followed as they change.

    Use: construct; `on_change(callback)`; `start()`, which has read everything when it returns; `snapshot()` at any time from
    any thread; `stop()`. The callback comes from the watching thread after a change, some milliseconds after the writer has
    closed or renamed its file, and must return at once, as `Mailbox.changed` does. A directory that isn't there holds nothing,
    and is noticed when it comes.

    Files are taken whole or not at all, as `desired` describes. A symbolic link counts as its target, so that the directory may
    be a mounted ConfigMap, which is switched over atomically by its `..data` link.

    `memory` is the file in which it keeps what the files said when they were last without a mistake, for its next start.
    """

    def __init__(self, directory: Path, load: Loader = load_documents, memory: Path | None = None) -> None:
        self._directory = directory.absolute()
        self._memory = LastGood(memory)
        self._load = load
        self._reader = FileReader()
        self._state = DirectoryState()
        self._forgotten: tuple[str, ...] = ()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._snapshot = DesiredSnapshot()
        self._watch: Watch | None = None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register before `start`."""
        self._callbacks.append(callback)

    def start(self) -> None:
        """Read the files and follow them."""
        if self._watch is None:
            self._state, self._forgotten = recalled(self._memory.recall(), self._load)
            self._watch = Watch("tap-files", self._look, self._notify)
            self._watch.start()

    def stop(self) -> None:
        """End the watching thread."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def snapshot(self) -> DesiredSnapshot:
        """What is desired now. The same object as long as nothing has changed."""
        with self._lock:
            return self._snapshot

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()

    def _look(self) -> Looked:
        contents, directories, problem = self._read_at_rest()
        self._state = advance(self._state, contents, self._load)
        self._memory.keep(remembered(self._state))
        found = self._state.snapshot
        beside = (*([problem] if problem else []), *self._memory.problems, *self._forgotten)
        if beside:
            found = DesiredSnapshot(found.desired, (*beside, *found.problems))
        with self._lock:
            changed = found != self._snapshot
            if changed:
                self._snapshot = found
        return Looked(changed, directories, any(content.unsettled for content in contents.values()))

    def _read_at_rest(self) -> tuple[dict[str, Content], dict[Path, Names], str]:
        """Again where links were switched over meanwhile, so that no half of a ConfigMap is taken for the whole."""
        for _ in range(MOST_READS - 1):
            before = self._targets()
            found = self._read()
            if self._targets() == before:
                return found
        return self._read()

    def _targets(self) -> Mapping[Path, str]:
        """Where the links among the files lead. Not Path.resolve, which raises for a link that leads to itself."""
        try:
            links = [path for path in self._directory.iterdir() if is_wanted(path.name) and path.is_symlink()]
        except OSError:
            return {}  # `_read` says what is wrong.
        return {path: os.path.realpath(path) for path in links}

    def _read(self) -> tuple[dict[str, Content], dict[Path, Names], str]:
        directories = merged(anchors(self._directory), {self._directory: None})
        try:
            names = sorted(path.name for path in self._directory.iterdir() if is_wanted(path.name))
        except FileNotFoundError:
            return {}, anchors(self._directory), f"{self._directory}: there is no such directory; make it, or name another."
        except NotADirectoryError:
            return (
                {},
                anchors(self._directory),
                f"{self._directory}: is no directory; name one that holds the files of your taps.",
            )
        except OSError as error:
            # What can't be seen has not been taken away.
            contents = {name: state.content for name, state in self._state.files.items()}
            return contents, directories, f"{self._directory}: can't be listed ({error.strerror}); let the agent read it."
        contents: dict[str, Content] = {}
        for name in names:
            path = self._directory / name
            if path.is_symlink():
                # Not Path.resolve, which raises for a link that leads to itself.
                directories = merged(directories, anchors(Path(os.path.realpath(path))))
            content = self._reader.read(path)
            if content is not None:
                contents[os.fsencode(name).decode(errors="replace")] = content
        self._reader.forget_all_but({self._directory / name for name in names})
        return contents, directories, ""
