"""Random VirtualTaps and TapDestinations, made of nothing but what their CRDs say, and of texts that are nearly right."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vtap_api import VirtualTap
from vtap_api.schema import openapi_schema
from vtap_api.tapdestination import KINDS

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

FINE = (
    *("10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "::/0", "fd00::/8", "FD00::/8", "1:2:3:4:5:6:7::/128"),
    *("10.0.9.2", "fd00:9::2", "FD00:9::2", "::", "1:2:3:4:5:6:7::"),
    *("10s", "1000ms", "1000000us", "10000000µs", "1m", "1.5h30m", "24h"),
    *("50M", "1.5M", "524288", "1e9", "1G", "+1G", "512Ki", "64Mi", "1Gi", ".5G", "00001000000"),
    *("TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "GRE", "eth0", "net1", "default", "sensor"),
    *("web", "app", "db", "example.com/app", "a" * 15, "a" * 63, "a" * 253),
    *("02:00:5e:10:00:01", "http://10.0.9.2:8080", "https://[fd00::1]:8080/", "/run/vtap/token"),
)
"""Texts that are right where a pattern takes them, most of them."""
NEARLY = (
    *("10.0.0.1/8", "10.0.0.0/08", "10.0.0.0/33", "10.0.0/8", "010.0.0.0/8", "fd00::1/8", "fd00::/129", "1::2:3:4:5:6:7:8/128"),
    *("::ffff:10.0.0.0/104", "::10.0.0.0/104", "::ffff:0:0/96", "::ffff:0:0/95"),
    *("10.0.9.256", "010.0.9.2", "::ffff:10.0.9.2", "fe80::1%a", "1:2"),
    *("1ms", "0.9ms", "999999ns", "0.5us1ms", "9.9999999999s", "24h1ns", "168h", "168h1ns", ".5s", "1.h", "10"),
    *("-10s", "1e3s", "10\u03bcs", "9999999999999999999999999h"),
    *(
        "1k",
        "0.9k",
        "999",
        "1000",
        "1000.5",
        "1000.0",
        "1.5k",
        "1.0005k",
        "1T",
        "1.1T",
        "1e3",
        "1E3",
        "1e12",
        "1e13",
        "1e99",
        "1E",
    ),
    *("+5k", "-5k", "5.", "5.k", "0.5Ki", "0.3Ki", "63Mi", "1Pi", "1.1Pi", "2Ei", "524287", "50m", "9" * 31, "9" * 32),
    *("lo", "*", "tcp", "6", "a_b", "", " ", "é", "a\n", "a" * 16, "a" * 64, "a" * 254, "http://", "relative/path"),
    *("example.com/", "/app", "a/b/c", f"{'a' * 253}/{'b' * 63}", f"{'a' * 254}/b", f"a/{'b' * 64}"),
)
"""Texts at the edges of what the values of ours may be, most of them beyond."""
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.0, 6.0, 0.5, 1e300, 255, 256, 65535, 65536, 2**31, 2**32, 2**53, 2**63, 2**64),
    *([], {}, [None], [[]], {"": ""}, {"a": None}, {"nonsense": 1}),
)
"""Values that hardly fit anywhere."""


def any_spec(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Fits the schema's types, bounds and patterns, though not always its rules in CEL."""
    return _spec(model, FINE + NEARLY)


