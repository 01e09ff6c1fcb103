"""From the contents of files to what is desired. Pure.

A file counts whole or not at all: one that can't be read, holds a mistake, or repeats a name that another file holds is
refused, and what it said before stays in force. Of two files with the same name, the one that had it first keeps it, else the
first in the alphabet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vtap_agent.plan.selection import Desired
from vtap_agent.sources.files import Content
from vtap_agent.sources.last_good import Remembered
from vtap_api import Resource, TapDestination, VirtualTap

Document = VirtualTap | TapDestination
Key = tuple[str, str, str]
"""(kind, namespace or empty, name)"""

Loader = Callable[[str, str], tuple[Sequence[Resource], Sequence[str]]]
"""(text, file name) → (documents, sentences that say what is wrong). The names of the documents are unique."""

KEPT = " The version read before stays in force."


@dataclass(frozen=True, slots=True)
class DesiredSnapshot:
    """What is desired now, and sentences about files that are not in force as they stand."""

    desired: Desired = field(default_factory=Desired)
    problems: tuple[str, ...] = ()

    @property
    def taps(self) -> tuple[VirtualTap, ...]:
        """By namespace and name."""
        return self.desired.taps

    @property
    def destinations(self) -> tuple[TapDestination, ...]:
        """By name."""
        return self.desired.destinations

    @property
    def generations(self) -> Mapping[str, int]:
        """By "Kind/namespace/name": 1 for a new object, one more with each change of it."""
        return self.desired.generations


@dataclass(frozen=True, slots=True)
class FileState:
    """A file: what it says now (`candidate` is None where that is refused, with `problems`), and what of it is in force."""

    content: Content
    candidate: tuple[Document, ...] | None
    problems: tuple[str, ...] = ()
    in_force: tuple[Document, ...] = ()
    text: str = ""
    """What it said when it came into force."""


@dataclass(frozen=True, slots=True)
class DirectoryState:
    """What is known of a directory, by file name."""

    files: Mapping[str, FileState] = field(default_factory=dict[str, FileState])
    snapshot: DesiredSnapshot = field(default_factory=DesiredSnapshot)


def key_of(document: Document) -> Key:
    """What is unique."""
    if isinstance(document, VirtualTap):
        return (document.kind, document.metadata.namespace, document.metadata.name)
    return (document.kind, "", document.metadata.name)


def advance(previous: DirectoryState, contents: Mapping[str, Content], load: Loader) -> DirectoryState:
    """The state after the files have become `contents`, by file name. A file that is being written stays as it was."""
    parsed = {name: _parsed(name, contents[name], previous.files.get(name), load) for name in sorted(contents)}
    files = {name: _in_force(name, state, clash) for name, state, clash in _settled(parsed)}
    return DirectoryState(files, _snapshot(files, previous.snapshot))


def remembered(state: DirectoryState) -> Remembered:
    """What the next agent has to know, so that a file that holds a mistake at its start stays in force as it was."""
    texts = {name: file.text for name, file in state.files.items() if file.in_force}
    return Remembered(texts, state.snapshot.generations)


def recalled(known: Remembered, load: Loader) -> tuple[DirectoryState, tuple[str, ...]]:
    """The state that was remembered, and sentences about what of it this version can't take any more."""
    files: dict[str, FileState] = {}
    problems: list[str] = []
    for name, text in known.texts.items():
        documents, wrong = load(text, name)
        if wrong:
            problems.append(f"{name}: what it said before the agent started again can't be used by this version: {wrong[0]}")
            continue
        taken = tuple(document for document in documents if isinstance(document, VirtualTap | TapDestination))
        files[name] = FileState(Content(text), taken, (), taken, text)
    found = _snapshot(files, DesiredSnapshot())
    generations = {name: known.generations.get(name, number) for name, number in found.generations.items()}
    snapshot = replace(found, desired=replace(found.desired, generations=generations))
    return DirectoryState(files, snapshot), tuple(problems)


