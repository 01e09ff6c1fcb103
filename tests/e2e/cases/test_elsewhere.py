"""Copies for somebody else's endpoint: GRE to a host that is in no cluster, decoded by tshark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cases.endpoint import Endpoint, endpoint_on
from tests.e2e.cases.installation import is_true, says
from tests.e2e.cases.scene import Scene
from vtap_lab import capture
from vtap_lab.datagrams import MAGIC, Datagram
from vtap_lab.errors import wait_for


@pytest.fixture
def endpoint(scene: Scene) -> Iterator[Endpoint]:
    with endpoint_on(scene.product.cluster) as made:
        yield made


def test_a_gre_endpoint_outside_the_cluster_receives(scene: Scene, endpoint: Endpoint) -> None:
    web, client = scene.pods(web=0, client=1)
    kubectl = scene.product.cluster.kubectl
    name = f"gre-{scene.namespace}"
    kubectl.apply(
        {
            "apiVersion": "vtap.dev/v1alpha1",
            "kind": "TapDestination",
            "metadata": {"name": name},
            "spec": {"gre": {"address": endpoint.address}},
        }
    )
    try:
        scene.write_tap("web", destinationRef={"name": name}, direction="Egress")
        in_order = is_true("Accepted", "Programmed")
        sent_unseen = says("Delivering", "Unknown", reason="Sent")
        kubectl.until(
            "vtap", "web", lambda tap: in_order(tap) and sent_unseen(tap), "copies leave", namespace=scene.namespace, timeout=120
        )
        with endpoint.capturing(scene.folder) as file:
            exchanged = scene.exchange(web, client, 200).finish()
            wait_for(lambda: scene.summary("web")["sent"] >= 200, 30, "copies are sent", every=0.5)
        packets = capture.fields(file, ("gre.key", "udp.payload"), f"gre && udp.payload contains {MAGIC.hex(':')}")
        received = [Datagram.parse(bytes.fromhex(payload.replace(":", ""))) for _, payload in packets]
        assert sorted(one for one in received if one) == sorted(exchanged.sent)
        keys = {int(key, 0) for key, _ in packets}
        listed = scene.product.vtap("keys", "-o", "csv", namespace=scene.namespace)
        assert len(keys) == 1 and str(keys.pop()) in listed
        scene.remove_tap("web")
    finally:
        kubectl.delete("tapdestination", name)
