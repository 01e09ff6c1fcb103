"""`bpf/layout.h` in Python, structure by structure; `tests/unit/pipeline/test_layout.py` compares the two."""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64

from vtap_agent.plan.dataplane import MAX_FLOOD_ENTRIES, MAX_MATCHES, MAX_POINTS_PER_SOURCE

LAYOUT_VERSION = 2
MAX_TAGS = 4
MAX_HEADER = 128
HOOK_INGRESS = 0xFFFE
HOOK_EGRESS = 0xFFFD
SOURCE_STRIP = 1
QUICK_BUCKETS = 8192
QUICK_USED = 1 << 31
QUICK_STRIP = 1 << 30
QUICK_PROGRAM_SHIFT = 12
QUICK_MULTIPLIER = 0x9E3779B97F4A7C15
META_PROTOCOL_SHIFT = 8
META_TCP_FLAGS_SHIFT = 16
META_VLAN_SHIFT = 32
META_IS_IP = 1 << 24
META_HAS_PORTS = 1 << 25
META_HAS_TCP_FLAGS = 1 << 26
PROGRAM_INCLUDE = 1
PROGRAM_HEADERS_ONLY = 2
POINT_EGRESS = 1
DESTINATION_TRAILER = 1
DESTINATION_FRAGMENT = 2
DESTINATION_FIXED_ID = 4
DESTINATION_IPV6 = 8


class SourceKey(Structure):
    """struct source_key."""

    _fields_ = (("ifindex", c_uint32), ("vlan", c_uint16), ("mac", c_uint8 * 6))


class Source(Structure):
    """struct source."""

    _fields_ = (("count", c_uint16), ("flags", c_uint16), ("entries", c_uint32 * MAX_POINTS_PER_SOURCE))


class Quick(Structure):
    """struct quick."""

    _fields_ = (("mac_vlan", c_uint64), ("ifindex", c_uint32), ("place", c_uint32))


class QuickBucket(Structure):
    """struct quick_bucket."""

    _fields_ = (("entries", Quick * 2),)


class FloodKey(Structure):
    """struct flood_key."""

    _fields_ = (("ifindex", c_uint32), ("vlan", c_uint16), ("zero", c_uint16))


class FloodEntry(Structure):
    """struct flood_entry."""

    _fields_ = (("mac", c_uint8 * 6), ("flags", c_uint16), ("entry", c_uint32))


class Flood(Structure):
    """struct flood."""

    _fields_ = (("count", c_uint32), ("zero", c_uint32), ("entries", FloodEntry * MAX_FLOOD_ENTRIES))


class Rule(Structure):
    """struct rule."""

    _fields_ = (
        ("meta", c_uint64),
        ("meta_mask", c_uint64),
        ("peer", c_uint64 * 2),
        ("peer_mask", c_uint64 * 2),
        ("pod_first", c_uint16),
        ("pod_last", c_uint16),
        ("peer_first", c_uint16),
        ("peer_last", c_uint16),
        ("peer_set", c_uint32),
        ("include", c_uint16),
        ("uses_peer_set", c_uint16),
    )


class Program(Structure):
    """struct program."""

    _fields_ = (
        ("name", c_uint8 * 16),
        ("flags", c_uint16),
        ("sampling", c_uint16),
        ("rule_count", c_uint32),
        ("interval_ns", c_uint64),
        ("flow_threshold", c_uint64),
        ("packets", c_uint32),
        ("skip_scale", c_uint32),
        ("skip_shift", c_uint32),
        ("snap_length", c_uint32),
        ("cost_per_byte", c_uint64),
        ("burst", c_uint64),
        ("rules", Rule * MAX_MATCHES),
    )


class PeerKey(Structure):
    """struct peer_key."""

    _fields_ = (("set", c_uint32), ("version", c_uint32), ("address", c_uint64 * 2))


class Point(Structure):
    """struct point."""

    _fields_ = (
        ("in_use", c_uint32),
        ("incarnation", c_uint32),
        ("key", c_uint32),
        ("destination", c_uint32),
        ("flags", c_uint32),
        ("zero", c_uint32),
        ("incarnation_full", c_uint64),
        ("name", c_uint8 * 16),
    )


