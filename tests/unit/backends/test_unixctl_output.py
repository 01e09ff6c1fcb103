"""What vswitchd prints, as versions 3.1 to 3.5 do."""

from __future__ import annotations

from vtap_agent.drivers.unixctl import DatapathCounters, PollThread, parse_coverage, parse_poll_threads, parse_ports

SHOW = """\
netdev@ovs-netdev:
  lookups: hit:12 missed:2 lost:0
  flows: 2
  port 0: ovs-netdev (tap)
    RX packets:0 errors:0 dropped:0 overruns:0 frame:0
    TX packets:0 errors:0 dropped:0 aborted:0 carrier:0
    collisions:0
    RX bytes:0  TX bytes:0
  port 2: veth1
    RX packets:101 errors:0 dropped:0 overruns:0 frame:0
    TX packets:99 errors:0 dropped:3 aborted:0 carrier:0
    collisions:0
    RX bytes:6464 (6.3 KiB)  TX bytes:6336 (6.2 KiB)
system@ovs-system:
  lookups: hit:0 missed:0 lost:0
  port 1: patch-x (patch: peer=y)
    RX packets:? errors:? dropped:? overruns:? frame:?
    TX packets:? errors:? dropped:? aborted:? carrier:?
  port 3: eth7
    RX packets:5 errors:? dropped:? overruns:? frame:?
    TX packets:6 errors:? dropped:? aborted:? carrier:?
"""


def test_ports_of_every_datapath_are_read_and_unknown_counters_left_out() -> None:
    assert parse_ports(SHOW) == {
        "ovs-netdev": DatapathCounters(0, 0, 0),
        "veth1": DatapathCounters(101, 99, 3),
        "eth7": DatapathCounters(5, 6, 0),
    }


def test_coverage_totals_are_read() -> None:
    text = (
        "Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash=1d045ea9:\n"
        "bridge_reconfigure         0.0/sec     0.000/sec        0.0000/sec   total: 3\n"
        "rev_reconfigure            0.2/sec     0.017/sec        0.0003/sec   total: 41\n"
        "72 events never hit\n"
    )
    assert parse_coverage(text) == {"bridge_reconfigure": 3, "rev_reconfigure": 41}


THREADS = """\
pmd thread numa_id 0 core_id 1:
  packets received: 1640
  packet recirculations: 3
  avg. datapath passes per packet: 1.00
  emc hits: 1271
  avg. packets per output batch: 1.87
  idle cycles: 1100267980 (58.85%)
  processing cycles: 769479232 (41.15%)
  avg cycles per packet: 1140089.76 (1869747212/1640)
  avg processing cycles per packet: 469194.65 (769479232/1640)
pmd thread numa_id 1 core_id 12:
  packets received: 0
  idle cycles: 7 (100.00%)
main thread:
  packets received: 4
  packet recirculations: 0
"""


def test_poll_mode_threads_are_told_by_core() -> None:
    assert parse_poll_threads(THREADS) == (PollThread(0, 1, 1640, 1100267980, 769479232), PollThread(1, 12, 0, 7, 0))


def test_a_datapath_that_nobody_polls_has_no_such_threads() -> None:
    assert parse_poll_threads("main thread:\n  packets received: 4\n") == ()
