"""What a tenant can't do: other people's pods, other people's destinations, packets without the right to read them."""

from __future__ import annotations

import pytest

from tests.e2e.cases.destinations import collector_destination
from tests.e2e.cases.installation import NAMESPACE, says
from tests.e2e.cases.scene import Scene, expect_each_once, expect_none, point
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.pods import PodSpec
from vtap_lab.errors import comes_true, wait_for


def test_a_tap_sees_pods_of_its_own_namespace_only(scene: Scene) -> None:
    """The same labels in another namespace: nothing is copied there, not even as the other end."""
    cluster = scene.product.cluster
    with cluster.namespace("other") as other:
        labels = {"app": "web"}
        [web, client] = scene.pods(web=0, client=1)
        theirs = cluster.start_pod(PodSpec("web", other, cluster.workers[0].name, labels=labels))
        tap = scene.tap("web", pods=1)
        assert tap["status"]["matchedPods"] == 1
        running = [scene.exchange(web, client, 100), scene.exchange(theirs, client, 100), scene.exchange(client, theirs, 100)]
        own, out, back = [exchange.finish() for exchange in running]
        scene.closes("web")
        found = scene.stored("web")
        expect_each_once(found, own.sent, point(web, "egress"))
        expect_none(found, out)
        expect_none(found, back)


def test_a_destination_that_does_not_allow_the_namespace_is_refused(scene: Scene) -> None:
    """The agent by itself obeys, the operator says so; when the admin allows it, copies begin."""
    kubectl = scene.product.cluster.kubectl
    name = f"private-{scene.namespace}"
    web, client = scene.pods(web=0, client=1)
    kubectl.apply(collector_destination(name, "somebody-else"))
    try:
        scene.write_tap("web", destinationRef={"name": name})
        refused = says("Accepted", "False", reason="DestinationNotAllowed", words=("spec.destinationRef.name", name))
        kubectl.until("vtap", "web", refused, "it is refused", namespace=scene.namespace)
        exchange = scene.exchange(web, client, 100).finish()
        assert exchange.lost == frozenset()
        scene.product.destination_is_ready(name)
        assert scene.stored("web", name) == {}
        kubectl.apply(collector_destination(name, scene.namespace))
        scene.delivers("web", pods=1)
        allowed = scene.exchange(web, client, 100).finish()
        scene.closes("web")
        found = scene.stored("web", name)
        expect_none(found, exchange)
        expect_each_once(found, allowed.sent, point(web, "egress"))
        scene.remove_tap("web")
    finally:
        kubectl.delete("tapdestination", name)


def test_a_destination_that_is_not_there_is_said(scene: Scene) -> None:
    kubectl = scene.product.cluster.kubectl
    scene.write_tap("web", destinationRef={"name": "nowhere"})
    refused = says("Accepted", "False", reason="DestinationNotFound", words=("nowhere",))
    kubectl.until("vtap", "web", refused, "it is refused", namespace=scene.namespace)
    scene.remove_tap("web")


def test_packets_are_for_those_who_may_read_them(scene: Scene) -> None:
    """A user without the right gets 403 and a sentence; with the role in the namespace, the packets of that namespace's taps."""
    web, client = scene.pods(web=0, client=1)
    scene.tap("web")
    exchange = scene.exchange(web, client, 100).finish()
    scene.closes("web")
    kubectl = scene.product.cluster.kubectl
    metadata = {"name": "reader", "namespace": scene.namespace}
    kubectl.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    read = scene.folder / "read.pcapng"
    command = ("packets", "web", "--stored", "-w", str(read), f"--service-account={scene.namespace}/reader")
    with pytest.raises(ClusterError, match=r"virtualtaps/packets"):
        scene.product.vtap(*command, namespace=scene.namespace)
    assert not read.exists() or read.stat().st_size == 0
    kubectl.run(
        "create",
        "rolebinding",
        "reader",
        "--clusterrole=vtap-packets",
        f"--serviceaccount={scene.namespace}:reader",
        namespace=scene.namespace,
    )

    def may_read() -> bool:
        try:
            scene.product.vtap(*command, namespace=scene.namespace)
        except ClusterError as error:
            assert "virtualtaps/packets" in str(error)
            return False
        return True

    wait_for(may_read, 30, "the right to read is noticed", every=1)  # Collectors remember answers for up to 10 s.
    assert read.stat().st_size > 0
    expect_each_once(scene.stored("web"), exchange.sent, point(web, "egress"))


def test_taps_are_not_for_everybody_who_may_edit(scene: Scene) -> None:
    """`edit` gives no taps, `vtap-edit` does; neither gives destinations."""
    kubectl = scene.product.cluster.kubectl
    tenant = kubectl.as_user("tenant", "system:authenticated")
    bind = ("create", "rolebinding")
    kubectl.run(*bind, "plain", "--clusterrole=edit", "--user=tenant", namespace=scene.namespace)
    tap = scene.manifest("mine")
    wait_for(lambda: "forbidden" in tenant.refusal(tap), 10, "edit gives no taps", every=0.5)
    kubectl.run(*bind, "taps", "--clusterrole=vtap-edit", "--user=tenant", namespace=scene.namespace)
    assert comes_true(lambda: tenant.refusal(tap) == "", 10, every=0.5), tenant.refusal(tap)
    assert "forbidden" in tenant.refusal(collector_destination("mine", scene.namespace))
    assert "forbidden" in tenant.refusal({**tap, "metadata": {"name": "mine", "namespace": NAMESPACE}})


def test_pods_of_the_node_and_of_ours_are_refused(scene: Scene) -> None:
    """A pod with the node's network, and our collector: never tapped, and the tap says why."""
    kubectl = scene.product.cluster.kubectl
    cluster = scene.product.cluster
    cluster.start_pod(PodSpec("host", scene.namespace, cluster.workers[0].name, {"app": "host"}, networks=(), host_network=True))
    scene.write_tap("host", app="host")
    refused = says("Programmed", "False", reason="HostNetwork", words=("host",))
    kubectl.until("vtap", "host", refused, "it is refused", namespace=scene.namespace)
    ours = scene.manifest("ours")
    ours["metadata"]["namespace"] = NAMESPACE
    ours["spec"]["podSelector"] = {"matchLabels": {"vtap.dev/component": "collector"}}
    kubectl.apply(ours)
    try:
        kubectl.until("vtap", "ours", says("Programmed", "False", reason="IsOurs"), "it is refused", namespace=NAMESPACE)
    finally:
        kubectl.delete("vtap", "ours", namespace=NAMESPACE)
