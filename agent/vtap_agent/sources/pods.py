"""The pods of this node without Kubernetes: listed in a file, or every named network namespace.

Anything with `snapshot`, `on_change`, `start` and `stop` as here can stand beside them: `inventory.PodSource` is what the
observer asks for.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vtap_agent.drivers.netlink import namespace_cookie
from vtap_agent.plan.inventory_model import Pod, PodRef
from vtap_agent.sources.desired import KEPT
from vtap_agent.sources.files import Content, FileReader
from vtap_agent.sources.last_good import LastGood, Remembered
from vtap_agent.sources.pod_files import DeclaredPod, parse_pod, parse_pods
from vtap_agent.sources.watch import Looked, Names, Watch, anchors, merged

NETNS_DIRECTORY = Path("/run/netns")
CONFIG_DIRECTORY = Path("/etc/netns")
CONFIG_FILE = "vtap.yaml"
NETNS_LABEL = "vtap.dev/netns"
_OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
_NO_NAMESPACE = "netns:none"


@dataclass(frozen=True, slots=True)
class PodsSnapshot:
    """Pods by namespace and name, and sentences about declarations that don't count or whose namespace isn't there."""

    pods: tuple[Pod, ...] = ()
    problems: tuple[str, ...] = ()


def pods_of(declared: Iterable[tuple[DeclaredPod, str]], uids: Mapping[str, str], where: str) -> PodsSnapshot:
    """Pods from declarations, each with the path of its network namespace. Pure.

    `uids` has the uid of each path that is a network namespace. A name or namespace that an earlier declaration has is refused.
    `where` names what declares them, for sentences.
    """
    pods: dict[tuple[str, str], Pod] = {}
    taken: dict[str, str] = {}
    problems: list[str] = []
    for item, path in declared:
        namespace_id = uids.get(path, "")
        uid = item.uid or namespace_id or _NO_NAMESPACE
        name = f"{item.namespace}/{item.name}"
        if (item.namespace, item.name) in pods:
            problems.append(f"{where}: pod {name} is declared twice; rename or remove one.")
        elif namespace_id in taken:
            problems.append(
                f"{where}: pod {name} is the same network namespace as pod {taken[namespace_id]}; remove one of the two."
            )
        elif item.uid in taken:
            problems.append(f"{where}: pod {name} has the uid of pod {taken[item.uid]}; give each its own, or none.")
        else:
            taken |= {identity: name for identity in (item.uid, namespace_id) if identity}
            pods[item.namespace, item.name] = Pod(
                PodRef(item.namespace, item.name, uid), dict(item.labels), path if namespace_id else ""
            )
            if not namespace_id:
                problems.append(f"{where}: pod {name}: there is no network namespace {path}; its taps wait for it.")
    return PodsSnapshot(tuple(pod for _, pod in sorted(pods.items())), tuple(problems))


class NamespaceIds:
    """The uid of network namespaces by path. Another one at the same path has another uid, even with the same inode number."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, int, int], str]] = {}

    def uids(self, paths: Iterable[str]) -> dict[str, str]:
        """Of those paths that are network namespaces."""
        found = {path: known for path in paths if (known := self._look(path)) is not None}
        self._known = found
        return {path: uid for path, (_, uid) in found.items()}

    def _look(self, path: str) -> tuple[tuple[int, int, int], str] | None:
        try:
            status = Path(path).stat()
            identity = (status.st_dev, status.st_ino, status.st_ctime_ns)
            known = self._known.get(path)
            if known is not None and known[0] == identity:
                return known
            return identity, f"netns:{namespace_cookie(path)}"
        except OSError:  # Not there, or not yet mounted: `ip netns add` makes an ordinary file first.
            return None


class _PodSource(ABC):
    """What sources that look at the file system share: see `PodsFile`."""

    def __init__(self, netns_directory: Path, memory: Path | None) -> None:
        self._netns_directory = netns_directory
        self._memory = LastGood(memory)
        self._reader = FileReader()
        self._ids = NamespaceIds()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._snapshot = PodsSnapshot()
        self._watch: Watch | None = None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register before `start`."""
        self._callbacks.append(callback)

    def start(self) -> None:
        """Look, then follow."""
        if self._watch is None:
            self._recall(self._memory.recall().texts)
            self._watch = Watch("pods", self._look, self._notify, mounts=True)
            self._watch.start()

    def stop(self) -> None:
        """End the watching thread."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def snapshot(self) -> PodsSnapshot:
        """The pods now. The same object as long as nothing has changed."""
        with self._lock:
            return self._snapshot

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()

    def _look(self) -> Looked:
        found, directories, unsettled = self._read()
        if self._memory.problems:
            found = PodsSnapshot(found.pods, (*self._memory.problems, *found.problems))
        with self._lock:
            changed = found != self._snapshot
            if changed:
                self._snapshot = found
        return Looked(changed, directories, unsettled)

    @abstractmethod
    def _recall(self, texts: Mapping[str, str]) -> None:
        """What files said, by their name here, when they were last without a mistake."""

    @abstractmethod
    def _read(self) -> tuple[PodsSnapshot, Mapping[Path, Names], bool]:
        """(pods, directories to watch, whether a file is just being written)."""


