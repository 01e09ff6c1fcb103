"""Netlink messages and attributes, also broken ones, and the kernel's refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtap_agent.drivers.netlink import Netlink, NetlinkError, attribute, attributes, messages
from vtap_agent.errors import Retry
from vtap_agent.inventory import rtnetlink

ATTRIBUTES = st.dictionaries(st.integers(0, 0x3FFF), st.binary(max_size=40), max_size=8)


@given(ATTRIBUTES, st.binary(max_size=3))
def test_attributes_come_back(values: dict[int, bytes], rest: bytes) -> None:
    header = bytes(8)
    body = header + b"".join(attribute(kind, value) for kind, value in values.items())
    assert len(body) % 4 == 0
    assert attributes(body + rest, len(header)) == values


def test_the_nested_flag_is_no_part_of_the_type() -> None:
    assert attributes(attribute(0x8000 | 18, b"abcd")) == {18: b"abcd"}


@given(st.binary(max_size=200))
def test_garbage_ends_by_itself(data: bytes) -> None:
    assert sum(len(value) for value in attributes(data).values()) <= len(data)
    assert len(list(messages(data))) <= len(data) // 16


def test_messages_of_one_datagram() -> None:
    one = struct.pack("=IHHII", 19, 16, 2, 7, 0) + b"abc" + bytes(1)
    two = struct.pack("=IHHII", 16, 3, 0, 8, 0)
    assert [(m.kind, m.flags, m.sequence, m.payload) for m in messages(one + two)] == [(16, 2, 7, b"abc"), (3, 0, 8, b"")]


def test_a_refusal_has_the_kernels_own_words() -> None:
    with Netlink() as netlink, pytest.raises(NetlinkError, match="the kernel answers: ") as refusal:
        netlink.request(rtnetlink.RTM_GETLINK, bytes(3))
    assert isinstance(refusal.value, Retry) and refusal.value.errno != 0


def test_loopback_is_seen() -> None:
    with Netlink() as netlink:
        loopback = rtnetlink.links(netlink)[0]
    assert (loopback.index, loopback.name, loopback.is_loopback) == (1, "lo", True)
