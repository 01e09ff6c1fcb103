"""The pair by which clones of what is picked leave the CPU that made them, for others that are set aside for copies.

Super-packets cross it whole: they are taken apart, and all that follows is done, where they arrive. The near end runs `enter`, as
that of the normalising pair does without it; `cross` at the far end sends on to the normalising pair. Receive packet steering is
what carries them over, into a queue of the other CPU (net.core.netdev_max_backlog). What finds it full, its cloner counts.
"""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path

from vtap_agent.drivers import links, steering
from vtap_agent.errors import Retry, TellUser, VtapError
from vtap_agent.pipeline import devices
from vtap_agent.pipeline.hooks import Hooks
from vtap_agent.pipeline.kernel import Kernel, tickets_per_cpu

PROGRAM = "cross"
BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
_TICKETS_A_PLACE = 4
"""A CPU's queue holds up to twice its limit, and what left it is on its way for a while more."""
_LOOK_EVERY, _LOOKS = 0.05, 40
"""Seconds between looks, and how many: a full queue of super-packets takes about a second to work at."""
_SMALL_MTU = 68
"""Bytes, the least that any device may have (RFC 791)."""
_PROBE = b"\xff" * 12 + b"\x88\xb5" + bytes(10 * _SMALL_MTU)
"""A frame of an experimental EtherType that is too long for it."""


class Handover:
    """To `cpus`; without any, clones stay where they are made. For the thread that has the pipeline."""

    def __init__(self, kernel: Kernel, node: str, cpus: frozenset[int], hooks: Hooks) -> None:
        self._kernel, self._node, self._cpus, self._hooks = kernel, node, cpus, hooks

    def establish(self) -> None:
        """As it should be. `send` listens at the normalising pair by now.

        `TellUser` where a CPU is not up or takes no packets, or the kernel doesn't tell what it drops; clones then stay where
        they are made.
        """
        if not self._cpus:
            self.end()
            return
        try:
            near = self._attach()
        except VtapError:
            self.end()
            raise
        self._send_to(near)

    def is_ready(self) -> bool:
        """Whether it is as it should be."""
        names = devices.handover_devices(self._node)
        far, wanted = links.index_of(names.far), self._kernel.control().handover_ifindex
        if not self._cpus:
            return far is None and not wanted
        return (
            far is not None
            and devices.handover_is_good(self._node)
            and wanted == links.index_of(names.near)
            and self._kernel.runs(PROGRAM, names.far, far)
            and steering.steered(names.far) == self._cpus
            and self._cpus <= steering.online_cpus()
        )

    def end(self) -> None:
        """Clones stay where they are made; what is on its way arrives before the way goes."""
        if self._kernel.control().handover_ifindex:
            self._send_to(0)
            self._wait_until_across()
        self._hooks.forget_handover()
        devices.remove_handover(self._node)

    def _send_to(self, near: int) -> None:
        control = self._kernel.control()
        if control.handover_ifindex != near:
            control.handover_ifindex = near
            self._kernel.set_control(control)

    def _wait_until_across(self) -> None:
        cpus = steering.steered(devices.handover_devices(self._node).far)
        for _ in range(_LOOKS):
            time.sleep(_LOOK_EVERY)
            if not steering.queued(cpus):
                return

    def _attach(self) -> int:
        """The near end's ifindex."""
        self._check_cpus()
        names = devices.handover_devices(self._node)
        if not devices.handover_is_good(self._node):
            devices.make_handover(self._node, _SMALL_MTU)
            _check_that_drops_are_told(names)
            devices.open_handover(self._node)
        far, near = links.index_of(names.far), links.index_of(names.near)
        if far is None or near is None:
            raise Retry("the handover's pair vanished while it was made")
        if not self._kernel.runs(PROGRAM, names.far, far):
            self._kernel.attach(PROGRAM, names.far, far)
        self._hooks.enter_handover(near)
        if steering.steered(names.far) != self._cpus:
            steering.steer(names.far, self._cpus)
        return near

    def _check_cpus(self) -> None:
        up = steering.online_cpus()
        if missing := sorted(self._cpus - up):
            raise TellUser(
                f"--export-cpus: CPU {missing[0]} is not up on this node; these are: {', '.join(map(str, sorted(up)))}"
            )
        backlog, most = _backlog(), tickets_per_cpu() // _TICKETS_A_PLACE
        if backlog > most:
            raise TellUser(
                f"--export-cpus: net.core.netdev_max_backlog is {backlog}, so that copies could wait longer than is known whose"
                f" they are; set it to {most} at most"
            )


def _backlog() -> int:
    """Packets that may wait for a CPU; 0 where that isn't to be seen: it is shown in the initial network namespace alone."""
    return int(BACKLOG.read_text()) if BACKLOG.exists() else 0


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
    raise TellUser("--export-cpus: this kernel doesn't tell what a full queue drops; a newer one is needed, such as Linux 6.6")
