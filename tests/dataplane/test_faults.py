"""Things break: originals fare no worse than without a tap, nothing is left behind, and the ledger closes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dataplane.site import PATIENCE, Site, expect_each_once, expect_none_missing_within_the_lease, point
from vtap_agent.lease import LEASE
from vtap_lab.errors import wait_for
from vtap_lab.exchange import Exchange, start_exchange
from vtap_lab.lab import BRIDGE, Lab, Pod

pytestmark = pytest.mark.slow

PAIR = ("vtn", "vtf", "vtc", "vtd")
"""How the names of the normalising pairs begin, which stay as long as the agent."""
RATE = 1000
"""Datagrams a second in an outage."""


@pytest.fixture
def site(lab: Lab, tmp_path: Path) -> Site:
    return Site(lab, tmp_path)


def lost_originals(exchange: Exchange) -> int:
    """Datagrams that were sent and did not arrive at the other pod."""
    ((_, received),) = exchange.received.items()
    return len(set(exchange.sent) - set(received))


@dataclass(frozen=True)
class Outage:
    """A daemon was away, for so many seconds, while one pod sent to the other."""

    exchange: Exchange
    away: float


def outage(site: Site, web: Pod, client: Pod, restart: Callable[[], None]) -> Outage:
    exchange = start_exchange(site.lab, web, client, count=0, rate=RATE)
    wait_for(lambda: exchange.sent_so_far() > 300, 10, "traffic flows")
    begun = time.monotonic()
    restart()
    away = time.monotonic() - begun
    sent = exchange.sent_so_far()
    wait_for(lambda: exchange.sent_so_far() > sent + 500, 10, "traffic flows on")
    return Outage(exchange.stop(), away)


def assert_no_worse(tapped: Outage, untapped: Outage) -> None:
    """A daemon takes as long as a busy machine lets it; but for that, an outage is about as long as without a tap."""
    longer = max(0.0, tapped.away - untapped.away)
    assert lost_originals(tapped.exchange) <= 2 * lost_originals(untapped.exchange) + RATE * (0.5 + 2 * longer)


def test_vswitchd_killed_and_restarted(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")

    def restart() -> None:
        site.lab.switch.kill_vswitchd()
        site.lab.switch.start_vswitchd()

    without = outage(site, web, client, restart)
    site.tap("web")
    assert_no_worse(outage(site, web, client, restart), without)
    wait_for(lambda: site.condition("web", "Delivering") == "True", PATIENCE, "the tap delivers again")
    after = start_exchange(site.lab, web, client, count=200).finish()
    site.closes()
    expect_each_once(site.stored("web"), after, point(web, "egress"))


def test_ovsdb_restarted(site: Site) -> None:
    """The netdev datapath rests while its database is away, tapped or not."""
    web, client = site.pod("web"), site.pod("client")

    without = outage(site, web, client, site.lab.switch.restart_ovsdb)
    site.tap("web")
    tapped = outage(site, web, client, site.lab.switch.restart_ovsdb)
    assert_no_worse(tapped, without)
    site.tap("later")
    after = start_exchange(site.lab, web, client, count=200).finish()
    site.closes()
    ((_, arrived),) = tapped.exchange.received.items()
    found = site.stored("web")
    assert all(found[point(web, "egress"), datagram] == 1 for datagram in arrived), "what arrived was copied"
    expect_each_once(found, after, point(web, "egress"))
    expect_each_once(site.stored("later"), after, point(web, "egress"))


def test_agent_killed_and_started_again_leaves_no_gap(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    exchange = start_exchange(site.lab, web, client, count=0, rate=250)
    wait_for(lambda: exchange.sent_so_far() > 300, 10, "traffic flows")
    site.agent.kill()
    killed = time.monotonic()
    site.start_agent()
    wait_for(lambda: site.condition("web", "Delivering") == "True", PATIENCE, "the tap delivers")
    away = time.monotonic() - killed
    sent = exchange.sent_so_far()
    wait_for(lambda: exchange.sent_so_far() > sent + 300, 10, "traffic flows on")
    done = exchange.stop()
    summary = site.closes()
    assert lost_originals(done) == 0 and summary["lost"] == 0
    expect_none_missing_within_the_lease(site.stored("web"), done.sent, point(web, "egress"), summary["dropped"], away)


def test_agent_killed_at_any_step_recovers(site: Site) -> None:
    """Killed at random moments of the pass that a new tap starts: the next agent finishes the work."""
    web, client = site.pod("web"), site.pod("client")
    dice = random.Random(7)
    for attempt in range(5):
        site.write_tap(f"tap-{attempt}")
        time.sleep(dice.uniform(0, 0.25))
        site.agent.kill()
        site.start_agent()
    for attempt in range(5):
        name = f"tap-{attempt}"
        wait_for(lambda name=name: site.condition(name, "Delivering") == "True", PATIENCE, f"{name} delivers")
    exchange = start_exchange(site.lab, web, client, count=200).finish()
    site.closes()
    for attempt in range(5):
        expect_each_once(site.stored(f"tap-{attempt}"), exchange, point(web, "egress"))
    assert lost_originals(exchange) == 0


def test_agent_gone_for_good_stops_copying_by_itself(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    exchange = start_exchange(site.lab, web, client, count=0, rate=200)
    wait_for(lambda: exchange.sent_so_far() > 100, 10, "traffic flows")

    def received() -> int:
        return sum(stream["received"] for stream in site.collector.get("/v1/ledger")["streams"])

    site.agent.kill()
    killed = time.monotonic()
    before = [received()]

    def copies_have_ended() -> bool:
        sent = exchange.sent_so_far()
        wait_for(lambda: exchange.sent_so_far() > sent + 100, 10, "traffic flows on")
        before.append(received())
        return before[-1] == before[-2] and time.monotonic() - killed > LEASE - 2

    wait_for(copies_have_ended, 2 * LEASE, "copies end with the lease")
    assert time.monotonic() - killed < 2 * LEASE
    done = exchange.stop()
    assert lost_originals(done) == 0
    site.start_agent()
    summary = site.closes()
    assert summary["dropped"] > 0, "what the lease cut off is counted"


def test_collector_killed_loses_only_what_it_missed(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    exchange = start_exchange(site.lab, web, client, count=0, rate=250)
    wait_for(lambda: exchange.sent_so_far() > 300, 10, "traffic flows")
    site.collector.kill()
    wait_for(lambda: site.condition("web", "Delivering") == "False", PATIENCE, "the status says it")
    site.start_collector()
    wait_for(lambda: site.condition("web", "Delivering") == "True", PATIENCE, "the tap delivers again")
    sent = exchange.sent_so_far()
    wait_for(lambda: exchange.sent_so_far() > sent + 300, 10, "traffic flows on")
    done = exchange.stop()
    summary = site.closes()
    assert lost_originals(done) == 0
    assert summary["lost"] > 0
    for file in site.files("web"):
        subprocess.run(["capinfos", str(file)], check=True, capture_output=True)


def test_veth_deleted_under_the_tap(site: Site) -> None:
    web, other, client = site.pod("web"), site.pod("web"), site.pod("client")
    site.tap("web")
    site.lab.forget_pod(web)
    wait_for(lambda: not site.says("web", web.host_name), PATIENCE, "the agent sees that the pod is gone")
    exchange = start_exchange(site.lab, other, client, count=200).finish()
    site.closes()
    assert lost_originals(exchange) == 0
    expect_each_once(site.stored("web"), exchange, point(other, "egress"))
    site.remove_tap("web")
    wait_for(lambda: _only_pairs_of(_of_ours(site)), PATIENCE, "nothing is left but the pairs")


def test_destination_black_holed_and_back(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    exchange = start_exchange(site.lab, web, client, count=0, rate=500)
    site.lab.ip(site.lab.router, "link set node0 down")
    wait_for(lambda: site.condition("web", "Delivering") == "False", 60, "the status says it")
    sent = exchange.sent_so_far()
    wait_for(lambda: exchange.sent_so_far() > sent + 300, 10, "traffic flows on")
    site.lab.ip(site.lab.router, "link set node0 up", "route replace 198.18.1.0/24 dev node0")
    wait_for(lambda: site.condition("web", "Delivering") == "True", 60, "the tap delivers again")
    sent = exchange.sent_so_far()
    wait_for(lambda: exchange.sent_so_far() > sent + 300, 10, "traffic flows on")
    done = exchange.stop()
    site.closes()
    assert lost_originals(done) == 0
    last = done.sent[-200:]
    found = site.stored("web")
    assert all(found[point(web, "egress"), datagram] == 1 for datagram in last)


def test_a_stage_broken_on_purpose_shows(site: Site) -> None:
    """Without `send` copies enter the pair and vanish, counted by nobody: that is what unaccounted is for."""
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    start_exchange(site.lab, web, client, count=50).finish()
    assert site.closes()["unaccounted"] == 0
    _detach_send(site)
    start_exchange(site.lab, web, client, count=50).finish()
    wait_for(lambda: site.summary()["unaccounted"] > 0, PATIENCE, "unaccounted packets show")


def test_stopping_the_agent_leaves_nothing(site: Site) -> None:
    site.pod("web")
    site.tap("web")
    assert _of_ours(site) != []
    assert site.agent.stop() == 0
    assert _of_ours(site) == []
    assert not (site.lab.run_dir / "bpf" / "maps").exists()


def test_cleaning_up_tells_what_it_could_not_reach(site: Site) -> None:
    """Whoever uninstalls is told what stays where the database does not answer, and the next try takes it."""
    site.pod("web")
    site.tap("web")
    site.agent.kill()
    site.lab.switch.stop_ovsdb()
    first = _clean_up(site)
    assert first.returncode == 1
    assert "no Open vSwitch database answers" in first.stderr and "run --cleanup again" in first.stderr
    assert "OVSMirror's mirrors" in first.stderr and "OVSGroup's flows" in first.stderr, first.stderr
    assert "eBPF" not in first.stderr and "Traceback" not in first.stderr
    site.lab.switch.start_ovsdb()
    second = _clean_up(site)
    assert (second.returncode, _of_ours(site)) == (0, []), second.stderr


def test_cleaning_up_tells_of_flows_only_where_only_flows_stay(site: Site) -> None:
    site.pod("web")
    site.tap("web", backend="OVSGroup")
    site.agent.kill()
    site.lab.switch.kill_vswitchd()
    first = _clean_up(site)
    assert first.returncode == 1
    assert f"OVSGroup's flows, groups and tap ports may stay: bridge {BRIDGE} cannot be reached" in first.stderr
    assert "OVSMirror" not in first.stderr and "eBPF" not in first.stderr and "Traceback" not in first.stderr
    site.lab.switch.start_vswitchd()
    second = _clean_up(site)
    assert (second.returncode, _of_ours(site)) == (0, []), second.stderr


def _clean_up(site: Site) -> subprocess.CompletedProcess[str]:
    lab = site.lab
    agent = str(Path(sys.executable).parent / "vtap-agent")
    places = [f"--run-dir={lab.run_dir}", f"--state-dir={lab.state_dir}", f"--ovsdb={lab.switch.db_remote}", "--node=node-a"]
    command = ["ip", "netns", "exec", lab.node, agent, "--cleanup", *places]
    environment = {**os.environ, **lab.switch.environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60 * PATIENCE, check=False)


def _only_pairs_of(names: list[str]) -> bool:
    return all(name.startswith(PAIR) for name in names)


def _of_ours(site: Site) -> list[str]:
    """Devices, ports and mirrors in the node that bear our stamp or name."""
    links = site.lab.run(site.lab.node, "ip", "-o", "link", "show").splitlines()
    devices = [line.split(":")[1].strip() for line in links if "vtap.dev" in line]
    ports = [port for port in site.lab.switch.vsctl("list-ports", BRIDGE).split() if port.startswith("vtap-")]
    mirrors = site.lab.switch.vsctl("--bare", "--columns=name", "list", "Mirror").split()
    return [*devices, *ports, *mirrors]


def _detach_send(site: Site) -> None:
    links = site.lab.run(site.lab.node, "ip", "-o", "link", "show").splitlines()
    (far,) = [line.split(":")[1].strip().split("@")[0] for line in links if line.split(":")[1].strip().startswith("vtf")]
    for pin in (site.lab.run_dir / "bpf" / "links").glob(f"*{far}*"):
        pin.unlink()
    site.lab.run(site.lab.node, "tc", "qdisc", "del", "dev", far, "clsact", check=False)
