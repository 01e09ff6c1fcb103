"""Links, addresses, routes, neighbours and namespace numbers as rtnetlink(7) tells them, decoded to immutable values.

Everything is asked from one socket in the node's namespace: for another namespace the request names its *nsid*, the number that
the node's namespace has for it (IFLA_TARGET_NETNSID, IFA_TARGET_NETNSID, Linux ≥ 5.0). So nothing of ours lives in a pod's
namespace, and nothing of ours keeps one alive after its pod. Network addresses are bytes (4 or 16), link addresses bytes (6) or
empty.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag

from vtap_agent.drivers.netlink import NLM_F_CREATE, NLM_F_REPLACE, Message, Netlink, NetlinkError, attribute, attributes

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWNSID, RTM_DELNSID, RTM_GETNSID = 88, 89, 90

GROUP_LINK, GROUP_NEIGH, GROUP_IPV4_ADDRESS, GROUP_IPV4_ROUTE, GROUP_IPV4_RULE = 1, 3, 5, 7, 8
GROUP_IPV6_ADDRESS, GROUP_IPV6_ROUTE, GROUP_IPV6_RULE, GROUP_NSID, GROUP_NEXTHOP = 9, 11, 19, 28, 32

ARPHRD_ETHER = 1
IFF_LOOPBACK = 0x8

RTN_UNICAST, RTN_LOCAL = 1, 2

_LINK_HEADER = struct.Struct("=BxHiII")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_STATS64, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 23, 29, 37, 46
_SKIP_STATISTICS = 1 << 3
_PACKETS = struct.Struct("=QQ")
"""rx_packets and tx_packets, with which struct rtnl_link_stats64 begins."""

_ADDRESS_HEADER = struct.Struct("=BBBBI")
_IFA_ADDRESS, _IFA_LOCAL, _IFA_TARGET_NETNSID = 1, 2, 10

_ROUTE_HEADER = struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS, _RTA_VIA = 1, 4, 5, 7, 8, 18
_RTAX_MTU = 2

_NEIGHBOUR_HEADER = struct.Struct("=BxxxiHBB")
_NDA_DST, _NDA_LLADDR, _NDA_CACHEINFO, _NDA_PROTOCOL, _NDA_FLAGS_EXT = 1, 2, 3, 12, 15
_NTF_USE, _NTF_EXT_LEARNED = 0x01, 0x10
_NTF_EXT_MANAGED = 0x01

_NETNSA_NSID, _NETNSA_FD = 1, 3
_NETNSA_NSID_NOT_ASSIGNED = -1

_U32, _S32 = struct.Struct("=I"), struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. `peer` and `peer_nsid` are IFLA_LINK and IFLA_LINK_NETNSID, the latter None for the same namespace."""

    index: int
    name: str
    mac: bytes
    mtu: int
    peer: int
    peer_nsid: int | None
    is_ethernet: bool
    is_loopback: bool


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets that a device has received and sent, by its own count; a super-packet is one. `peer` and `peer_nsid` as in Link."""

    received: int
    sent: int
    peer: int
    peer_nsid: int | None


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's answer for one destination. `gateway` is empty for one that is on-link; `mtu` 0 where the route has none."""

    type: int
    ifindex: int
    gateway: bytes
    source: bytes
    mtu: int


class NeighbourState(IntFlag):
    """NUD_* of linux/neighbour.h."""

    NONE = 0
    INCOMPLETE = 0x01
    REACHABLE = 0x02
    STALE = 0x04
    DELAY = 0x08
    PROBE = 0x10
    FAILED = 0x20
    NOARP = 0x40
    PERMANENT = 0x80


USABLE = NeighbourState.REACHABLE | NeighbourState.STALE | NeighbourState.DELAY | NeighbourState.PROBE
USABLE |= NeighbourState.NOARP | NeighbourState.PERMANENT
"""States whose link address the kernel would send to."""


