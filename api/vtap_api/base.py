"""What every model shares: immutable, closed, camelCase in files and snake_case in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from vtap_api.cel import Rule, validations
from vtap_api.problems import fault, show

API_GROUP = "vtap.dev"
API_VERSION = "vtap.dev/v1alpha1"

_ACRONYMS = {"sessionId": "sessionID", "podUid": "podUID"}


def field_alias(name: str) -> str:
    """A Python field's name in files: `pod_ports` → ``podPorts``; a trailing underscore only avoids a Python keyword."""
    camel = to_camel(name.rstrip("_"))
    return _ACRONYMS.get(camel, camel)


class Model(BaseModel):
    """An immutable value. Unknown fields are errors; a null stands for a field that is not there, as for the API server."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=field_alias,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = {field.alias for field in cls.model_fields.values()}
        entries = cast("Mapping[str, Any]", data)
        return {key: value for key, value in entries.items() if value is not None or key not in known}


def rules(*said: Rule) -> ConfigDict:
    """CEL rules of a model; the API server checks them, and our own validators do the same."""
    return ConfigDict(json_schema_extra=validations(*said))


def list_of(kind: str, *said: Rule) -> dict[str, Any]:
    """Schema extras of a list field: its x-kubernetes-list-type and CEL rules."""
    return {"x-kubernetes-list-type": kind, **validations(*said)}


def _check_flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise fault(f"{show(value)} is neither true nor false", "write true or false")


class _Flag:
    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_check_flag)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "boolean"}


Flag = Annotated[bool, _Flag()]
"""True or false; texts and numbers are refused."""


def unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raises at the first value that occurs before."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise fault(f"{show(value)} is there twice", "remove one", (index,))
    return values


Unique = AfterValidator(unique)

__all__ = ["API_GROUP", "API_VERSION", "Field", "Flag", "Model", "Unique", "field_alias", "list_of", "rules", "unique"]
