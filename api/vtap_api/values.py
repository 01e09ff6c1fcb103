"""Values that fields are made of: bounded numbers and texts, durations, quantities, addresses, labels.

Each knows its own check, its sentence and its OpenAPI schema, so that a file, the API server and the reference page say the same.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Never

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from vtap_api.cel import Rule, validations
from vtap_api.problems import fault, show

LARGEST = 2**53 - 1
"""The largest whole number that every JSON reader holds exactly. The API server reads a `maximum` as a float: 2**63 - 1
overflows there, so that nothing is within the bound."""
DNS_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_SUBDOMAIN = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
QUALIFIED_NAME = r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
LABEL_VALUE = rf"({QUALIFIED_NAME})?"
LABEL_KEY = rf"({DNS_SUBDOMAIN}/)?{QUALIFIED_NAME}"
MAX_LABEL_KEY = 253 + len("/") + 63
_CIDR_PATTERN = r"^[0-9A-Fa-f:.]+/(0|[1-9][0-9]{0,2})$"

_DURATION_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_DURATION_PATTERN = r"^(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+$"
_QUANTITY_PATTERN = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|[eE]\+?[0-9]{1,2})?$"
_QUANTITY = re.compile(r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)|[eE](\+?[0-9]{1,2}))?", re.ASCII)
_DECIMAL_SUFFIXES = {suffix: 1000**power for power, suffix in enumerate("kMGTPE", start=1)}
_BINARY_SUFFIXES = {suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_SUFFIXES = {**_DECIMAL_SUFFIXES, **_BINARY_SUFFIXES}


@dataclass(frozen=True, slots=True)
class Between:
    """A whole number in a closed range. Booleans and texts are refused, as the API server refuses them."""

    minimum: int
    maximum: int

    def check(self, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and self.minimum <= value <= self.maximum:
            return value
        raise fault(f"{show(value)} is no number in range", f"write a whole number from {self.minimum} to {self.maximum}")

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        width = "int32" if self.maximum < 2**31 else "int64"
        return {"type": "integer", "format": width, "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Text:
    """A text of bounded length. `pattern` is unanchored here and anchored in the schema; empty means any text."""

    max_length: int
    what: str = "text"
    such_as: str = ""
    pattern: str = ""
    min_length: int = 0
    rules: tuple[Rule, ...] = ()
    """What only the schema needs to be told; whoever uses this checks it."""

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise fault(f"{show(value)} is not text", f"write {self._right()}, in quotes where YAML would read it otherwise")
        if not self.min_length <= len(value) <= self.max_length:
            raise fault(f"{show(value)} has {len(value)} characters", f"write {self._right()}, {self._length()}")
        if self.pattern and not re.fullmatch(self.pattern, value, re.ASCII):
            raise fault(f"{show(value)} is not {self.what}", f"write one such as {self.such_as}")
        return value

    def _right(self) -> str:
        return f"{self.what} such as {self.such_as}" if self.such_as else self.what

    def _length(self) -> str:
        return (
            f"{self.min_length} to {self.max_length} characters long"
            if self.min_length
            else f"at most {self.max_length} characters"
        )

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema: JsonSchemaValue = {"type": "string", "maxLength": self.max_length}
        if self.min_length:
            schema["minLength"] = self.min_length
        if self.pattern:
            schema["pattern"] = f"^{self.pattern}$"
        return schema | validations(*self.rules)


DnsLabel = Text(63, "a DNS label", "web-1 (lower-case letters, digits and hyphens)", DNS_LABEL, min_length=1)
DnsSubdomain = Text(253, "a DNS name", "web-1 (lower-case letters, digits, hyphens and dots)", DNS_SUBDOMAIN, min_length=1)
LabelValue = Text(63, "a label value", "web", LABEL_VALUE)
MacAddress = Text(17, "a unicast MAC address", "02:00:5e:10:00:01", "[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}")
AbsolutePath = Text(255, "an absolute path", "/run/vtap/collector.sock", r"/[^\x00-\x1f]+", min_length=2)
HttpUrl = Text(
    512,
    "an http or https URL without a path",
    "http://10.0.9.2:9471",
    r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?",
)


@dataclass(frozen=True, slots=True)
class IPAddress:
    """An IPv4 or IPv6 address without prefix length, kept as written in canonical form."""

    def check(self, value: Any) -> str:
        try:
            address = ipaddress.ip_address(_as_text(value))
        except ValueError:
            raise fault(f"{show(value)} is not an IP address", "write one such as 10.0.9.2 or fd00:9::2") from None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            raise fault(f"{show(value)} is an IPv4 address mapped to IPv6, as no packet has", f"write {address.ipv4_mapped}")
        return str(address)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        bounds = {"type": "string", "minLength": 2, "maxLength": 45, "pattern": r"^[0-9A-Fa-f:.]+$"}
        return bounds | validations(("isIP(self)", "write an IPv4 or IPv6 address"))


@dataclass(frozen=True, slots=True)
class Cidr:
    """An IPv4 or IPv6 network whose host bits are zero."""

    def check(self, value: Any) -> str:
        text = _as_text(value)
        address, slash, _ = text.partition("/")
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise self._fault(value) from None
        if not slash:
            raise fault(f"{show(value)} has no prefix length", f"write {network}")
        if not re.fullmatch(_CIDR_PATTERN, text, re.ASCII):
            raise self._fault(value)
        mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
        if mapped is not None:
            right = f"write {mapped}/{network.prefixlen - 96}"
            raise fault(f"{show(value)} is an IPv4 network mapped to IPv6, as no packet has", right)
        if ipaddress.ip_address(address) != network.network_address:
            raise fault(
                f"{show(value)} has bits beyond its prefix length", f"write {network} or {address}/{network.max_prefixlen}"
            )
        return str(network)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        bounds = {"type": "string", "minLength": 4, "maxLength": 49, "pattern": _CIDR_PATTERN}
        return bounds | validations(
            ("isCIDR(self)", "write an address and a prefix length"),
            ("!isCIDR(self) || cidr(self) == cidr(self).masked()", "no bits beyond the prefix length may be set"),
        )

    @staticmethod
    def _fault(value: Any) -> PydanticCustomError:
        return fault(f"{show(value)} is not a CIDR", "write an address and a prefix length such as 10.96.0.0/16 or fd00::/8")


def _as_text(value: Any) -> str:
    if not isinstance(value, str) or "%" in value:
        raise ValueError(value)
    return value


class Duration(str):
    """A Go duration string: decimal numbers with units, such as "300ms" or "1h15m". `nanoseconds` is its length."""

    __slots__ = ()

    @property
    def nanoseconds(self) -> int:
        """Each part is cut to whole nanoseconds, as Go does."""
        return sum(int(Decimal(number) * _DURATION_UNITS[unit]) for number, unit in _DURATION_PART.findall(self))


@dataclass(frozen=True, slots=True)
class DurationBetween:
    """Checks a `Duration` against a closed range, itself written as durations."""

    minimum: Duration
    maximum: Duration

    def check(self, value: Any) -> Duration:
        right = f'write a duration such as "10s" or "500ms", from {self.minimum} to {self.maximum}'
        if not isinstance(value, str) or len(value) > 32 or not re.fullmatch(_DURATION_PATTERN, value, re.ASCII):
            raise fault(f"{show(value)} is not a duration", right)
        duration = Duration(value)
        if not self.minimum.nanoseconds <= duration.nanoseconds <= self.maximum.nanoseconds:
            raise fault(f"{show(value)} is out of range", right)
        return duration

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        within = f"duration(self) >= duration('{self.minimum}') && duration(self) <= duration('{self.maximum}')"
        said = validations((within, f"write a duration from {self.minimum} to {self.maximum}"))
        return {"type": "string", "maxLength": 32, "pattern": _DURATION_PATTERN, **said}


class Quantity(str):
    """A Kubernetes quantity: a number with an optional suffix, such as "50M", "1.5G" or "1Gi". `value` is its whole part."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """For defaults, which are written as they are; values are checked by `QuantityBetween`."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())

    @property
    def exact(self) -> Decimal:
        found = _QUANTITY.fullmatch(self)
        if not found:
            raise ValueError(self)
        number, suffix, exponent = found.groups()
        factor = Decimal(_SUFFIXES[suffix]) if suffix else Decimal(10) ** int(exponent or 0)
        return Decimal(number) * factor

    @property
    def value(self) -> int:
        return int(self.exact)


