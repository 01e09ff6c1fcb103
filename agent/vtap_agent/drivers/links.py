"""Network devices of our own: veth pairs made, silenced, stamped and found again; offloads, queues and NAPI of their ends.

Everything acts on the network namespace the process is in. A stamp is an interface alias that begins with ``vtap.dev``.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.drivers.netlink import NLM_F_CREATE, Message, Netlink, NetlinkError, attribute, attributes
from vtap_agent.errors import Retry, TellUser

log = logging.getLogger(__name__)

STAMP = "vtap.dev"
LARGEST_MTU = 65535
LARGEST_SUPER_PACKET = 8 * 65535
"""Bytes: GSO_MAX_SIZE of the kernel, which veth has."""
SIOCETHTOOL = 0x8946
ETHTOOL_SETTERS = {"tx": 0x17, "sg": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
ETHTOOL_GETTERS = {"tx": 0x16, "sg": 0x18, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}
ETHTOOL_SFEATURES = 0x3B
ETHTOOL_GSTRINGS = 0x1B
ETHTOOL_GSSET_INFO = 0x37
ETH_SS_FEATURES = 4
TUN = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI = 0x2, 0x1000
TAP_KIND = "tun"
"""What rtnetlink calls the kind of device that /dev/net/tun makes, tap or tun."""
LARGEST_TAP_MTU = 65535 - 14
"""Less the Ethernet header, as drivers/net/tun.c bounds it."""
FEATURE_NAME_BYTES = 32
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
NLM_F_EXCL = 0x200
IFF_UP, IFF_NOARP, IFF_MULTICAST = 0x1, 0x80, 0x1000
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_STATS64 = 3, 4, 18, 20, 23
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_GRO_MAX_SIZE = 31, 32, 58
IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE = 41, 63
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
_IFINFOMSG = struct.Struct("=BxHiII")
_U32 = struct.Struct("=I")
_DROPS = struct.Struct("=QQ")
_DROPS_AT = 48
"""Offset of rx_dropped, which tx_dropped follows, in struct rtnl_link_stats64."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """A device as the kernel describes it. `gro_max_size` is 0 where the kernel doesn't say; `kind` is like "veth"."""

    index: int
    name: str
    alias: str
    mtu: int
    up: bool
    tx_dropped: int
    rx_dropped: int
    tx_queues: int
    rx_queues: int
    gro_max_size: int
    kind: str = ""


def _message(index: int = 0, flags: int = 0, change: int = 0, attributes: bytes = b"") -> bytes:
    """An ifinfomsg (rtnetlink(7)) and its attributes."""
    return _IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, change) + attributes


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _state(message: Message) -> LinkState:
    _family, _type, index, flags, _change = _IFINFOMSG.unpack_from(message.payload)
    found = attributes(message.payload, _IFINFOMSG.size)
    stats = found.get(IFLA_STATS64, b"").ljust(_DROPS_AT + _DROPS.size, b"\0")
    rx_dropped, tx_dropped = _DROPS.unpack_from(stats, _DROPS_AT)

    def number(kind: int) -> int:
        return _U32.unpack(found[kind])[0] if kind in found else 0

    return LinkState(
        index=index,
        name=found[IFLA_IFNAME].rstrip(b"\0").decode(),
        alias=found.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        mtu=number(IFLA_MTU),
        up=bool(flags & IFF_UP),
        tx_dropped=tx_dropped,
        rx_dropped=rx_dropped,
        tx_queues=number(IFLA_NUM_TX_QUEUES) or 1,
        rx_queues=number(IFLA_NUM_RX_QUEUES) or 1,
        gro_max_size=number(IFLA_GRO_MAX_SIZE),
        kind=attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(),
    )


def _change(name: str, flags: int = 0, change: int = 0, attributes: bytes = b"") -> None:
    """Raises NetlinkError, with ENODEV where there is no such device."""
    with Netlink() as netlink:
        netlink.request(RTM_NEWLINK, _message(0, flags, change, _text(IFLA_IFNAME, name) + attributes))


def find(name: str) -> LinkState | None:
    """The device of that name, None without one."""
    with Netlink() as netlink:
        try:
            return _state(netlink.request(RTM_GETLINK, _message(attributes=_text(IFLA_IFNAME, name)))[0])
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise


