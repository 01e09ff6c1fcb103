"""From a file to packets in a file: each datagram that a tapped pod logged is stored exactly once a tap point."""

from __future__ import annotations

import pytest

from tests.dataplane.scenes import a_recreated_pod_is_tapped_again, each_datagram_is_stored_once_a_tap_point
from tests.dataplane.site import Site, expect_each_once, expect_none, point
from vtap_lab.capture import fields
from vtap_lab.errors import PATIENCE, wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import Lab, LabOptions

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_site(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(shared_lab, tmp_path_factory.mktemp("captures"))


@pytest.fixture
def site(shared_site: Site) -> Site:
    """With names of the test's own."""
    shared_site.new_scene()
    return shared_site


BOTH_KINDS = pytest.mark.parametrize(
    "shared_lab", [LabOptions(userspace_tso=False), LabOptions(userspace_tso=True)], indirect=True, ids=["no-tso", "tso"]
)


@BOTH_KINDS
@pytest.mark.parametrize("family", [4, 6])
def test_each_datagram_is_stored_once_a_tap_point(site: Site, family: int) -> None:
    each_datagram_is_stored_once_a_tap_point(site, family)


def test_a_pair_of_tapped_pods_shows_a_packet_at_both_ends(site: Site) -> None:
    one, other = site.pod("web"), site.pod("web")
    site.tap("web")
    exchange = start_exchange(site.lab, one, other, count=200).finish()
    site.closes("web")
    found = site.stored("web")
    expect_each_once(found, exchange, point(one, "egress"), point(other, "ingress"))
    expect_none(found, exchange, point(one, "ingress"), point(other, "egress"))


@pytest.mark.parametrize("address", ["10.10.255.255", "239.1.2.3"])
def test_broadcast_and_multicast_belong_to_every_tapped_receiver(site: Site, address: str) -> None:
    sender, first, second = site.pod("client"), site.pod("web"), site.pod("web")
    site.tap("web")
    exchange = start_exchange(site.lab, sender, [first, second], address=address, count=100).finish()
    site.closes("web")
    expect_each_once(site.stored("web"), exchange, point(first, "ingress"), point(second, "ingress"))


def test_two_taps_on_one_pod_each_get_their_own(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("all")
    site.tap("out", direction="Egress")
    exchange = start_exchange(site.lab, web, client, count=200).finish()
    site.closes("all")
    site.closes("out")
    expect_each_once(site.stored("all"), exchange, point(web, "egress"))
    expect_each_once(site.stored("out"), exchange, point(web, "egress"))


def test_an_access_vlan_is_seen_as_the_pod_sees_it(site: Site) -> None:
    web, client = site.pod("web", vlan=7), site.pod("client", vlan=7)
    site.tap("web")
    exchange = start_exchange(site.lab, web, client, count=100).finish()
    site.closes("web")
    expect_each_once(site.stored("web"), exchange, point(web, "egress"))
    (file,) = site.files("web")
    assert fields(file, ("frame.number",), "vlan") == []


def test_a_filter_written_while_traffic_runs_lets_nothing_slip(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", direction="Egress")
    wanted = start_exchange(site.lab, web, client, count=0, rate=250 / PATIENCE)
    unwanted = start_exchange(site.lab, web, client, count=0, rate=250 / PATIENCE)
    wait_for(lambda: unwanted.sent_so_far() > 200, 10, "traffic flows")
    rule = {"action": "Exclude", "protocol": "UDP", "peerPorts": [{"port": unwanted.port}]}
    site.tap("web", direction="Egress", filter={"defaultAction": "Include", "rules": [rule]})
    edited_at = unwanted.sent_so_far()
    wait_for(lambda: unwanted.sent_so_far() > edited_at + 500, 10, "traffic flows on")
    kept, cut = wanted.stop(), unwanted.stop()
    summary = site.closes("web")
    found = site.stored("web")
    expect_each_once(found, kept, point(web, "egress"))
    numbers = sorted(datagram.sequence for (_, datagram) in found if datagram.sender == cut.sender)
    assert numbers == list(range(len(numbers))), "copies end once, and for good"
    assert len(numbers) < edited_at + 100
    assert summary["excluded"] == len(cut.sent) - len(numbers)


def test_sampling_takes_exactly_what_it_says(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", direction="Egress", sampling={"type": "PerInterval", "perInterval": {"packets": 10, "interval": "1h"}})
    start_exchange(site.lab, web, client, count=500).finish()
    summary = site.closes("web")
    assert summary["stored"] == 10 and summary["unsampled"] == summary["seen"] - 10


def test_cut_packets_keep_their_length_in_the_file(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", direction="Egress", packet={"snapLength": 64})
    start_exchange(site.lab, web, client, count=50, size=500).finish()
    site.closes("web")
    (file,) = site.files("web")
    lengths = set(fields(file, ("frame.cap_len", "frame.len"), "udp"))
    assert lengths == {("64", str(14 + 20 + 8 + 500))}


def test_large_packets_survive_the_underlay(site: Site) -> None:
    """A pod's MTU is the underlay's: copies leave in fragments and arrive whole, byte for byte."""
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    exchange = start_exchange(site.lab, web, client, count=100, size=1472).finish()
    summary = site.closes("web")
    expect_each_once(site.stored("web"), exchange, point(web, "egress"))
    assert summary["lost"] == 0


def test_a_file_that_turns_bad_leaves_the_tap_as_it_was(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", direction="Egress")
    site.write_tap("web", direction="Sideways")
    wait_for(lambda: any("Sideways" in problem for problem in site.agent.get("/v1/status")["problems"]), 5, "the mistake is said")
    exchange = start_exchange(site.lab, web, client, count=100).finish()
    site.closes("web")
    expect_each_once(site.stored("web"), exchange, point(web, "egress"))


def test_a_recreated_pod_is_tapped_again(site: Site) -> None:
    a_recreated_pod_is_tapped_again(site, 10)


def test_a_tap_removed_and_written_again_at_once_goes_on(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web")
    first = start_exchange(site.lab, web, client, count=50).finish()
    site.remove_tap("web")
    site.tap("web")
    second = start_exchange(site.lab, web, client, count=50).finish()
    site.closes("web")
    found = site.stored("web")
    expect_each_once(found, first, point(web, "egress"))
    expect_each_once(found, second, point(web, "egress"))
