"""What is wrong with a document, said in one sentence that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in one file. `line` is 1-based, 0 where unknown; `path` is empty where the whole document is meant.

    `str()` is one sentence: ``FILE: line 9: spec.direction: "both" is unknown; write one of Both, Ingress, Egress.``
    """

    file: str
    line: int
    path: str
    wrong: str
    right: str

    @property
    def sentence(self) -> str:
        """The sentence without the file's name."""
        where = [f"line {self.line}"] if self.line else []
        where += [self.path] if self.path else []
        end = "" if self.right.endswith("?") else "."
        return ": ".join([*where, f"{self.wrong}; {self.right}{end}"])

    def __str__(self) -> str:
        return f"{self.file}: {self.sentence}" if self.file else self.sentence


def fault(wrong: str, right: str, at: Path = ()) -> PydanticCustomError:
    """The error a validator raises: what is wrong, what would be right, and where below the validated value."""
    return PydanticCustomError("vtap", "{wrong}; {right}", {"wrong": wrong, "right": right, "at": at})


def show(value: Any) -> str:
    """A value as the user wrote it, short enough for a sentence."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:56] + '…"'


def dotted(path: Sequence[str | int]) -> str:
    """``("spec", "rules", 1, "peer")`` → ``spec.rules[1].peer``; keys that are no plain word are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isalnum():
            text += f".{part}"
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text.removeprefix(".")
