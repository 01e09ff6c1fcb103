"""Pods come, go and move, under traffic."""

from __future__ import annotations

from tests.e2e.cases.scene import Scene, expect_each_once, flows_on, point
from tests.e2e.cluster.kubectl import Resource
from tests.e2e.cluster.pods import NETWORKS, PodSpec, RunningPod
from vtap_lab.errors import wait_for

_ROUNDS = 10
_REPLICAS = 30


def test_a_deleted_pod_is_tapped_again_where_it_comes_back(scene: Scene) -> None:
    """The same name on another node. What its log says was sent before is in the files, and all that it sends later."""
    web, client = scene.pods(web=0, client=1)
    scene.tap("web")
    first = scene.exchange(web, client)
    flows_on(first)
    kubectl = scene.product.cluster.kubectl
    kubectl.delete("pod", "web", namespace=scene.namespace)
    before = first.stop()
    [again] = scene.pods(web=1)
    scene.delivers("web", pods=1)
    wait_for(lambda: again.uid in str(points_of(scene, "web")), 60, "the new pod's tap points", every=0.3)
    after = scene.exchange(again, client, 200).finish()
    scene.closes("web")
    found = scene.stored("web")
    expect_each_once(found, before.sent, point(web, "egress"))
    expect_each_once(found, after.sent, point(again, "egress"))


def test_scaled_up_and_down_ten_times_leaves_nothing_behind(scene: Scene) -> None:
    """30 pods come and go ten times. What was made for them is gone; all that a pod that stayed got across was copied.

    A switch on two cores that makes and ends so many ports loses a quarter of a stream, tapped or not: what it lost is left out.
    """
    kubectl = scene.product.cluster.kubectl
    web, client = scene.pods(web_0=0, client=1)
    scene.tap("web", pods=1, backend="OVSMirror")
    stream = scene.exchange(web, client)
    before = held_by_nodes(scene)
    kubectl.apply(deployment(scene, "many", {"app": "web", "many": "yes"}))
    for _ in range(_ROUNDS):
        kubectl.run("scale", "deployment/many", f"--replicas={_REPLICAS}", namespace=scene.namespace)
        # No need for all of them to come every time: it is the churn that matters.
        wait_for(lambda: attached(scene) > 1, 120, "some of the pods are tapped", every=0.3)
        kubectl.run("scale", "deployment/many", "--replicas=0", namespace=scene.namespace)
    wait_for(lambda: not kubectl.list("pods", scene.namespace, "many"), 240, "the pods go", every=0.5)
    wait_for(lambda: attached(scene) == 1, 60, "their tap points go", every=0.5)
    wait_for(lambda: held_by_nodes(scene) == before, 60, f"nodes hold what they held before, {before}", every=1)
    flows_on(stream, 100)
    done = stream.stop()
    scene.closes("web")
    expect_each_once(scene.stored("web"), done.received, point(web, "egress"))


def test_a_drained_node_moves_the_taps_with_its_pods(scene: Scene) -> None:
    kubectl = scene.product.cluster.kubectl
    [client] = scene.pods(client=1)
    leaving = scene.product.cluster.workers[0].name
    kubectl.apply(deployment(scene, "moving", {"app": "web"}, replicas=1, prefers=leaving))
    kubectl.rollout("deployment/moving", scene.namespace)
    scene.tap("web", pods=1)
    [web] = scene.product.cluster.running_of(scene.namespace, "app=web")
    assert web.node.name == leaving
    stream = scene.exchange(web, client)
    flows_on(stream, 100)
    try:
        # The product's own pods of the node go, too, but for the agent, as daemons do.
        drain = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")
        kubectl.run("drain", leaving, *drain, timeout=180)
        before = stream.stop()
        moved = wait_for_one(scene, "app=web", other_than=web)
        assert moved.node.name != leaving
        scene.product.is_ready()
        scene.delivers("web", pods=1)
        wait_for(lambda: moved.uid in str(points_of(scene, "web")), 60, "the moved pod's tap points", every=0.3)
        after = scene.exchange(moved, client, 200).finish()
    finally:
        kubectl.run("uncordon", leaving)
    scene.unclosed.add("web")  # The drain may have taken the collector and its EmptyDir, with what it knew of copies under way.
    assert len(before.sent) > 0
    wait_for(lambda: len(scene.stored("web")) >= 200, 60, "copies are stored", every=1)
    expect_each_once(scene.stored("web"), after.sent, point(moved, "egress"))


def deployment(scene: Scene, name: str, labels: dict[str, str], replicas: int = 0, prefers: str = "") -> Resource:
    """Pods with the second network, where there is room, or on the node that it `prefers`."""
    spec = PodSpec(name, scene.namespace).template_spec(scene.product.cluster.pods_image)
    if prefers:
        wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": [prefers]}
        term = {"weight": 100, "preference": {"matchExpressions": [wanted]}}
        spec["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
    own = {**labels, "deployment": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": scene.namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": own},
            "template": {"metadata": {"labels": own, "annotations": {NETWORKS: "default/ovs-net"}}, "spec": spec},
        },
    }


def wait_for_one(scene: Scene, selector: str, other_than: RunningPod) -> RunningPod:
    """The pod that matches and is Ready."""

    def others() -> list[RunningPod]:
        return [pod for pod in scene.product.cluster.running_of(scene.namespace, selector) if pod.uid != other_than.uid]

    wait_for(others, 120, f"another pod {selector}", every=0.5)
    return others()[0]


def points_of(scene: Scene, tap: str) -> list[Resource]:
    """A tap's points, by all TapNodes."""
    nodes = scene.product.cluster.kubectl.list("tapnodes")
    points = (one for node in nodes for one in node.get("status", {}).get("points", []))
    return [one for one in points if (one["tapNamespace"], one["tapName"]) == (scene.namespace, tap)]


def attached(scene: Scene) -> int:
    """How many pods of the tap "web" are copied now."""
    tap = scene.product.cluster.kubectl.get("vtap", "web", scene.namespace)
    return tap.get("status", {}).get("attachedPods", 0)


def held_by_nodes(scene: Scene) -> dict[str, str]:
    """What the product keeps on each node, counted: pins, its devices, its ports and mirrors, and selected ports in them."""
    return {node.name: node.run("sh", "-s", stdin=_HELD).strip() for node in scene.product.cluster.nodes}


_HELD = """
echo pins $(find /sys/fs/bpf -mindepth 1 | wc -l)
echo devices $(ip -o link show | grep -cE ': vt[a-z]?[a-z-]*[0-9a-f]{8}')
echo ports $(ovs-vsctl --timeout=20 --bare --columns=name list Port | grep -c '^vtap-')
echo mirrors $(ovs-vsctl --timeout=20 --bare --columns=select_src_port,select_dst_port list Mirror | wc -w)
echo neighbours $(ip -d neigh show | grep -cE 'proto 11[89]')
"""
