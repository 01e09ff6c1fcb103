"""What hangs at a device's clsact (tc(8)), as far as it takes to leave others' alone.

A qdisc of kind ingress has clsact's place and handle, so that a device has one or the other. It has no egress side and does not
say so: a filter for there lands among those of ingress, and whoever asks for egress is told of ingress.
"""

from __future__ import annotations

import errno
import struct

from vtap_agent.drivers.netlink import Netlink, NetlinkError, attributes

RTM_GETQDISC, RTM_GETTFILTER = 38, 46
TCA_KIND = 1
CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_TCMSG = struct.Struct("=BxxxiIII")


def one_sided() -> frozenset[int]:
    """Devices of this namespace, by ifindex, that have a qdisc of kind ingress."""
    with Netlink() as netlink:
        found = netlink.dump(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))
    kinds = ((message.payload, attributes(message.payload, _TCMSG.size).get(TCA_KIND)) for message in found)
    return frozenset(_TCMSG.unpack_from(payload)[1] for payload, kind in kinds if kind == b"ingress\0")


def no_egress(device: str) -> str:
    """What is wrong with a device that is `one_sided`, and the cure."""
    return (
        f"{device} has an ingress qdisc, beside which nothing can be at its egress before Linux 6.6; run that, or let its owner "
        f"use clsact instead (tc qdisc del dev {device} ingress; tc qdisc add dev {device} clsact; then its filters again)"
    )


def has_filters(ifindex: int) -> bool:
    """Whether there is any filter, ours or others', at either side of a device's clsact; False where it has none."""
    return bool(_filters(ifindex, CLSACT_INGRESS) or _filters(ifindex, CLSACT_EGRESS))


def first_filter(ifindex: int, *, egress: bool) -> tuple[int, int] | None:
    """(priority, handle) of the filter that sees packets first, None without any."""
    return next(iter(_filters(ifindex, CLSACT_EGRESS if egress else CLSACT_INGRESS)), None)


def _filters(ifindex: int, parent: int) -> list[tuple[int, int]]:
    """(priority, handle) of each, in the order in which they see packets. What has no handle stands for all of its priority."""
    with Netlink() as netlink:
        try:
            found = netlink.dump(RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0))
        except NetlinkError as error:
            if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP):
                return []
            raise
    parts = (_TCMSG.unpack_from(message.payload) for message in found)
    return [(info >> 16, handle) for _family, _ifindex, handle, _parent, info in parts if handle]