class DestinationValue(Structure):
    """struct destination."""

    _fields_ = (
        ("name", c_uint8 * 16),
        ("state", c_uint32),
        ("ifindex", c_uint32),
        ("mtu", c_uint32),
        ("fixed_id", c_uint32),
        ("encapsulation", c_uint16),
        ("flags", c_uint16),
        ("header_length", c_uint16),
        ("ip_length", c_uint16),
        ("checksum", c_uint32),
        ("zero", c_uint32),
        ("header", c_uint64 * (MAX_HEADER // 8)),
    )


class TunnelKey(Structure):
    """struct tunnel_key."""

    _fields_ = (("address", c_uint64 * 2), ("protocol", c_uint16), ("port", c_uint16), ("zero", c_uint32))


class PickCounters(Structure):
    """struct pick_counters."""

    _fields_ = (
        ("seen", c_uint64),
        ("seen_bytes", c_uint64),
        ("excluded", c_uint64),
        ("unsampled", c_uint64),
        ("limited", c_uint64),
        ("handed", c_uint64),
        ("dropped_lease", c_uint64),
        ("dropped_clone", c_uint64),
        ("dropped_not_ready", c_uint64),
        ("dropped_malformed", c_uint64),
        ("skip", c_uint32),
        ("skip_drawn", c_uint32),
        ("dropped_loop", c_uint64),
        ("dropped_handover", c_uint64),
        ("zero", c_uint64 * 3),
    )


class SendCounters(Structure):
    """struct send_counters."""

    _fields_ = (
        ("arrived", c_uint64),
        ("unsampled", c_uint64),
        ("limited", c_uint64),
        ("sent", c_uint64),
        ("sent_bytes", c_uint64),
        ("truncated", c_uint64),
        ("dropped_clone", c_uint64),
        ("dropped_oversize", c_uint64),
        ("dropped_no_route", c_uint64),
        ("dropped_no_neighbour", c_uint64),
        ("dropped_redirect", c_uint64),
        ("dropped_malformed", c_uint64),
        ("dropped_not_ready", c_uint64),
        ("dropped_not_rewritable", c_uint64),
        ("dropped_no_id", c_uint64),
        ("zero", c_uint64 * 1),
    )


class Shared(Structure):
    """struct shared."""

    _fields_ = (("window", c_uint64), ("busy_until", c_uint64), ("sequence", c_uint32), ("zero", c_uint32 * 11))


class PortCounters(Structure):
    """struct port_counters."""

    _fields_ = (("unattributed", c_uint64),)


class NodeCountersValue(Structure):
    """struct node_counters."""

    _fields_ = (("stale", c_uint64),)


class Control(Structure):
    """struct control."""

    _fields_ = (
        ("lease_until", c_uint64),
        ("tai_offset", c_uint64),
        ("near_ifindex", c_uint32),
        ("queues", c_uint32),
        ("tickets", c_uint32),
        ("cpus", c_uint32),
        ("cut_ifindex", c_uint32),
        ("handover_ifindex", c_uint32),
    )


class Ticket(Structure):
    """struct ticket."""

    _fields_ = (
        ("mark", c_uint32),
        ("incarnation", c_uint32),
        ("time", c_uint64),
        ("flow_hash", c_uint32),
        ("chosen", c_uint32),
        ("segment", c_uint32),
        ("cut", c_uint32),
        ("slot", c_uint16),
        ("program", c_uint16),
        ("mode", c_uint16),
        ("tag_count", c_uint16),
        ("ethertype", c_uint16),
        ("header_length", c_uint16),
        ("tags", c_uint32 * MAX_TAGS),
        ("following", c_uint32),
    )


STRUCTURES: dict[str, type[Structure]] = {
    "source_key": SourceKey,
    "source": Source,
    "quick": Quick,
    "quick_bucket": QuickBucket,
    "flood_key": FloodKey,
    "flood_entry": FloodEntry,
    "flood": Flood,
    "rule": Rule,
    "program": Program,
    "peer_key": PeerKey,
    "tunnel_key": TunnelKey,
    "point": Point,
    "destination": DestinationValue,
    "pick_counters": PickCounters,
    "send_counters": SendCounters,
    "shared": Shared,
    "port_counters": PortCounters,
    "node_counters": NodeCountersValue,
    "control": Control,
    "ticket": Ticket,
}
"""By their names in C."""
