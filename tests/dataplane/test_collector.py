"""The collector as a process: every datagram has a fate, whatever happens to the collector, its disk or its readers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane.collector_process import (
    DEADLINE,
    TAP,
    TOKEN,
    CollectorProcess,
    UnixConnection,
    a_stream,
    wait_until,
)
from tests.unit.collector.copies import Capture, copy, erspan, gre, number_of, numbered_frame, read_pcapng, trailer, vxlan
from vtap_collector.main import main


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[CollectorProcess]:
    with CollectorProcess(tmp_path) as running:
        yield running


def numbers_in(collector: CollectorProcess) -> list[int]:
    return [number_of(packet.frame) for capture in collector.captures() for packet in capture.packets]


def lost(row: dict[str, dict[str, int]]) -> tuple[int, int]:
    return row["lost"]["network"], row["lost"]["socket"]


# ---- receiving ----


def test_each_datagram_is_stored_exactly_once(collector: CollectorProcess) -> None:
    collector.announce(a_stream(4096), a_stream(4097, direction="Ingress"))
    collector.send(4096, range(2000))
    collector.send(4097, range(500), size=1400)
    collector.totals(4096, 2000)
    row = collector.at_rest(4096, 2000)
    assert lost(row) == (0, 0)
    assert row["receivedBytes"] == 2000 * 64
    collector.at_rest(4097, 500)
    (capture,) = collector.captures()
    names = [interface[2].decode() for interface in capture.interfaces]
    for name, expected in (("shop/web-4096/eth0 egress", range(2000)), ("shop/web-4097/eth0 ingress", range(500))):
        assert [number_of(p.frame) for p in capture.packets if names[p.interface] == name] == list(expected)


def test_capture_time_is_utc_and_the_original_length_is_kept(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1, snapLength=64))
    time_ns = 1_234_567_890_987_654_321
    collector.sender.sendto(gre(1, 0, numbered_frame(0)) + trailer(time_ns, 1500, flags=1), collector.endpoint())
    collector.at_rest(1, 1)
    (capture,) = collector.captures()
    assert [(p.time_ns, p.original, len(p.frame)) for p in capture.packets] == [(time_ns, 1500, 64)]


def test_ipv6(tmp_path: Path) -> None:
    with CollectorProcess(tmp_path, data="[::1]:0") as collector, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        collector.announce(a_stream(1), addresses=["::1"])
        sender.bind(("::1", 0))
        for number in range(100):
            sender.sendto(copy(1, number, numbered_frame(number)), collector.endpoint())
        collector.at_rest(1, 100)
        assert numbers_in(collector) == list(range(100))


def test_gaps_duplicates_and_latecomers(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.send(1, [3, 4, 4, 6, 5, 9])  # 0, 1, 2, 7, 8 are missing; 4 comes twice
    row = collector.at_rest(1, 5)
    assert (lost(row), row["duplicate"], row["late"]) == ((5, 0), 1, 0)
    collector.send(1, [7])
    wait_until(lambda: collector.row(1)["late"] == 1, "a number that was given up is late")
    assert lost(collector.at_rest(1, 5)) == (5, 0)
    assert sorted(numbers_in(collector)) == [3, 4, 5, 6, 9]


def test_a_missing_tail_is_told_by_totals(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1), a_stream(2))
    collector.send(1, range(90))
    collector.totals(1, 100)
    collector.totals(2, 7)
    assert lost(collector.at_rest(1, 90)) == (10, 0)
    assert lost(collector.at_rest(2, 0)) == (7, 0)


def test_sequence_numbers_wrap(collector: CollectorProcess) -> None:
    """The start of a stream is 0, so a stream that is near the end of the 32 bits has lost what came before."""
    collector.announce(a_stream(1))
    half = 2**31 - 1
    collector.send(1, [half, half + half, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1])
    row = collector.at_rest(1, 5)  # half + half is 2**32 - 2: the second of it is a duplicate
    assert row["duplicate"] == 1
    assert sum(lost(row)) + row["received"] == 2**32 + 2 == row["nextSequence"]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        *((first, told) for first in (2**31 + 7, 2**32 - 1) for told in ("before", "while it still comes", "after")),
        # Told only afterwards, 32 bits do not say how often such a stream has wrapped.
        *((2**33 + 5, told) for told in ("before", "while it still comes")),
    ],
)
def test_an_old_stream_met_for_the_first_time_has_lost_what_came_before(
    collector: CollectorProcess, first: int, told: str
) -> None:
    collector.announce(a_stream(1))
    if told != "after":
        collector.totals(1, first)
    if told == "before":
        wait_until(lambda: sum(lost(collector.row(1))) == first, "what was sent and never came is lost")
    collector.send(1, range(first, first + 10))
    collector.totals(1, first + 10)
    row = collector.at_rest(1, 10)
    assert (sum(lost(row)), row["late"], row["nextSequence"]) == (first, 0, first + 10)


def test_loss_told_by_totals_is_not_counted_again_by_sequence_numbers(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1, trailer=False))
    collector.totals(1, 50, next_sequence=0)
    wait_until(lambda: lost(collector.row(1)) == (50, 0), "the missing are lost")
    collector.send(1, [*range(52, 60), 49])  # 50 and 51 are a gap of their own, 49 was given up
    row = collector.at_rest(1, 8)
    assert (lost(row), row["late"]) == ((52, 0), 1)


def test_what_nobody_announced_is_counted_and_not_stored(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.send(2, range(5))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind(("127.0.0.2", 0))
        stranger.sendto(copy(1, 0, numbered_frame(0)), collector.endpoint())
    for junk in (b"", b"hello", gre(1, 0, b"no trailer here, but long enough")):
        collector.sender.sendto(junk, collector.endpoint())
    collector.send(1, range(3))
    collector.at_rest(1, 3)
    ledger = collector.get("/v1/ledger")
    assert (ledger["unannounced"], ledger["malformed"]) == ({"key": 5, "address": 1}, 3)
    assert numbers_in(collector) == [0, 1, 2]
    assert collector.metric("vtap_collector_unannounced_packets_total", reason="address") == 1
    assert collector.metric("vtap_collector_malformed_packets_total") == 3


def test_two_nodes_may_use_the_same_key(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.announce(
        a_stream(1, incarnation=2, tap={"namespace": "other", "name": "tap"}), node="node-b", addresses=["127.0.0.2"]
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        for number in range(20):
            other.sendto(copy(1, number, numbered_frame(100 + number)), collector.endpoint())
            collector.send(1, [number])
    collector.at_rest(1, 20)
    collector.at_rest(1, 20, incarnation=2)
    by_tap = {file.parent.name: read_pcapng(file.read_bytes()) for file in collector.files()}
    assert [number_of(p.frame) for p in by_tap["checkout"].packets] == list(range(20))
    assert [number_of(p.frame) for p in by_tap["tap"].packets] == list(range(100, 120))


def test_a_new_incarnation_is_a_new_stream_and_the_old_one_keeps_its_numbers(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.send(1, range(10))
    collector.totals(1, 12)
    collector.at_rest(1, 10)
    collector.announce(a_stream(1, incarnation=2))
    collector.send(1, range(4))
    assert lost(collector.at_rest(1, 4, incarnation=2)) == (0, 0)
    old = collector.row(1, incarnation=1)
    assert (old["closed"], old["received"], lost(old)) == (True, 10, (2, 0))
    sums = collector.get("/v1/ledger")["taps"]
    assert [(row["tap"], row["received"], row["stored"]) for row in sums] == [(TAP, 14, 14)]


def test_vxlan_is_known_to_be_lost_by_totals_only(tmp_path: Path) -> None:
    with CollectorProcess(tmp_path, "--vxlan=0") as collector:
        collector.announce(a_stream(77, trailer=False))
        for number in range(50):
            collector.sender.sendto(vxlan(77, numbered_frame(number)), collector.endpoint(1))
        collector.totals(77, 60, next_sequence=0)
        assert lost(collector.at_rest(77, 50)) == (10, 0)
        assert numbers_in(collector) == list(range(50))


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets need CAP_NET_RAW")
def test_bare_gre_and_erspan(tmp_path: Path) -> None:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
    with raw, CollectorProcess(tmp_path, "--gre", "--erspan") as collector:
        collector.announce(a_stream(5, trailer=False), a_stream(6, trailer=False))
        raw.bind(("127.0.0.1", 0))
        for number in range(20):
            raw.sendto(gre(5, number, numbered_frame(number)), ("127.0.0.1", 0))
            raw.sendto(erspan(6, 1, number, numbered_frame(number)), ("127.0.0.1", 0))
        collector.at_rest(5, 20)
        collector.at_rest(6, 20)


def test_datagrams_that_the_kernel_hands_over_together(collector: CollectorProcess) -> None:
    """A sender's segmentation offload (UDP_SEGMENT) reaches a socket with UDP_GRO as one buffer of many datagrams."""
    collector.announce(a_stream(1))
    datagrams = [copy(1, number, numbered_frame(number, size=100 if number % 10 < 9 else 80)) for number in range(400)]
    collector.sender.setsockopt(socket.IPPROTO_UDP, 103, len(datagrams[0]))
    for first in range(0, 400, 10):  # equal ones, and a shorter one at the end
        collector.sender.sendto(b"".join(datagrams[first : first + 10]), collector.endpoint())
    collector.at_rest(1, 400)
    assert numbers_in(collector) == list(range(400))


@pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need CAP_NET_RAW")
@pytest.mark.parametrize("data", ["127.0.0.1:0", "[::1]:0", "[::]:0"])
def test_ring_and_sockets_share_the_datagrams_without_overlap(tmp_path: Path, data: str) -> None:
    """The ring takes those without checksum and fragments, the socket the others; each comes once."""
    with CollectorProcess(tmp_path, "--ring=lo", data=data) as collector:
        v6 = data == "[::1]:0"
        address = "::1" if v6 else "127.0.0.1"
        target = (address, collector.endpoint()[1])
        collector.announce(a_stream(1), addresses=[address])
        family = socket.AF_INET6 if v6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as plain, socket.socket(family, socket.SOCK_DGRAM) as bare:
            if v6:
                bare.setsockopt(socket.IPPROTO_UDP, 101, 1)  # UDP_NO_CHECK6_TX
            else:
                bare.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
            for number in range(300):
                sender = bare if number % 3 else plain
                sender.sendto(copy(1, number, numbered_frame(number, size=1400 if number % 2 else 64)), target)
        collector.at_rest(1, 300)
        assert sorted(numbers_in(collector)) == list(range(300))
        captured = collector.get("/v1/ledger")["socket"]["captured"]
        assert captured == (100 if v6 else 200)  # of IPv6, those that are short


