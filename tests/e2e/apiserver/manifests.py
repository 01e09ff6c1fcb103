"""Manifests as a client sends them, and what the API server says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.e2e.apiserver.server import Answer, ApiServer

STRICT = "fieldValidation=Strict"
"""As kubectl asks: unknown fields and duplicate ones are errors."""
DRY = "dryRun=All"
_NAMED = re.compile(r'(?:unknown|duplicate) field "([^"]+)"')
_BRACKETED = re.compile(r"\[\"?([^\]\"]*[^\]\"0-9][^\]\"]*)\"?\]")


@dataclass(frozen=True)
class Verdict:
    """`paths` are the fields that are wrong, as `plain` writes them; none where it is not a field that is wrong."""

    accepted: bool
    said: str = ""
    paths: frozenset[str] = frozenset()
    body: Any = None


def plain(path: str) -> str:
    """A field's path in one spelling: ``spec.podSelector.matchLabels.app``, whoever quotes or brackets the keys of maps."""
    return _BRACKETED.sub(r".\1", path).replace('["', ".").replace('"]', "")


def collection(api_version: str, plural: str, namespace: str) -> str:
    """The path that objects are posted to; `namespace` is empty for those of the whole cluster."""
    return f"/apis/{api_version}/{f'namespaces/{namespace}/' if namespace else ''}{plural}"


def apply_text(api: ApiServer, text: str, namespace: str, name: str = "") -> Verdict:
    """Post a manifest to `namespace`, under another `name` where one is given."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        return verdict(api.ask("POST", collection("vtap.dev/v1alpha1", "virtualtaps", namespace), text, "application/yaml"))
    assert isinstance(node, yaml.MappingNode)
    document = yaml.safe_load(text)
    resource = _resource(api, document)
    if isinstance(resource, Verdict):
        return resource
    plural, namespaced = resource
    body = as_json(node)
    if name:
        body = body.replace(f'"name": "{document["metadata"]["name"]}"', f'"name": "{name}"', 1)
    body = body.replace(f'"namespace": "{document["metadata"].get("namespace")}"', f'"namespace": "{namespace}"', 1)
    path = collection(document["apiVersion"], plural, namespace if namespaced else "")
    return verdict(api.ask("POST", f"{path}?{STRICT}", body))


def _resource(api: ApiServer, document: Mapping[str, Any]) -> tuple[str, bool] | Verdict:
    """Its plural and whether it is in a namespace, by discovery, as every client looks that up."""
    served = api.ask("GET", f"/apis/{document['apiVersion']}")
    if served.status == 404:
        return Verdict(False, f"{document['apiVersion']} is not served", frozenset({"apiVersion"}))
    for one in served.body["resources"]:
        if one["kind"] == document["kind"] and "/" not in one["name"]:
            return one["name"], one["namespaced"]
    return Verdict(False, f"there is no kind {document['kind']}", frozenset({"kind"}))


def as_json(node: yaml.Node) -> str:
    """What YAML says, with keys that are there twice: a parser would keep the last of them alone."""
    if isinstance(node, yaml.MappingNode):
        return "{" + ", ".join(f"{json.dumps(key.value)}: {as_json(value)}" for key, value in node.value) + "}"
    if isinstance(node, yaml.SequenceNode):
        return "[" + ", ".join(as_json(one) for one in node.value) + "]"
    return json.dumps(yaml.constructor.SafeConstructor().construct_object(node))


def verdict(answer: Answer) -> Verdict:
    """What an answer to a POST or PUT says."""
    if answer.status in (200, 201):
        return Verdict(True, body=answer.body)
    said = answer.body["message"]
    assert answer.status in (400, 422), f"this is no word about what was sent: {answer}"
    causes = (answer.body.get("details") or {}).get("causes") or ()
    paths = {one["field"] for one in causes if one.get("field", "<nil>") != "<nil>"} | set(_NAMED.findall(said))
    return Verdict(False, said, frozenset(plain(one) for one in paths))
