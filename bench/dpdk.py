"""What a tap costs Open vSwitch's poll-mode threads, in cycles per packet.

A net_null makes 64-byte packets as fast as a thread takes them, another swallows them; `pmd-stats-show` tells the cycles. Rows,
measured in turn in every round:
    none, and none again (A/A)
    raw mirror, raw group          to a net_null: what the copy itself costs, with nobody to receive it
    mirror → KIND                  to each kind of port that a copy could leave DPDK by: what decision 0140 chose among
    ours, …                        taps of the source, by OVSMirror and OVSGroup; full ones leave in GRE

All work up to the sending of the copy is done by the thread itself, but for what export CPUs do. Cycles are of the time stamp
counter, which goes on while somebody else has the core; so nanoseconds that the thread ran (schedstat) stand beside them: on a
busy machine go by those. The share that was copied is read around the packets' counters, and so may be a little over 100 %.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.backends_goals import AGAIN, BASELINE, COMPLETE, Judgement, Verdict, judge, with_losses
from bench.measure import Figures, Sample, differences, interleave, is_possible, table, write_json
from bench.replaceable import ReplaceableAgent
from vtap_agent.drivers.unixctl import PollThread, Vswitchd
from vtap_lab import preflight
from vtap_lab.dpdk import DpdkLab, why_no_dpdk
from vtap_lab.errors import LabError, wait_for
from vtap_lab.lab import BRIDGE, COLLECTOR_ADDRESS, LabOptions, Pod

CYCLES, NANOSECONDS = "cycles/packet", "ns/packet"
SINK = "sink"
SILENT_MAC = "00:00:00:00:00:00"
"""Source and destination of what net_null makes."""
GROUP = 77
OTHER_CORE = 0
"""The rest of Open vSwitch has it; see `run`."""
PATIENCE = 60.0
ATTEMPTS = 5
WARM = 0.3
"""Seconds after a change before anything is measured: flows are translated anew, queues come to rest."""


@dataclass(frozen=True)
class Options:
    """`seconds` of each measurement; `pmds` poll-mode threads, each with a source of its own."""

    rounds: int
    seconds: float
    pmds: int
    size: int


class Bench:
    """A node on DPDK whose sources never cease, an agent, and readings of the threads."""

    def __init__(self, lab: DpdkLab, options: Options) -> None:
        self.lab, self.options = lab, options
        self._numbers = itertools.count()
        self.agent = ReplaceableAgent(lab)  # Before the sources, which leave little to anybody else.
        lab.dpdk.add_device(BRIDGE, SINK, "net_null_sink,no-rx=1")
        self.sources = [self._add_source(number) for number in range(options.pmds)]
        # Nothing is flooded to the bridge's own port, and nothing learnt.
        lab.switch.ofctl("del-flows", BRIDGE)
        for port in self.ports:
            lab.switch.ofctl("add-flow", BRIDGE, f"in_port={port},actions=output:{SINK}")
        self.vswitchd = Vswitchd(lab.switch.directory)
        destination = {"apiVersion": "vtap.dev/v1alpha1", "kind": "TapDestination", "metadata": {"name": "default"}}
        lab.write(lab.taps / "destination.yaml", yaml.safe_dump({**destination, "spec": {"gre": {"address": COLLECTOR_ADDRESS}}}))

    def _add_source(self, number: int) -> Pod:
        return self.lab.add_generator(
            f"source-{number}", "net_null", f"size={self.options.size}", SILENT_MAC, namespace="bench", labels={"app": "source"}
        )

    @property
    def ports(self) -> list[str]:
        """The sources' ports."""
        return [self.lab.port_of(pod) for pod in self.sources]

    def device_name(self) -> str:
        """Of a virtual device that no earlier one has had: DPDK gives some of them up late."""
        return f"bench{next(self._numbers)}"

    def measure(self, row: Row) -> Sample:
        """What the threads spent while `row` copied."""
        with row.copying(self):
            self.lab.switch.appctl("revalidator/purge")
            for _ in range(ATTEMPTS):
                time.sleep(WARM)
                if (sample := self._sampled(row)) is not None:
                    return sample
        raise LabError("the poll-mode threads passed no packet or began to count anew, each time: is the machine too busy?")

    def _sampled(self, row: Row) -> Sample | None:
        """None where vswitchd made the threads start anew meanwhile, as it does some time after a port has come or gone."""
        copied, before, ran = row.copied(self), self._threads(), self._ran()
        time.sleep(self.options.seconds)
        after, ran_since, copied_since = self._threads(), self._ran() - ran, row.copied(self)
        packets = [now.packets - then.packets for now, then in zip(after, before, strict=False)]
        busy = [now.busy_cycles - then.busy_cycles for now, then in zip(after, before, strict=False)]
        if len(after) != len(before) or min((*packets, *busy), default=0) <= 0:
            return None
        count = sum(packets)
        figures = {CYCLES: sum(busy) / count, NANOSECONDS: ran_since / count, "Mpps": count / self.options.seconds / 1e6}
        if copied is not None and copied_since is not None:
            figures["copied"] = (copied_since - copied) / count
        return figures

    def _threads(self) -> Sequence[PollThread]:
        return self.vswitchd.poll_threads()

    def _ran(self) -> int:
        """Nanoseconds that the poll-mode threads have had a core (proc(5), schedstat)."""
        tasks = Path(f"/proc/{self.lab.switch.vswitchd_pid}/task").iterdir()
        threads = [task for task in tasks if (task / "comm").read_text().startswith("pmd-")]
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads)

    def transmitted(self, port: str) -> int:
        """Packets that the switch gave to a port, as of now."""
        counters = self.vswitchd.port_counters()[port]
        return counters.transmitted


