"""What taps of every backend do alike, from a file to packets in a file. `spec` is of the tap, beyond what makes it one."""

from __future__ import annotations

from typing import Any

from tests.dataplane.site import Site, expect_each_once, expect_none, point
from vtap_lab.errors import wait_for
from vtap_lab.exchange import start_exchange


def each_datagram_is_stored_once_a_tap_point(site: Site, family: int, **spec: Any) -> None:
    """What a tapped pod sends and what it is sent, and nothing of what a pod beside it is sent. `family` is 4 or 6."""
    web, client, bystander = site.pod("web"), site.pod("client"), site.pod("bystander")
    site.tap("web", **spec)
    out = start_exchange(site.lab, web, client, family=family, count=300)
    back = start_exchange(site.lab, client, web, family=family, count=300)
    beside = start_exchange(site.lab, client, bystander, family=family, count=300)
    sent, received, other = out.finish(), back.finish(), beside.finish()
    summary = site.closes("web")
    found = site.stored("web")
    expect_each_once(found, sent, point(web, "egress"))
    expect_each_once(found, received, point(web, "ingress"))
    expect_none(found, sent, point(web, "ingress"))
    expect_none(found, received, point(web, "egress"))
    expect_none(found, other, point(web, "ingress"), point(web, "egress"))
    assert summary["lost"] == 0 and summary["seen"] >= 600


def a_recreated_pod_is_tapped_again(site: Site, within: float, **spec: Any) -> None:
    """So many seconds after it came. What it sent before and what it sends since is all there."""
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", **spec)
    first = start_exchange(site.lab, web, client, count=50).finish()
    site.lab.delete_pod(web)
    again = site.pod("web")
    tapped = lambda: site.condition("web", "Delivering") == "True" and site.says("web", again.host_name)  # noqa: E731
    wait_for(tapped, within, "the new pod is tapped")
    second = start_exchange(site.lab, again, client, count=50).finish()
    site.closes("web")
    found = site.stored("web")
    expect_each_once(found, first, point(web, "egress"))
    expect_each_once(found, second, point(again, "egress"))
