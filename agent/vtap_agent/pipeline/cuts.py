"""The pair for segments that `pick` cuts out of super-packets.

A cut segment still lies in its super-packet's memory, up to 128 KiB, and would be charged with all of it to whatever socket it
ends in. At this pair's far end an XDP program makes the veth driver copy it into memory of its own size, then `send` runs.
"""

from __future__ import annotations

import logging

from vtap_agent.drivers import links
from vtap_agent.drivers.libbpf import BpfError
from vtap_agent.errors import Retry
from vtap_agent.pipeline import devices
from vtap_agent.pipeline.kernel import Kernel

PROGRAM = "renew"
_log = logging.getLogger(__name__)


def attach(kernel: Kernel, node: str) -> int:
    """Both programs at the far end; the near end's ifindex, 0 where the driver takes no XDP program: then nothing is cut.

    `Retry` when the pair isn't there.
    """
    names = devices.cut_devices(node)
    far, near = links.index_of(names.far), links.index_of(names.near)
    if far is None or near is None:
        raise Retry("the pair for cut segments vanished while it was made")
    if not kernel.runs("send", names.far, far):
        kernel.attach("send", names.far, far)
    if kernel.runs_xdp(PROGRAM, names.far, far):
        return near
    try:
        kernel.attach_xdp(PROGRAM, names.far, far)
    except BpfError as error:
        _log.warning("samplers take more of the node: %s takes no XDP program (%s)", names.far, error)
        return 0
    return near


def is_ready(kernel: Kernel, node: str) -> bool:
    """Whether cut segments find their way, or none are cut."""
    names = devices.cut_devices(node)
    wanted = kernel.control().cut_ifindex
    far = links.index_of(names.far)
    if far is None or not kernel.runs("send", names.far, far):
        return False
    return not wanted or (wanted == links.index_of(names.near) and kernel.runs_xdp(PROGRAM, names.far, far))
