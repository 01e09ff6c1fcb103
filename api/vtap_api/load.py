"""From files to typed documents, or to sentences that say what is wrong and what would be right. The same for every part of ours.

Duplicate keys are errors, as are unknown fields.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vtap_api.base import API_VERSION
from vtap_api.kinds import KINDS, Resource
from vtap_api.problems import Path, Problem, dotted, show
from vtap_api.tapdestination import TapDestination
from vtap_api.yaml_text import RawDocument, Unreadable, read_documents

MAX_BYTES = 512 * 1024
SUFFIXES = frozenset({".yaml", ".yml", ".json"})
"""Names of files that hold documents end so."""


@dataclass(frozen=True, slots=True)
class Located:
    """A good document and where it is. `index` counts documents of the file from 0; `line` is 1-based."""

    document: Resource
    file: str
    index: int
    line: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a text holds: good documents, and what is wrong with the others."""

    documents: tuple[Located, ...] = ()
    problems: tuple[Problem, ...] = ()


def load_file(path: FilePath, *, standalone: bool = False) -> Loaded:
    """As `load_text`; a file that cannot be read is a problem, too."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        return Loaded(problems=(Problem(str(path), 0, "", f"cannot be read ({error.strerror})", "make it readable"),))
    except UnicodeDecodeError as error:
        return Loaded(problems=(Problem(str(path), 0, "", f"byte {error.start} is not UTF-8", "save it as UTF-8"),))
    return load_text(text, str(path), standalone=standalone)


def load_text(text: str, file: str = "", *, standalone: bool = False) -> Loaded:
    """The documents of a YAML text. With `standalone`, also asks for what an operator would fill in in a cluster.

    A text without any document is a problem, so that a file that is just being written does not look like an empty one.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        return Loaded(problems=(Problem(file, 0, "", f"is larger than {MAX_BYTES // 1024} KiB", "split it into several files"),))
    try:
        raw = list(read_documents(text))
    except Unreadable as error:
        return Loaded(problems=(Problem(file, error.line, error.path, error.wrong, error.right),))
    if not raw:
        return Loaded(problems=(Problem(file, 0, "", "holds no document", "write a VirtualTap or a TapDestination"),))
    documents: list[Located] = []
    problems: list[Problem] = []
    for index, one in enumerate(raw):
        document, found = _typed(one, file, standalone)
        problems += found
        if document is not None and not found:
            documents.append(Located(document, file, index, one.line(())))
    problems += _repeated(documents)
    return Loaded(tuple(documents), tuple(problems))


def _repeated(documents: Iterable[Located]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for located in documents:
        name = str(located.document)
        if name in first:
            wrong = f"{name} is there already, at line {first[name]}"
            yield Problem(located.file, located.line, "metadata.name", wrong, "remove or rename one of them")
        first.setdefault(name, located.line)


def _typed(raw: RawDocument, file: str, standalone: bool) -> tuple[Resource | None, list[Problem]]:
    def problem(path: Path, wrong: str, right: str) -> Problem:
        return Problem(file, raw.line(path), dotted(path), wrong, right)

    data = raw.data
    if not isinstance(data, Mapping):
        return None, [problem((), f"{show(data)} is no document", "write apiVersion, kind, metadata and spec")]
    known = {model.__name__: model for model in KINDS}
    kind: Any = data.get("kind")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(kind, str) or kind not in known:
        wrong = "is missing" if kind is None else f"{show(kind)} is not a kind of ours"
        return None, [problem(("kind",), wrong, f"write {_one_of(known, kind)}")]
    version: Any = data.get("apiVersion")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if version != API_VERSION:
        wrong = "is missing" if version is None else f"{show(version)} is not a version this program knows"
        return None, [problem(("apiVersion",), wrong, f"write {API_VERSION}")]
    model = known[kind]
    try:
        document = model.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
        return None, [problem(*_explain(error, model)) for error in errors if not _follows_from_others(error, errors)]
    missing = standalone and isinstance(document, TapDestination) and document.spec.address is None
    if missing:
        right = "write address and control, as on one machine no operator fills them in"
        return document, [problem(("spec", "collector", "address"), "is missing", right)]
    return document, []


def _follows_from_others(error: ErrorDetails, errors: Iterable[ErrorDetails]) -> bool:
    """pydantic counts only good entries, so that a list of bad ones looks too short as well."""
    path = error["loc"]
    return error["type"] == "too_short" and any(len(other["loc"]) > len(path) == _common(other["loc"], path) for other in errors)


def _common(left: Path, right: Path) -> int:
    return sum(1 for one, other in zip(left, right, strict=False) if one == other)


def _explain(error: ErrorDetails, model: type[BaseModel]) -> tuple[Path, str, str]:
    """(path, what is wrong, what would be right)."""
    path: Path = tuple(error["loc"])
    kind, value = error["type"], error.get("input")
    context: dict[str, Any] = error.get("ctx", {})
    if kind == "vtap":
        return (*path, *context["at"]), context["wrong"], context["right"]
    if kind == "extra_forbidden":
        return path, "is not a field", _known_field(path, model)
    if kind == "missing":
        return path, "is missing", f"add {_such_as(path, model)}"
    if kind in ("enum", "literal_error"):
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return path, f"{show(value)} is unknown", f"write {_one_of(allowed, value)}"
    if kind in ("too_long", "too_short"):
        bound = f"at most {context['max_length']}" if kind == "too_long" else f"at least {context['min_length']}"
        return path, f"has {context['actual_length']} entries", f"write {bound}"
    if kind in _SHAPES:
        return path, f"{show(value)} is not {_SHAPES[kind]}", f"write {_SHAPES[kind]}"
    return path, f"{show(value)} is wrong", error["msg"][:1].lower() + error["msg"][1:]


_SHAPES = {
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "dict_type": "a mapping of fields",
    "tuple_type": "a list",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
}


def _one_of(allowed: Iterable[str], value: Any) -> str:
    names = list(allowed)
    close = _closest(value, names)
    if close:
        return close
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"


def _closest(value: Any, names: Iterable[str]) -> str | None:
    if not isinstance(value, str):
        return None
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[close[0]] if close else None


def _known_field(path: Path, model: type[BaseModel]) -> str:
    around = _model_at(path[:-1], model)
    if around is None:
        return "remove it"
    names = [field.alias or "" for field in around.model_fields.values()]
    close = _closest(path[-1], names)
    return f"did you mean {close}?" if close else f"the fields there are {', '.join(names)}"


def _such_as(path: Path, model: type[BaseModel]) -> str:
    around = _model_at(path[:-1], model)
    for item in around.model_fields.values() if around else ():
        if item.alias == path[-1] and item.examples:
            return f"it, such as {item.examples[0]}"
    return "it"


def _model_at(path: Path, model: type[BaseModel]) -> type[BaseModel] | None:
    """The model that describes the mapping at `path`."""
    for part in path:
        if isinstance(part, int):
            continue
        found = next((item for item in model.model_fields.values() if item.alias == part), None)
        inner = _inner_model(found.annotation) if found else None
        if inner is None:
            return None
        model = inner
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _inner_model(part))), None)
