"""From a file to the first stored copy: how long a user waits for packets after writing a VirtualTap.

A pod sends small datagrams all the time. Each change renames one new tap file into the watched directory and ends when the
collector's pcapng file of that tap holds a packet block. Then the file is removed again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from bench.measure import is_possible, progress, table, write_json
from vtap_lab import preflight
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import Lab, LabOptions

PACKETS_A_SECOND = 2000
PATIENCE = 10.0
POLL = 0.002
EPB = b"\x06\x00\x00\x00"
"""Block type of an Enhanced Packet Block, little endian (draft-ietf-opsawg-pcapng)."""
GOALS = {"p50": 0.250, "p99": 1.0}


def has_packet(directory: Path) -> bool:
    """Whether some pcapng file of a tap holds a packet block."""
    return any(_holds_packet(file) for file in directory.glob("*.pcapng"))


def _holds_packet(file: Path) -> bool:
    data = file.read_bytes()
    at = 0
    while at + 8 <= len(data):
        if data[at : at + 4] == EPB:
            return True
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if length < 12:
            return False
        at += length
    return False


def change(lab: Lab, storage: Path, number: int) -> float:
    """Seconds from the tap's file to its first stored packet."""
    name = f"reaction-{number}"
    tap = {
        "apiVersion": "vtap.dev/v1alpha1",
        "kind": "VirtualTap",
        "metadata": {"name": name, "namespace": "bench"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}},
    }
    text = yaml.safe_dump(tap)
    started = time.monotonic()
    lab.write(lab.taps / f"{name}.yaml", text)
    directory = storage / "bench" / name
    while not has_packet(directory):
        if time.monotonic() - started > PATIENCE:
            raise TimeoutError(f"no copy of {name} was stored within {PATIENCE:g} s")
        time.sleep(POLL)
    took = time.monotonic() - started
    (lab.taps / f"{name}.yaml").unlink()
    return took


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (proc(5), VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return kib * 1024


def percentile(values: Sequence[float], percent: int) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def measure(changes: int) -> tuple[list[float], int, int]:
    """(seconds of each change, resident bytes of the agent, bytes of its maps)."""
    with tempfile.TemporaryDirectory(prefix="vtap-bench-") as name, Lab(LabOptions()) as lab:
        storage = Path(name)
        client = lab.add_pod("client", namespace="bench", labels={"app": "client"})
        server = lab.add_pod("server", namespace="bench", labels={"app": "server"})
        collector = lab.start_collector(storage)
        agent = lab.start_agent()
        lab.write(lab.taps / "destination.yaml", collector.as_destination())
        traffic = start_exchange(lab, client, server, count=0, rate=PACKETS_A_SECOND)
        times: list[float] = []
        for number in range(changes):
            times.append(change(lab, storage, number))
            progress(f"  change {number + 1} of {changes}")
            wait_for(lambda: not agent.get("/v1/status")["taps"], PATIENCE, "the tap is gone")
        progress("")
        traffic.stop()
        maps = next(line for line in agent.metrics().splitlines() if line.startswith("vtap_map_bytes "))
        return times, resident_bytes(agent.process.pid), int(float(maps.split()[1]))


def main() -> int:
    """Print the table, write bench/results/reaction.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.reaction", description=__doc__)
    parser.add_argument("--changes", type=int, default=100)
    arguments = parser.parse_args()
    if not is_possible(preflight.why_no_lab()):
        return 1
    times, resident, maps = measure(arguments.changes)
    figures = {"p50": statistics.median(times), "p99": percentile(times, 99), "max": max(times)}
    rows = [
        [name, f"{seconds * 1000:.0f} ms", f"{GOALS[name] * 1000:.0f} ms" if name in GOALS else "", _reached(name, seconds)]
        for name, seconds in figures.items()
    ]
    memory = "reached" if resident <= 64 * 2**20 else "MISSED"
    rows.append(["agent, resident", f"{resident / 2**20:.1f} MiB", "64 MiB", memory])
    rows.append(["agent, maps", f"{maps / 2**20:.1f} MiB", "", ""])
    print(table(f"Reaction: file written to first copy stored, {arguments.changes} changes", ("", "", "goal", ""), rows))
    write_json("reaction", {"seconds": times, "resident_bytes": resident, "map_bytes": maps})
    return 0


def _reached(name: str, seconds: float) -> str:
    if name not in GOALS:
        return ""
    return "reached" if seconds <= GOALS[name] else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
