"""`Auto` at a pod's device where somebody's `ingress` qdisc leaves eBPF one side only, as it does before Linux 6.6."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane.altered_agent import BEFORE_TCX, alter_agents
from tests.dataplane.site import PATIENCE, Site, expect_each_once, point
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange
from vtap_lab.lab import Lab, Pod
from vtap_lab.processes import run_in

pytestmark = pytest.mark.slow

REGAIN = 5.0
"""Seconds, instead of the minute that `Auto` waits before it goes back."""
SOON = f"""
from vtap_agent.plan import hookless
hookless.REGAIN = {REGAIN}
"""


@pytest.fixture
def site(shared_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    alter_agents(monkeypatch, tmp_path, BEFORE_TCX + SOON)
    made = Site(shared_lab, tmp_path / "captures")
    yield made
    made.new_scene()


def chosen(site: Site) -> Mapping[str, Any]:
    """The tap's points, by direction."""
    status = site.status("web")
    return {one["direction"]: one for one in status["points"]} if status else {}


def backends(site: Site) -> dict[str, str]:
    return {direction: one["backend"] for direction, one in chosen(site).items()}


def expect_copies(site: Site, web: Pod, client: Pod) -> None:
    """Of what the pod sends and receives, once."""
    sent = start_exchange(site.lab, web, client, count=100).finish()
    received = start_exchange(site.lab, client, web, count=100).finish()
    assert (len(sent.received[str(client)]), len(received.received[str(web)])) == (100, 100)
    site.closes("web")
    found = site.stored("web")
    expect_each_once(found, sent, point(web, "egress"))
    expect_each_once(found, received, point(web, "ingress"))


def test_what_a_pod_receives_beside_an_ingress_qdisc_is_copied_by_open_vswitch_until_it_goes(site: Site) -> None:
    web, client = site.pod("web"), site.pod("client")
    run_in(site.lab.node, ["tc", "qdisc", "add", "dev", web.host_name, "ingress"])
    site.tap("web", backend="Auto")
    assert backends(site) == {"Egress": "EBPF", "Ingress": "OVSMirror"}
    why = chosen(site)["Ingress"]["why"]
    assert "ingress qdisc" in why and web.host_name in why, why
    expect_copies(site, web, client)

    run_in(site.lab.node, ["tc", "qdisc", "del", "dev", web.host_name, "ingress"])
    wait_for(lambda: backends(site) == {"Egress": "EBPF", "Ingress": "EBPF"}, REGAIN + PATIENCE, "eBPF copies both")
    wait_for(lambda: site.condition("web", "Programmed") == "True", PATIENCE, "it is programmed")
    expect_copies(site, web, client)
