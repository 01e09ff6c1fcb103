"""Declarations of pods in YAML, checked. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vtap_agent.sources.files import Content
from vtap_api.problems import Path, Problem, dotted, show
from vtap_api.yaml_text import RawDocument, Unreadable, read_documents

MAX_PODS = 4096

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Label = Annotated[str, StringConstraints(max_length=317)]
_CURES = {
    "extra_forbidden": ("is not a field", "the fields of a pod are name, namespace, uid, labels and netns"),
    "missing": ("is missing", "add it"),
    "string_type": ("{value} is not text", "write it in quotes"),
    "string_pattern_mismatch": ("{value} is no DNS name", "use lower-case letters, digits and '-'"),
    "model_type": ("{value} is not a mapping of fields", "write {name: …, netns: …}"),
}
"""By kind of mistake: what is wrong, what would be right."""


class DeclaredPod(BaseModel):
    """A pod as somebody wrote it down. `netns` is a name under /run/netns or a path.

    Where `uid` is empty, the network namespace makes the pod: another namespace is another pod.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    netns: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    namespace: Namespace = "default"
    uid: Annotated[str, StringConstraints(max_length=64)] = ""
    labels: dict[Label, Label] = Field(default_factory=dict[str, str], max_length=128)


class _ListedPod(DeclaredPod):
    name: Name


class _ConfiguredPod(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name | None = None
    namespace: Namespace | None = None
    labels: dict[Label, Label] = Field(default_factory=dict[str, str], max_length=128)


def parse_pods(content: Content, file: str) -> tuple[tuple[DeclaredPod, ...], tuple[str, ...]]:
    """(pods, sentences): a list of pods, all of them or none."""
    raw, problems = _parse(content, file)
    if raw is None:
        return (), problems
    if not isinstance(raw.data, list):
        return (), (str(Problem(file, raw.line(()), "", "is no list of pods", "begin each pod with '- name: …'")),)
    if len(raw.data) > MAX_PODS:
        return (), (str(Problem(file, 0, "", f"has {len(raw.data)} pods", f"list at most {MAX_PODS}")),)
    pods: list[DeclaredPod] = []
    sentences: list[str] = []
    for index, item in enumerate(raw.data):
        try:
            pods.append(_ListedPod.model_validate(item))
        except ValidationError as error:
            sentences += _sentences(error, file, raw, (index,))
    return ((), tuple(sentences)) if sentences else (tuple(pods), ())


def parse_pod(content: Content, file: str, default: DeclaredPod) -> tuple[DeclaredPod | None, tuple[str, ...]]:
    """(pod, sentences): what a namespace's own file says of it, over `default`; None where it holds a mistake."""
    raw, problems = _parse(content, file)
    if raw is None:
        return None, problems
    try:
        found = _ConfiguredPod.model_validate(raw.data or {})
    except ValidationError as error:
        return None, tuple(_sentences(error, file, raw, ()))
    return default.model_copy(update=found.model_dump(exclude_none=True)), ()


def _parse(content: Content, file: str) -> tuple[RawDocument | None, tuple[str, ...]]:
    """The one document, an empty list where there is none."""
    if content.problem:
        return None, (content.problem,)
    try:
        documents = list(read_documents(content.text))
    except Unreadable as error:
        return None, (str(Problem(file, error.line, error.path, error.wrong, error.right)),)
    if len(documents) > 1:
        return None, (str(Problem(file, documents[1].line(()), "", "begins a second document", "remove the line of dashes")),)
    return (documents[0] if documents else RawDocument([])), ()


def _sentences(error: ValidationError, file: str, raw: RawDocument, prefix: Path) -> list[str]:
    found: list[str] = []
    for mistake in error.errors(include_url=False):
        path = (*prefix, *(part for part in mistake["loc"] if part != "[key]"))
        wrong, right = _CURES.get(mistake["type"], ("{value} is wrong", mistake["msg"][:1].lower() + mistake["msg"][1:]))
        found.append(str(Problem(file, raw.line(path), dotted(path), wrong.format(value=show(mistake["input"])), right)))
    return found
