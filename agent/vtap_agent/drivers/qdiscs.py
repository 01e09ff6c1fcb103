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
    with Netlink() as netlink:
        for parent in (CLSACT_INGRESS, CLSACT_EGRESS):
            try:
                if netlink.dump(RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, parent, 0)):
                    return True
            except NetlinkError as error:
                if error.errno not in (errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.EOPNOTSUPP):
                    raise
    return False
