"""`make demo`: a tap on real Open vSwitch becomes a capture, and every packet is accounted for. About 40 seconds.

Everything happens in network namespaces of its own; the machine's gets neither address nor device nor service.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import yaml

from vtap_api.ledger import Row, Totals, totals
from vtap_api.virtualtap import BackendName
from vtap_lab import preflight
from vtap_lab.capture import fields, tshark
from vtap_lab.daemons import Agent, Collector, joint_ledger
from vtap_lab.errors import LabError, comes_true, wait_for
from vtap_lab.lab import NODE_BRIDGE_ADDRESS, Lab, LabOptions, Pod
from vtap_lab.processes import LabProcess
from vtap_lab.switch import find_program
from vtap_lab.table import LiveTable

QUICKSTART = preflight.CHECKOUT / "examples/quickstart.yaml"
CAPTURES = preflight.CHECKOUT / "build/demo"
BACKENDS = ("", *map(str, BackendName))
HTTP_PORT, IPERF_PORT = 80, 5201
BEFORE_EDIT = AFTER_EDIT = 10.0
"""Seconds of traffic."""
FIRST_COPY_TIMEOUT = 15.0
SETTLE_TIMEOUT = 20.0
EDIT = {"defaultAction": "Include", "rules": [{"action": "Exclude", "protocol": "TCP", "podPorts": [{"port": IPERF_PORT}]}]}


def say(text: str = "") -> None:
    """A line of the story."""
    print(text, flush=True)


class Demo:
    """The cast, and what happens. Methods are the acts, in order."""

    def __init__(self, lab: Lab, captures: Path, backend: str = "") -> None:
        self.lab = lab
        self.captures = captures / lab.record.id
        self.captures.mkdir(parents=True)
        self.table = LiveTable()
        self.started = time.monotonic()
        self.traffic: list[LabProcess] = []
        self.tap_text = QUICKSTART.read_text()
        if backend:
            self.tap_text = with_spec(self.tap_text, backend=backend)

    def set_the_stage(self) -> None:
        """Two clients, a server, a bystander; a collector behind a router; the agent."""
        web = {"app": "web"}
        self.web = self.lab.add_pod("web-0", namespace="shop", labels=web)
        self.clients = [self.lab.add_pod(f"client-{n}", namespace="shop", labels={"app": "client"}) for n in (1, 2)]
        self.bystander = self.lab.add_pod("bystander", namespace="other", labels={"app": "bystander"})
        self.collector: Collector = self.lab.start_collector(self.captures)
        self.agent: Agent = self.lab.start_agent()

    def start_servers(self) -> None:
        """Before any client, so that none meets a closed port."""
        self._serve(self.web, "http-server", str(HTTP_PORT))
        self._serve(self.clients[1], "http-server", str(HTTP_PORT))
        self._serve(self.lab.node, "dns-server", NODE_BRIDGE_ADDRESS, f"--answer={self.web.ipv4}")
        iperf = self.lab.spawn(self.web, "iperf3", "--server", "--forceflush", name="iperf3-server")
        iperf.wait_ready(lambda: "listening" in iperf.output(), 10, "listens")

    def start_clients(self) -> None:
        """Web traffic and name look-ups at a steady pace. The bystander talks to a client, never to the tapped pod."""
        for client in self.clients:
            self._ask(client, "http-client", self.web.ipv4, "--rate=20")
        for pod in (*self.clients, self.web):
            self._ask(pod, "dns-client", NODE_BRIDGE_ADDRESS, "--rate=5")
        self._ask(self.bystander, "http-client", self.clients[1].ipv4, "--rate=20")

    def start_bulk(self) -> None:
        """iperf3 to the tapped pod, at a pace that leaves a capture of a handy size."""
        argv = ["iperf3", "--client", self.web.ipv4, "--port", str(IPERF_PORT), "--bitrate", "20M", "--time", "3600"]
        self.traffic.append(self.lab.spawn(self.clients[0], *argv, name="iperf3-client"))

    def apply_tap(self) -> None:
        """The file of a first tap, and where its copies go."""
        self.lab.write(self.lab.taps / "destination.yaml", self.collector.as_destination())
        self.lab.write(self.lab.taps / QUICKSTART.name, self.tap_text)
        wait_for(lambda: self.total().collector.stored > 0, FIRST_COPY_TIMEOUT, "copies arrive", every=0.2)

    def watch(self, phase: str, seconds: float) -> None:
        """The live table, for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            self._check_traffic()
            self.table.show(began - self.started, phase, self.rows())
            time.sleep(max(0.0, began + 1 - time.monotonic()))
        self.table.leave()

    def edit_tap(self) -> None:
        """A filter appears in the file; the numbers follow."""
        self.lab.write(self.lab.taps / QUICKSTART.name, with_spec(self.tap_text, filter=EDIT))
        wait_for(lambda: self.total().agent.excluded > 0, FIRST_COPY_TIMEOUT, "the filter takes effect", every=0.2)

    def still_the_traffic(self) -> None:
        """Nobody talks any more."""
        for process in reversed(self.traffic):
            process.stop()
        self.traffic.clear()

    def rows(self) -> tuple[Row, ...]:
        """The ledger now."""
        return joint_ledger(self.agent, self.collector)

    def total(self) -> Totals:
        """Its sums."""
        return totals(self.rows())

    def _serve(self, where: Pod | str, *arguments: str) -> None:
        process = self._work(where, *arguments)
        process.wait_ready(lambda: "ready" in process.output(), 10, "listens")

    def _ask(self, where: Pod, *arguments: str) -> None:
        self.traffic.append(self._work(where, *arguments))

    def _work(self, where: Pod | str, *arguments: str) -> LabProcess:
        return self.lab.spawn(where, sys.executable, "-m", "vtap_lab.workloads", *arguments, name=arguments[0])

    def _check_traffic(self) -> None:
        for process in self.traffic:
            if not process.is_running:
                raise LabError(f"{process.name} ended early: {process.last_lines()}")

    def what_to_try(self) -> str:
        """Commands for a demo that goes on."""
        return TO_PLAY_WITH.format(
            vtap=Path(sys.executable).with_name("vtap"),
            run=self.lab.run_dir,
            tap=tap_in(self.tap_text),
            taps=self.lab.taps,
            file=QUICKSTART.name,
            vsctl=find_program("ovs-vsctl"),
            db=self.lab.switch.db_remote,
        )

    # What came of it

    def report(self, keep: bool) -> tuple[list[str], str]:
        """Print the capture's path, five packets and the ledger. What is wrong, and the ledger's summary."""
        table, summary = self.settled_ledger()
        if not keep:
            self.agent.stop()
            self.collector.stop()
        captures = self.collector.captures()
        if not captures:
            return [f"there is no capture under {self.captures}"], summary
        say(f"\nThe capture, for Wireshark and everything else that reads pcapng:\n  {captures[0]}")
        say(f"\n$ tshark -n -r {captures[0].name} -c 5\n{tshark(captures[0], '-c', '5')}")
        packets = packets_in(captures)
        problems = [*self._strangers(packets), *missing_from(packets), *unclosed(summary)]
        say(f"\n$ vtap ledger\n{table}\n")
        return problems, summary

    def settled_ledger(self) -> tuple[str, str]:
        """Table and summary once nothing is under way: pods ask for neighbours and say farewell after their traffic has ended."""
        readings: list[tuple[str, str]] = []

        def is_settled() -> bool:
            before, table, after = (self.lab.vtap("ledger", *options).rstrip() for options in (["--summary"], [], ["--summary"]))
            readings.append((table, after))
            return before == after and not unclosed(after)

        comes_true(is_settled, SETTLE_TIMEOUT, every=0.5)  # Else the report says so.
        return readings[-1]

    def _strangers(self, packets: Sequence[Packet]) -> list[str]:
        found = sum(packet.is_unicast and self.bystander.mac in (packet.source, packet.target) for packet in packets)
        said = self.packets_of(self.bystander)
        if found or not said:
            return [f"{found} of the bystander's {said} unicast packets are in the capture"]
        say(f"The bystander sent and received {said:,} packets; none of its unicast packets is in the capture.")
        return []

    def packets_of(self, pod: Pod) -> int:
        """Both ways, by the pod's own interface."""
        (link,) = json.loads(self.lab.run(pod, "ip", "-json", "-stats", "link", "show", "dev", pod.interface))
        return link["stats64"]["rx"]["packets"] + link["stats64"]["tx"]["packets"]


