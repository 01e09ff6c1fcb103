"""Network devices of our own: veth pairs made, silenced, stamped and found again; offloads, queues and NAPI of their ends.

Everything acts on the network namespace the process is in. A stamp is an interface alias that begins with ``vtap.dev``.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vtap_agent.errors import Retry, TellUser

STAMP = "vtap.dev"
LARGEST_MTU = 65535
SIOCETHTOOL = 0x8946
ETHTOOL_SETTERS = {"tx": 0x17, "sg": 0x19, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
ETHTOOL_GETTERS = {"tx": 0x16, "sg": 0x18, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}
ETHTOOL_SFEATURES = 0x3B
ETHTOOL_GSTRINGS = 0x1B
ETHTOOL_GSSET_INFO = 0x37
ETH_SS_FEATURES = 4
FEATURE_NAME_BYTES = 32


@dataclass(frozen=True, slots=True)
class LinkState:
    """A device as the kernel describes it. `gro_max_size` is 0 where the kernel doesn't say."""

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


@contextmanager
def _route() -> Iterator[IPRoute]:
    """A netlink socket of the current namespace, for one operation."""
    route = IPRoute()
    try:
        yield route
    finally:
        route.close()


def _state(message: Any) -> LinkState:
    stats = message.get_attr("IFLA_STATS64") or {}
    return LinkState(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & 1),
        tx_dropped=stats.get("tx_dropped", 0),
        rx_dropped=stats.get("rx_dropped", 0),
        tx_queues=message.get_attr("IFLA_NUM_TX_QUEUES") or 1,
        rx_queues=message.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        gro_max_size=message.get_attr("IFLA_GRO_MAX_SIZE") or 0,
    )


def find(name: str) -> LinkState | None:
    with _route() as route:
        try:
            return _state(route.link("get", ifname=name)[0])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
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
    with _route() as route:
        return [state for state in map(_state, route.get_links()) if state.alias.startswith(STAMP)]


def remove(name: str) -> None:
    """Removes a device, its peer with it. Nothing happens when there is none."""
    with _route() as route:
        try:
            route.link("del", ifname=name)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


def create_veth(name: str, peer: str, queues: int = 1) -> None:
    """A veth pair with `queues` transmit and receive queues on both ends, in this namespace, down. `Retry` when a name is taken."""
    ends = {"num_tx_queues": queues, "num_rx_queues": queues}
    with _route() as route:
        try:
            route.link("add", ifname=name, kind="veth", **ends, peer={"ifname": peer, **ends})
        except NetlinkError as error:
            raise Retry(f"the veth pair {name}/{peer} can't be made: {error}") from error


def _write_sysctl(path: Path, value: str) -> None:
    if path.exists():
        path.write_text(value)


def silence(name: str, alias: str, mtu: int = LARGEST_MTU) -> None:
    """Stamps a device, makes it say nothing by itself (no IPv6, no ARP, no multicast), and brings it up."""
    base = Path("/proc/sys/net/ipv6/conf") / name
    # RFC 4862 link-local addresses and router solicitations would leave through a mirror's output port.
    for setting, value in (("addr_gen_mode", "1"), ("disable_ipv6", "1"), ("accept_ra", "0")):
        _write_sysctl(base / setting, value)
    with _route() as route:
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, ifalias=alias, mtu=mtu, arp=False, multicast=False)
        route.link("set", index=index, state="up")


def set_gro_limit(name: str, size: int) -> None:
    """Lets GRO build nothing larger than `size` bytes (IPv4 too, where the kernel keeps that apart: Linux 6.3)."""
    with _route() as route:
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, IFLA_GRO_MAX_SIZE=size)


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


def set_threaded_napi(name: str, on: bool) -> None:
    """Moves a device's NAPI to kernel threads of its own, or back.

    The switch is in sysfs, and sysfs shows the devices of the namespace it was mounted in: so mount one, where nobody sees it.
    """
    script = 'mount -t sysfs vtap /sys && echo "$2" > "/sys/class/net/$1/threaded"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", name, str(int(on))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Retry(f"threaded NAPI of {name} can't be set: {done.stderr.strip()}")
