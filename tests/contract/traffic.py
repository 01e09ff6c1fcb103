"""Traffic between pods from threads of the test's own process that live in the pods' namespaces: no program is started.

What is sent, received and logged is what `vtap_lab.datagrams` says, as of programs that run in pods.
"""

from __future__ import annotations

import io
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.drivers.netlink import enter_network_namespace
from vtap_lab import datagrams
from vtap_lab.datagrams import Datagram
from vtap_lab.errors import PATIENCE, comes_true, wait_for
from vtap_lab.exchange import Exchange
from vtap_lab.lab import Pod

_ARRIVAL_TIMEOUT = 5.0
"""Only where something is lost is it waited for."""
_TIMEOUT = 30.0
_SO_RCVBUFFORCE = 33
_SO_MAX_PACING_RATE = 47
_BUFFER = 8 << 20
_BULK_RATE = 20_000_000
"""Bytes a second: in super-packets, yet not so fast that a collector on the same cores would have to lose copies."""
_GRE = 47
_senders = itertools.count(1)
_ports = itertools.count(40000)


class InPod:
    """A function at work on a thread of its own in a pod's network namespace."""

    def __init__(self, netns: str, work: Callable[[], None]) -> None:
        self._netns, self._work = netns, work
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with Path(f"/run/netns/{self._netns}").open() as namespace:
                enter_network_namespace(namespace.fileno())
            self._work()
        except BaseException as problem:  # noqa: BLE001 - raised again by whoever joins
            self._problem = problem

    def join(self, timeout: float = _TIMEOUT) -> None:
        """Wait for its end, and raise what it raised."""
        self._thread.join(timeout * PATIENCE)
        assert not self._thread.is_alive(), f"a thread in {self._netns} has not ended within {timeout:g} s"
        if self._problem is not None:
            raise self._problem


class _Log(io.StringIO):
    """A text that one thread writes, a line at once, and others count."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[float] = []
        """When each line was written, in seconds since 1970."""

    def write(self, text: str) -> int:
        self.moments.append(time.time())
        return super().write(text)

    def lines(self) -> int:
        return len(self.moments)

    def datagrams(self) -> tuple[Datagram, ...]:
        return tuple(Datagram(*map(int, line.split())) for line in self.getvalue().splitlines())


class _Ending:
    """True once asked."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


class Talk:
    """Numbered datagrams on their way: `count` of them (0: until `stop`), `rate` a second. `finish` or `stop` exactly once.

    A machine that needs patience gets them as much more slowly: an emulated switch does not keep up with 1,000 a second.
    """

    def __init__(
        self,
        source: Pod,
        targets: Pod | Sequence[Pod],
        *,
        address: str = "",
        family: int = 4,
        count: int = 100,
        rate: float = 1000,
        size: int = 100,
        port: int = 0,
    ) -> None:
        receivers = [targets] if isinstance(targets, Pod) else list(targets)
        self.sender, self.port = next(_senders), port or next(_ports)
        self._sent, self._ending, self._heard = _Log(), _Ending(), _Ending()
        self._received = {str(pod): _Log() for pod in receivers}
        group = address if _is_multicast(address) else ""
        self._receiving = [self._listen(pod, group, self._received[str(pod)]) for pod in receivers]
        to = address or (receivers[0].ipv4 if family == 4 else receivers[0].ipv6)
        numbers = datagrams.paced(count, rate / PATIENCE)
        _running.append(self)
        self._began = time.time()
        self._sending = InPod(
            source.netns, lambda: datagrams.send(to, self.port, self.sender, numbers, size, self._sent, self._ending)
        )

    def _listen(self, pod: Pod, group: str, log: _Log) -> InPod:
        ready = threading.Event()

        def work() -> None:
            with datagrams.listening(self.port, group) as inside:
                inside.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
                ready.set()
                datagrams.receive(inside, log, self._heard)

        thread = InPod(pod.netns, work)
        assert ready.wait(_TIMEOUT * PATIENCE), f"{pod} does not listen"
        return thread

    def sent_so_far(self) -> int:
        return self._sent.lines()

    def flows_on(self, count: int = 100) -> None:
        """Wait until so many more have been sent."""
        wanted = self.sent_so_far() + count
        wait_for(lambda: self.sent_so_far() >= wanted, _TIMEOUT, "traffic flows")

    def finish(self) -> Exchange:
        """Once the count is sent, and all has arrived or nothing can be under way any more."""
        self._sending.join()
        _running.remove(self)
        comes_true(lambda: all(log.lines() >= self._sent.lines() for log in self._received.values()), _ARRIVAL_TIMEOUT)
        self._heard.asked = True
        for thread in self._receiving:
            thread.join()
        received = {name: log.datagrams() for name, log in self._received.items()}
        return Exchange(self.sender, self.port, self._sent.datagrams(), received)

    def under_way(self) -> dict[Datagram, tuple[float, float]]:
        """Of each datagram that has arrived a moment before it was sent, and one after it had arrived, in seconds since 1970.

        Once it has ended, and where there is one receiver.
        """
        (received,) = self._received.values()
        arrived = dict(zip(received.datagrams(), received.moments, strict=True))
        before = dict(zip(self._sent.datagrams(), [self._began, *self._sent.moments], strict=False))
        return {datagram: (before[datagram], moment) for datagram, moment in arrived.items()}

    def stop(self) -> Exchange:
        """End it, and then as `finish`."""
        self._ending.asked = True
        return self.finish()