@dataclass(frozen=True, slots=True)
class QuantityBetween:
    """Checks a `Quantity`: in a closed range that is itself written as quantities. YAML numbers are taken too."""

    minimum: Quantity
    maximum: Quantity

    def check(self, value: Any) -> Quantity:
        right = f"write a quantity such as 50M or 1Gi, from {self.minimum} to {self.maximum}"
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str) or len(text) > 32 or not _QUANTITY.fullmatch(text):
            raise fault(f"{show(value)} is not a quantity", right)
        quantity = Quantity(text)
        if not self.minimum.value <= quantity.exact <= self.maximum.value:
            raise fault(f"{show(value)} is out of range", right)
        return quantity

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        numbers = {"minimum": self.minimum.value, "maximum": self.maximum.value}
        bounds = (("minimum", ">="), ("maximum", "<="))
        within = " && ".join(f"quantity(self).compareTo(quantity('{getattr(self, name)}')) {sign} 0" for name, sign in bounds)
        rule = f"type(self) != string || (isQuantity(self) && {within})"
        said = validations((rule, f"write a quantity from {self.minimum} to {self.maximum}"))
        return {"x-kubernetes-int-or-string": True, "maxLength": 32, "pattern": _QUANTITY_PATTERN, **numbers, **said}


class FrozenMap(dict[str, str]):
    """A mapping of texts that can't change, so that models holding it are immutable and hashable."""

    __slots__ = ()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def _refuse(self, *_args: object, **_kwargs: object) -> Never:
        raise TypeError("labels are immutable")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse  # type: ignore[assignment]


