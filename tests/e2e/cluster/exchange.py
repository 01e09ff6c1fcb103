"""Numbered datagrams between pods of a cluster: `vtap_lab.datagrams` at both ends, the truth in the pods' own logs.

Both programs run in the pods by themselves: they go on while the API server, the agent or this process is away.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass

from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.kubectl import Kubectl
from tests.e2e.cluster.pods import LOGS, RunningPod, need_interface
from vtap_lab.datagrams import READY, Datagram
from vtap_lab.errors import comes_true, wait_for

_START_TIMEOUT = 15.0
_ARRIVAL_TIMEOUT = 3.0
_END_TIMEOUT = 10.0
_senders = itertools.count(secrets.randbelow(1 << 20) << 10)
"""Senders of one run of the tests differ from those of earlier runs, whose logs and captures may still be there."""
_ports = itertools.count(40000)


@dataclass(frozen=True)
class Exchanged:
    """What happened, by the pods' own logs, in their order."""

    sender: int
    port: int
    sent: tuple[Datagram, ...]
    received: tuple[Datagram, ...]

    @property
    def lost(self) -> frozenset[Datagram]:
        return frozenset(self.sent) - frozenset(self.received)


@dataclass(frozen=True)
class RunningExchange:
    """Datagrams under way. End it by `finish` or `stop`."""

    kubectl: Kubectl
    sender: int
    port: int
    source: RunningPod
    target: RunningPod
    sending: int
    receiving: int

    def sent_so_far(self) -> int:
        """How many the sender has logged; asked of the node, so it works without the API server."""
        return self.source.read_log(self._sent).count("\n")

    def received_so_far(self) -> int:
        return self.target.read_log(self._received).count("\n")

    def finish(self, timeout: float = 120) -> Exchanged:
        """Wait until the count is sent, then until all has arrived or nothing can be under way any more."""
        wait_for(lambda: not self._is_sending(), timeout, f"the end of sender {self.sender}", every=0.3)
        count = self.sent_so_far()
        comes_true(lambda: self.received_so_far() >= count, _ARRIVAL_TIMEOUT, every=0.2)  # Else some were lost, as the logs say.
        return self._gather()

    def stop(self) -> Exchanged:
        """End an endless sender, then finish. Works also when either pod has gone meanwhile."""
        if self._is_present(self.source):
            self.source.signal(self.kubectl, self.sending)
            return self.finish(_END_TIMEOUT)
        return self._gather()

    def complaint(self) -> str:
        """What the programs printed."""
        return self.source.read_log(f"{self._sent}.out") + self.target.read_log(f"{self._received}.out")

    def _gather(self) -> Exchanged:
        if self._is_present(self.target):
            self.target.signal(self.kubectl, self.receiving)
            wait_for(
                lambda: not self.target.is_alive(self.kubectl, self.receiving), _END_TIMEOUT, "the receiver's end", every=0.2
            )
        return Exchanged(self.sender, self.port, _read(self.source, self._sent), _read(self.target, self._received))

    def _is_sending(self) -> bool:
        return self._is_present(self.source) and self.source.is_alive(self.kubectl, self.sending)

    def _is_present(self, pod: RunningPod) -> bool:
        there = self.kubectl.find("pod", pod.name, pod.namespace)
        return there is not None and there["metadata"]["uid"] == pod.uid and "deletionTimestamp" not in there["metadata"]

    @property
    def _sent(self) -> str:
        return f"sent-{self.sender}"

    @property
    def _received(self) -> str:
        return f"received-{self.sender}"


def start_exchange(
    kubectl: Kubectl,
    source: RunningPod,
    target: RunningPod,
    *,
    interface: str = "net1",
    address: str = "",
    count: int = 100,
    rate: float = 500,
    size: int = 100,
    port: int = 0,
) -> RunningExchange:
    """Begin to send `count` datagrams (0: until `stop()`) of `size` bytes of payload, `rate` a second.

    To the target's address on `interface`, or to `address` (a Service's, say). Returns when the receiver listens.
    """
    sender, port = next(_senders), port or next(_ports)
    received, sent = f"received-{sender}", f"sent-{sender}"
    receive = _program("receive", str(port), f"--log={LOGS}/{received}")
    receiving = target.spawn(kubectl, f"{received}.out", *receive)
    if not comes_true(lambda: READY in target.read_log(f"{received}.out"), _START_TIMEOUT, every=0.2):
        raise ClusterError(f"{target.name} does not listen on port {port}: {target.read_log(f'{received}.out')}")
    to = address or need_interface(target, interface)
    options = (f"--sender={sender}", f"--count={count}", f"--rate={rate}", f"--size={size}", f"--log={LOGS}/{sent}")
    sending = source.spawn(kubectl, f"{sent}.out", *_program("send", to, str(port)), *options)
    return RunningExchange(kubectl, sender, port, source, target, sending, receiving)


def _program(*arguments: str) -> tuple[str, ...]:
    return ("python3", "-m", "vtap_lab.datagrams", *arguments)


def _read(pod: RunningPod, log: str) -> tuple[Datagram, ...]:
    """A line that a killed program did not finish tells nothing."""
    lines = pod.read_log(log).splitlines(keepends=True)
    return tuple(Datagram(*map(int, line.split())) for line in lines if line.endswith("\n"))