@dataclass(frozen=True, slots=True, order=True)
class NeighbourKey:
    """Who is asked for: an address on a device."""

    ifindex: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the ARP or ND table. `confirmed` is how many seconds ago the neighbour was last known to answer."""

    key: NeighbourKey
    state: NeighbourState
    mac: bytes
    managed: bool
    learned_elsewhere: bool
    protocol: int
    confirmed: float

    @property
    def usable(self) -> bool:
        """Whether packets can be sent to `mac`."""
        return bool(self.state & USABLE) and bool(self.mac)


def nsid_of(netlink: Netlink, namespace: int) -> int | None:
    """The number of the network namespace that the descriptor `namespace` is open on; None where it has none yet."""
    body = _general_header() + attribute(_NETNSA_FD, _U32.pack(namespace))
    for message in netlink.request(RTM_GETNSID, body):
        nsid = _S32.unpack(attributes(message.payload, 4)[_NETNSA_NSID])[0]
        return None if nsid == _NETNSA_NSID_NOT_ASSIGNED else nsid
    return None


def number_namespace(netlink: Netlink, namespace: int) -> int:
    """As `nsid_of`, and gives it a number where it has none, as the kernel does for any veth's peer; it keeps nothing alive."""
    found = nsid_of(netlink, namespace)
    if found is None:
        body = attribute(_NETNSA_FD, _U32.pack(namespace)) + attribute(_NETNSA_NSID, _S32.pack(_NETNSA_NSID_NOT_ASSIGNED))
        try:
            netlink.request(RTM_NEWNSID, _general_header() + body)
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
        found = nsid_of(netlink, namespace)
    if found is None:
        raise NetlinkError(errno.ENOENT, "the network namespace is going away")
    return found


def nsid_in(payload: bytes) -> int | None:
    """The number that an RTM_NEWNSID or RTM_DELNSID event is about."""
    value = attributes(payload, 4).get(_NETNSA_NSID)
    return _S32.unpack(value)[0] if value is not None else None


def links(netlink: Netlink, nsid: int | None = None) -> tuple[Link, ...]:
    """Every device of the namespace `nsid` (None: the node's), by ifindex."""
    body = _LINK_HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATISTICS))
    if nsid is not None:
        body += attribute(_IFLA_TARGET_NETNSID, _S32.pack(nsid))
    return tuple(_link(message) for message in netlink.dump(RTM_GETLINK, body) if message.kind == RTM_NEWLINK)


def traffic(netlink: Netlink, index: int, nsid: int | None = None) -> Traffic:
    """Of one device of the namespace `nsid` (None: the node's). Raises NetlinkError where there is none."""
    body = _LINK_HEADER.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    if nsid is not None:
        body += attribute(_IFLA_TARGET_NETNSID, _S32.pack(nsid))
    (message,) = netlink.request(RTM_GETLINK, body)
    found = attributes(message.payload, _LINK_HEADER.size)
    received, sent = _PACKETS.unpack_from(found[_IFLA_STATS64])
    return Traffic(received, sent, *_peer(found))


def _link(message: Message) -> Link:
    _family, kind, index, flags, _change = _LINK_HEADER.unpack_from(message.payload)
    found = attributes(message.payload, _LINK_HEADER.size)
    peer, peer_nsid = _peer(found)
    return Link(
        index=index,
        name=found[_IFLA_IFNAME].rstrip(b"\0").decode(errors="backslashreplace"),
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=_U32.unpack(found[_IFLA_MTU])[0],
        peer=peer,
        peer_nsid=peer_nsid,
        is_ethernet=kind == ARPHRD_ETHER,
        is_loopback=bool(flags & IFF_LOOPBACK),
    )


def _peer(found: Mapping[int, bytes]) -> tuple[int, int | None]:
    """(ifindex, nsid), 0 where the device has no peer."""
    nsid = found.get(_IFLA_LINK_NETNSID)
    peer = _U32.unpack(found[_IFLA_LINK])[0] if _IFLA_LINK in found else 0
    return peer, _S32.unpack(nsid)[0] if nsid is not None else None


def addresses(netlink: Netlink, nsid: int | None = None) -> dict[int, tuple[bytes, ...]]:
    """Addresses in the namespace `nsid` (None: the node's) by ifindex, in the kernel's order, IPv4 first."""
    body = _ADDRESS_HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    if nsid is not None:
        body += attribute(_IFA_TARGET_NETNSID, _S32.pack(nsid))
    found: dict[int, tuple[bytes, ...]] = {}
    for message in netlink.dump(RTM_GETADDR, body):
        index = _ADDRESS_HEADER.unpack_from(message.payload)[4]
        values = attributes(message.payload, _ADDRESS_HEADER.size)
        # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours; IPv6 often has the former alone.
        address = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
        if address:
            found[index] = (*found.get(index, ()), address)
    return found