class Row:
    """A way to copy, or none."""

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        """Copies are made inside of the context."""
        yield

    def copied(self, bench: Bench) -> int | None:
        """How many copies have been made; None where there are none."""
        return None


PORT = "copies"


@dataclass(frozen=True)
class Raw(Row):
    """Copies to a port of some kind, by a mirror or by a group of two buckets. Beyond the port nobody receives them.

    `columns` are those of its Interface, where NAME is a fresh device's name. With `veth` its device is one end of a pair.
    """

    columns: tuple[str, ...]
    veth: bool = False
    group: bool = False

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        lab, switch, name = bench.lab, bench.lab.switch, bench.device_name()
        if self.veth:
            lab.ip(
                lab.node,
                f"link add {PORT} type veth peer name beyond",
                *(f"link set {device} addrgenmode none" for device in (PORT, "beyond")),
                *(f"link set {device} arp off up" for device in (PORT, "beyond")),
            )
        columns = [column.replace("NAME", name) for column in self.columns]
        switch.vsctl("add-port", BRIDGE, PORT, *(["--", "set", "Interface", PORT, *columns] if columns else []))
        try:
            if problem := switch.vsctl("get", "Interface", PORT, "error").strip("[]"):
                raise LabError(f"a copy port with {columns}: {problem}")
            if "type=tap" in columns:
                lab.ip(lab.node, f"link set {PORT} addrgenmode none", f"link set {PORT} arp off up")
            (self._by_group if self.group else self._by_mirror)(bench)
            yield
        finally:
            if self.group:
                self._without_group(bench)
            switch.vsctl("clear", "Bridge", BRIDGE, "mirrors", "--", "del-port", BRIDGE, PORT)
            if self.veth:
                lab.ip(lab.node, f"link delete {PORT}")

    def _by_mirror(self, bench: Bench) -> None:
        found = [argument for n, port in enumerate(bench.ports) for argument in ("--", f"--id=@s{n}", "get", "Port", port)]
        selected = ",".join(f"@s{n}" for n in range(len(bench.ports)))
        bench.lab.switch.vsctl(
            *found,
            *("--", "--id=@to", "get", "Port", PORT),
            *("--", "--id=@m", "create", "Mirror", "name=raw", f"select_src_port=[{selected}]", "output_port=@to"),
            *("--", "set", "Bridge", BRIDGE, "mirrors=@m"),
        )

    def _by_group(self, bench: Bench) -> None:
        switch = bench.lab.switch
        buckets = f"bucket=actions=output:{SINK},bucket=actions=output:{PORT}"
        switch.ofctl("-O", "OpenFlow13", "add-group", BRIDGE, f"group_id={GROUP},type=all,{buckets}")
        for port in bench.ports:
            switch.ofctl("-O", "OpenFlow13", "mod-flows", BRIDGE, f"in_port={port},actions=group:{GROUP}")

    def _without_group(self, bench: Bench) -> None:
        switch = bench.lab.switch
        for port in bench.ports:
            switch.ofctl("mod-flows", BRIDGE, f"in_port={port},actions=output:{SINK}")
        switch.ofctl("-O", "OpenFlow13", "del-groups", BRIDGE, f"group_id={GROUP}")

    def copied(self, bench: Bench) -> int:
        return bench.transmitted(PORT)


