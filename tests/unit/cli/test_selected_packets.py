"""`vtap packets --filter X --every T --count N`: what is counted is what tshark's display filter lets pass."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.unit.cli.pcapng import NOON, SECTION, WAIT, datagram, interface, packet, udp_ports, wait_until
from tests.unit.cli.test_packets import in_chunks

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (apt-get install tshark)")


def spread(*packets: tuple[int, float, int]) -> bytes:
    """Two interfaces, and packets of (interface, seconds, port)."""
    body = b"".join(packet(i, NOON + int(at * 10**9), datagram(port, b"payload")) for i, at, port in packets)
    return SECTION + interface("shop/web-0 eth0 Egress") + interface("shop/web-1 eth0 Ingress") + body


MATCHING_AND_OTHERS = spread(
    *((0, second, 1111) for second in range(5)),
    (0, 5, 9999), (1, 5.5, 9999), (0, 6, 9999), (0, 7, 9999), (0, 15, 9999), (0, 15.5, 1111), (1, 15.6, 9999), (0, 16, 9999),
)  # fmt: skip
FIRST_OF_EACH_TEN_SECONDS = ["5", "5.5", "15", "15.6"]


def seconds_in(file: Path) -> list[str]:
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-e", "frame.time_epoch"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT).stdout.split()
    return [f"{float(time) - NOON / 10**9:g}" for time in shown]


def test_what_is_counted_is_what_the_display_filter_lets_pass(run, tmp_path):
    server = run.serve("collector", v1_stored=in_chunks(MATCHING_AND_OTHERS))
    wanted = ("packets", "shop/web", "--filter", "udp.dstport == 9999", "--every", "10s", "--count", "1")
    shown = run.vtap(*wanted)
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["6", "7", "10", "12"]
    assert all("9999" in line and "shop/web-" in line for line in shown.stdout.splitlines())
    assert server.asked == [("/v1/stored", {"tap": "shop/web"})]
    file = tmp_path / "some.pcapng"
    assert run.vtap(*wanted, "-w", str(file)).returncode == 0
    assert seconds_in(file) == FIRST_OF_EACH_TEN_SECONDS
    decoded = json.loads(run.vtap(*wanted, "-o", "json").stdout)
    assert [frame["_source"]["layers"]["frame"]["frame.number"] for frame in decoded] == ["6", "7", "10", "12"]


def test_so_many_in_all_are_counted_after_the_display_filter(run):
    run.serve("collector", v1_stored=in_chunks(MATCHING_AND_OTHERS))
    shown = run.vtap("packets", "shop/web", "--filter", "udp.dstport == 9999", "--count", "3")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["6", "7", "8"]
    assert shown.returncode == 0, shown.stderr


def test_live_packets_that_match_are_shown_at_once_and_counted(run, live):
    wanted = ("packets", "shop/web", "--live", "--filter", "udp.dstport in {7777, 9998}", "--count", "2")
    with subprocess.Popen(run.command(*wanted), stdout=subprocess.PIPE, text=True, env=run.environment) as shown:
        assert shown.stdout is not None
        assert "9998" in shown.stdout.readline()
        live.set()
        assert "7777" in shown.stdout.readline()
        assert shown.wait(WAIT) == 0  # though the stream goes on


def test_interrupting_a_counted_capture_leaves_a_good_file(run, live, tmp_path):
    file = tmp_path / "live.pcapng"
    wanted = ("packets", "shop/web", "--live", "--filter", "udp", "--every", "10s", "--count", "1", "-w", str(file))
    with subprocess.Popen(run.command(*wanted), env=run.environment) as writing:
        try:
            wait_until(file.exists)
        finally:
            writing.send_signal(signal.SIGINT)
        assert writing.wait(WAIT) == 0
    assert udp_ports(file) == ["9999", "9998"]
