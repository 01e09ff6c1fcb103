"""`vtap validate`: one line a file, the same checks as the agent's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_api.load import SUFFIXES, Loaded, load_file, load_text
from vtap_cli.errors import CliError

INVALID = "invalid"
"""Files below a folder of this name are examples of what is refused."""
STANDARD_INPUT = Path("-")


@dataclass(frozen=True, slots=True)
class Checked:
    """A file and what it holds. `meant_bad`: it lies below a folder `invalid` of a directory that was asked for."""

    file: Path
    loaded: Loaded
    meant_bad: bool

    @property
    def as_meant(self) -> bool:
        """Whether a good file is accepted and a bad one refused."""
        return bool(self.loaded.problems) == self.meant_bad

    def lines(self) -> Iterator[str]:
        """One line, or one for each problem."""
        for problem in self.loaded.problems:
            yield f"refused {self.file}: {problem.sentence}"
        if not self.loaded.problems:
            names = ", ".join(str(located.document) for located in self.loaded.documents)
            yield f"ok {self.file}: {names}" + (f" (lies below {INVALID}/, where it should be refused)" if self.meant_bad else "")

    def as_json(self) -> dict[str, object]:
        """The same for programs."""
        return {
            "file": str(self.file),
            "accepted": not self.loaded.problems,
            "expected": self.as_meant,
            "documents": [str(located.document) for located in self.loaded.documents],
            "problems": [
                {"line": problem.line, "path": problem.path, "wrong": problem.wrong, "right": problem.right}
                for problem in self.loaded.problems
            ],
        }


def check(paths: Sequence[Path], *, standalone: bool) -> list[Checked]:
    """Every file that `paths` name, and every YAML or JSON file below the directories among them. Raises CliError for none."""
    found = list(_files(paths))
    if not found:
        raise CliError(
            f"there is no file ending in {', '.join(sorted(SUFFIXES))} in {', '.join(map(str, paths))}; name another directory"
        )
    return [Checked(file, _load(file, standalone=standalone), bad) for file, bad in found]


def _load(file: Path, *, standalone: bool) -> Loaded:
    if file != STANDARD_INPUT:
        return load_file(file, standalone=standalone)
    try:
        return load_text(sys.stdin.read(), "-", standalone=standalone)
    except ValueError as error:
        raise CliError(f"standard input is not UTF-8 ({error}); save it as UTF-8") from error


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    for path in paths:
        if not path.is_dir():
            yield path, False
            continue
        for file in sorted(path.rglob("*")):
            if file.suffix in SUFFIXES and file.is_file():
                yield file, INVALID in file.relative_to(path).parts[:-1]