def _parsed(name: str, content: Content, before: FileState | None, load: Loader) -> FileState:
    if content.unsettled:
        return before or FileState(content, ())
    if before is not None and before.content == content:
        return before
    in_force, text = (before.in_force, before.text) if before is not None else ((), "")
    if content.problem:
        return FileState(content, None, (content.problem,), in_force, text)
    documents, problems = load(content.text, name)
    taken = tuple(document for document in documents if isinstance(document, VirtualTap | TapDestination))
    problems = (*problems, *_misplaced(name, documents))
    if problems:
        return FileState(content, None, problems, in_force, text)
    return FileState(content, taken, (), in_force, text)


def _misplaced(name: str, documents: Iterable[Resource]) -> list[str]:
    return [
        f"{name}: kind {document.kind} is written by the product itself; only VirtualTap and TapDestination are read from files."
        for document in documents
        if not isinstance(document, VirtualTap | TapDestination)
    ]


def _settled(parsed: Mapping[str, FileState]) -> list[tuple[str, FileState, str]]:
    """Each file with the sentence about the name it may not have, empty for none."""
    clashes: dict[str, str] = {}
    while (lost := _first_clash(parsed, clashes)) is not None:
        loser, sentence = lost
        clashes[loser] = sentence
    while (freed := _first_without_rival(parsed, clashes)) is not None:
        del clashes[freed]
    return [(name, state, clashes.get(name, "")) for name, state in parsed.items()]


def _first_without_rival(parsed: Mapping[str, FileState], clashes: Mapping[str, str]) -> str | None:
    """A refused file whose rival has been refused itself."""
    for name in sorted(clashes):
        others = {other: sentence for other, sentence in clashes.items() if other != name}
        if _first_clash(parsed, others) is None:
            return name
    return None


def _first_clash(parsed: Mapping[str, FileState], clashes: Mapping[str, str]) -> tuple[str, str] | None:
    """A file that has to give way, with the sentence; None where no name is claimed twice."""
    owners: dict[Key, str] = {}
    for name, state in parsed.items():
        stands = state.candidate is not None and name not in clashes
        for key in map(key_of, state.candidate if stands and state.candidate is not None else state.in_force):
            other = owners.setdefault(key, name)
            if other == name:
                continue
            loser, winner = (other, name) if _yields(other, parsed, clashes, key) else (name, other)
            if loser in clashes or parsed[loser].candidate is None:
                loser, winner = winner, loser
            sentence = f"{loser}: {_called(key)} is already in {winner}; rename it, or remove it from one of the two files."
            return loser, sentence
    return None


def _yields(name: str, parsed: Mapping[str, FileState], clashes: Mapping[str, str], key: Key) -> bool:
    """Whether the first of two claimants has to give way: it is new to the name, and the name was in force elsewhere."""
    held = {holder for holder, state in parsed.items() if any(key_of(document) == key for document in state.in_force)}
    return bool(held) and name not in held


def _in_force(name: str, state: FileState, clash: str) -> FileState:
    if clash:
        return replace(state, problems=(clash,))
    if state.candidate is None:
        return state
    return replace(state, in_force=state.candidate, text=state.content.text, problems=())


def _snapshot(files: Mapping[str, FileState], before: DesiredSnapshot) -> DesiredSnapshot:
    documents = sorted((document for state in files.values() for document in state.in_force), key=key_of)
    old: dict[Key, Document] = {key_of(document): document for document in (*before.taps, *before.destinations)}
    generations: dict[str, int] = {}
    for document in documents:
        key = key_of(document)
        name = "/".join(key)
        generations[name] = before.generations.get(name, 0) + (old.get(key) != document)
    problems = tuple(sentence for _name, state in sorted(files.items()) for sentence in _sentences(state))
    desired = Desired(
        taps=tuple(document for document in documents if isinstance(document, VirtualTap)),
        destinations=tuple(document for document in documents if isinstance(document, TapDestination)),
        generations=generations,
    )
    return DesiredSnapshot(desired, problems)


def _sentences(state: FileState) -> tuple[str, ...]:
    if state.problems and state.in_force:
        return (*state.problems[:-1], state.problems[-1] + KEPT)
    return state.problems


def _called(key: Key) -> str:
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