_running: list[Talk] = []


def end_all() -> None:
    """Traffic of a case that failed must not run into the next one."""
    for one in list(_running):
        one.stop()


def talk(
    source: Pod, targets: Pod | Sequence[Pod], *, address: str = "", family: int = 4, count: int = 100, size: int = 100
) -> Exchange:
    """So many datagrams from one pod to others, and what became of them."""
    return Talk(source, targets, address=address, family=family, count=count, size=size).finish()


@dataclass(frozen=True)
class Bulk:
    """A byte stream over TCP. `port` is the receiver's."""

    port: int
    sent: bytes
    received: bytes


def bulk(source: Pod, target: Pod, size: int) -> Bulk:
    """Bytes that nobody could confuse, as fast as the stack sends super-packets of them."""
    data, port = random.Random(size).randbytes(size), next(_ports)
    ready, arrived = threading.Event(), bytearray()

    def serve() -> None:
        with socket.create_server(("", port)) as server:
            ready.set()
            connection, _ = server.accept()
            with connection:
                while part := connection.recv(1 << 16):
                    arrived.extend(part)

    def send() -> None:
        with socket.create_connection((target.ipv4, port), timeout=_TIMEOUT * PATIENCE) as connection:
            connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, int(_BULK_RATE / PATIENCE))
            connection.sendall(data)

    serving = InPod(target.netns, serve)
    assert ready.wait(_TIMEOUT * PATIENCE), f"{target} does not listen"
    InPod(source.netns, send).join()
    serving.join()
    return Bulk(port, data, bytes(arrived))


class GreListener:
    """Takes in what comes to a pod over GRE, as somebody else's monitor would."""

    def __init__(self, pod: Pod) -> None:
        self.frames: list[bytes] = []
        self._ending, self._ready = _Ending(), threading.Event()
        self._thread = InPod(pod.netns, self._listen)
        assert self._ready.wait(_TIMEOUT * PATIENCE), f"{pod} does not listen"

    def _listen(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, _GRE) as inside:
            inside.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            inside.settimeout(0.1)
            self._ready.set()
            while True:
                try:
                    packet = inside.recv(65535)
                except TimeoutError:
                    if self._ending:
                        return
                    continue
                self.frames.append(packet[(packet[0] & 15) * 4 :])

    def close(self) -> None:
        self._ending.asked = True
        self._thread.join()


def _is_multicast(address: str) -> bool:
    return address.startswith(("224.", "239.", "ff"))