class PodsFile(_PodSource):
    """`--pods FILE`: a YAML list of pods, each `{name, namespace, uid, labels, netns}`, the last a name under /run/netns or a
    path.

    Use: construct; `on_change(callback)`; `start()`, which has read everything when it returns; `snapshot()` at any time from
    any thread; `stop()`. The callback comes from the watching thread when the file, or a network namespace that it names,
    comes, goes or is replaced, and must return at once. A file that turns bad changes nothing but the problems.
    """

    def __init__(self, file: Path, netns_directory: Path = NETNS_DIRECTORY, memory: Path | None = None) -> None:
        super().__init__(netns_directory, memory)
        self._file = file.absolute()
        self._declared: tuple[DeclaredPod, ...] = ()
        self._mistakes: tuple[str, ...] = ()
        self._content: Content | None = None

    def _read(self) -> tuple[PodsSnapshot, Mapping[Path, Names], bool]:
        content = self._reader.read(self._file)
        self._take(content)
        declared = [(item, str(self._netns_directory / item.netns)) for item in self._declared]
        paths = [path for _, path in declared]
        # The directory whole: its names are made before and removed after the namespaces themselves.
        directories = merged(
            anchors(self._file),
            anchors(Path(os.path.realpath(self._file))),
            *(anchors(Path(path)) for path in paths if not path.startswith("/proc/")),
        )
        found = pods_of(declared, self._ids.uids(paths), str(self._file))
        found = PodsSnapshot(found.pods, (*self._mistakes, *found.problems))
        return found, directories, bool(content and content.unsettled)

    def _recall(self, texts: Mapping[str, str]) -> None:
        declared, mistakes = parse_pods(Content(texts.get(str(self._file), "")), str(self._file))
        if not mistakes:
            self._declared = declared

    def _take(self, content: Content | None) -> None:
        """Remember what the file says; while it is being written, what it said."""
        if content is None:
            self._declared = ()
            self._mistakes = (f"{self._file}: there is no such file; make it, or name another with --pods.",)
        elif not content.unsettled and content != self._content:
            declared, self._mistakes = parse_pods(content, str(self._file))
            if not self._mistakes:
                self._declared = declared
                self._memory.keep(Remembered({str(self._file): content.text}))
            elif self._declared:
                self._mistakes = (*self._mistakes[:-1], self._mistakes[-1] + KEPT)
        if content is None or not content.unsettled:
            self._content = content


@dataclass(slots=True)
class _Configured:
    """What a namespace's own file says, and said last without a mistake."""

    good: DeclaredPod
    text: str = ""
    problems: tuple[str, ...] = field(default=())


class NamespacePods(_PodSource):
    """`--pods netns`: every named network namespace but the agent's own is a pod, named as it is.

    Its `namespace` is "default" and its label `vtap.dev/netns: NAME`, unless /etc/netns/NAME/vtap.yaml says otherwise: `{name,
    namespace, labels}`, all optional; the label stays. Use it as `PodsFile`. Construct it in the network namespace that is the
    node's.
    """

    def __init__(
        self, netns_directory: Path = NETNS_DIRECTORY, config_directory: Path = CONFIG_DIRECTORY, memory: Path | None = None
    ) -> None:
        super().__init__(netns_directory, memory)
        self._config_directory = config_directory
        self._own = f"netns:{namespace_cookie(str(_OWN_NAMESPACE))}"
        self._configured: dict[str, _Configured] = {}

    def _read(self) -> tuple[PodsSnapshot, Mapping[Path, Names], bool]:
        uids = self._ids.uids(str(self._netns_directory / name) for name in self._names())
        uids = {path: uid for path, uid in uids.items() if uid != self._own}
        directories = merged(anchors(self._netns_directory), anchors(self._config_directory))
        if self._netns_directory.is_dir():
            directories = merged(directories, {self._netns_directory: None})
        unsettled = False
        configured: dict[str, _Configured] = {}
        for path in uids:
            name = Path(path).name
            file = self._config_directory / name / CONFIG_FILE
            content = self._reader.read(file)
            unsettled = unsettled or bool(content and content.unsettled)
            configured[name] = self._configuration(name, content, file)
            directories = merged(directories, anchors(file))
        self._configured = configured
        self._memory.keep(Remembered({name: item.text for name, item in configured.items() if item.text}))
        declared = [(configured[Path(path).name].good, path) for path in sorted(uids)]
        found = pods_of(declared, uids, str(self._config_directory))
        problems = (problem for item in configured.values() for problem in item.problems)
        return PodsSnapshot(found.pods, (*problems, *found.problems)), directories, unsettled

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._netns_directory))  # noqa: PTH208  names are wanted, not paths
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _configuration(self, name: str, content: Content | None, file: Path) -> _Configured:
        default = DeclaredPod(name=name, netns=name)
        before = self._configured.get(name)
        if content is None:
            return _Configured(_labelled(default))
        if content.unsettled:
            return before or _Configured(_labelled(default))
        found, problems = parse_pod(content, str(file), default)
        if found is None and before is not None and before.text:
            return _Configured(before.good, before.text, (*problems[:-1], problems[-1].removesuffix(KEPT) + KEPT))
        if found is None:
            return _Configured(_labelled(default), "", problems)
        return _Configured(_labelled(found), content.text)

    def _recall(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            found, _ = parse_pod(Content(text), name, DeclaredPod(name=name, netns=name))
            if found is not None:
                self._configured[name] = _Configured(_labelled(found), text)


def _labelled(pod: DeclaredPod) -> DeclaredPod:
    return pod.model_copy(update={"labels": {**pod.labels, NETNS_LABEL: pod.netns}})
