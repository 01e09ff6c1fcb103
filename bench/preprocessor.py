"""What `pick` and `send` cost a packet, by BPF_PROG_TEST_RUN: nanoseconds over an empty program in the same run, interleaved.

Programs that leave a packet as it is run on it many times over. `pick` of a selected packet masks its EtherType: a wrapper puts
it back first. `send` lengthens the packet: a wrapper takes the outer header off again, and what that takes is measured apart and
subtracted, by runs of 12 less runs of 2, so that neither the start nor a cold cache is in it.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bench.measure import Figures, Sample, interleave, table, write_json
from tests.unit.pipeline import frames
from tests.unit.pipeline.node import INCARNATION, INGRESS, PEER_MAC, POD_MAC, Node, point, why_not
from vtap_agent.drivers import libbpf
from vtap_agent.pipeline import compiler, layout
from vtap_agent.pipeline.kernel import word
from vtap_agent.plan.dataplane import Action, DataPlane, Direction, Match, PortRange, Sampling, SamplingType, Source, TapProgram

ROUNDS = 21
REPEAT = 100_000
FEW, MANY, TRIES = 2, 12, 400
MARK = 1 << 22 | 1
IFINDEX_OFFSET, CONTEXT_SIZE = 40, 192
SHOT, REDIRECT = 2, 7

RULE = Match(
    Action.INCLUDE,
    peer=(socket.inet_aton(frames.PEER4), 32),
    protocol=6,
    pod_ports=PortRange(40000, 40000),
    peer_ports=PortRange(5202, 5202),
)
"""All of a five-tuple but the last port matches: the longest way through a rule that doesn't."""

GOALS = {"not sampled": 12, "one five-tuple rule": 30, "16 rules": 100, "selected and encapsulated": 150}


def packet() -> bytes:
    """TCP of 1,000 bytes toward the pod."""
    segment = frames.tcp(frames.PEER4, frames.POD4, 5201, 40000, bytes(946))
    return frames.ethernet(POD_MAC, PEER_MAC, 0x0800, frames.ipv4(frames.PEER4, frames.POD4, 6, segment))


class Bench:
    """The programs, built with their wrappers and run over the maps of a node's pipeline."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.frame = packet()
        index = socket.if_nametoindex(node.ports[INGRESS].ours)
        self.context = bytes(IFINDEX_OFFSET) + struct.pack("=I", index) + bytes(CONTEXT_SIZE - IFINDEX_OFFSET - 4)
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "bench.o"
            compiler.compile_object(Path(__file__).with_name("preprocessor_again.bpf.c"), target)
            with closing(libbpf.Object(target)) as loaded:
                for name, one in node.pipeline._kernel.maps.items():
                    loaded.reuse(name, one.fd)
                loaded.load()
                names = ("empty", "pick_ingress", "pick_again", "send_again", "undo_again", "head_again")
                self.programs = {name: loaded.program_fd(name) for name in names}

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)

    def run(self, program: str, verdict: int, repeat: int = REPEAT) -> float:
        """ns a run, the mean of many."""
        done = libbpf.test_run(self.programs[program], self.frame, self.context, repeat)
        if done.verdict != verdict:
            raise SystemExit(f"bench: {program} answered {done.verdict} in place of {verdict}")
        return done.duration_ns

    def short_run(self, program: str, verdict: int) -> float:
        """ns a run, from the difference of a longer and a shorter one."""
        totals: dict[int, list[int]] = {FEW: [], MANY: []}
        for _ in range(TRIES):
            for repeat, seen in totals.items():
                done = libbpf.test_run(self.programs[program], self.frame, self.context, repeat)
                if done.verdict != verdict:
                    raise SystemExit(f"bench: {program} answered {done.verdict} in place of {verdict}")
                seen.append(done.duration_ns * repeat)
        return (statistics.median(totals[MANY]) - statistics.median(totals[FEW])) / (MANY - FEW)

    def prepare(self, desired: DataPlane) -> None:
        for step in self.node.pipeline.plan(desired, self.node.ports):
            self.node.pipeline.apply(step)

    def over_empty(self, program: str, desired: DataPlane, verdict: int, repeat: int = REPEAT) -> Callable[[], Sample]:
        def measure() -> Sample:
            self.prepare(desired)
            self.run(program, verdict, repeat)
            empty = self.run("empty", SHOT)
            return {"ns": self.run(program, verdict, repeat) - empty, "empty": empty}

        return measure

    def send(self) -> float:
        ticket = layout.Ticket(mark=MARK, incarnation=int(INCARNATION, 16) & 0xFFFFFFFF, ethertype=8, header_length=54)
        self.node.pipeline._kernel.maps["tickets"].update(word(1), bytes(ticket))
        undo = self.short_run("undo_again", SHOT) - self.short_run("head_again", SHOT)
        return self.short_run("send_again", REDIRECT) - undo

    def selected(self, desired: DataPlane) -> Callable[[], Sample]:
        def measure() -> Sample:
            self.prepare(desired)
            self.run("pick_again", REDIRECT)
            empty = self.run("empty", SHOT)
            pick, send = self.run("pick_again", REDIRECT) - empty, self.send() - empty
            return {"ns": pick + send, "pick": pick, "send": send, "empty": empty}

        return measure


def with_taps(plane: DataPlane, count: int) -> DataPlane:
    """`count` taps on the node, each of a pod of its own; the packet's pod is one of them."""
    names = [f"shop/t{number}" for number in range(count)]
    points = tuple(point(number, Direction.INGRESS, name) for number, name in enumerate(names))
    macs = [POD_MAC, *(bytes.fromhex("0200000100") + bytes([number]) for number in range(1, count))]
    sources = tuple(Source(INGRESS, 0, mac, False, (number,)) for number, mac in enumerate(macs))
    program = plane.programs["shop/web"]
    return replace(plane, points=points, sources=sources, programs=dict.fromkeys(names, program))


