"""Pods on CNI's plain bridge, where there is no Open vSwitch: `Auto` taps them all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.e2e.cases.scene import Scene, expect_each_once, point
from tests.e2e.cluster.networks import PLAIN_NETWORK


def test_auto_taps_a_pod_without_open_vswitch(scene: Scene) -> None:
    specs = [replace(spec, networks=(PLAIN_NETWORK.name,)) for spec in scene.specs(web=0, client=0)]
    web, client = scene.product.cluster.start_pods(*specs)
    scene.tap("web", pods=1)
    forth, back = scene.exchange(web, client, 200), scene.exchange(client, web, 200)
    sent, received = forth.finish(), back.finish()
    assert sent.lost == received.lost == frozenset()
    scene.closes("web")
    found = scene.stored("web")
    expect_each_once(found, sent.sent, point(web, "egress"))
    expect_each_once(found, received.received, point(web, "ingress"))
    points = tap_points(scene)
    assert {(one["interface"], one["direction"], one["backend"]) for one in points} == {
        ("net1", "Ingress", "EBPF"),
        ("net1", "Egress", "EBPF"),
    }
    assert all("Auto takes EBPF" in one["why"] for one in points), points


def tap_points(scene: Scene) -> list[dict[str, Any]]:
    """Every tap point in the namespace, as the nodes tell it."""
    nodes = scene.product.cluster.kubectl.list("tapnodes")
    points = (one for node in nodes for one in node.get("status", {}).get("points", []))
    return [one for one in points if one["tapNamespace"] == scene.namespace]
