"""Other people's ways to copy a pod's packets, as one would set them up by hand."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator

from bench.backends_goals import FILTERED, FULL, SAMPLED
from bench.tapped import MATCHED_PORT, QUIET_WAIT, Counts, Row, Tapped, add_vxlan, delete_vxlan, vxlan_counts
from vtap_lab.errors import wait_for
from vtap_lab.processes import LabProcess

_COUNTED = re.compile(r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel")
_KERNEL_BUFFER = "65536"
"""KiB that tcpdump shares with the kernel."""

# Classic BPF in decimal, as cls_bpf takes it: load a random word (SKF_AD_RANDOM), modulo 100, and match where that is 0.
_ONE_IN_100 = "5,32 0 0 4294963256,148 0 0 100,21 0 1 0,6 0 0 4294967295,6 0 0 0"
_MATCHES = {
    FULL: ["u32", "match", "u32", "0", "0"],
    SAMPLED: ["bpf", "bytecode", _ONE_IN_100],
}
_PORT_OF_PEER = {"egress": "dport", "ingress": "sport"}


class TcMirred(Row):
    """act_mirred at the client's host-side veth, into VXLAN devices that lead to the collector."""

    def __init__(self, variant: str) -> None:
        self._variant = variant

    def _match(self, direction: str) -> list[str]:
        if self._variant != FILTERED:
            return ["protocol", "all", *_MATCHES[self._variant]]
        port = _PORT_OF_PEER[direction]
        return [
            "protocol",
            "ip",
            "u32",
            "match",
            "ip",
            "protocol",
            "17",
            "0xff",
            "match",
            "ip",
            port,
            str(MATCHED_PORT),
            "0xffff",
        ]

    @contextlib.contextmanager
    def copying(self, scene: Tapped) -> Iterator[None]:
        lab, device = scene.lab, scene.client.host_name
        with contextlib.ExitStack() as undo:
            lab.run(lab.node, "tc", "qdisc", "add", "dev", device, "clsact")
            undo.callback(lab.run, lab.node, "tc", "qdisc", "delete", "dev", device, "clsact")
            # What the pod sends arrives at its device on the node, and the other way round.
            for direction, side in (("egress", "ingress"), ("ingress", "egress")):
                mirror = ["action", "mirred", "egress", "mirror", "dev", add_vxlan(scene, direction)]
                undo.callback(delete_vxlan, scene, direction)
                lab.run(lab.node, "tc", "filter", "add", "dev", device, side, *self._match(direction), *mirror)
            scene.request_response_once()
            yield

    def counts(self, scene: Tapped) -> Counts | None:
        return vxlan_counts(scene)


class Tcpdump(Row):
    """tcpdump to /dev/null, at the client's host-side veth or in the pod; its counts are of what a packet socket sees."""

    held_back = 1.1
    """The kernel hands a block of packets over when it is full or a second old (tcpdump's read timeout)."""

    def __init__(self, variant: str, *, in_pod: bool) -> None:
        self._filter = f"udp port {MATCHED_PORT}" if variant == FILTERED else ""
        self._in_pod = in_pod
        self._process: LabProcess | None = None

    @contextlib.contextmanager
    def copying(self, scene: Tapped) -> Iterator[None]:
        client, lab = scene.client, scene.lab
        where, device = (client.netns, client.interface) if self._in_pod else (lab.node, client.host_name)
        argv = ["tcpdump", "-i", device, "-n", "-s", "0", "-B", _KERNEL_BUFFER, "-Z", "root", "-w", "/dev/null", self._filter]
        process = lab.spawn(where, *filter(None, argv), name="tcpdump")
        try:
            process.wait_ready(lambda: "listening on" in process.output(), QUIET_WAIT, "captures")
            self._process = process
            yield
        finally:
            self._process = None
            process.stop()

    def counts(self, scene: Tapped) -> Counts | None:
        process = self._process
        if process is None:
            return None
        before = len(_COUNTED.findall(process.output()))
        process.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: len(_COUNTED.findall(process.output())) > before, QUIET_WAIT, "tcpdump says what it has counted")
        captured, received, _dropped = map(int, _COUNTED.findall(process.output())[-1])
        return Counts(wanted=received, delivered=captured)