@dataclass(frozen=True)
class Packet:
    """What the demo looks at in a captured packet."""

    source: str
    target: str
    protocol: str
    tcp_ports: str

    @property
    def is_unicast(self) -> bool:
        """By the group bit of the destination address (IEEE 802)."""
        return int(self.target[:2], 16) & 1 == 0


def packets_in(captures: Sequence[Path]) -> list[Packet]:
    """All of them."""
    names = ("eth.src", "eth.dst", "_ws.col.Protocol", "tcp.port")
    return [Packet(*values) for file in captures for values in fields(file, names)]


def missing_from(packets: Sequence[Packet]) -> list[str]:
    """A sentence for each protocol that was spoken and was not captured."""
    captured = {
        "HTTP": any("HTTP" in packet.protocol for packet in packets),
        "DNS": any(packet.protocol == "DNS" for packet in packets),
        "iperf3": any(str(IPERF_PORT) in packet.tcp_ports.split(",") for packet in packets),
    }
    return [f"the capture holds no {name}" for name, found in captured.items() if not found]


def unclosed(summary: str) -> list[str]:
    """What is wrong with the line ``ledger: seen=… … unaccounted=0``."""
    terms = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", summary)}
    if not summary.startswith("ledger: ") or "unaccounted" not in terms:
        return [f"this is no summary of a ledger: {summary}"]
    if terms["unaccounted"] != 0:
        return [f"{terms['unaccounted']} packets are unaccounted for"]
    return [f"nothing is {term}" for term in ("seen", "excluded", "sent", "received", "stored") if terms[term] == 0]


