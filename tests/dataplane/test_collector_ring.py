"""Capturing on an interface that goes down, vanishes and comes back: nothing spins, nothing stays dead, the outage is told."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane.collector_process import CollectorProcess, a_stream, wait_until
from vtap_lab.processes import run_in
from vtap_lab.registry import Record, new_record, run, take_down

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and packet sockets need root")

SENDER, COLLECTOR = "192.0.2.1", "192.0.2.2"
REPOSITORY = Path(__file__).parents[2]
SEND = """
import socket, sys
from tests.unit.collector.copies import copy, numbered_frame
first, end, port = map(int, sys.argv[2:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: no UDP checksum, as agents send
    for number in range(first, end):
        sender.sendto(copy(1, number, numbered_frame(number)), (sys.argv[1], port))
"""


class Wire:
    """Two namespaces, and a veth between them that can be replaced."""

    def __init__(self) -> None:
        record = new_record()
        self.record: Record = record.with_namespace(record.namespace("send")).with_namespace(record.namespace("receive"))
        self.record.save()
        self.sender, self.receiver = self.record.namespaces
        for name in (self.sender, self.receiver):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        self.plug_in()

    def plug_in(self) -> None:
        run("ip", "-n", self.sender, "link", "add", "out", "type", "veth", "peer", "in", "netns", self.receiver)
        for namespace, device, address in ((self.sender, "out", SENDER), (self.receiver, "in", COLLECTOR)):
            run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", namespace, "link", "set", device, "up")

    def unplug(self) -> None:
        run("ip", "-n", self.receiver, "link", "del", "in")

    def set_link(self, state: str) -> None:
        run("ip", "-n", self.receiver, "link", "set", "in", state)

    def send(self, collector: CollectorProcess, first: int, end: int, *, address: str = COLLECTOR, local: bool = False) -> None:
        port = str(collector.endpoint()[1])
        argv = [sys.executable, "-c", SEND, address, str(first), str(end), port]
        run_in(self.receiver if local else self.sender, ["env", f"PYTHONPATH={REPOSITORY}", *argv])


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    try:
        yield made
    finally:
        take_down(made.record)


def captured(collector: CollectorProcess) -> int:
    return collector.get("/v1/ledger")["socket"]["captured"]


def is_down(collector: CollectorProcess) -> bool:
    return collector.metric("vtap_collector_rings_down") == 1


def told(collector: CollectorProcess, what: str) -> int:
    return sum(what in line for line in collector.log().splitlines() if "ring on in" in line)


@pytest.mark.parametrize("data", ["0.0.0.0:0", f"{COLLECTOR}:0"])
def test_an_interface_that_goes_down_and_comes_back_is_captured_on_again(wire: Wire, tmp_path: Path, data: str) -> None:
    with CollectorProcess(tmp_path, "--ring=in", data=data, namespace=wire.receiver) as collector:
        collector.announce(a_stream(1), addresses=[SENDER])
        wire.send(collector, 0, 100)
        collector.at_rest(1, 100)

        wire.set_link("down")
        wait_until(lambda: is_down(collector), "the ring is known to be down")
        wait_until(lambda: told(collector, "is down or gone") == 1, "it says so")
        began, wakeups = time.monotonic(), collector.metric("vtap_collector_receive_wakeups_total")
        wait_until(lambda: collector.metric("vtap_collector_receive_wakeups_total") >= wakeups + 8, "the thread goes on")
        rate = (collector.metric("vtap_collector_receive_wakeups_total") - wakeups) / (time.monotonic() - began)
        assert rate < 100, "it does not spin"

        wire.set_link("up")
        wait_until(lambda: told(collector, "is up again") == 1, "it says so")
        assert not is_down(collector)
        wire.send(collector, 100, 200)
        collector.at_rest(1, 200)

        wire.unplug()
        wait_until(lambda: is_down(collector), "the ring is known to be down")
        wait_until(lambda: told(collector, "is down or gone") == 2, "it says so")
        wire.plug_in()
        wait_until(lambda: told(collector, "is up again") == 2, "it says so")
        wire.send(collector, 200, 300)
        row = collector.at_rest(1, 300)
        assert captured(collector) == 300
        assert (row["lost"], row["duplicate"]) == ({"network": 0, "socket": 0, "before": 0}, 0)
        assert collector.metric("vtap_collector_ring_outages_total") == 2


def test_what_comes_by_another_interface_is_received_by_the_sockets(wire: Wire, tmp_path: Path) -> None:
    with CollectorProcess(tmp_path, "--ring=in", data="0.0.0.0:0", namespace=wire.receiver) as collector:
        collector.announce(a_stream(1), addresses=[SENDER, COLLECTOR])
        wire.send(collector, 0, 100)
        wire.send(collector, 100, 200, local=True)  # through lo
        row = collector.at_rest(1, 200)
        assert (captured(collector), row["duplicate"]) == (100, 0)


def tables(wire: Wire) -> str:
    return run_in(wire.receiver, ["nft", "list", "tables"])


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft(8)")
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_without_a_word_copies_are_captured_and_spared_the_stack(wire: Wire, tmp_path: Path, ended_by: signal.Signals) -> None:
    with CollectorProcess(tmp_path, data=f"{COLLECTOR}:0", namespace=wire.receiver) as collector:
        collector.announce(a_stream(1), addresses=[SENDER, COLLECTOR])
        wire.send(collector, 0, 100)
        wire.send(collector, 100, 150, local=True)
        row = collector.at_rest(1, 150)
        assert (captured(collector), row["duplicate"]) == (100, 0)
        assert "capturing on in, before the IP stack" in collector.log()
        assert "table netdev vtap_collector_" in tables(wire)
        collector.signal(ended_by)
        wait_until(lambda: "vtap_collector" not in tables(wire), "nothing is dropped any more")


def test_without_the_privilege_copies_are_received_by_sockets(wire: Wire, tmp_path: Path) -> None:
    weak = ["setpriv", "--bounding-set=-net_raw,-net_admin", "--inh-caps=-net_raw,-net_admin"]
    with CollectorProcess(tmp_path, data=f"{COLLECTOR}:0", namespace=wire.receiver, through=weak) as collector:
        collector.announce(a_stream(1), addresses=[SENDER])
        wire.send(collector, 0, 100)
        collector.at_rest(1, 100)
        assert captured(collector) == 0
        assert (
            "copies are received by sockets: capturing on the interface, which costs less, needs CAP_NET_RAW" in collector.log()
        )
        assert "vtap_collector" not in tables(wire)
