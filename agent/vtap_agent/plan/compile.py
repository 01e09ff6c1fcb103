"""A tap's spec, compiled to what the preprocessor does. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from itertools import product

from vtap_agent.plan.dataplane import Action, Match, PortRange, Sampling, SamplingType, TapProgram
from vtap_api import FilterRule, Peer, VirtualTapSpec
from vtap_api import PortRange as Ports
from vtap_api.virtualtap import MIN_BURST, FilterAction, RateLimit, SamplingKind, TcpFlag, TcpFlags
from vtap_api.virtualtap import Sampling as WantedSampling

ResolvePeers = Callable[[Peer], int]
"""The id in `DataPlane.peer_sets` of the addresses that a peer selector means."""

ACTIONS = {FilterAction.EXCLUDE: Action.EXCLUDE, FilterAction.INCLUDE: Action.INCLUDE}
TCP_FLAG_BITS = {flag: 1 << bit for bit, flag in enumerate(TcpFlag)}
"""Bits of byte 13 of the TCP header (RFC 9293): FIN is the lowest, CWR the highest."""
FLOW_HASHES = 2**32
BURST_SHARE = 10
"""A tap without a `burst` may send a tenth of a second's worth at once."""


def compile_tap(spec: VirtualTapSpec, resolve_peers: ResolvePeers) -> TapProgram:
    """The program of one tap: rules in order as flat matches, of which the first that matches decides."""
    chosen = spec.filter
    default = chosen.default_action if chosen else None
    rate, burst = _rate(spec.rate_limit)
    return TapProgram(
        default_action=Action.INCLUDE if default is None else ACTIONS[default],
        matches=tuple(match for rule in (chosen.rules if chosen else ()) for match in _flatten(rule, resolve_peers)),
        sampling=_sampling(spec.sampling),
        rate_bits_per_second=rate,
        burst_bits=burst,
        snap_length=spec.packet.snap_length or 0,
        headers_only=spec.packet.headers_only,
    )


def referenced_peers(spec: VirtualTapSpec) -> tuple[Peer, ...]:
    """Peers whose addresses have to be resolved, each once, in the order of the rules."""
    peers = (rule.peer for rule in (spec.filter.rules if spec.filter else ()))
    return tuple(dict.fromkeys(peer for peer in peers if peer is not None and peer.cidr is None))


def _flatten(rule: FilterRule, resolve_peers: ResolvePeers) -> Iterable[Match]:
    version, network, peer_set = _peer(rule.peer, resolve_peers)
    for pod_port, peer_port in product(_ranges(rule.pod_ports), _ranges(rule.peer_ports)):
        yield Match(
            action=ACTIONS[rule.action],
            ip_version=version,
            peer=network,
            peer_set=peer_set,
            protocol=rule.protocol_number,
            pod_ports=pod_port,
            peer_ports=peer_port,
            vlan=rule.vlan,
            tcp_flags=_flags(rule.tcp_flags),
        )


def _peer(peer: Peer | None, resolve_peers: ResolvePeers) -> tuple[int | None, tuple[bytes, int] | None, int | None]:
    """(IP version, network, peer set), each None where it doesn't matter."""
    if peer is None:
        return None, None, None
    if peer.cidr is None:
        return None, None, resolve_peers(peer)
    network = ipaddress.ip_network(peer.cidr)
    return network.version, (network.network_address.packed, network.prefixlen), None


def _ranges(ports: tuple[Ports, ...] | None) -> tuple[PortRange | None, ...]:
    return tuple(PortRange(entry.port, entry.last) for entry in ports) if ports else (None,)


def _flags(flags: TcpFlags | None) -> tuple[int, int] | None:
    if flags is None:
        return None
    value = sum(TCP_FLAG_BITS[flag] for flag in flags.set_)
    return value, value | sum(TCP_FLAG_BITS[flag] for flag in flags.clear)


def _sampling(wanted: WantedSampling | None) -> Sampling:
    if wanted is None:
        return Sampling()
    if wanted.per_interval is not None:
        interval = wanted.per_interval
        return Sampling(SamplingType.PER_INTERVAL, packets=interval.packets, interval_ns=interval.interval.nanoseconds)
    if wanted.flows is not None:
        return Sampling(SamplingType.FLOWS, flow_threshold=FLOW_HASHES * wanted.flows.percent // 100)
    assert wanted.type is SamplingKind.ONE_IN, wanted
    return Sampling(SamplingType.ONE_IN, one_in=wanted.one_in or 1)


def _rate(limit: RateLimit | None) -> tuple[int, int]:
    """(bits per second, bits of burst), zero for no limit."""
    if limit is None:
        return 0, 0
    rate = limit.bits_per_second.value
    return rate, limit.burst.value if limit.burst else max(rate // BURST_SHARE, MIN_BURST.value)
