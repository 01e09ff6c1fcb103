"""`vtap packets` against a collector that really serves pcapng over a Unix socket, and the real tshark."""

from __future__ import annotations

import shutil
import signal
import subprocess

import pytest

from tests.unit.cli.pcapng import NOON, STORED, WAIT, datagram, packet, udp_ports, wait_until

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (apt-get install tshark)")


def in_chunks(data: bytes, size: int = 50):
    def answer(reply):
        reply.begin()
        for start in range(0, len(data), size):
            reply.chunk(data[start : start + size])
        reply.chunk(b"")

    return answer


def test_stored_packets_are_decoded_with_the_pod_that_they_belong_to(run):
    run.serve("collector", v1_stored=in_chunks(STORED))
    shown = run.vtap("packets", "shop/web")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) == 3
    assert "shop/web-0 eth0 Egress" in lines[0] and "10.1.0.1" in lines[0] and "9999" in lines[0]
    assert "shop/web-1 eth0 Ingress" in lines[1] and "9998" in lines[1]


def test_what_selects_packets_is_asked_of_the_collector(run):
    server = run.serve("collector", v1_stored=in_chunks(STORED))
    run.vtap("packets", "web", "--capture-filter", "udp port 53 && !ip6", "--every", "1500ms", "--count", "10")
    assert server.asked == [
        ("/v1/stored", {"tap": "default/web", "filter": "udp port 53 && !ip6", "every": "1.5", "count": "10"}),
    ]


def test_display_filter_selects_by_any_field(run):
    run.serve("collector", v1_stored=in_chunks(STORED))
    shown = run.vtap("packets", "shop/web", "--filter", 'udp.dstport == 9999 && frame contains "three"')
    assert len(shown.stdout.splitlines()) == 1


def test_pcapng_is_written_as_it_came(run, tmp_path):
    run.serve("collector", v1_stored=in_chunks(STORED))
    file = tmp_path / "web.pcapng"
    assert run.vtap("packets", "shop/web", "-w", str(file)).returncode == 0
    assert file.read_bytes() == STORED


def test_pcapng_goes_to_standard_output(run):
    run.serve("collector", v1_stored=in_chunks(STORED))
    piped = subprocess.run(run.command("packets", "shop/web", "-w", "-"), capture_output=True, timeout=WAIT, check=True)
    assert piped.stdout == STORED


def test_display_filter_and_pcapng_go_together(run, tmp_path):
    run.serve("collector", v1_stored=in_chunks(STORED))
    file = tmp_path / "some.pcapng"
    shown = run.vtap("packets", "shop/web", "--filter", "udp.dstport == 9999", "-w", str(file))
    assert shown.returncode == 0, shown.stderr
    assert udp_ports(file) == ["9999", "9999"]


def test_json_is_tsharks(run):
    run.serve("collector", v1_stored=in_chunks(STORED))
    assert '"udp.dstport": "9998"' in run.vtap("packets", "shop/web", "-o", "json").stdout


def test_live_packets_appear_as_they_arrive(run, live):
    command = run.command("packets", "shop/web", "--live")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=run.environment) as shown:
        assert shown.stdout is not None
        try:
            assert ["9999" in shown.stdout.readline(), "9998" in shown.stdout.readline()] == [True, True]
            shown.stdout.readline()
            live.set()
            assert "7777" in shown.stdout.readline()
        finally:
            shown.send_signal(signal.SIGINT)
        assert shown.wait(WAIT) == 0


def test_interrupting_a_live_capture_leaves_a_good_file(run, live, tmp_path):
    file = tmp_path / "live.pcapng"
    with subprocess.Popen(run.command("packets", "shop/web", "--live", "-w", str(file)), env=run.environment) as writing:
        try:
            wait_until(lambda: file.exists() and file.stat().st_size >= len(STORED))
        finally:
            writing.send_signal(signal.SIGINT)
        assert writing.wait(WAIT) == 0
    assert udp_ports(file) == ["9999", "9998", "9999"]


def test_reader_that_has_seen_enough_is_no_error(run):
    run.serve("collector", v1_stored=in_chunks(STORED + packet(0, NOON, datagram(1, b"x")) * 20_000, 1 << 16))
    command = f"{' '.join(run.command('packets', 'shop/web'))} | head -n 1"
    shown = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=WAIT, check=False)
    assert len(shown.stdout.splitlines()) == 1
    assert "Traceback" not in shown.stderr and "Broken" not in shown.stderr


def test_wrong_display_filter_is_refused_before_anything_is_fetched(run):
    server = run.serve("collector", v1_stored=in_chunks(STORED))
    said = run.refused("packets", "shop/web", "--filter", "foo.bar == 1")
    assert "--filter" in said and "foo.bar" in said
    assert server.asked == []


def test_collectors_own_sentence_is_passed_on(run):
    run.serve("collector", v1_stored=lambda reply: reply.json({"error": "filter: syntax error in 'foo'"}, 400))
    assert (
        run.refused("packets", "shop/web", "--capture-filter", "foo") == "vtap-collector refuses: filter: syntax error in 'foo'"
    )


def test_collector_that_breaks_off_is_said(run):
    def half(reply):
        reply.begin()
        reply.chunk(STORED)
        reply.close_connection = True

    run.serve("collector", v1_stored=half)
    assert "broke off" in run.refused("packets", "shop/web")


def test_file_that_cannot_be_written_is_said(run):
    run.serve("collector", v1_stored=in_chunks(STORED))
    assert run.refused("packets", "shop/web", "-w", "/nonexistent/file").startswith("/nonexistent/file cannot be written")


def test_every_needs_count(run):
    assert run.refused("packets", "shop/web", "--every", "10s") == "--every needs --count, as in --every 10s --count 10"


@pytest.mark.parametrize("wrong", [("--every", "10"), ("--count", "0"), ("--count", "many")])
def test_wrong_numbers_are_a_wrong_command_line(run, wrong):
    tried = run.vtap("packets", "shop/web", *wrong)
    assert tried.returncode == 2
    assert "write a" in tried.stderr.splitlines()[-1]