def check_label_key(key: Any) -> None:
    """Raises where `key` is not a label key: an optional DNS subdomain and a slash, then a name of at most 63 characters."""
    right = "write a name such as app or example.com/app"
    if not isinstance(key, str):
        raise fault(f"{show(key)} is not text", right)
    prefix, slash, name = key.rpartition("/")
    good_prefix = not slash or (len(prefix) <= 253 and re.fullmatch(DNS_SUBDOMAIN, prefix, re.ASCII))
    if not good_prefix or len(name) > 63 or not re.fullmatch(QUALIFIED_NAME, name, re.ASCII):
        raise fault(f"{show(key)} is not a label key", right)


@dataclass(frozen=True, slots=True)
class LabelKey:
    """A label key, as Kubernetes defines it."""

    def check(self, value: Any) -> str:
        check_label_key(value)
        return value

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        said = validations(("self.indexOf('/') <= 253", "a label key's prefix has at most 253 characters"))
        return {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_KEY, "pattern": f"^{LABEL_KEY}$", **said}


@dataclass(frozen=True, slots=True)
class StringMap:
    """Labels or annotations: keys are label keys; values are label values, or any text of at most `value.max_length`."""

    value: Text = LabelValue
    max_properties: int = 64

    def check(self, value: Any) -> FrozenMap:
        if not isinstance(value, dict):
            raise fault(f"{show(value)} is not a mapping", "write one such as {app: web}")
        if len(value) > self.max_properties:  # pyright: ignore[reportUnknownArgumentType]
            raise fault(f"has {len(value)} entries", f"write at most {self.max_properties}")  # pyright: ignore[reportUnknownArgumentType]
        return FrozenMap({key: self._entry(key, text) for key, text in value.items()})  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    def _entry(self, key: Any, text: Any) -> str:
        check_label_key(key)
        if text is None:
            raise fault(f"{show(key)} has no value", 'write one, or "" for an empty one')
        try:
            return self.value.check(text)
        except PydanticCustomError as error:
            raise _moved(error, key) from None

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.check, serialization=core_schema.plain_serializer_function_ser_schema(dict[str, str])
        )

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        values = self.value.__get_pydantic_json_schema__(_schema, handler)
        good = f"self.all(key, key.indexOf('/') <= 253 && key.matches(r'^{LABEL_KEY}$'))"
        said = validations(
            (good, "write label keys such as app or example.com/app"),
            ("self.all(key, dyn(self[key]) != null)", "write a value for each key"),
        )
        # Otherwise the API server drops an entry that has no value: a selector that loses its only label selects every pod.
        values = {**values, "nullable": True}
        return {"type": "object", "maxProperties": self.max_properties, "additionalProperties": values, **said}


def _moved(error: PydanticCustomError, key: str) -> PydanticCustomError:
    context = error.context or {}
    return fault(context["wrong"], context["right"], (key, *context["at"]))
