"""What storing a copy costs: the collector beside tcpdump, dumpcap and netsniff-ng on the same traffic.

Two network namespaces, a veth between them. A sender on one core plays an agent (GRE-in-UDP, numbered, with trailers); the
receiver and its softirqs (RPS) have the other core. The figure is the time that whole core was not idle, from /proc/stat, over
the packets stored; what the core does when nothing is captured is a row of its own (`nobody`).

The collector decapsulates, names, counts and writes 12 bytes of direction a packet. The others write what they see. Their
traffic is dropped by nftables at the device's ingress hook, right after the capture socket has had it, which is the cheapest
end it can have; the collector does so by itself where it may, and without the privilege its traffic ends in its own sockets.

Consumers: with three, the collector serves two live streams over HTTP beside its files, read by curl and thrown away on the
same core. The others have no such thing; for them two more processes capture to /dev/null.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import native
from bench.cores import busy_seconds, steer
from bench.measure import Figures, Sample, interleave, ratio, table, write_json
from bench.unix_http import ask
from vtap_lab.errors import LabError, comes_true, wait_for
from vtap_lab.processes import LabProcess, run_in, start_in
from vtap_lab.registry import Record, new_record, run, take_down

SENDER_CORE, RECEIVER_CORE = 0, 1
SENDER_ADDRESS, RECEIVER_ADDRESS = "192.0.2.1", "192.0.2.2"
FIRST_KEY = 4096
MTU = 1700
"""Of the underlay: a full frame with its outer headers and trailer fits."""
CONTENT = {
    "64 B": [64],
    "mixed": [64, 64, 594, 64, 1514, 64, 594, 64, 594, 64, 64, 594],
}
"""Inner frames, in the proportions of the simple IMIX (7:4:1)."""
QUIET_SECONDS = 10.0
START_SECONDS = 10.0
BUFFER_MEBIBYTES = 64


@dataclass(frozen=True)
class Load:
    """`rate` in datagrams a second, 0 for as many as one core sends."""

    content: str
    streams: int
    consumers: int
    rate: int
    seconds: float

    def __str__(self) -> str:
        speed = f"{self.rate / 1000:g} kpps" if self.rate else "full speed"
        return f"{self.content}, {self.streams} stream(s), {self.consumers} consumer(s), {speed}"


class Wire:
    """Two namespaces and the veth between them; everything goes when it is closed."""

    def __init__(self) -> None:
        record = new_record()
        self.record: Record = record.with_namespace(record.namespace("send")).with_namespace(record.namespace("receive"))
        self.record.save()
        self.sender, self.receiver = self.record.namespaces
        for name in (self.sender, self.receiver):
            run("ip", "netns", "add", name)
        peer = ["peer", "in", "mtu", str(MTU), "netns", self.receiver]
        run("ip", "-n", self.sender, "link", "add", "out", "mtu", str(MTU), "type", "veth", *peer)
        self.sender_mac = self._up(self.sender, "out", SENDER_ADDRESS)
        self.receiver_mac = self._up(self.receiver, "in", RECEIVER_ADDRESS)
        run("ip", "-n", self.receiver, "neigh", "add", SENDER_ADDRESS, "lladdr", self.sender_mac, "dev", "in")
        self._steer()

    def _up(self, namespace: str, device: str, address: str) -> str:
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "-n", namespace, "link", "set", device, "up")
        return str(json.loads(run_in(namespace, ["ip", "-j", "link", "show", device]))[0]["address"])

    def _steer(self) -> None:
        """The receiving end's softirqs run on the receiver's core, as a NIC's would; else the sender's core would run them."""
        steer(self.receiver, ["in"], [RECEIVER_CORE])

    def drop_after_capture(self, drop: bool) -> None:
        """AF_PACKET sockets see a packet before the ingress hook does."""
        rules = "table netdev bench { chain after { type filter hook ingress device in priority 0; policy drop; }; }"
        run_in(self.receiver, ["nft", "flush", "ruleset"])
        if drop:
            run_in(self.receiver, ["nft", "-f", "-"], stdin=rules)

    def send(self, load: Load) -> list[int]:
        """Datagrams sent, by stream."""
        sizes = ",".join(map(str, CONTENT[load.content]))
        argv = [
            "taskset", "-c", str(SENDER_CORE), str(native.build("send_copies")), "out", self.sender_mac, self.receiver_mac,
            SENDER_ADDRESS, RECEIVER_ADDRESS, str(FIRST_KEY), str(load.streams), sizes, str(load.rate), str(load.seconds),
        ]  # fmt: skip
        return list(json.loads(run_in(self.sender, argv, timeout=load.seconds + 30))["sent"])

    def start(self, name: str, argv: Sequence[str], core: int = RECEIVER_CORE) -> LabProcess:
        log = self.record.directory / f"{name}.log"
        return start_in(self.receiver, ["taskset", "-c", str(core), *argv], name=name, log=log, outlives_maker=False)

    def close(self) -> None:
        take_down(self.record)


# ---- the core's time ----


def process_seconds(pids: Sequence[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def task_seconds(pids: Sequence[int]) -> float:
    """Time the receivers' threads and the core's softirq thread have run, softirqs that interrupted them included.

    Leaves out softirqs that ran in idle time, and what else ran on the core: less than the whole, but no other program's.
    """
    tasks = [path for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]
    tasks += [path.parent for path in Path("/proc").glob("[0-9]*/comm") if path.read_text() == f"ksoftirqd/{RECEIVER_CORE}\n"]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wait_quiet(pids: Sequence[int]) -> None:
    """Until the processes have not used a tick for a while: what they buffered is written."""
    seen = [process_seconds(pids), time.monotonic()]

    def quiet() -> bool:
        now = process_seconds(pids)
        if now != seen[0]:
            seen[:] = [now, time.monotonic()]
        return time.monotonic() - seen[1] > 0.2

    if not comes_true(quiet, QUIET_SECONDS, every=0.05):
        sys.stderr.write("a receiver did not come to rest\n")


# ---- contenders ----


@dataclass(frozen=True)
class Outcome:
    stored: int
    bytes: int


@contextlib.contextmanager
def nobody(wire: Wire, _load: Load, _directory: Path) -> Iterator[tuple[list[int], Callable[[int], Outcome]]]:
    """Nothing captures: what the core spends on taking packets from the wire and dropping them."""
    wire.drop_after_capture(True)
    yield [], lambda sent: Outcome(sent, 0)


Capture = Callable[[str], list[str]]


def _tcpdump(out: str) -> list[str]:
    return ["tcpdump", "-i", "in", "-n", "-s", "0", "-B", str(BUFFER_MEBIBYTES << 10), "-Z", "root", "-w", out]


def _dumpcap(out: str) -> list[str]:
    return ["dumpcap", "-q", "-i", "in", "-s", "0", "-B", str(BUFFER_MEBIBYTES), "-w", out]


def _netsniff(out: str) -> list[str]:
    return ["netsniff-ng", "--in", "in", "--out", out, "--silent", "--ring-size", f"{BUFFER_MEBIBYTES}MiB"]


def capturing(capture: Capture, magic: int) -> Callable[..., Any]:
    """A peer: one process that stores, and one to /dev/null for each further consumer."""

    @contextlib.contextmanager
    def contender(wire: Wire, load: Load, directory: Path) -> Iterator[tuple[list[int], Callable[[int], Outcome]]]:
        wire.drop_after_capture(True)
        out = directory / f"capture-{magic}.pcap"
        outputs = [str(out), *["/dev/null"] * (load.consumers - 1)]
        processes = [wire.start(f"peer-{index}", capture(output)) for index, output in enumerate(outputs)]
        try:
            wait_for(lambda: _packet_sockets(wire) >= len(processes), START_SECONDS, "the peers capture")
            yield [process.pid for process in processes], lambda _sent: _finish(processes, out)
        finally:
            for process in processes:
                process.stop()

    return contender


def _packet_sockets(wire: Wire) -> int:
    """Capture sockets that are bound to the device, in the receiver's namespace."""
    lines = run_in(wire.receiver, ["cat", "/proc/net/packet"]).splitlines()[1:]
    return sum(1 for line in lines if line.split()[4] != "0" and line.split()[5] == "1")


