"""Addresses as the command line gives them, and the sockets that copies arrive on."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from vtap_collector.errors import CollectorError
from vtap_collector.native import Source, divert

GRE_UDP_PORT = 4754
VXLAN_PORT = 4789


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of this machine and a port; port 0 lets the kernel choose."""

    address: str
    port: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.is_ipv6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class DataSocket:
    """A bound, non-blocking socket and what it delivers. Nobody reads `swallower`, it only has to be open."""

    source: Source
    socket: socket.socket
    swallower: socket.socket | None = None

    @property
    def endpoint(self) -> Endpoint:
        address, port, *_scope = self.socket.getsockname()
        return Endpoint(address, port)


def parse_endpoint(text: str, option: str, default_port: int | None = None) -> Endpoint:
    """ "ADDRESS:PORT", "[ADDRESS]:PORT", or an address alone where there is a default port. Raises CollectorError."""
    try:
        ipaddress.ip_address(text.strip("[]"))
        address, port = text.strip("[]"), default_port
    except ValueError:
        address, _colon, number = text.rpartition(":")
        address = address.strip("[]")
        port = int(number) if number.isascii() and number.isdigit() else None
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise CollectorError(f"{option} {text}: write it as ADDRESS:PORT or [ADDRESS]:PORT, with a numeric address") from None
    if port is None or not 0 <= port <= 65535:
        raise CollectorError(f"{option} {text}: the port must lie between 0 and 65535")
    return Endpoint(str(parsed), port)


def parse_endpoints(text: str, option: str) -> list[Endpoint]:
    """Several, separated by commas. Raises CollectorError."""
    return [parse_endpoint(part.strip(), option, GRE_UDP_PORT) for part in text.split(",")]


@dataclass(frozen=True, slots=True)
class Ring:
    """A packet socket to capture on an interface with, and the port of the datagrams wanted."""

    socket: socket.socket
    interface: int
    port: int


def open_rings(interfaces: Sequence[str], data: Sequence[DataSocket]) -> list[Ring]:
    """One for each interface, for the one port that all GRE-in-UDP sockets listen on. Raises CollectorError."""
    ports = {item.endpoint.port for item in data if item.source is Source.GRE_UDP}
    if interfaces and len(ports) != 1:
        raise CollectorError("--ring needs one port for all addresses of --listen-data")
    return [_ring(name, port) for name in interfaces for port in ports]


def _ring(interface: str, port: int) -> Ring:
    try:
        index = socket.if_nametoindex(interface)
        return Ring(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0), index, port)
    except PermissionError:
        raise CollectorError(
            "--ring needs CAP_NET_RAW; without it leave the option out, the sockets receive all there is"
        ) from None
    except OSError as error:
        raise CollectorError(f"--ring {interface}: {error.strerror}") from None


def open_sockets(endpoints: Sequence[Endpoint], gre: bool, vxlan_port: int | None, ringed: bool = False) -> list[DataSocket]:
    """UDP for each endpoint, and on the same addresses VXLAN and raw GRE where asked for. Raises CollectorError.

    `ringed`: a ring takes most of it, see src/ring.c.
    """
    opened: list[DataSocket] = []
    try:
        for endpoint in endpoints:
            opened.append(_ringed(endpoint) if ringed else _udp(Source.GRE_UDP, endpoint))
            if vxlan_port is not None:
                opened.append(_udp(Source.VXLAN, Endpoint(endpoint.address, vxlan_port)))
            if gre:
                opened.extend(_raw(endpoint))
    except CollectorError:
        for item in opened:
            item.socket.close()
        raise
    return opened


def _ringed(endpoint: Endpoint) -> DataSocket:
    _udp(Source.GRE_UDP, endpoint).socket.close()  # sharing the port would hide that another collector has it
    first = _udp(Source.GRE_UDP, endpoint, shared=True)
    second = _udp(Source.GRE_UDP, first.endpoint, shared=True)
    divert(first.socket.fileno(), second.socket.fileno(), first.endpoint.port)
    return DataSocket(first.source, first.socket, second.socket)


def listening_socket(endpoint: Endpoint) -> socket.socket:
    """For HTTP. ``[::]`` takes IPv4 too, as for copies, and means 0.0.0.0 where there is no IPv6. Raises CollectorError."""
    wildcard = endpoint.address == "::"
    try:
        opened = socket.socket(socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        if wildcard and error.errno == errno.EAFNOSUPPORT:
            return listening_socket(Endpoint("0.0.0.0", endpoint.port))
        raise CollectorError(f"--listen {endpoint}: {error.strerror}") from None
    if endpoint.is_ipv6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not wildcard)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return _bound(opened, endpoint, "--listen")


def _udp(source: Source, endpoint: Endpoint, shared: bool = False) -> DataSocket:
    """The IPv6 wildcard takes IPv4 as well; on a machine without IPv6 it becomes the IPv4 wildcard."""
    wildcard = endpoint.address == "::"
    try:
        opened = socket.socket(socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        if wildcard and error.errno == errno.EAFNOSUPPORT:
            return _udp(source, Endpoint("0.0.0.0", endpoint.port), shared)
        raise CollectorError(f"{endpoint}: {error.strerror}") from None
    if endpoint.is_ipv6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not wildcard)
    if shared:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return DataSocket(source, _bound(opened, endpoint))


def _bound(opened: socket.socket, endpoint: Endpoint, flag: str = "--listen-data") -> socket.socket:
    opened.setblocking(False)
    try:
        opened.bind((endpoint.address, endpoint.port))
    except OSError as error:
        opened.close()
        raise CollectorError(f"{flag} {endpoint}: {error.strerror}; is another collector running there?") from None
    return opened


def _raw(endpoint: Endpoint) -> list[DataSocket]:
    both = endpoint.address == "::"
    found: list[DataSocket] = []
    if endpoint.is_ipv6:
        found.append(DataSocket(Source.GRE_RAW6, _raw_socket(socket.AF_INET6, endpoint.address)))
    if both or not endpoint.is_ipv6:
        found.append(DataSocket(Source.GRE_RAW4, _raw_socket(socket.AF_INET, "0.0.0.0" if both else endpoint.address)))
    return found


def _raw_socket(family: socket.AddressFamily, address: str) -> socket.socket:
    try:
        opened = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_GRE)
    except PermissionError:
        raise CollectorError("--gre and --erspan need CAP_NET_RAW; without it use GRE-in-UDP or VXLAN") from None
    except OSError as error:
        raise CollectorError(f"--gre on {address}: {error.strerror}") from None
    return _bound(opened, Endpoint(address, 0))
