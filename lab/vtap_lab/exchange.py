"""Numbered datagrams between pods of a lab."""

from __future__ import annotations

import ipaddress
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_lab import datagrams
from vtap_lab.datagrams import Datagram
from vtap_lab.errors import comes_true
from vtap_lab.lab import Lab, Pod
from vtap_lab.processes import LabProcess

_START_TIMEOUT = 10.0
_ARRIVAL_TIMEOUT = 2.0
_senders = itertools.count(1)
_ports = itertools.count(40000)


@dataclass(frozen=True)
class Exchange:
    """What happened, by the pods' own logs."""

    sender: int
    port: int
    sent: tuple[Datagram, ...]
    received: dict[str, tuple[Datagram, ...]]
    """By receiving pod ("namespace/name")."""


@dataclass
class RunningExchange:
    """Datagrams on their way. `finish()` exactly once."""

    sender: int
    port: int
    sending: LabProcess
    sending_log: Path
    receiving: dict[str, tuple[LabProcess, Path]]

    def sent_so_far(self) -> int:
        """How many the sender has logged."""
        return self.sending_log.read_bytes().count(b"\n") if self.sending_log.exists() else 0

    def finish(self, timeout: float = 60) -> Exchange:
        """Wait until the count is sent, then until all has arrived or nothing can be under way any more."""
        self.sending.wait_ok(timeout)
        sent = datagrams.read_log(self.sending_log)
        comes_true(lambda: self._all_have(len(sent)), _ARRIVAL_TIMEOUT)  # Else some were lost, as the logs say.
        for process, _ in self.receiving.values():
            process.stop()
        received = {name: tuple(datagrams.read_log(log)) for name, (_, log) in self.receiving.items()}
        return Exchange(self.sender, self.port, tuple(sent), received)

    def stop(self) -> Exchange:
        """End an endless sender, then finish."""
        self.sending.stop()
        return self.finish()

    def _all_have(self, count: int) -> bool:
        return all(log.read_bytes().count(b"\n") >= count for _, log in self.receiving.values())


def start_exchange(
    lab: Lab,
    source: Pod,
    targets: Pod | Sequence[Pod],
    *,
    address: str = "",
    family: int = 4,
    count: int = 100,
    rate: float = 1000,
    size: int = 100,
    port: int = 0,
) -> RunningExchange:
    """Begin to send `count` datagrams (0: until `stop()`) of `size` bytes of payload, `rate` a second.

    They go to the first target's IPv4 or IPv6 address, or to `address`: a broadcast address, or a multicast group which all
    targets join. `port` 0 takes one that no other exchange of this process uses. Returns when all receivers listen.
    """
    receivers = [targets] if isinstance(targets, Pod) else list(targets)
    sender, port = next(_senders), port or next(_ports)
    group = address if _is_multicast(address) else ""
    receiving = {str(pod): _start_receiver(lab, pod, sender, port, group) for pod in receivers}
    for process, _ in receiving.values():
        process.wait_ready(lambda process=process: datagrams.READY in process.output(), _START_TIMEOUT, "listens")
    log = lab.directory / "log" / f"sent-{sender}"
    sending = lab.spawn(
        source,
        *_program("send", address or (receivers[0].ipv4 if family == 4 else receivers[0].ipv6), str(port)),
        *(f"--sender={sender}", f"--count={count}", f"--rate={rate}", f"--size={size}", f"--log={log}"),
        name=f"send-{sender}",
    )
    return RunningExchange(sender, port, sending, log, receiving)


def _start_receiver(lab: Lab, pod: Pod, sender: int, port: int, group: str) -> tuple[LabProcess, Path]:
    log = lab.directory / "log" / f"received-{sender}-{pod.name}"
    arguments = _program("receive", str(port), f"--group={group}", f"--log={log}")
    return lab.spawn(pod, *arguments, name=f"receive-{sender}"), log


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vtap_lab.datagrams", *arguments]


def _is_multicast(address: str) -> bool:
    return bool(address) and ipaddress.ip_address(address).is_multicast
