"""Declarations of pods in YAML, checked. Pure."""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vtap_agent.sources.files import Content

MAX_PODS = 4096
_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Label = Annotated[str, StringConstraints(max_length=317)]
_CURES = {
    "extra_forbidden": "is unknown; the fields of a pod are name, namespace, uid, labels and netns",
    "missing": "is missing; give it a value",
    "string_type": "is no text; write it in quotes",
    "string_pattern_mismatch": "is no DNS name; use lower-case letters, digits and '-'",
}


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
    data, problems = _parse(content, file)
    if problems:
        return (), problems
    if data is None:
        return (), ()
    if not isinstance(data, list):
        return (), (f"{file}: must be a list of pods; begin each with '- name: …'.",)
    if len(data) > MAX_PODS:
        return (), (f"{file}: has {len(data)} pods; at most {MAX_PODS} are read.",)
    pods: list[DeclaredPod] = []
    sentences: list[str] = []
    for index, item in enumerate(data):
        try:
            pods.append(_ListedPod.model_validate(item))
        except ValidationError as error:
            sentences += _sentences(error, file, f"[{index}]")
    return ((), tuple(sentences)) if sentences else (tuple(pods), ())


def parse_pod(content: Content, file: str, default: DeclaredPod) -> tuple[DeclaredPod | None, tuple[str, ...]]:
    """(pod, sentences): what a namespace's own file says of it, over `default`; None where it holds a mistake."""
    data, problems = _parse(content, file)
    if problems:
        return None, problems
    try:
        found = _ConfiguredPod.model_validate(data if data is not None else {})
    except ValidationError as error:
        return None, tuple(_sentences(error, file, ""))
    said = found.model_dump(exclude_none=True)
    return default.model_copy(update=said), ()


def _parse(content: Content, file: str) -> tuple[Any, tuple[str, ...]]:
    if content.problem:
        return None, (content.problem,)
    try:
        return yaml.load(content.text, Loader=_YAML), ()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        return None, (f"{file}: {line}this is no YAML ({getattr(error, 'problem', None) or 'unreadable'}); correct it.",)


def _sentences(error: ValidationError, file: str, prefix: str) -> list[str]:
    found: list[str] = []
    for mistake in error.errors(include_url=False, include_input=False):
        parts = [str(part) for part in mistake["loc"] if part != "[key]"]
        path = ".".join([prefix, *parts] if prefix else parts) or "the file"
        found.append(f"{file}: {path}: {_CURES.get(mistake['type'], mistake['msg'])}.")
    return found
