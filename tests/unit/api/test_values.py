"""Durations as in Go, quantities as in Kubernetes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from vtap_api.values import Cidr, Duration, DurationBetween, IPAddress, Quantity, QuantityBetween, check_label_key

DURATIONS = DurationBetween(Duration("1ns"), Duration("1000h"))
QUANTITIES = QuantityBetween(Quantity("1"), Quantity("1E"))


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("10s", 10 * 10**9),
        ("500ms", 500 * 10**6),
        ("1h15m30.918s", 4530_918_000_000),
        ("1.5h", 5400 * 10**9),
        (".5s", 500 * 10**6),
        ("1us", 1000),
        ("1µs", 1000),
        ("1m1ms", 60_001_000_000),
    ],
)
def test_durations(text: str, nanoseconds: int):
    assert DURATIONS.check(text).nanoseconds == nanoseconds


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 s", "-1s", "1d", "1s ", "1,5s", "\u0661s", "1e3s", 10, True, None, "9" * 40 + "s"]
)
def test_what_is_no_duration(text: object):
    with pytest.raises(PydanticCustomError, match="write a duration"):
        DURATIONS.check(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("50M", 50_000_000),
        ("1Gi", 1 << 30),
        ("1.5k", 1500),
        ("0.5Ki", 512),
        ("1e6", 10**6),
        ("+2E3", 2000),
        ("1E", 10**18),
        (1_000_000, 1_000_000),
        (".5M", 500_000),
        ("1.5", 1),
        ("1000.0", 1000),
        ("1Pi", 1 << 50),
    ],
)
def test_quantities(text: object, value: int):
    assert QUANTITIES.check(text).value == value


@pytest.mark.parametrize(
    "text", ["", "M", "50 M", "50Mb", "50m", "-1", "0.5", "1ki", "1K", "0", 0, -1, 1.5, True, None, "1e99", "2E"]
)
def test_what_is_no_quantity(text: object):
    with pytest.raises(PydanticCustomError, match="write a quantity"):
        QUANTITIES.check(text)


@given(st.integers(1, 10**15), st.sampled_from(["", "k", "M", "Ki", "Mi"]))
def test_quantities_multiply(number: int, suffix: str):
    factor = {"": 1, "k": 1000, "M": 10**6, "Ki": 1024, "Mi": 1 << 20}[suffix]
    assert Quantity(f"{number}{suffix}").value == number * factor


@given(st.ip_addresses(), st.integers(0, 128))
def test_networks_keep_no_host_bits(address, length: int):
    text = f"{address}/{min(length, address.max_prefixlen)}"
    try:
        assert Cidr().check(text)
    except PydanticCustomError as error:
        assert error.context is not None
        suggestion = error.context["right"].split()[1]
        assert Cidr().check(suggestion) == suggestion


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
        ("10.0.0.0/08", "write an address and a prefix length"),
        ("10.0.0.0/255.0.0.0", "write an address and a prefix length"),
        ("10.0.0.0", "write 10.0.0.0/32"),
        ("fd00::1/8", "write fd00::/8 or fd00::1/128"),
    ],
)
def test_what_is_no_network(text: str, right: str):
    with pytest.raises(PydanticCustomError, match=right):
        Cidr().check(text)


@pytest.mark.parametrize(("text", "right"), [("::ffff:10.0.0.1", "write 10.0.0.1"), ("fe80::1%eth0", "write one such as")])
def test_what_is_no_address(text: str, right: str):
    with pytest.raises(PydanticCustomError, match=right):
        IPAddress().check(text)


def test_a_label_key_has_a_prefix_of_253_and_a_name_of_63_characters():
    check_label_key("a" * 253 + "/" + "b" * 63)
    for key in ("a" * 254 + "/b", "a/" + "b" * 64, "/b", "a/"):
        with pytest.raises(PydanticCustomError, match="not a label key"):
            check_label_key(key)
