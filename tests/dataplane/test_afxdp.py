"""Ports of type afxdp on Open vSwitch without DPDK: what a pod sends is taken before tc sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dataplane.site import PATIENCE, Site, expect_each_once, point
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import Lab, Pod
from vtap_lab.preflight import why_no_lab


def put_on_xdp(lab: Lab, pod: Pod) -> None:
    """Skips where this build of Open vSwitch or this kernel has no AF_XDP."""
    lab.switch.vsctl("set", "Interface", pod.host_name, "type=afxdp", "options:xdp-mode=generic")
    error, number = (lab.switch.vsctl("get", "Interface", pod.host_name, column).strip() for column in ("error", "ofport"))
    if error != "[]" or number in ("-1", "[]"):
        pytest.skip(f"no port of type afxdp is to be had here: {error}")


@pytest.mark.skipif(bool(why_no_lab()), reason=why_no_lab() or "")
def test_ebpf_is_refused_where_xdp_takes_a_pod_s_packets_and_auto_copies_them_by_flows(tmp_path: Path) -> None:
    with Lab() as lab:
        site = Site(lab, tmp_path)
        web, client = site.pod("web"), site.pod("client")
        put_on_xdp(lab, web)
        rule = {"action": "Include", "protocol": "UDP"}
        common = {"direction": "Egress", "filter": {"defaultAction": "Exclude", "rules": [rule]}}
        site.write_tap("named", backend="EBPF", **common)
        sentence = f"AF_XDP moves the packets of port {web.host_name} past the kernel; use OVSMirror or OVSGroup"
        wait_for(lambda: site.says("named", sentence), PATIENCE, "EBPF is refused")
        site.tap("chosen", backend="Auto", **common)
        status = site.status("chosen")
        assert status is not None and [one["backend"] for one in status["points"]] == ["OVSGroup"]
        talk = start_exchange(lab, web, client).finish()
        assert talk.received[str(client)], "the switch forwards by AF_XDP"
        site.closes("chosen")
        expect_each_once(site.stored("chosen"), talk, point(web, "egress"))
