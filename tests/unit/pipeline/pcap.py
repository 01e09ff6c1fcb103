"""libpcap as a third opinion on filters: rules said as an expression, compiled and run by the library."""

from __future__ import annotations

import ctypes
import ctypes.util
import ipaddress
import struct
from collections.abc import Mapping
from functools import cache

from vtap_agent.plan.dataplane import Direction, Match, PortRange

DLT_EN10MB = 1


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("micros", ctypes.c_long), ("caplen", ctypes.c_uint32), ("len", ctypes.c_uint32))


@cache
def library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("pcap")
    if name is None:
        return None
    lib = ctypes.CDLL(name)
    lib.pcap_open_dead.restype = ctypes.c_void_p
    lib.pcap_geterr.restype = ctypes.c_char_p
    lib.pcap_geterr.argtypes = [ctypes.c_void_p]
    lib.pcap_compile.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32]
    lib.pcap_offline_filter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
    lib.pcap_freecode.argtypes = [ctypes.c_void_p]
    return lib


@cache
def _handle() -> ctypes.c_void_p:
    lib = library()
    assert lib is not None
    return ctypes.c_void_p(lib.pcap_open_dead(DLT_EN10MB, 65535))


def accepts(expression: str, frame: bytes) -> bool:
    lib = library()
    assert lib is not None
    program = _Program()
    # 0: unoptimized, for `protochain` compiles to a loop.
    if lib.pcap_compile(_handle(), ctypes.byref(program), expression.encode(), 0, 0xFFFFFFFF) < 0:
        raise ValueError(f"{expression}: {lib.pcap_geterr(_handle()).decode()}")
    header = _Header(0, 0, len(frame), len(frame))
    accepted = bool(lib.pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), frame))
    lib.pcap_freecode(ctypes.byref(program))
    return accepted


def without_tags(frame: bytes) -> bytes:
    while struct.unpack_from(">H", frame, 12)[0] in (0x8100, 0x88A8):
        frame = frame[:12] + frame[16:]
    return frame


def _network(peer: tuple[bytes, int], side: str) -> str:
    network = ipaddress.ip_network((peer[0], peer[1]), strict=False)
    return f"({'ip' if network.version == 4 else 'ip6'} and {side} net {network})"


def _ports(ports: PortRange, side: str) -> str:
    spread = f"{side} portrange {ports.first}-{ports.last}"
    return f"((tcp {spread}) or (udp {spread}) or (sctp {spread}))"


def _hosts(addresses: frozenset[str], side: str) -> str:
    each = [f"({'ip6' if ':' in address else 'ip'} and {side} host {address})" for address in sorted(addresses)]
    return f"({' or '.join(each)})" if each else "(ip and ip6)"


def expression(match: Match, direction: Direction, peer_sets: Mapping[int, frozenset[str]]) -> str:
    """All conditions but the VLAN, for an untagged frame."""
    peer, pod = ("src", "dst") if direction is Direction.INGRESS else ("dst", "src")
    parts: list[str] = []
    if match.ip_version is not None:
        parts.append("ip" if match.ip_version == 4 else "ip6")
    if match.protocol is not None:
        parts.append(f"(ip proto {match.protocol} or ip6 protochain {match.protocol})")
    if match.peer is not None:
        parts.append(_network(match.peer, peer))
    if match.peer_set is not None:
        parts.append(_hosts(peer_sets.get(match.peer_set, frozenset()), peer))
    if match.pod_ports is not None:
        parts.append(_ports(match.pod_ports, pod))
    if match.peer_ports is not None:
        parts.append(_ports(match.peer_ports, peer))
    if match.tcp_flags is not None:
        value, mask = match.tcp_flags
        want = f"& {mask} = {value & mask}"
        parts.append(f"((ip and tcp[13] {want}) or (ip6 and ip6[6] = 6 and ip6[53] {want}))")
    return " and ".join(parts)


def matches(match: Match, frame: bytes, direction: Direction, peer_sets: Mapping[int, frozenset[str]]) -> bool:
    if match.vlan is not None:
        tagged = accepts("vlan", frame)
        if match.vlan == 0 and tagged and not accepts("vlan 0", frame):
            return False
        if match.vlan != 0 and not accepts(f"vlan {match.vlan}", frame):
            return False
    said = expression(match, direction, peer_sets)
    return not said or accepts(said, without_tags(frame))
