"""What a new user does: install, apply one file, see the packets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.cases.installation import Installation
from tests.e2e.cases.scene import Scene, expect_each_once, expect_none, point
from tests.e2e.cluster.cache import CHECKOUT
from vtap_lab import capture

EXAMPLE = CHECKOUT / "examples" / "quickstart.yaml"


@pytest.fixture
def shop(installed: Installation, tmp_path: Path) -> Iterator[Scene]:
    """A namespace whose name the scene made up; the example names another."""
    with installed.cluster.namespace("shop") as name:
        yield Scene(installed, name, tmp_path)


def test_helm_test_succeeds(installed: Installation) -> None:
    assert "Succeeded" in installed.test()


def test_quickstart(shop: Scene) -> None:
    """The shortest tap takes every interface, on Open vSwitch or not."""
    web, client = shop.pods(web=0, client=1)
    tap = yaml.safe_load(EXAMPLE.read_text())
    tap["metadata"]["namespace"] = shop.namespace
    shop.product.cluster.kubectl.apply(tap)
    shop.delivers("web", pods=1)
    out, back = shop.exchange(web, client, 300), shop.exchange(client, web, 300)
    sent, received = out.finish(), back.finish()
    ask, answer = (shop.exchange(*ends, 300, interface="eth0") for ends in ((web, client), (client, web)))
    asked, answered = ask.finish(), answer.finish()
    summary = shop.closes("web")
    found = shop.stored("web")
    expect_each_once(found, sent.sent, point(web, "egress"))
    expect_each_once(found, received.received, point(web, "ingress"))
    expect_none(found, sent, point(web, "ingress"))
    expect_each_once(found, asked.sent, point(web, "egress", "eth0"))
    expect_each_once(found, answered.received, point(web, "ingress", "eth0"))
    assert summary["lost"] == 0 and summary["seen"] >= 1200

    read = shop.folder / "read.pcapng"
    shop.product.vtap("packets", "web", "--stored", "-w", str(read), namespace=shop.namespace)
    assert capture.numbered(read) == found
    tree = shop.product.vtap("status", "web", namespace=shop.namespace)
    assert all(word in tree for word in (f"{shop.namespace}/web", web.node.name, "eth0", "net1"))
