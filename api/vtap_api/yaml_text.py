"""YAML text → plain data with the line of every value, within bounds.

Plain values are read as kubectl reads them (yes, no, on and off are true and false), except that a text that looks like a
date, or like a number to base 60 as an IPv6 address may, stays a text. Duplicate keys and merge keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from vtap_api.problems import Path, dotted, show

MAX_DEPTH = 32
MAX_NODES = 50_000


class Unreadable(Exception):
    """The text is not YAML that we take: what is wrong, what would be right, and where."""

    def __init__(self, wrong: str, right: str, line: int = 0, path: str = "") -> None:
        super().__init__(wrong)
        self.wrong, self.right, self.line, self.path = wrong, right, line, path


@dataclass(slots=True)
class RawDocument:
    """A document as plain data. `lines` holds the 1-based line of each value by path."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict[Path, int])

    def line(self, path: Path) -> int:
        """The line of a value, or of the nearest value around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


class _JsonTypes(yaml.SafeLoader):
    """Resolves plain scalars as YAML 1.2's core schema does."""


_TRUE = "y|Y|yes|Yes|YES|true|True|TRUE|on|On|ON"
_JsonTypes.yaml_implicit_resolvers = {}
_add_resolver: Callable[..., None] = _JsonTypes.add_implicit_resolver  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
for _tag, _expression, _first in (
    ("null", r"null|Null|NULL|~|", "nN~"),
    ("bool", rf"{_TRUE}|n|N|no|No|NO|false|False|FALSE|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
):
    _starts = [*_first, ""] if _tag == "null" else list(_first)
    _add_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_expression})$"), _starts)


_compose_all: Callable[..., Iterator[yaml.Node]] = yaml.compose_all  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_parse: Callable[..., Iterator[yaml.Event]] = yaml.parse  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def read_documents(text: str) -> Iterator[RawDocument]:
    """Each document that is not empty. Raises `Unreadable`."""
    try:
        _check_size(text)
        for node in _compose_all(text, Loader=_JsonTypes):
            raw = RawDocument()
            raw.data = _Converter(raw.lines).convert(node, ())
            if raw.data is not None:
                yield raw
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = (error.problem or error.context or "something is malformed").replace("\n", " ")
        right = "indent with spaces" if "\\t" in said else "check indentation, colons and brackets there"
        raise Unreadable(f"is not YAML ({said})", right, mark.line + 1 if mark else 0) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise Unreadable("holds a control character", "remove it", line) from None


def _check_size(text: str) -> None:
    """Bounds depth before anything recursive runs. Parsing events needs no recursion."""
    depth = 0
    for count, event in enumerate(_parse(text, Loader=_JsonTypes)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise Unreadable(f"is nested more than {MAX_DEPTH} deep", "nothing of ours needs that; remove it", line)
        if count > 2 * MAX_NODES:
            raise Unreadable(f"holds more than {MAX_NODES} values", "split it into several files", line)


class _Converter:
    """Node graph → plain data. Counts values as they expand, so that aliases can't multiply without bound."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self._lines = lines
        self._left = MAX_NODES

    def convert(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self._left -= 1
        if self._left < 0 or len(path) > MAX_DEPTH:
            raise Unreadable("expands to too many values", "write aliases out", line)
        self._lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(child, (*path, index)) for index, child in enumerate(node.value)]
        return _scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise Unreadable("has a key that is no text", "write a field's name", line, dotted(path))
            key = key_node.value
            if key == "<<" and key_node.style is None:
                raise Unreadable("uses a merge key (<<)", "write the fields out", line, dotted(path))
            if key in result:
                wrong = f"is there twice, at line {self._lines[(*path, key)]} too"
                raise Unreadable(wrong, "remove one", line, dotted((*path, key)))
            self._lines[(*path, key)] = line
            result[key] = self.convert(value_node, (*path, key))
        return result


def _null(_text: str) -> None:
    return None


def _bool(text: str) -> bool:
    return text in _TRUE.split("|")


def _int(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONSTRUCTORS: Mapping[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:null": _null,
    "tag:yaml.org,2002:bool": _bool,
    "tag:yaml.org,2002:int": _int,
    "tag:yaml.org,2002:float": _float,
    "tag:yaml.org,2002:str": str,
}


def _scalar(node: yaml.Node, path: Path) -> Any:
    text, tag = str(node.value), str(node.tag)
    try:
        return _CONSTRUCTORS[tag](text)
    except (KeyError, ValueError):  # an unknown tag, a text that does not fit its tag, or more digits than Python converts
        wrong = f"{show(text)} can't be read as {tag.removeprefix('tag:yaml.org,2002:')}"
        right = "write a plain text, number, true or false"
        raise Unreadable(wrong, right, node.start_mark.line + 1, dotted(path)) from None
