"""The lab itself: what everything that is proven with it rests on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vtap_lab import preflight, registry, traces
from vtap_lab.capture import numbered
from vtap_lab.errors import LabError, wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import COLLECTOR_ADDRESS, COLLECTOR_ADDRESS6, PLAIN_BRIDGE, Lab, LabOptions, Pod

BOTH_TSO = pytest.mark.parametrize("lab", [LabOptions(), LabOptions(userspace_tso=True)], indirect=True, ids=["no-tso", "tso"])


def _left_of(record: registry.Record) -> list[str]:
    """What there still is of a lab."""
    return [line for line in traces.traces() if record.id in line] + registry.namespaces_of(record)


@BOTH_TSO
@pytest.mark.parametrize("family", [4, 6])
def test_pods_reach_one_another_and_know_it(lab: Lab, family: int) -> None:
    source, target = lab.add_pod("source"), lab.add_pod("target")
    done = start_exchange(lab, source, target, family=family, count=50, size=1400).finish()
    assert [datagram.sequence for datagram in done.sent] == list(range(50))
    assert sorted(done.received[str(target)]) == sorted(done.sent)


def test_access_vlans_are_kept_apart(lab: Lab) -> None:
    source, neighbour, stranger = lab.add_pod("a", vlan=100), lab.add_pod("b", vlan=100), lab.add_pod("c", vlan=200)
    done = start_exchange(lab, source, [neighbour, stranger], address="255.255.255.255", count=20).finish()
    assert sorted(done.received[str(neighbour)]) == sorted(done.sent)
    assert done.received[str(stranger)] == ()


def test_multicast_reaches_everybody_that_joined(lab: Lab) -> None:
    source, first, second = (lab.add_pod(name) for name in ("a", "b", "c"))
    done = start_exchange(lab, source, [first, second], address="239.1.2.3", count=20).finish()
    assert done.received[str(first)] == done.received[str(second)] == done.sent


@pytest.mark.parametrize("address", [COLLECTOR_ADDRESS, COLLECTOR_ADDRESS6])
def test_collector_is_one_routed_hop_away(lab: Lab, address: str) -> None:
    path = lab.run(lab.node, "ip", "route", "get", address)
    assert "via" in path and "dev up0" in path
    server = lab.spawn(lab.collector, "iperf3", "--server", "--one-off", "--forceflush")
    server.wait_ready(lambda: "listening" in server.output(), 5, "listens")
    lab.run(lab.node, "iperf3", "--client", address, "--bytes", "100K")
    server.wait_ok(5)


def test_what_tcpdump_sees_is_found_once_each(lab: Lab, tmp_path: Path) -> None:
    source, target = lab.add_pod("source"), lab.add_pod("target")
    sniffer = lab.spawn(target, "tshark", "-i", "eth0", "-w", str(tmp_path / "all.pcapng"), "-P", "-l", "-f", "udp")
    sniffer.wait_ready(lambda: "Capturing on" in sniffer.output() and (tmp_path / "all.pcapng").exists(), 10, "captures")
    done = start_exchange(lab, source, target, count=30).finish()
    # Told to end, it leaves what it has not yet read from the kernel's ring.
    sniffer.wait_ready(lambda: sniffer.output().count("→") >= len(done.sent), 10, "has read them")
    sniffer.stop(signal.SIGINT)
    found = numbered(tmp_path / "all.pcapng")
    assert {datagram: count for (_, datagram), count in found.items()} == dict.fromkeys(done.sent, 1)


def test_pod_that_goes_is_gone_from_bridge_and_file(lab: Lab) -> None:
    stays, goes = lab.add_pod("stays"), lab.add_pod("goes")
    lab.delete_pod(goes)
    assert lab.switch.vsctl("list-ports", "br0").split() == [stays.host_name]
    assert goes.netns not in lab.pods_file.read_text()
    assert lab.add_pod("goes").netns != goes.netns


def test_failing_command_is_told_in_its_own_words(lab: Lab) -> None:
    with pytest.raises(LabError, match="does not exist"):
        lab.run(lab.node, "ip", "link", "show", "dev", "nosuch0", "up")


def test_own_namespace_is_left_alone_and_nothing_remains() -> None:
    if reason := preflight.why_no_lab():
        pytest.skip(reason)
    before = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    with Lab() as lab:
        pod = lab.add_pod("one")
        lab.spawn(pod, "sleep", "1000")
        during = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
    assert during == before
    assert _left_of(lab.record) == []
    assert not lab.directory.exists()


def test_failing_body_leaves_nothing() -> None:
    if reason := preflight.why_no_lab():
        pytest.skip(reason)
    lab = Lab()
    with pytest.raises(ZeroDivisionError), lab:
        lab.add_pod("one")
        _ = 1 / 0
    assert _left_of(lab.record) == []


MAKER = """
import sys, signal
from vtap_lab.lab import Lab, LabOptions
with Lab(LabOptions(outlives_maker={outlives})) as lab:
    pod = lab.add_pod("one")
    lab.spawn(pod, "sleep", "1000")
    {then}
    print(lab.record.id, flush=True)
    signal.pause() if {wait} else None
