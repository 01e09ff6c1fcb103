"""The pair by which clones of pods' packets leave the CPU that made them, for others that are set aside for copies.

Super-packets cross it whole: they are taken apart, and all that follows is done, where they arrive. The near end runs `enter`, as
that of the normalising pair does without it; `cross` at the far end sends on to the normalising pair. Receive packet steering is
what carries them over, into a queue of the other CPU (net.core.netdev_max_backlog). What finds it full is counted by `watch`.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from vtap_agent.drivers import links, steering
from vtap_agent.errors import Retry, TellUser
from vtap_agent.pipeline import devices
from vtap_agent.pipeline.kernel import Kernel

PROGRAM = "cross"
_SMALL_MTU = 68
"""Bytes, the least that any device may have (RFC 791)."""
_PROBE = b"\xff" * 12 + b"\x88\xb5" + bytes(10 * _SMALL_MTU)
"""A frame of an experimental EtherType that is too long for it."""


def attach(kernel: Kernel, node: str, cpus: frozenset[int], let_enter: Callable[[int], None]) -> int:
    """Makes the pair that `cpus` work behind, with both programs; the near end's ifindex.

    `TellUser` where such a CPU is not up, or the kernel doesn't tell what it drops or doesn't steer.
    """
    missing = sorted(cpus - steering.online_cpus())
    if missing:
        there = ", ".join(map(str, sorted(steering.online_cpus())))
        raise TellUser(f"--export-cpus: CPU {missing[0]} is not up on this node; these are: {there}")
    names = devices.handover_devices(node)
    if not devices.handover_is_good(node):
        devices.make_handover(node, _SMALL_MTU)
        _check_that_drops_are_told(names)
        links.silence(names.far, devices.pair_alias(node))
    far, near = links.index_of(names.far), links.index_of(names.near)
    if far is None or near is None:
        raise Retry("the handover's pair vanished while it was made")
    if not kernel.runs(PROGRAM, names.far, far):
        kernel.attach(PROGRAM, names.far, far)
    let_enter(near)
    if steering.steered(names.far) != cpus:
        steering.steer(names.far, cpus)
    return near


def is_ready(kernel: Kernel, node: str, cpus: frozenset[int]) -> bool:
    """Whether clones cross over to `cpus`; without any, whether they stay where they are."""
    names = devices.handover_devices(node)
    far, wanted = links.index_of(names.far), kernel.control().handover_ifindex
    if not cpus:
        return far is None and not wanted
    return (
        far is not None
        and devices.handover_is_good(node)
        and wanted == links.index_of(names.near)
        and kernel.runs(PROGRAM, names.far, far)
        and steering.steered(names.far) == cpus
    )


def _check_that_drops_are_told(names: devices.PairDevices) -> None:
    """As a full queue is: by the far end, that takes nothing so long yet."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
            probe.bind((names.near, 0))
            probe.send(_PROBE)
    except PermissionError as error:
        raise TellUser("--export-cpus: takes CAP_NET_RAW, to see whether the kernel tells what a full queue drops") from error
    except OSError as error:
        if error.errno == errno.ENOBUFS:
            return
        raise Retry(f"{names.near} can't be tried: {error.strerror}") from error
    raise TellUser("--export-cpus: this kernel doesn't tell what a full queue drops; Linux 6.6 or newer is needed")
