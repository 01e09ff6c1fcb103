"""What files said when they last were without a mistake, across restarts of the agent: one JSON file that is replaced whole."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtap_agent.durable import replace_file

log = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Remembered:
    """Texts by file name, and the generation of each object in them by "Kind/namespace/name" where there are such."""

    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    generations: Mapping[str, int] = field(default_factory=dict[str, int])


class LastGood:
    """Keeps what it is given in a file. Trouble with that file is a sentence in `problems`, never an error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._read_problem = self._write_problem = ""
        self._saved: Remembered | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What is the matter with the memory itself."""
        return tuple(filter(None, (self._read_problem, self._write_problem)))

    def recall(self) -> Remembered:
        """What an earlier agent kept; nothing where there is none, or it can't be read."""
        if self._path is None:
            return Remembered()
        try:
            data: Any = json.loads(self._path.read_bytes())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            found = Remembered(
                {str(name): str(text) for name, text in data["texts"].items()},
                {str(name): int(number) for name, number in data["generations"].items()},
            )
        except FileNotFoundError:
            return Remembered()
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            self._read_problem = (
                f"{self._path}: what files said before can't be read ({error}); those that hold a mistake now count for nothing "
                "until they are mended."
            )
            log.warning("%s", self._read_problem)
            return Remembered()
        self._saved = found
        return found

    def keep(self, now: Remembered) -> None:
        """Save it where it is new. What could not be saved is tried again with the next change."""
        if self._path is None or now == self._saved:
            return
        try:
            replace_file(
                self._path,
                json.dumps({"format": FORMAT, "texts": dict(now.texts), "generations": dict(now.generations)}),
            )
        except OSError as error:
            self._write_problem = (
                f"{self._path}: what files say can't be kept for the agent's next start ({error.strerror or error}); "
                "make room, or let the agent write there."
            )
            log.warning("%s", self._write_problem)
            return
        self._saved, self._write_problem = now, ""
