"""Samplers, limit and lease by BPF_PROG_TEST_RUN: a packet run many times over, and what the counters say of it."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from tests.unit.pipeline import frames
from tests.unit.pipeline.node import INGRESS, PEER_MAC, POD_MAC, Node, open_accounts, wait_until
from tests.unit.pipeline.test_filter import context
from vtap_agent.drivers import libbpf
from vtap_agent.plan.dataplane import Action, PointCounters, Sampling, SamplingType, TapProgram

HOUR = 3_600_000_000_000
SIGMAS = 6
"""A right sampler misses bounds this wide once in half a billion runs."""


def frame(length: int = 100) -> bytes:
    datagram = frames.udp(frames.PEER4, frames.POD4, 5, 7, bytes(length))
    return frames.ethernet(POD_MAC, PEER_MAC, 0x0800, frames.ipv4(frames.PEER4, frames.POD4, 17, datagram))


def apply(node: Node, program: TapProgram) -> None:
    node.apply(node.plane(program))
    node.pipeline.reset_slots([0, 1])


def run(node: Node, times: int) -> PointCounters:
    libbpf.test_run(node.pipeline._kernel.programs["pick_ingress"], frame(), context(node, INGRESS), times)
    return node.counters(0)


@pytest.mark.parametrize("one_in", [2, 3, 10, 100, 1000, 65536])
def test_one_in_n_hits_as_often_as_chance_allows(node: Node, one_in: int) -> None:
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=one_in)))
    times = min(2_000_000, max(50_000, one_in * 200))
    counters = run(node, times)
    chance = 1 / one_in
    deviation = math.sqrt(times * chance * (1 - chance))
    assert counters.seen == times
    assert counters.handed + counters.unsampled == times
    assert abs(counters.handed - times * chance) <= SIGMAS * deviation + 1


def test_gaps_between_hits_are_geometric(node: Node) -> None:
    """The variance of the number of hits in blocks tells a coin from a counter: a strict 1 in 8 would have none."""
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=8)))
    blocks, size = 400, 200
    hits: list[int] = []
    before = 0
    for _ in range(blocks):
        now = run(node, size).handed
        hits.append(now - before)
        before = now
    mean = sum(hits) / blocks
    variance = sum((hit - mean) ** 2 for hit in hits) / (blocks - 1)
    expected = size / 8 * 7 / 8
    assert abs(variance - expected) < SIGMAS * expected * math.sqrt(2 / (blocks - 1))


def test_a_changed_chance_counts_at_once(node: Node) -> None:
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=1 << 30)))
    assert run(node, 1000).handed == 0
    node.apply(node.plane(TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=2))))
    assert run(node, 1000).handed > 300


def test_one_in_one_is_all(node: Node) -> None:
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=1)))
    assert run(node, 1000).handed == 1000


@pytest.mark.parametrize("packets", [1, 10, 999])
def test_exactly_n_in_an_interval(node: Node, packets: int) -> None:
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.PER_INTERVAL, packets=packets, interval_ns=HOUR)))
    counters = run(node, 5000)
    assert (counters.handed, counters.unsampled) == (packets, 5000 - packets)


def test_each_interval_starts_anew(node: Node) -> None:
    interval = 200_000_000
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.PER_INTERVAL, packets=7, interval_ns=interval)))
    first = time.monotonic_ns() // interval
    wait_until(lambda: run(node, 50).handed >= 7 * 4, "four windows are filled")
    last = time.monotonic_ns() // interval
    handed = node.counters(0).handed
    assert handed % 7 == 0
    # The coarse clock that the program reads may still be in the window before.
    assert handed // 7 <= last - first + 2


def test_flows_keep_about_their_share(node: Node) -> None:
    apply(node, TapProgram(Action.INCLUDE, (), Sampling(SamplingType.FLOWS, flow_threshold=(1 << 32) // 4)))
    fd = node.pipeline._kernel.programs["pick_ingress"]
    flows = 2000
    for flow in range(flows):
        datagram = frames.udp(frames.PEER4, frames.POD4, 1024 + flow, 53, b"")
        data = frames.ethernet(POD_MAC, PEER_MAC, 0x0800, frames.ipv4(frames.PEER4, frames.POD4, 17, datagram))
        libbpf.test_run(fd, data, context(node, INGRESS))
    counters = node.counters(0)
    assert counters.seen == flows
    assert abs(counters.handed - flows / 4) <= SIGMAS * math.sqrt(flows * 3 / 16)


def test_the_limit_holds_over_time_and_counts_what_it_holds_back(node: Node) -> None:
    rate, burst = 2_000_000, 100_000
    apply(node, TapProgram(Action.INCLUDE, (), rate_bits_per_second=rate, burst_bits=burst))
    start = time.monotonic()
    while time.monotonic() < start + 0.7:
        node.tap(INGRESS, frame(1000))
    counters = node.settled(0)
    allowed = burst + rate * (time.monotonic() - start)
    assert counters.limited > 0
    assert counters.sent_bytes * 8 <= allowed
    assert counters.sent_bytes * 8 >= 0.5 * (burst + rate * 0.7)


def test_the_lease_ends_the_copies_and_says_so(node: Node) -> None:
    apply(node, TapProgram(Action.INCLUDE, ()))
    node.pipeline.renew_lease(0.05)
    try:
        wait_until(lambda: run(node, 1).dropped.get("lease", 0) > 0, "the lease ends")
        stopped = node.counters(0).handed
        assert run(node, 1000).handed == stopped
    finally:
        node.pipeline.renew_lease(600)
    assert run(node, 10).handed == stopped + 10


def test_broadcast_goes_to_every_tapped_receiver_but_the_sender(node: Node) -> None:
    apply(node, TapProgram(Action.INCLUDE, ()))
    before, ports = node.settled(0), node.pipeline.counters().unattributed[INGRESS]
    request = frames.ethernet(b"\xff" * 6, PEER_MAC, 0x0806, bytes(28))
    own = frames.ethernet(b"\xff" * 6, POD_MAC, 0x0806, bytes(28))
    for _ in range(3):
        node.tap(INGRESS, request)
        node.tap(INGRESS, own)
    wait_until(lambda: node.counters(0).seen >= before.seen + 3, "the broadcasts are seen")
    after = node.settled(0)
    assert after.sent - before.sent == 3
    assert node.pipeline.counters().unattributed[INGRESS] == ports


def test_what_fits_nobody_is_unattributed(node: Node) -> None:
    node.apply(node.plane())
    before, seen = node.pipeline.counters().unattributed[INGRESS], node.counters(0).seen
    node.tap(INGRESS, frames.ethernet(PEER_MAC, POD_MAC, 0x0800, bytes(60)))
    wait_until(lambda: node.pipeline.counters().unattributed[INGRESS] == before + 1, "it is counted")
    assert node.counters(0).seen == seen


def test_a_point_without_its_program_copies_nothing(node: Node) -> None:
    plane = node.plane()
    node.apply(plane)
    node.pipeline.reset_slots([0, 1])
    node.pipeline._kernel.unset("programs", 0)
    counters = run(node, 10)
    assert (counters.handed, counters.dropped) == (0, {"notReady": 10})
    node.apply(replace(plane))
    assert open_accounts(node.counters(0)) == 0