def route_to(netlink: Netlink, destination: bytes) -> Route:
    """The route that the kernel takes for a packet of this node to `destination`. Raises NetlinkError where there is none."""
    family = _family(destination)
    header = _ROUTE_HEADER.pack(family, 8 * len(destination), 0, 0, 0, 0, 0, 0, 0)
    answer = netlink.request(RTM_GETROUTE, header + attribute(_RTA_DST, destination))
    if not answer:
        raise NetlinkError(errno.ENETUNREACH)
    kind = _ROUTE_HEADER.unpack_from(answer[0].payload)[7]
    found = attributes(answer[0].payload, _ROUTE_HEADER.size)
    via = found.get(_RTA_VIA)  # An IPv4 route with an IPv6 next hop (RFC 5549): two bytes of family, then the address.
    mtu = attributes(found.get(_RTA_METRICS, b"")).get(_RTAX_MTU)
    return Route(
        type=kind,
        ifindex=_U32.unpack(found[_RTA_OIF])[0] if _RTA_OIF in found else 0,
        gateway=via[2:] if via else found.get(_RTA_GATEWAY, b""),
        source=found.get(_RTA_PREFSRC, b""),
        mtu=_U32.unpack(mtu)[0] if mtu else 0,
    )


def neighbour(netlink: Netlink, key: NeighbourKey) -> Neighbour | None:
    """One entry, or None where the table has none."""
    header = _NEIGHBOUR_HEADER.pack(_family(key.address), key.ifindex, 0, 0, 0)
    try:
        answer = netlink.request(RTM_GETNEIGH, header + attribute(_NDA_DST, key.address))
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            return None
        raise
    return decode_neighbour(answer[0]) if answer else None


def neighbours(netlink: Netlink) -> tuple[Neighbour, ...]:
    """Every entry of the node's ARP and ND tables."""
    dump = netlink.dump(RTM_GETNEIGH, _NEIGHBOUR_HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    return tuple(found for message in dump if (found := decode_neighbour(message)) is not None)


def decode_neighbour(message: Message) -> Neighbour | None:
    """The entry of an RTM_NEWNEIGH or RTM_DELNEIGH message; None for a bridge's forwarding entry."""
    family, ifindex, state, flags, _kind = _NEIGHBOUR_HEADER.unpack_from(message.payload)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = attributes(message.payload, _NEIGHBOUR_HEADER.size)
    cache = found.get(_NDA_CACHEINFO)
    ext = _U32.unpack(found[_NDA_FLAGS_EXT])[0] if _NDA_FLAGS_EXT in found else 0
    return Neighbour(
        key=NeighbourKey(ifindex, found.get(_NDA_DST, b"")),
        state=NeighbourState(state),
        mac=found.get(_NDA_LLADDR, b""),
        managed=bool(ext & _NTF_EXT_MANAGED),
        learned_elsewhere=bool(flags & _NTF_EXT_LEARNED),
        protocol=found[_NDA_PROTOCOL][0] if _NDA_PROTOCOL in found else 0,
        confirmed=_U32.unpack_from(cache)[0] / os.sysconf("SC_CLK_TCK") if cache else 0.0,
    )


def set_neighbour(
    netlink: Netlink,
    key: NeighbourKey,
    *,
    managed: bool,
    protocol: int = 0,
    state: NeighbourState = NeighbourState.NONE,
    use: bool = False,
) -> None:
    """Make or change an entry. `managed` has the kernel keep it resolved; `use` asks now, as a packet would.

    An update by netlink always sets the managed flag as given. `protocol` 0 leaves the mark as it is. Raises NetlinkError.
    """
    header = _NEIGHBOUR_HEADER.pack(_family(key.address), key.ifindex, state, _NTF_USE if use else 0, 0)
    body = attribute(_NDA_DST, key.address)
    if managed:
        body += attribute(_NDA_FLAGS_EXT, _U32.pack(_NTF_EXT_MANAGED))
    if protocol:
        body += attribute(_NDA_PROTOCOL, bytes([protocol]))
    netlink.request(RTM_NEWNEIGH, header + body, NLM_F_CREATE | NLM_F_REPLACE)


def delete_neighbour(netlink: Netlink, key: NeighbourKey) -> None:
    """Remove an entry; one that is not there is no error."""
    header = _NEIGHBOUR_HEADER.pack(_family(key.address), key.ifindex, 0, 0, 0)
    try:
        netlink.request(RTM_DELNEIGH, header + attribute(_NDA_DST, key.address))
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def _general_header() -> bytes:
    """struct rtgenmsg, padded."""
    return bytes([socket.AF_UNSPEC, 0, 0, 0])