# ---- faults ----


def test_the_sockets_overflow_is_told_from_the_networks_loss(tmp_path: Path) -> None:
    with CollectorProcess(tmp_path, "--receive-buffer=64Ki") as collector:
        collector.announce(a_stream(1))
        collector.send(1, range(10))
        collector.at_rest(1, 10)
        collector.signal(signal.SIGSTOP)
        collector.send(1, [number for number in range(10, 3000) if number % 1000])  # 1000 and 2000 never leave
        collector.signal(signal.SIGCONT)
        collector.totals(1, 3000)
        wait_until(lambda: collector.row(1)["inFlight"] == 0, "everything is received or lost")
        row = collector.row(1)
        network, by_socket = lost(row)
        assert row["received"] + network + by_socket == 3000
        assert network == 2
        assert by_socket == collector.get("/v1/ledger")["socket"]["overflow"] > 0
        assert row["stored"] == row["received"]


def test_killed_and_started_again(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1), a_stream(2))
    sending = threading.Thread(target=collector.send, args=(1, range(20_000)))
    sending.start()
    wait_until(lambda: collector.row(1)["received"] > 2000, "copies arrive")
    collector.kill()
    sending.join()
    collector.start()
    port = collector.endpoint()
    assert port[1] > 0
    collector.send(1, range(20_000, 20_100))  # no new announcement: it remembers
    collector.totals(1, 20_100)
    wait_until(lambda: collector.row(1)["inFlight"] == 0, "everything is received or lost")
    row = collector.row(1)
    assert row["received"] + sum(lost(row)) == 20_100
    assert row["received"] == row["stored"] + sum(row["dropped"].values())
    stored = numbers_in(collector)  # strict: all files are whole
    assert len(stored) == len(set(stored)) == row["stored"]
    assert stored[-100:] == list(range(20_000, 20_100))