def index_of(name: str) -> int | None:
    """Cheaper than `find`: one ioctl."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def stamped() -> list[LinkState]:
    """Every device of this namespace that bears our stamp."""
    with Netlink() as netlink:
        found = netlink.dump(RTM_GETLINK, _message())
    # Most devices are not ours: only those that mention the stamp are worth decoding.
    mentioned = (_state(message) for message in found if STAMP.encode() in message.payload)
    return [state for state in mentioned if state.alias.startswith(STAMP)]


def remove(name: str) -> None:
    """Removes a device, its peer with it. Nothing happens when there is none."""
    with Netlink() as netlink:
        try:
            netlink.request(RTM_DELLINK, _message(attributes=_text(IFLA_IFNAME, name)))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise


def create_veth(name: str, peer: str, queues: int = 1) -> None:
    """A veth pair, down, with `queues` transmit and receive queues on both ends, here. `Retry` when a name is taken."""
    ends = _number(IFLA_NUM_TX_QUEUES, queues) + _number(IFLA_NUM_RX_QUEUES, queues)
    far = attribute(VETH_INFO_PEER, _message(attributes=_text(IFLA_IFNAME, peer) + ends))
    info = attribute(IFLA_INFO_KIND, b"veth") + attribute(IFLA_INFO_DATA, far)
    wanted = _message(attributes=_text(IFLA_IFNAME, name) + ends + attribute(IFLA_LINKINFO, info))
    with Netlink() as netlink:
        try:
            netlink.request(RTM_NEWLINK, wanted, NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            raise Retry(f"the veth pair {name}/{peer} can't be made: {error}") from error


def may_create_taps() -> bool:
    """Whether this process can open /dev/net/tun: a container may not have it."""
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        log.debug("%s can't be opened: %s", TUN, error.strerror)
        return False
    return True


def create_tap(name: str) -> None:
    """A tap device, down, that stays when nobody has it open; what is written to it the kernel receives. `Retry` on failure."""
    try:
        handle = os.open(TUN, os.O_RDWR)
        try:
            fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI).ljust(40, b"\0"))
            fcntl.ioctl(handle, TUNSETPERSIST, 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise Retry(f"the tap device {name} can't be made: {error.strerror}") from error


def is_tap(name: str) -> bool:
    """Whether there is such a device and /dev/net/tun made it."""
    found = find(name)
    return found is not None and found.kind == TAP_KIND


def _write_sysctl(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        # A container that isn't privileged has /proc/sys read-only. Netlink says the most of it: see `silence`.
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        log.debug("%s stays as it is: %s", path, error.strerror)


def silence(name: str, alias: str, mtu: int = LARGEST_MTU) -> None:
    """Stamps a device, makes it say nothing by itself (no IPv6, no ARP, no multicast), and brings it up.

    Where /proc/sys can't be written, the device has no IPv6 address and solicits nobody, but may report multicast groups, which
    `pick` counts as unattributed.
    """
    base = Path("/proc/sys/net/ipv6/conf") / name
    if base.exists():
        # RFC 4862 link-local addresses and router solicitations would leave through a mirror's output port.
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        _change(name, attributes=attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, mode)))
        for setting, value in (("disable_ipv6", "1"), ("accept_ra", "0")):
            _write_sysctl(base / setting, value)
    named = _text(IFLA_IFALIAS, alias) + _number(IFLA_MTU, mtu)
    _change(name, flags=IFF_NOARP, change=IFF_NOARP | IFF_MULTICAST, attributes=named)
    _change(name, flags=IFF_UP, change=IFF_UP)


def set_gro_limit(name: str, size: int) -> None:
    """Lets GRO build nothing larger than `size` bytes (IPv4 too, where the kernel keeps that apart: Linux 6.3)."""
    _change(name, attributes=_number(IFLA_GRO_MAX_SIZE, size))


def set_gso_limit(name: str, size: int = LARGEST_SUPER_PACKET) -> None:
    """Lets super-packets of up to `size` bytes leave whole. Where the kernel refuses, it has no larger ones than others do."""
    for kind in (IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE):
        try:
            _change(name, attributes=_number(kind, size))
        except NetlinkError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            log.debug("%s keeps its limit of super-packets: %s", name, error)


def _ioctl(name: str, payload: array.array[int]) -> None:
    address, _ = payload.buffer_info()
    request = struct.pack("16sP", name.encode(), address).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, SIOCETHTOOL, request)


def offload(name: str, which: str) -> bool:
    """Whether ethtool's `which` (tx, sg, tso, gso, gro) is on."""
    value = array.array("I", [ETHTOOL_GETTERS[which], 0])
    _ioctl(name, value)
    return bool(value[1])


def set_offloads(name: str, **wanted: bool) -> None:
    """Like ``ethtool -K``: tx, sg, tso, gso, gro. `TellUser` when the kernel keeps one as it was."""
    for which, on in wanted.items():
        _ioctl(name, array.array("I", [ETHTOOL_SETTERS[which], int(on)]))
    kept = [which for which, on in wanted.items() if offload(name, which) is not on]
    if kept:
        raise TellUser(f"the kernel does not change {', '.join(kept)} of {name}: veth of Linux 6.1 or newer is needed")


def _feature_names(name: str) -> list[str]:
    info = array.array("I", [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0])
    _ioctl(name, info)
    count = info[4]
    strings = array.array("I", [ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count] + [0] * (count * FEATURE_NAME_BYTES // 4))
    _ioctl(name, strings)
    raw = strings.tobytes()[12:]
    return [raw[i : i + FEATURE_NAME_BYTES].split(b"\0")[0].decode() for i in range(0, len(raw), FEATURE_NAME_BYTES)]


def set_feature(name: str, feature: str, on: bool) -> None:
    """Sets one feature by its ethtool name, such as ``rx-udp-gro-forwarding``. `TellUser` when the kernel has none of it."""
    names = _feature_names(name)
    if feature not in names:
        raise TellUser(f"the kernel has no feature {feature}: Linux 6.1 or newer is needed")
    number, blocks = names.index(feature), (len(names) + 31) // 32
    words = [0, 0] * blocks
    words[number // 32 * 2] = 1 << number % 32
    words[number // 32 * 2 + 1] = int(on) << number % 32
    _ioctl(name, array.array("I", [ETHTOOL_SFEATURES, blocks, *words]))
