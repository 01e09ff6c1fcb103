"""`bpf/rewrite_layout.h` in Python, as far as the agent reads and writes it; a test compares the two."""

from __future__ import annotations

from ctypes import BigEndianStructure, Structure, c_uint8, c_uint16, c_uint32, c_uint64

RECOVER_LAYOUT_VERSION = 1
REWRITE_ID = 0x0A
REWRITE_ALIAS = 0x0E76
REWRITE_BUCKETS = 512
REWRITE_WAYS = 8
REWRITE_IDLE = 30
REWRITE_ETHERTYPE = 0x88B5
REWRITE_MAGIC = 0x76544150
REWRITE_VERSION = 1
REWRITE_PROBE, REWRITE_ANSWER, REWRITE_MEANING = 1, 2, 3


class Meaning(Structure):
    """struct meaning."""

    _fields_ = (("destination", c_uint8 * 6), ("source", c_uint8 * 6), ("to", c_uint32), ("address", c_uint32 * 4))


class RewriteEntry(Structure):
    """struct rewrite_entry."""

    _fields_ = (("used", c_uint64), ("told", c_uint64), ("meaning", Meaning))


class RewriteMessage(BigEndianStructure):
    """struct rewrite_message."""

    _fields_ = (
        ("to", c_uint8 * 6),
        ("from", c_uint8 * 6),
        ("type", c_uint16),
        ("magic_high", c_uint16),
        ("magic_low", c_uint16),
        ("version", c_uint8),
        ("kind", c_uint8),
        ("family", c_uint8),
        ("zero", c_uint8),
        ("destination", c_uint8 * 6),
        ("source", c_uint8 * 6),
        ("address", c_uint8 * 16),
        ("pad", c_uint8 * 10),
    )


class EdgeKey(Structure):
    """struct edge_key."""

    _fields_ = (("ifindex", c_uint32), ("alias", c_uint8 * 6), ("zero", c_uint16))


class MonitorValue(Structure):
    """struct monitor."""

    _fields_ = (("mac", c_uint8 * 6), ("zero", c_uint16))


class RecoverCounters(Structure):
    """struct recover_counters."""

    _fields_ = (
        ("recovered", c_uint64),
        ("unknown", c_uint64),
        ("refused", c_uint64),
        ("told", c_uint64),
        ("probed", c_uint64),
    )


class Heard(Structure):
    """struct heard."""

    _fields_ = (("at", c_uint64), ("family", c_uint32), ("zero", c_uint32), ("meaning", Meaning))


class IdKey(Structure):
    """struct id_key."""

    _fields_ = (("mac", c_uint8 * 6), ("zero", c_uint16), ("ifindex", c_uint32))


STRUCTURES: dict[str, type[Structure | BigEndianStructure]] = {
    "meaning": Meaning,
    "rewrite_entry": RewriteEntry,
    "rewrite_message": RewriteMessage,
    "edge_key": EdgeKey,
    "monitor": MonitorValue,
    "recover_counters": RecoverCounters,
    "heard": Heard,
    "id_key": IdKey,
}
"""By their names in C."""