class Ours(Row):
    """A VirtualTap on what the sources send."""

    def __init__(self, **spec: object) -> None:
        self._spec = {"podSelector": {"matchLabels": {"app": "source"}}, "direction": "Egress", **spec}

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        file = bench.lab.taps / "tap.yaml"
        metadata = {"name": "cost", "namespace": "bench"}
        tap = {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": metadata, "spec": self._spec}
        bench.lab.write(file, yaml.safe_dump(tap))
        try:
            wait_for(lambda: _programmed(bench.agent), PATIENCE, "the tap is programmed", every=0.2)
            yield
        finally:
            file.unlink()
            wait_for(lambda: not bench.agent.get("/v1/status")["taps"], PATIENCE, "the tap is gone", every=0.2)

    def copied(self, bench: Bench) -> int:
        points = [point for point in bench.agent.get("/v1/ledger")["points"] if not point["closed"]]
        return sum(point["sent"] for point in points)


class HandedOver(Ours):
    """Its copies are worked at by a core that no poll-mode thread has (--export-cpus)."""

    @contextlib.contextmanager
    def copying(self, bench: Bench) -> Iterator[None]:
        with bench.agent.with_options(f"--export-cpus={OTHER_CORE}"), super().copying(bench):
            yield


def _programmed(agent: ReplaceableAgent) -> bool:
    taps = agent.get("/v1/status")["taps"]
    conditions = {condition["type"]: condition["status"] for tap in taps for condition in tap["conditions"]}
    return conditions.get("Programmed") == "True"


NULL = ("type=dpdk", 'options:dpdk-devargs="net_null_NAME,no-rx=1"')
AF_PACKET = ("type=dpdk", f'options:dpdk-devargs="net_af_packet_NAME,iface={PORT},qdisc_bypass=1,blocksz=65536,framecnt=4096"')
NO_UDP = {"defaultAction": "Exclude", "rules": [{"action": "Include", "protocol": "UDP"}]}
ROWS: Mapping[str, Row] = {
    BASELINE: Row(),
    AGAIN: Row(),
    "raw mirror": Raw(NULL),
    "raw group": Raw(NULL, group=True),
    "mirror → veth": Raw((), veth=True),
    "mirror → af_packet": Raw(AF_PACKET, veth=True),
    "mirror → afxdp": Raw(("type=afxdp",), veth=True),
    "mirror → tap": Raw(("type=tap",)),
    "ours, OVSMirror, full": Ours(backend="OVSMirror"),
    "ours on export CPUs, OVSMirror, full": HandedOver(backend="OVSMirror"),
    "ours, OVSMirror, 1 in 100": Ours(backend="OVSMirror", sampling={"type": "OneIn", "oneIn": 100}),
    "ours, OVSMirror, all excluded": Ours(backend="OVSMirror", filter=NO_UDP),
    "ours, OVSGroup, full": Ours(backend="OVSGroup"),
    "ours on export CPUs, OVSGroup, full": HandedOver(backend="OVSGroup"),
    "ours, OVSGroup, all excluded": Ours(backend="OVSGroup", filter=NO_UDP),
}
NO_DEARER = {
    "raw group": "raw mirror",
    "ours, OVSGroup, full": "ours, OVSMirror, full",
    "ours on export CPUs, OVSGroup, full": "ours on export CPUs, OVSMirror, full",
    "ours, OVSGroup, all excluded": "ours, OVSMirror, all excluded",
}
"""Groups, and the mirrors that they are to cost no more than."""


TWO_THREADS = "two poll-mode threads"


def _unavailable(cpus: int) -> Mapping[str, str]:
    """What is not measured here, and why."""
    found = {"mirror → virtio-user": "needs a kernel with vhost-net"}
    if cpus <= 2:
        found[TWO_THREADS] = f"of {cpus} CPUs one has to be left for the rest of Open vSwitch"
    return found


UNAVAILABLE = _unavailable(os.cpu_count() or 1)


def run(options: Options, names: Sequence[str]) -> Mapping[str, Figures]:
    """Measure the rows of these names."""
    # The last cores, and the rest of vswitchd on the first, where there is a choice.
    cpus = os.cpu_count() or 1
    cores = tuple(range(cpus - options.pmds, cpus))
    with DpdkLab(LabOptions(), cores=cores, idle_sleep=False) as lab:
        bench = Bench(lab, options)
        return interleave({name: lambda row=ROWS[name]: bench.measure(row) for name in names}, options.rounds)


def report(options: Options, rows: Mapping[str, Figures]) -> str:
    """The table: medians, and differences to the baseline of the same round as median (lowest…highest)."""
    baseline = rows[BASELINE]
    cells: list[list[str]] = []
    for name, row in rows.items():
        line = [name]
        for figure in (CYCLES, NANOSECONDS):
            added = differences(row, baseline, figure)
            line.append(f"{row.median(figure):.0f}  {statistics.median(added):+.0f} ({min(added):+.0f}…{max(added):+.0f})")
        line += [f"{row.median('Mpps'):.2f}", f"{row.median('copied'):.1%}" if row.values("copied") else ""]
        cells.append(line)
    threads = "1 poll-mode thread" if options.pmds == 1 else f"{options.pmds} poll-mode threads"
    title = f"DPDK, {threads}, {options.size}-byte packets, {options.rounds} rounds of {options.seconds:g} s"
    return table(title, ("", CYCLES, NANOSECONDS, "Mpps", "copied"), cells) + _verdicts(rows)


def judge_dpdk(rows: Mapping[str, Figures]) -> list[Judgement]:
    """Whether groups are as cheap as mirrors, in the figures' own units: what a copy adds doesn't grow with what was there."""
    pairs = ((group, mirror) for group, mirror in NO_DEARER.items() if group in rows and mirror in rows)
    return [_no_dearer(rows, group, mirror, figure) for group, mirror in pairs for figure in (CYCLES, NANOSECONDS)]


def _no_dearer(rows: Mapping[str, Figures], group: str, mirror: str, figure: str) -> Judgement:
    more = differences(rows[group], rows[mirror], figure)
    noise = max(map(abs, differences(rows[AGAIN], rows[BASELINE], figure)), default=math.nan)
    goal, text = f"group never dearer than mirror: {group} to {mirror}", f"{figure} {_spread(more)}, noise {noise:.0f}"
    judged = Judgement(goal, text, judge(statistics.median(more), 0.0, noise) if more else Verdict.UNKNOWN)
    as_many = min(differences(rows[group], rows[mirror], "copied"), default=0.0) >= COMPLETE - 1
    return judged if as_many else with_losses(judged, min(rows[group].values("copied")), "copied")


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "?"
    return f"{statistics.median(values):+.0f} ({min(values):+.0f} … {max(values):+.0f})"


def _verdicts(rows: Mapping[str, Figures]) -> str:
    return "".join(f"{judgement}\n" for judgement in judge_dpdk(rows))


def main() -> int:
    """Print a table for each number of threads, write bench/results/dpdk-N-pmd.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.dpdk", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--size", type=int, default=64, help="bytes of a frame")
    parser.add_argument("--pmds", type=int, action="append", help="poll-mode threads; 1, and 2 where a core is left beside them")
    parser.add_argument("--row", action="append", choices=[name for name in ROWS if name not in (BASELINE, AGAIN)])
    arguments = parser.parse_args()
    if not is_possible(preflight.why_no_lab() or why_no_dpdk()):
        return 1
    for what, why in UNAVAILABLE.items():
        print(f"{what}: not to be had: {why}")
    for pmds in arguments.pmds or ((1,) if TWO_THREADS in UNAVAILABLE else (1, 2)):
        options = Options(arguments.rounds, arguments.seconds, pmds, arguments.size)
        rows = run(options, [BASELINE, AGAIN, *(arguments.row or [name for name in ROWS if name not in (BASELINE, AGAIN)])])
        print(report(options, rows))
        samples = {key: row.samples for key, row in rows.items()}
        write_json(f"dpdk-{pmds}-pmd", {"options": vars(arguments), "rows": samples, "unavailable": UNAVAILABLE})
    return 0


if __name__ == "__main__":
    sys.exit(main())
