"""The same fault for a tapped and an untapped stream at the same time: what the tap does to the originals shows by comparing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.e2e.cases.scene import Scene, flows_on
from tests.e2e.cluster.exchange import Exchanged
from tests.e2e.cluster.pods import RunningPod
from vtap_lab.errors import wait_for

_PING_EVERY = 0.1
LOSS_NOISE = 100
"""Datagrams, at 200 a second, by which two streams under one fault may differ."""
STALL_NOISE = 1.0
"""Seconds by which their longest silences may differ."""


@dataclass(frozen=True)
class Suffered:
    """What became of one stream. `silence` is the longest time between two echo replies, in seconds."""

    exchanged: Exchanged
    silence: float


@dataclass(frozen=True)
class Fared:
    """Two streams between the same nodes, one of them tapped."""

    tapped: Suffered
    untapped: Suffered

    def expect_no_harm(self) -> None:
        """The tapped stream lost and waited no more than the other, but for noise."""
        lost, lost_anyway = len(self.tapped.exchanged.lost), len(self.untapped.exchanged.lost)
        assert lost <= lost_anyway + LOSS_NOISE, f"{lost} lost with the tap, {lost_anyway} without"
        silence, silence_anyway = self.tapped.silence, self.untapped.silence
        assert silence <= silence_anyway + STALL_NOISE, f"{silence:.1f} s of silence with the tap, {silence_anyway:.1f} s without"


def suffer(
    scene: Scene, tapped: tuple[RunningPod, RunningPod], untapped: tuple[RunningPod, RunningPod], fault: Callable[[], None]
) -> Fared:
    """Let `fault` happen while both pairs exchange datagrams and echo requests, and give them time afterwards."""
    kubectl = scene.product.cluster.kubectl
    pairs = (tapped, untapped)
    exchanges = [scene.exchange(source, target) for source, target in pairs]
    logs = [f"ping-{exchange.sender}" for exchange in exchanges]
    pings = [
        source.spawn(kubectl, log, "ping", "-D", "-n", "-i", str(_PING_EVERY), target.addresses["net1"])
        for (source, target), log in zip(pairs, logs, strict=True)
    ]
    for exchange in exchanges:
        flows_on(exchange, 100)
    fault()
    for exchange in exchanges:
        flows_on(exchange, 400)
    for (source, _), ping in zip(pairs, pings, strict=True):
        source.signal(kubectl, ping, "INT")
        wait_for(lambda source=source, ping=ping: not source.is_alive(kubectl, ping), 30, "the end of ping", every=0.3)
    done = [exchange.stop() for exchange in exchanges]
    silences = [_longest_silence(source.read_log(log)) for (source, _), log in zip(pairs, logs, strict=True)]
    first, second = (Suffered(*one) for one in zip(done, silences, strict=True))
    return Fared(first, second)


def _longest_silence(log: str) -> float:
    times = [float(at) for at in re.findall(r"^\[([0-9.]+)\] \d+ bytes from", log, re.MULTILINE)]
    assert len(times) > 10, f"hardly any echo reply: {log[-300:]}"
    return max(later - earlier for earlier, later in itertools.pairwise(times))
