"""Pods on CNI's plain bridge, where there is no Open vSwitch: `Auto` taps them all the same."""

from __future__ import annotations

from dataclasses import replace

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
    assert backends(scene) == {("net1", "Ingress", "EBPF"), ("net1", "Egress", "EBPF")}


def backends(scene: Scene) -> set[tuple[str, str, str]]:
    """(interface, direction, backend) of every tap point in the namespace."""
    nodes = scene.product.cluster.kubectl.list("tapnodes")
    points = (one for node in nodes for one in node.get("status", {}).get("points", []))
    return {(one["interface"], one["direction"], one["backend"]) for one in points if one["tapNamespace"] == scene.namespace}
