"""What hangs at a device's clsact (tc(8)), as far as it takes to leave others' alone."""

from __future__ import annotations

import errno
import struct

from vtap_agent.drivers.netlink import Netlink, NetlinkError

RTM_GETTFILTER = 46
CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
_TCMSG = struct.Struct("=BxxxiIII")


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