def tap_in(text: str) -> str:
    """``namespace/name`` of the one VirtualTap in a file."""
    (tap,) = [document for document in yaml.safe_load_all(text) if document and document["kind"] == "VirtualTap"]
    return f"{tap['metadata']['namespace']}/{tap['metadata']['name']}"


def with_spec(text: str, **fields: object) -> str:
    """The file with these fields in its VirtualTap's spec."""
    documents = [document for document in yaml.safe_load_all(text) if document]
    for document in documents:
        if document["kind"] == "VirtualTap":
            document["spec"].update(fields)
    return yaml.safe_dump_all(documents, sort_keys=False)


def indented(text: str) -> str:
    """Set off from the story."""
    return "\n".join(f"  {line}" if line else "" for line in text.rstrip().splitlines()) + "\n"


TO_PLAY_WITH = """
It goes on, with web traffic and name look-ups. As root:
  {vtap} ledger --run-dir {run}
  {vtap} packets {tap} --run-dir {run} --live -w - | wireshark -k -i -
  $EDITOR {taps}/{file}
  {vsctl} --db={db} show
Stop it and remove everything: make clean
"""


def play(lab: Lab, captures: Path, keep: bool, backend: str = "") -> int:
    """All acts; 0 when everything came out as it should."""
    say("A node with its Open vSwitch, four pods, and a collector behind a router, all in network namespaces.")
    demo = Demo(lab, captures, backend)
    demo.set_the_stage()
    demo.start_servers()
    demo.start_clients()
    say(f"The tap, examples/{QUICKSTART.name}, goes into the agent's directory:\n\n{indented(demo.tap_text)}")
    demo.apply_tap()
    demo.start_bulk()
    demo.watch("everything that web-0 sends and receives", BEFORE_EDIT)
    edit = indented(yaml.safe_dump({"filter": EDIT}, sort_keys=False))
    say(f"\nThe file is edited, and gets a filter (port {IPERF_PORT} is iperf3's):\n\n{edit}")
    demo.edit_tap()
    demo.watch("the same without iperf3", AFTER_EDIT)
    demo.still_the_traffic()
    problems, summary = demo.report(keep)
    if keep:
        demo.start_clients()
        lab.leave_running()
        say(demo.what_to_try())
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr, flush=True)
    say(summary)
    return 1 if problems else 0


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Play it, and leave the machine as it was found unless told to keep."""
    parser = argparse.ArgumentParser(prog="python -m vtap_lab.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running at the end")
    parser.add_argument("--captures", type=Path, default=CAPTURES, help="where each run makes a folder of its own")
    parser.add_argument("--backend", default="", choices=BACKENDS, help="how copies are made (default: as the tap's file says)")
    options = parser.parse_args(argv)
    if reason := preflight.why_no_lab():
        print(f"demo: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with Lab(LabOptions(outlives_maker=options.keep)) as lab:
            return play(lab, options.captures.absolute(), options.keep, options.backend)
    except LabError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; nothing of it is left", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