"""


def _make_elsewhere(outlives: bool, then: str = "pass", wait: bool = True) -> tuple[subprocess.Popen[str], registry.Record]:
    if reason := preflight.why_no_lab():
        pytest.skip(reason)
    code = MAKER.format(outlives=outlives, then=then, wait=wait)
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert maker.stdout is not None
    identity = maker.stdout.readline().strip()
    return maker, next(record for record in registry.records() if record.id == identity)


@pytest.mark.parametrize("outlives", [False, True])
def test_lab_whose_maker_was_killed_is_swept_by_the_next(outlives: bool) -> None:
    maker, record = _make_elsewhere(outlives)
    assert _left_of(record) != []
    maker.kill()
    maker.wait()
    with Lab():
        assert _left_of(record) == []


def test_programs_end_with_a_killed_maker() -> None:
    maker, record = _make_elsewhere(outlives=False)
    (pod,) = [name for name in record.namespaces if "-pod" in name]
    wait_for(lambda: registry.processes_in([pod]), 5, "the pod's program starts")
    maker.kill()
    maker.wait()
    wait_for(lambda: not registry.processes_in([pod]), 5, "the pod's program ends")
    registry.sweep()


def test_lab_in_use_is_not_swept() -> None:
    maker, record = _make_elsewhere(outlives=False)
    assert record.id not in [swept.id for swept in registry.sweep(kept_too=True)]
    assert registry.processes_in(record.namespaces) != []
    os.kill(maker.pid, signal.SIGINT)  # As Ctrl-C does.
    maker.wait(20)
    assert _left_of(record) == []


def test_kept_lab_lives_until_it_is_cleaned() -> None:
    maker, record = _make_elsewhere(outlives=True, then="lab.leave_running()", wait=False)
    assert maker.wait(20) == 0
    registry.sweep()
    assert registry.processes_in(record.namespaces) != []
    cleaned = subprocess.run([sys.executable, "-m", "vtap_lab.clean"], capture_output=True, text=True, check=True)
    assert f"removed lab {record.id}" in cleaned.stdout
    assert _left_of(record) == []


def test_addresses_of_a_pod_are_those_it_has(lab: Lab) -> None:
    pod: Pod = lab.add_pod("one", namespace="shop", labels={"app": "web"})
    shown = lab.run(pod, "ip", "-o", "address", "show", "dev", "eth0")
    assert pod.ipv4 in shown
    assert pod.mac in lab.run(pod, "ip", "link", "show", "dev", "eth0")


def test_pods_of_a_plain_bridge_reach_one_another_without_open_vswitch() -> None:
    if reason := preflight.why_no_lab():
        pytest.skip(reason)
    with Lab(LabOptions(datapath=PLAIN_BRIDGE)) as lab:
        source, target = lab.add_pod("source"), lab.add_pod("target")
        done = start_exchange(lab, source, target, count=20).finish()
        assert done.received[str(target)] == done.sent
        assert lab.switch.vswitchd_pid is None
        lab.delete_pod(target)
        assert target.host_name not in lab.run(lab.node, "ip", "-o", "link", "show", "master", "br0")