def test_a_partial_block_is_cut_on_restart(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.send(1, range(50))
    collector.at_rest(1, 50)
    collector.kill()
    (file,) = collector.files()
    with file.open("ab") as writer:
        writer.write(file.read_bytes()[-30:-4])
    collector.start()
    assert len(read_pcapng(file.read_bytes()).packets) == 50
    row = collector.row(1)
    assert (row["received"], row["stored"], row["dropped"]) == (50, 50, {"disk": 0, "slow": 0, "crash": 0})


def test_a_graceful_restart_loses_only_what_was_sent_meanwhile(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.send(1, range(100))
    collector.at_rest(1, 100)
    assert collector.stop() == 0
    collector.start()
    collector.send(1, range(130, 200))
    assert lost(collector.at_rest(1, 170)) == (30, 0)
    assert numbers_in(collector) == [*range(100), *range(130, 200)]
    statistics = collector.captures()[0].statistics
    assert statistics[0][8] == 100


@contextlib.contextmanager
def small_disk(mount_point: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount_point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def test_a_full_disk_drops_for_the_files_alone_and_recovers(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "6m") as disk, CollectorProcess(tmp_path, store=disk) as collector:
        collector.announce(a_stream(1))
        (disk / "ballast").write_bytes(bytes(2 << 20))
        for start in range(0, 6000, 500):
            collector.send(1, range(start, start + 500), size=1000)
            wait_until(lambda upto=start: collector.row(1)["received"] == upto + 500, "copies arrive")
        row = collector.at_rest(1, 6000)
        assert row["dropped"]["disk"] > 0 and row["dropped"]["slow"] == 0 and lost(row) == (0, 0)
        assert collector.metric("vtap_collector_write_failing") == 1
        wait_until(lambda: "writing fails: No space left on device" in collector.log(), "it says so")
        (disk / "ballast").unlink()
        time_to_retry = time.monotonic() + DEADLINE
        sent = 6000
        while collector.metric("vtap_collector_write_failing"):
            assert time.monotonic() < time_to_retry, "writing works again"
            collector.send(1, [sent])
            sent += 1
            collector.at_rest(1, sent)
        row = collector.at_rest(1, sent)
        stored = numbers_in(collector)
        assert len(stored) == row["stored"] == sent - row["dropped"]["disk"]
        assert stored == sorted(set(stored)) and stored[-1] == sent - 1
        wait_until(lambda: "writing works again" in collector.log(), "it says so")


def test_a_deleted_file_is_begun_anew(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    collector.send(1, range(10))
    collector.at_rest(1, 10)
    shutil.rmtree(collector.store / "shop")

    def begun_anew() -> bool:
        sent = collector.row(1)["received"]
        collector.send(1, [sent])
        collector.at_rest(1, sent + 1)
        return bool(collector.files())

    wait_until(begun_anew, "a new file")


# ---- consumers ----


class Reader:
    """A consumer that reads only when told to."""

    def __init__(self, collector: CollectorProcess, query: str = "tap=shop/checkout", source: str = "live") -> None:
        self.connection = UnixConnection(collector.run_dir / "collector.sock")
        self.connection.request("GET", f"/v1/{source}?{query}")
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200
        self.data = bytearray()
        self.packets = self._whole = 0

    def read_until(self, packets: int, statistics: int = 0) -> Capture:
        """All that came, once it holds so many packets and at least so many blocks of statistics."""
        end = time.monotonic() + DEADLINE
        told = 0
        while self.packets < packets or told < statistics:
            assert time.monotonic() < end, f"{self.packets} of {packets} packets came"
            self.data += self.answer.read1(4 << 20)
            for kind in self._new_blocks():
                self.packets += kind == 6
                told += kind == 5
        return read_pcapng(bytes(self.data[: self._whole]))

    def _new_blocks(self) -> Iterator[int]:
        while len(self.data) - self._whole >= 8:
            kind, length = struct.unpack_from("=II", self.data, self._whole)
            if len(self.data) - self._whole < length:
                return
            self._whole += length
            yield kind

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def numbers(capture: Capture) -> list[int]:
    return [number_of(packet.frame) for packet in capture.packets]


def test_a_live_consumer_sees_what_is_stored(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    reader = Reader(collector)
    collector.send(1, range(300))
    assert numbers(reader.read_until(300)) == list(range(300))
    collector.at_rest(1, 300)
    (consumer,) = collector.get("/v1/ledger")["consumers"]
    assert (consumer["offered"], consumer["selected"], consumer["dropped"]) == (300, 300, 0)
    reader.close()
    wait_until(lambda: not collector.get("/v1/ledger")["consumers"], "the consumer goes")


def test_wireshark_reads_the_live_stream(collector: CollectorProcess) -> None:
    if not shutil.which("tshark") or not shutil.which("curl"):
        pytest.skip("needs tshark and curl")
    collector.announce(a_stream(1))
    url = "http://localhost/v1/live?tap=shop/checkout"
    curl = subprocess.Popen(["curl", "-sN", "--unix-socket", collector.run_dir / "collector.sock", url], stdout=subprocess.PIPE)
    argv = ["tshark", "-i", "-", "-c", "20", "-T", "fields", "-e", "frame.interface_name", "-e", "eth.type"]
    tshark = subprocess.Popen(argv, stdin=curl.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: collector.get("/v1/ledger")["consumers"], "the consumer is there")
        sent = 0
        while tshark.poll() is None:  # it says nowhere when it is ready
            collector.send(1, [sent])
            sent += 1
            time.sleep(0.01)
            assert sent < 3000, "tshark has read 20 packets"
        assert tshark.stdout is not None
        assert tshark.stdout.read().splitlines() == ["shop/web-1/eth0 egress\t0x88b5"] * 20
    finally:
        for process in (curl, tshark):
            process.kill()
            process.wait()


def test_a_slow_consumer_loses_only_its_own(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    slow, quick = Reader(collector), Reader(collector)
    seen: list[int] = []
    drain = threading.Thread(target=lambda: seen.extend(numbers(quick.read_until(20_000))))
    drain.start()
    for start in range(0, 20_000, 500):  # 28 MB: more than the queue and the sockets of a reader that does not read hold
        collector.send(1, range(start, start + 500), size=1400)
        wait_until(lambda upto=start: collector.row(1)["received"] == upto + 500, "copies arrive")
    row = collector.at_rest(1, 20_000)
    assert (lost(row), row["dropped"]) == ((0, 0), {"disk": 0, "slow": 0, "crash": 0})
    drain.join(DEADLINE)
    assert seen == list(range(20_000))
    dropped = sorted(consumer["dropped"] for consumer in collector.get("/v1/ledger")["consumers"])
    assert dropped[0] == 0 and dropped[1] > 0
    assert collector.metric("vtap_collector_live_dropped_packets_total") == dropped[1]
    told = slow.read_until(20_000 - dropped[1], statistics=1)
    assert len(told.packets) == 20_000 - dropped[1]
    assert 0 < told.statistics[0][7] <= dropped[1]
    quick.close()
    slow.close()


def udp_frame(port: int, number: int) -> bytes:
    ip = bytes.fromhex("4500003200000000401100000a0000010a000002")
    udp = (1234).to_bytes(2, "big") + port.to_bytes(2, "big") + (30).to_bytes(2, "big") + bytes(2)
    return b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01\x08\0" + ip + udp + number.to_bytes(8, "big") + bytes(14)


def test_select_by_filter_and_by_time(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    for number in range(100):
        frame = udp_frame(53 if number % 2 else 80, number)
        collector.sender.sendto(copy(1, number, frame, 10**18 + number * 10**8), collector.endpoint())  # 10 a second
    collector.at_rest(1, 100)

    def stored(query: str) -> list[int]:
        status, body = collector.request("GET", f"/v1/stored?tap=shop/checkout&{query}")
        assert status == 200, body
        return [int.from_bytes(packet.frame[42:50], "big") for packet in read_pcapng(body).packets]

    assert stored("") == list(range(100))
    assert stored("filter=udp+port+53") == list(range(1, 100, 2))
    assert stored("every=2&count=3") == [start + n for start in range(0, 100, 20) for n in range(3)]
    assert stored("filter=udp+port+53&every=5&count=1") == [1, 51]
    assert stored("count=7") == list(range(7))


REFUSED_SELECTIONS = [
    ("tap=shop", "tap: write it as NAMESPACE/NAME"),
    ("tap=../etc", "tap.namespace: "),
    ("tap=shop/..", "tap.name: "),
    ("tap=shop/checkout&filter=udp+prot", "filter: "),
    ("tap=shop/checkout&every=5", "count: "),
    ("tap=shop/checkout&every=nan&count=1", "every: "),
    ("tap=shop/checkout&count=-1", "count: "),
    ("tap=shop/checkout&count=x", "count: 'x' is no number"),
]


def test_a_selection_that_makes_no_sense_is_refused(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    for query, sentence in REFUSED_SELECTIONS:
        for path in ("/v1/live", "/v1/stored"):
            status, body = collector.request("GET", f"{path}?{query}")
            assert (status, json.loads(body)["error"][: len(sentence)]) == (400, sentence)


def test_live_of_a_tap_that_nobody_announced_is_not_found(collector: CollectorProcess) -> None:
    assert collector.request("GET", "/v1/live?tap=no/such")[0] == 404


def descriptors(collector: CollectorProcess) -> int:
    assert collector.process is not None
    return len(list(Path(f"/proc/{collector.process.pid}/fd").iterdir()))


def test_a_refused_live_consumer_leaves_nothing_open(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    readers = [Reader(collector) for _ in range(16)]
    idle = descriptors(collector)
    for _ in range(5):
        status, body = collector.request("GET", "/v1/live?tap=shop/checkout")
        assert (status, json.loads(body)) == (503, {"error": "at most 16 live consumers at a time"})
    wait_until(lambda: descriptors(collector) == idle, "the refused requests' descriptors are closed")
    for reader in readers:
        reader.close()


def test_slow_readers_of_stored_files_hold_up_nothing_else(collector: CollectorProcess) -> None:
    collector.announce(a_stream(1))
    for start in range(0, 4000, 500):  # 5.6 MB: more than the sockets of a reader that does not read hold
        collector.send(1, range(start, start + 500), size=1400)
        wait_until(lambda upto=start: collector.row(1)["received"] == upto + 500, "copies arrive")
    collector.at_rest(1, 4000)
    idle = descriptors(collector)
    readers = [Reader(collector, source="stored") for _ in range(8)]
    status, body = collector.request("GET", "/v1/stored?tap=shop/checkout")
    assert status == 503 and "at most 8 readers of stored files" in json.loads(body)["error"]
    collector.announce(a_stream(1), a_stream(2))
    assert len(collector.get("/v1/files")["files"]) == 1
    assert numbers(readers[0].read_until(4000)) == list(range(4000))
    for reader in readers:
        reader.close()
    wait_until(lambda: descriptors(collector) <= idle, "readers that went leave nothing open")
    assert len(read_pcapng(collector.request("GET", "/v1/stored?tap=shop/checkout")[1]).packets) == 4000
    slow = [Reader(collector, source="stored") for _ in range(8)]
    assert collector.stop() == 0
    for reader in slow:
        reader.close()


def test_files_rotate_are_listed_joined_and_retained(tmp_path: Path) -> None:
    with CollectorProcess(tmp_path, "--rotate-count=100", "--retain-bytes=60k") as collector:
        collector.announce(a_stream(1))
        collector.send(1, range(450))
        collector.at_rest(1, 450)
        listed = collector.get("/v1/files?tap=shop/checkout")["files"]
        assert [row["open"] for row in listed][-1] is True
        assert all(row["packets"] == 100 for row in listed[:-1])
        first = listed[0]
        assert first["first"] <= first["last"] and first["name"].startswith("checkout-") and first["bytes"] > 10_000
        joined = collector.request("GET", "/v1/stored?tap=shop/checkout")[1]
        assert len(read_pcapng(joined).interfaces) == 1
        collector.send(1, range(450, 2000))
        collector.at_rest(1, 2000)
        wait_until(lambda: sum(file.stat().st_size for file in collector.files()) <= 60_000, "old files go")
        kept = numbers_in(collector)
        assert kept == list(range(2000 - len(kept), 2000)) and len(kept) >= 300
        wait_until(lambda: collector.metric("vtap_collector_deleted_files_total") > 0, "the deletion is counted")


def bytes_in(collector: CollectorProcess) -> int:
    """Of all its files at once: a sum during which some came or went is none."""
    while True:
        files = sorted(collector.store.glob("*/*/*.pcapng"))
        with contextlib.suppress(FileNotFoundError):
            total = sum(file.stat().st_size for file in files)
            if files == sorted(collector.store.glob("*/*/*.pcapng")):
                return total


@pytest.mark.parametrize("taps", [1, 12])
def test_files_never_outgrow_what_is_retained(tmp_path: Path, taps: int) -> None:
    """Those that are being written included: twelve taps have twelve open files."""
    limit = 2 << 20
    with CollectorProcess(tmp_path, f"--retain-bytes={limit}", "--receive-buffer=32Mi") as collector:
        collector.announce(*(a_stream(key, tap={"namespace": "shop", "name": f"tap-{key}"}) for key in range(taps)))
        seen: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                seen.append(bytes_in(collector))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            for start in range(0, 12_000 // taps, 100):  # 17 MB
                for key in range(taps):
                    collector.send(key, range(start, start + 100), size=1400)
                wait_until(
                    lambda upto=start: all(collector.row(key)["received"] == upto + 100 for key in range(taps)), "copies arrive"
                )
            for key in range(taps):
                row = collector.at_rest(key, 12_000 // taps)
                assert row["dropped"] == {"disk": 0, "slow": 0, "crash": 0}
        finally:
            done.set()
            watching.join()
        assert max(seen) <= limit + (256 << 10) + max(4, taps) * (
            4 << 10
        )  # a chunk, and what describes interfaces and ends files
        assert bytes_in(collector) > limit // 2
        wait_until(lambda: collector.metric("vtap_collector_stored_bytes") == bytes_in(collector), "the metric follows")


# ---- the control channel ----


def test_who_may_ask_what(collector: CollectorProcess) -> None:
    for token in (None, "", "wrong", TOKEN + "x"):
        assert collector.request("PUT", "/v1/nodes/node-a/streams", {}, token=token)[0] == 401
        assert collector.over_tcp("/v1/ledger", token) == 401
        assert collector.over_tcp("/v1/live?tap=a/b", token) == 401
    assert collector.over_tcp("/v1/ledger", TOKEN) == 200
    assert collector.over_tcp("/metrics", None) == 200
    assert collector.request("GET", "/v1/ledger", token=None)[0] == 200
    (collector.base / "token").write_text("rotated")
    assert collector.over_tcp("/v1/ledger", "rotated") == 200
    assert collector.over_tcp("/v1/ledger", TOKEN) == 401


def test_a_hostile_announcement_reaches_nothing(collector: CollectorProcess) -> None:
    good = {"version": 1, "addresses": ["127.0.0.1"], "taiOffset": 37, "streams": [a_stream(1)]}
    before = sorted(path.name for path in collector.base.rglob("*"))
    for field, value in {
        "tap": {"namespace": "..", "name": "x"},
        "pod": {"namespace": "shop", "name": "../../x", "uid": ""},
        "interface": "../eth0",
        "key": 2**32,
        "incarnation": "0" * 15,
        "direction": "Sideways",
        "surprise": 1,
    }.items():
        status, body = collector.request("PUT", "/v1/nodes/node-a/streams", {**good, "streams": [{**a_stream(1), field: value}]})
        assert status == 400
        assert json.loads(body)["error"].startswith(f"streams[0].{field}")
    assert collector.request("PUT", "/v1/nodes/node-a/streams", {**good, "addresses": ["nonsense"]})[0] == 400
    assert collector.request("PUT", "/v1/nodes/node-a/streams", {**good, "streams": [a_stream(1), a_stream(1)]})[0] == 400
    assert collector.request("PUT", "/v1/nodes/..%2f..%2fx/streams", good)[0] == 400
    assert collector.request("PUT", "/v1/nodes/node-a/streams", raw=b"{" * 100)[0] == 400
    assert collector.request("PUT", "/v1/nodes/node-a/streams", raw=b" " * (9 << 20))[0] == 413
    many = [a_stream(key) for key in range(65)]
    status, body = collector.request("PUT", "/v1/nodes/node-a/streams", {**good, "streams": many})
    assert (status, json.loads(body)["error"]) == (507, "streams: this collector has room for 64 more; raise --max-streams")
    assert sorted(path.name for path in collector.base.rglob("*")) == before


def test_symbolic_links_are_not_followed(collector: CollectorProcess, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (collector.store / "shop").symlink_to(outside)
    collector.announce(a_stream(1))
    collector.send(1, range(10))
    row = collector.at_rest(1, 10)
    assert row["dropped"]["disk"] == 10
    assert not list(outside.iterdir())
    assert collector.get("/v1/files")["files"] == []


def accepts(collector: CollectorProcess, streams: list[dict[str, object]]) -> bool:
    body = {"version": 1, "addresses": ["127.0.0.1"], "taiOffset": 37, "streams": streams}
    return collector.request("PUT", "/v1/nodes/node-a/streams", body)[0] == 200


def test_closed_streams_make_room(collector: CollectorProcess) -> None:
    for round_number in range(1, 6):
        streams = [a_stream(key, incarnation=round_number) for key in range(30)]
        wait_until(lambda these=streams: accepts(collector, these), "room for 30 new streams")
        collector.send(3, range(10))
        collector.at_rest(3, 10, incarnation=round_number)
    collector.announce()
    wait_until(lambda: accepts(collector, [a_stream(key, 99) for key in range(64)]), "room for 64 new streams")
    (row,) = collector.get("/v1/ledger")["taps"]
    assert (row["received"], row["stored"]) == (50, 50)


# ---- the command line ----


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--listen=127.0.0.1:0"], "--listen needs --token-file"),
        (["--listen-data=nowhere:1"], "write it as ADDRESS:PORT"),
        (["--listen-data=192.0.2.77:4754"], "--listen-data 192.0.2.77:4754: Cannot assign requested address"),
        (["--token-file=/nonexistent/token"], "--token-file /nonexistent/token: No such file or directory"),
        (["--max-streams=0"], "must lie between 1 and"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    argv = ["vtap-collector", f"--directory={tmp_path}/d", f"--run-dir={tmp_path}/r", "--listen-data=127.0.0.1:0", *options]
    monkeypatch.setattr(sys, "argv", argv)
    assert main() == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_second_collector_on_the_same_directory_is_refused(collector: CollectorProcess, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with (
        pytest.raises(AssertionError, match="in use by another collector"),
        CollectorProcess(tmp_path / "second", store=collector.store),
    ):
        pass