def on_one_pod(plane: DataPlane, programs: list[TapProgram]) -> DataPlane:
    """As many taps of the same pod as there are programs."""
    names = [f"shop/t{number}" for number in range(len(programs))]
    points = tuple(point(number, Direction.INGRESS, name) for number, name in enumerate(names))
    sources = (Source(INGRESS, 0, POD_MAC, False, tuple(range(len(programs)))),)
    return replace(plane, points=points, sources=sources, programs=dict(zip(names, programs, strict=True)))


def rows(bench: Bench) -> dict[str, Callable[[], Sample]]:
    plane = bench.node.plane

    def desired(program: TapProgram) -> DataPlane:
        return with_taps(plane(program), 1)

    rare = TapProgram(Action.INCLUDE, (), Sampling(SamplingType.ONE_IN, one_in=1 << 30))
    one_rule, no_match = TapProgram(Action.EXCLUDE, (RULE,)), TapProgram(Action.EXCLUDE, (RULE,))
    every = TapProgram(Action.INCLUDE, ())
    hundred_of_one_pod = on_one_pod(plane(), [rare, *[no_match] * 99])
    return {
        "empty again (A/A)": bench.over_empty("empty", desired(every), SHOT),
        "not sampled": bench.over_empty("pick_ingress", desired(rare), SHOT),
        "one five-tuple rule": bench.over_empty("pick_ingress", desired(one_rule), SHOT),
        "16 rules": bench.over_empty("pick_ingress", desired(TapProgram(Action.EXCLUDE, (RULE,) * 16)), SHOT),
        "selected and encapsulated": bench.selected(desired(every)),
        "one tap of one pod": bench.over_empty("pick_ingress", with_taps(plane(one_rule), 1), SHOT),
        "100 taps of 100 pods, one its": bench.over_empty("pick_ingress", with_taps(plane(one_rule), 100), SHOT),
        "100 taps of this pod, one wants it": bench.over_empty("pick_ingress", hundred_of_one_pod, SHOT),
        "100 taps of this pod, all want it, none samples it": bench.over_empty(
            "pick_ingress", on_one_pod(plane(), [rare] * 100), SHOT
        ),
        # With its 99 clones going through the pair, as they really do.
        "100 taps of this pod, all copy it": bench.over_empty("pick_again", on_one_pod(plane(), [every] * 100), REDIRECT, 200),
    }


def line(name: str, figures: Figures) -> list[str]:
    values = sorted(figures.values("ns"))
    share = statistics.median(a / b for a, b in zip(figures.values("ns"), figures.values("empty"), strict=True))
    goal = GOALS.get(name)
    middle = statistics.median(values)
    reached = "" if goal is None else f"≤ {goal}" if middle <= goal else f"≤ {goal} missed"
    return [name, f"{middle:.0f}", f"{values[0]:.0f}..{values[-1]:.0f}", f"{share:.2f}", reached]


def main() -> int:
    if reason := why_not():
        sys.stderr.write(f"bench: preprocessor: {reason}\n")
        return 1
    with Node() as node, closing(Bench(node)) as bench:
        measured = interleave(rows(bench), int(os.environ.get("VTAP_BENCH_ROUNDS", str(ROUNDS))))
        maps = node.pipeline.map_bytes()
    empty = statistics.median(value for figures in measured.values() for value in figures.values("empty"))
    one, hundred = measured["one tap of one pod"].median("ns"), measured["100 taps of 100 pods, one its"].median("ns")
    selected = measured["selected and encapsulated"]
    title = f"An empty program takes {empty:.0f} ns here."
    header = ["preprocessor", "ns over empty", "spread", "of empty", "goal"]
    print(table(title, header, [line(*row) for row in measured.items()]))
    pick, send = selected.median("pick"), selected.median("send")
    print(f"selected: pick {pick:.0f} ns, send {send:.0f} ns (GRE-in-UDP over IPv4 with trailer)")
    verdict = "reached" if hundred <= 1.2 * one else "missed"
    print(f"100 taps of which one matches: {hundred / one:.2f} times one tap (goal ≤ 1.2, {verdict})")
    print(f"maps: {maps / 2**20:.1f} MiB")
    content = {name: [dict(sample) for sample in figures.samples] for name, figures in measured.items()}
    print(write_json("preprocessor", {"empty_ns": empty, "rows": content, "map_bytes": maps, "goals": GOALS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
