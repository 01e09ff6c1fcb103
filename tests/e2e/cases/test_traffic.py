"""What is copied: every packet of the tapped pods, in both directions, on every node, and no other."""

from __future__ import annotations

import time

import pytest

from tests.e2e.cases.destinations import collector_destination
from tests.e2e.cases.scene import Scene, expect_each_once, expect_none, flows_on, point
from vtap_api.virtualtap import BackendName
from vtap_lab.errors import wait_for


@pytest.mark.parametrize("backend", [name.value for name in BackendName if name is not BackendName.AUTO])
def test_both_directions_on_both_nodes_within_and_across(scene: Scene, backend: str) -> None:
    one, other, client, bystander = scene.pods(web_1=0, web_2=1, client=0, bystander=1)
    scene.tap("web", pods=2, backend=backend)
    pairs = [(one, client), (client, one), (one, other), (other, one), (client, other), (client, bystander)]
    running = [scene.exchange(source, target, 200) for source, target in pairs]
    exchanged = [exchange.finish() for exchange in running]
    assert all(done.lost == frozenset() for done in exchanged)
    summary = scene.closes("web")
    found = scene.stored("web")
    for (source, target), done in zip(pairs, exchanged, strict=True):
        ends = [point(source, "egress")] * (source in (one, other)) + [point(target, "ingress")] * (target in (one, other))
        if ends:
            expect_each_once(found, done.sent, *ends)
        others = {name for name, datagram in found if datagram.sender == done.sender} - set(ends)
        assert not others, f"{source.name} → {target.name} was copied at {others}"
    assert summary["lost"] == 0


def test_one_direction_only(scene: Scene) -> None:
    web, client = scene.pods(web=0, client=1)
    scene.tap("out", direction="Egress")
    scene.tap("in", direction="Ingress")
    forth, back = scene.exchange(web, client, 200), scene.exchange(client, web, 200)
    sent, received = forth.finish(), back.finish()
    scene.closes("out")
    scene.closes("in")
    outward, inward = scene.stored("out"), scene.stored("in")
    expect_each_once(outward, sent.sent, point(web, "egress"))
    expect_none(outward, received)
    expect_each_once(inward, received.received, point(web, "ingress"))
    expect_none(inward, sent)


def test_a_filter_edited_while_traffic_runs_lets_nothing_slip(scene: Scene) -> None:
    """Copies of what a rule excludes end once and for good, those of everything else have no gap."""
    web, client = scene.pods(web=0, client=1)
    scene.tap("web", direction="Egress")
    wanted, unwanted = scene.exchange(web, client), scene.exchange(web, client)
    flows_on(unwanted, 100)
    rule = {"action": "Exclude", "protocol": "UDP", "peerPorts": [{"port": unwanted.port}]}
    scene.tap("web", direction="Egress", filter={"defaultAction": "Include", "rules": [rule]})
    edited_at = unwanted.sent_so_far()
    flows_on(unwanted, 200)
    kept, cut = wanted.stop(), unwanted.stop()
    summary = scene.closes("web")
    found = scene.stored("web")
    expect_each_once(found, kept.sent, point(web, "egress"))
    numbers = sorted(datagram.sequence for _, datagram in found if datagram.sender == cut.sender)
    assert numbers == list(range(len(numbers))), "copies end once, and for good"
    assert 0 < len(numbers) <= edited_at
    assert summary["excluded"] == len(cut.sent) - len(numbers)


def test_two_taps_on_one_pod_with_different_destinations(scene: Scene) -> None:
    web, client = scene.pods(web=0, client=1)
    kubectl = scene.product.cluster.kubectl
    second = f"second-{scene.namespace}"
    kubectl.apply(collector_destination(second, scene.namespace))
    try:
        scene.product.destination_is_ready(second)
        scene.tap("all")
        scene.tap("out", direction="Egress", destinationRef={"name": second})
        forth, back = scene.exchange(web, client, 200), scene.exchange(client, web, 200)
        sent, received = forth.finish(), back.finish()
        scene.closes("all")
        scene.closes("out")
        everything, outward = scene.stored("all"), scene.stored("out", second)
        assert scene.files("out") == [] and scene.files("all", second) == []
        expect_each_once(everything, sent.sent, point(web, "egress"))
        expect_each_once(everything, received.received, point(web, "ingress"))
        expect_each_once(outward, sent.sent, point(web, "egress"))
        expect_none(outward, received)
        scene.remove_tap("out")
    finally:
        kubectl.delete("tapdestination", second)
    gone = f"vtap-collector-{second}"
    wait_for(
        lambda: kubectl.find("deployment", gone, "vtap-system") is None, 60, "a deleted destination's collector goes", every=0.5
    )


def test_peers_by_selector_follow_the_pods(scene: Scene) -> None:
    """A rule that names peers by labels: the operator resolves them, and keeps up with pods that come."""
    web, friend, stranger = scene.pods(web=0, friend_1=1, stranger=1)
    rule = {"action": "Include", "peer": {"podSelector": {"matchLabels": {"app": "friend"}}}}
    scene.tap("web", filter={"defaultAction": "Exclude", "rules": [rule]})
    running = [scene.exchange(web, friend, 150), scene.exchange(friend, web, 150), scene.exchange(web, stranger, 150)]
    out, back, strange = [exchange.finish() for exchange in running]
    [late] = scene.pods(friend_2=0)
    kubectl = scene.product.cluster.kubectl

    def resolved() -> bool:
        slices = kubectl.list("tappeerslices", "vtap-system")
        return any(late.addresses["net1"] in str(one) for one in slices)

    wait_for(resolved, 60, "a slice with the new pod's address", every=0.3)
    # The slice is there; the node's agent has it a moment later, and no status says when.
    copied = scene.exchange(web, late)
    wait_for(lambda: scene.summary("web")["sent"] > 300 + 50, 60, "the new peer's packets are copied", every=0.5)
    sent_by_then = copied.sent_so_far()
    flows_on(copied)
    done = copied.stop()
    scene.closes("web")
    found = scene.stored("web")
    expect_each_once(found, out.sent, point(web, "egress"))
    expect_each_once(found, back.received, point(web, "ingress"))
    expect_none(found, strange)
    expect_each_once(found, [one for one in done.sent if one.sequence >= sent_by_then], point(web, "egress"))


def test_ttl_ends_the_copies_and_the_tap(scene: Scene) -> None:
    web, client = scene.pods(web=0, client=1)
    made = time.monotonic()
    scene.tap("short", ttl="30s", direction="Egress")
    exchange = scene.exchange(web, client)
    kubectl = scene.product.cluster.kubectl
    wait_for(lambda: kubectl.find("vtap", "short", scene.namespace) is None, 120, "the tap goes by itself", every=0.5)
    assert time.monotonic() - made > 25
    flows_on(exchange)
    done = exchange.stop()
    numbers = sorted(datagram.sequence for _, datagram in scene.stored("short"))
    assert numbers == list(range(len(numbers))) and 0 < len(numbers) < len(done.sent) - 100