def _finish(processes: Sequence[LabProcess], out: Path) -> Outcome:
    for process in processes:
        process.stop()
    return Outcome(count_packets([out]), out.stat().st_size)


def count_packets(files: Sequence[Path]) -> int:
    """By capinfos, so that nobody counts for himself."""
    total = 0
    for file in files:
        done = run_in_place(["capinfos", "-M", "-c", "-T", "-r", "-B", str(file)])
        total += int(done.strip().split()[-1])
    return total


def run_in_place(argv: Sequence[str]) -> str:
    """In the machine's own namespace."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0 and not done.stdout:
        raise LabError(f"{argv[0]}: {done.stderr.strip()}")
    return done.stdout


def _answers(path: Path) -> bool:
    try:
        ask(path, "GET", "/healthz")
    except LabError:
        return False
    return True


_incarnations = itertools.count(1)


def _announce(path: Path, load: Load, magic: int) -> None:
    streams = [
        {
            "key": FIRST_KEY + index, "incarnation": f"{magic:016x}", "trailer": True,
            "tap": {"namespace": "bench", "name": "tap"}, "pod": {"namespace": "bench", "name": f"pod-{index}", "uid": ""},
            "interface": "eth0", "direction": "Egress", "snapLength": 0,
        }
        for index in range(load.streams)
    ]  # fmt: skip
    ask(
        path,
        "PUT",
        "/v1/nodes/sender/streams",
        {"version": 1, "addresses": [SENDER_ADDRESS], "taiOffset": 37, "streams": streams},
    )


def collecting(*options: str) -> Callable[..., Any]:
    """Ours, with further command-line options."""

    @contextlib.contextmanager
    def contender(wire: Wire, load: Load, directory: Path) -> Iterator[tuple[list[int], Callable[[int], Outcome]]]:
        wire.drop_after_capture(False)
        magic = next(_incarnations)
        store, socket_path = directory / f"store-{magic}", wire.record.directory / "collector.sock"
        program = Path(sys.executable).with_name("vtap-collector")
        argv = [str(program), f"--directory={store}", f"--run-dir={wire.record.directory}", "--rotate-size=0", *options]
        process = wire.start("collector", [*argv, f"--listen-data={RECEIVER_ADDRESS}"])
        readers: list[LabProcess] = []
        try:
            process.wait_ready(lambda: _answers(socket_path), START_SECONDS, "answers")
            _announce(socket_path, load, magic)
            url = "http://localhost/v1/live?tap=bench/tap"
            curl = ["curl", "-sN", "--unix-socket", str(socket_path), "-o", "/dev/null", url]
            readers = [wire.start(f"reader-{index}", curl) for index in range(load.consumers - 1)]
            wait_for(
                lambda: len(ask(socket_path, "GET", "/v1/ledger")["consumers"]) == len(readers), START_SECONDS, "readers read"
            )
            yield [process.pid, *(reader.pid for reader in readers)], lambda _sent: _close(process, socket_path, store)
        finally:
            for each in (*readers, process):
                each.stop()

    return contender


def _consumers(path: Path) -> int:
    return len(ask(path, "GET", "/v1/ledger")["consumers"])


def _close(process: LabProcess, socket_path: Path, store: Path) -> Outcome:
    ledger = ask(socket_path, "GET", "/v1/ledger")
    process.stop()
    files = list(store.glob("*/*/*.pcapng"))
    claimed, found = sum(row["stored"] for row in ledger["streams"]), count_packets(files)
    if claimed != found:
        raise LabError(f"the ledger says {claimed} stored, capinfos finds {found}")
    return Outcome(found, sum(file.stat().st_size for file in files))


# ---- measuring ----


def measure(contender: Callable[..., Any], wire: Wire, load: Load, directory: Path) -> Sample:
    """One run: what was sent and stored, and what it cost."""
    with contender(wire, load, directory) as (pids, outcome_of):
        wait_quiet(pids)
        before, tasks_before = busy_seconds([RECEIVER_CORE]), task_seconds(pids)
        sent = sum(wire.send(load))
        tasks = task_seconds(pids) - tasks_before
        wait_quiet(pids)
        busy = busy_seconds([RECEIVER_CORE]) - before
        outcome: Outcome = outcome_of(sent)
    for leftover in directory.iterdir():
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    stored = max(outcome.stored, 1)
    return {
        "sent": sent,
        "stored": outcome.stored,
        "share": outcome.stored / sent,
        "rate": sent / load.seconds,
        "busy_ns": busy / stored * 1e9,
        "tasks_ns": tasks / stored * 1e9,
        "core_share": busy / load.seconds,
        "bytes": outcome.bytes,
    }


CONTENDERS: dict[str, Callable[..., Any]] = {
    "nobody": nobody,
    "tcpdump": capturing(_tcpdump, 1),
    "tcpdump again (A/A)": capturing(_tcpdump, 2),
    "dumpcap": capturing(_dumpcap, 3),
    "netsniff-ng": capturing(_netsniff, 4),
    "ours": collecting(),
    "ours, sockets": collecting("--ring=none"),
}


def print_load(load: Load, figures: dict[str, Figures]) -> None:
    baseline = figures.get("tcpdump") or next(iter(figures.values()))
    rows: list[list[str]] = []
    for name, row in figures.items():
        against = ratio(row, baseline, "busy_ns")
        rows.append(
            [
                name,
                f"{row.median('rate') / 1e6:.2f}",
                f"{row.median('share') * 100:.2f} %",
                f"{row.median('core_share') * 100:.0f} %",
                f"{row.median('busy_ns'):.0f}",
                f"{row.median('tasks_ns'):.0f}",
                f"{against.median:.2f} ({against.low:.2f}…{against.high:.2f})",
            ]
        )
    header = ["receiver", "Mpps sent", "stored", "core", "ns a packet", "tasks alone", "against tcpdump"]
    sys.stdout.write(table(str(load), header, rows) + "\n")
    sys.stdout.flush()


def loads(quick: bool, seconds: float, rate: int) -> list[Load]:
    """The matrix of the table; `quick` keeps its corners."""
    if quick:
        return [Load("64 B", 1, 1, rate, seconds), Load("64 B", 8, 3, 0, seconds), Load("mixed", 8, 1, 0, seconds)]
    pairs = [(streams, consumers) for streams in (1, 8) for consumers in (1, 3)]
    return [
        Load(content, streams, consumers, speed, seconds)
        for speed in (rate, 0)
        for content in CONTENT
        for streams, consumers in pairs
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.collector", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few loads, few rounds")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--rate", type=int, default=250_000, help="of the paced loads, datagrams a second")
    parser.add_argument("--only", default="", help="contenders whose names hold one of these, separated by commas")
    parser.add_argument("--load", default="", help="CONTENT:STREAMS:CONSUMERS:RATE instead of the matrix")
    parser.add_argument("--directory", type=Path, help="where captures go (a temporary directory)")
    given = parser.parse_args(arguments)
    rounds, seconds = given.rounds or (3 if given.quick else 10), given.seconds or (1.5 if given.quick else 4.0)
    wanted = [part for part in given.only.split(",") if part]
    contenders = {name: one for name, one in CONTENDERS.items() if not wanted or any(part in name for part in wanted)}
    matrix = loads(given.quick, seconds, given.rate)
    if given.load:
        content, streams, consumers, rate = given.load.split(":")
        matrix = [Load(content, int(streams), int(consumers), int(rate), seconds)]
    wire = Wire()
    results: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory(dir=given.directory) as scratch:
            for load in matrix:
                rows = {name: _bound(one, wire, load, Path(scratch)) for name, one in contenders.items()}
                figures = interleave(rows, rounds)
                print_load(load, figures)
                results.append({"load": str(load), "rows": {name: list(row.samples) for name, row in figures.items()}})
    finally:
        wire.close()
    write_json("collector", {"loads": results})
    return 0


def _bound(contender: Callable[..., Any], wire: Wire, load: Load, directory: Path) -> Callable[[], Sample]:
    return lambda: measure(contender, wire, load, directory)


if __name__ == "__main__":
    sys.exit(main())