def valid_spec(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """What the model accepts: without the fields that it complains of."""
    return _spec(model, FINE).map(lambda spec: repaired(model, spec))


def mutated_spec(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """A valid one in which one thing was changed."""
    return st.builds(_mutated, valid_spec(model), st.randoms(use_true_random=False), st.sampled_from((*NEARLY, *ODD)))


def _spec(model: type[BaseModel], texts: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    schema = openapi_schema(model)["properties"]["spec"]
    of = _Values(texts).of
    return of(schema) if model is VirtualTap else st.one_of(of(schema), *(of(_with_one_target(schema, kind)) for kind in KINDS))


def _with_one_target(schema: Schema, kind: str) -> Schema:
    """As several targets, or none, are wrong whatever else there is."""
    fields = {name: child for name, child in schema["properties"].items() if name not in KINDS or name == kind}
    return {**schema, "properties": fields, "required": [kind]}


# From a schema to values.

_ABSENT = object()


class _Values:
    """Strategies for values of a schema. Texts are mostly those of `texts` that fit its pattern."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def of(self, schema: Schema) -> st.SearchStrategy[Any]:
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return st.one_of(_integer(schema), self._text(schema))
        match schema["type"]:
            case "array":
                return self._list(schema)
            case "object":
                return self._map(schema) if "additionalProperties" in schema else self._object(schema)
            case "string":
                return self._text(schema)
            case "integer":
                return _integer(schema)
            case _:
                return st.booleans()

    def _text(self, schema: Schema) -> st.SearchStrategy[str]:
        pattern: re.Pattern[str] = re.compile(schema["pattern"], re.ASCII)

        def fits(text: str) -> bool:
            return schema.get("minLength", 0) <= len(text) <= schema["maxLength"] and pattern.fullmatch(text) is not None

        known = st.sampled_from([text for text in self._texts if fits(text)])
        made: st.SearchStrategy[str] = st.from_regex(pattern, fullmatch=True)
        return st.integers(0, 9).flatmap(lambda choice: made.filter(fits) if choice == 9 else known)

    def _list(self, schema: Schema) -> st.SearchStrategy[list[Any]]:
        distinct = json.dumps if schema["x-kubernetes-list-type"] == "set" else None
        return st.lists(self.of(schema["items"]), min_size=schema.get("minItems", 0), max_size=3, unique_by=distinct)

    def _map(self, schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
        return st.dictionaries(st.sampled_from(self._texts), self.of(schema["additionalProperties"]), max_size=2)

    def _object(self, schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
        required = set(schema.get("required", ()))
        fields = {name: self._field(child, name in required) for name, child in schema["properties"].items()}
        return st.fixed_dictionaries(fields).map(lambda drawn: {name: one for name, one in drawn.items() if one is not _ABSENT})

    def _field(self, schema: Schema, required: bool) -> st.SearchStrategy[Any]:
        made = self.of(schema)
        return made if required else st.integers(0, 2).flatmap(lambda there: made if there else st.just(_ABSENT))


def _integer(schema: Schema) -> st.SearchStrategy[int]:
    low, high = schema["minimum"], schema["maximum"]
    return st.one_of(st.sampled_from((low, high)), st.integers(low, min(high, low + 200)), st.integers(low, high))


# Repairing and breaking.


def document(model: type[BaseModel], spec: Any, name: str = "random", namespace: str = "default") -> dict[str, Any]:
    """The object with this spec."""
    meta = {"name": name, **({"namespace": namespace} if model is VirtualTap else {})}
    return {"apiVersion": "vtap.dev/v1alpha1", "kind": model.__name__, "metadata": meta, "spec": spec}


def refused(model: type[BaseModel], spec: Any) -> Path | None:
    """The path below the spec that the model first complains of."""
    try:
        model.model_validate(document(model, spec), by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return (*first["loc"], *first.get("ctx", {}).get("at", ()))[1:]
    return None


def repaired(model: type[BaseModel], spec: dict[str, Any]) -> dict[str, Any]:
    """Without what the model complains of."""
    spec = copy.deepcopy(spec)
    while (path := refused(model, spec)) is not None:
        if not _remove(spec, path):
            return {"podSelector": {}} if model is VirtualTap else {"gre": {"address": "192.0.2.9"}}
    return spec


def _remove(spec: Any, path: Path) -> bool:
    """Remove what is at a path, or around it where nothing is. Whether there was anything to remove."""
    around: list[tuple[Any, Any]] = []
    node = spec
    for part in path:
        if not _has(node, part):
            break
        around.append((node, part))
        node = node[part]
    if not around:
        return False
    holder, part = around[-1]
    del holder[part]
    return True


def _has(node: Any, part: str | int) -> bool:
    return part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int) and part < len(node)


def _places(node: Any, path: Path = ()) -> list[Path]:
    """Everything in it."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, child in children for found in _places(child, (*path, key)))]


def _mutated(spec: dict[str, Any], random: Any, value: Any) -> Any:
    spec = copy.deepcopy(spec)
    path = random.choice(_places(spec)[1:])
    holder: Any = spec
    for part in path[:-1]:
        holder = holder[part]
    here = path[-1]
    what = random.randrange(5)
    if what == 0:
        del holder[here]
    elif what == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[here]))
    elif what == 1 and isinstance(holder[here], dict):
        holder[here]["surplus"] = value
    elif what == 2 and isinstance(holder[here], list):
        holder[here] = [*holder[here], value]
    else:
        holder[here] = value
    return spec
