"""The release itself: upgraded under traffic, with privilege and without, with a CPU set aside, and removed without a trace."""

from __future__ import annotations

import pytest

from tests.e2e.cases.installation import NAMESPACE, Installation
from tests.e2e.cases.scene import Scene, expect_each_once, flows_on, point
from tests.e2e.cluster.handle import differences
from tests.e2e.cluster.kubectl import Resource
from tests.e2e.cluster.pods import PodSpec
from vtap_lab.errors import comes_true, wait_for

_EMPTY_DIRECTORIES = (": files: + /run/vtap", ": files: + /var/lib/vtap")
"""What docs/uninstall.md says is left."""


@pytest.mark.parametrize(("privileged", "export_cpus"), [("true", ""), ("false", "0")], ids=["to-privileged", "to-capabilities"])
def test_an_upgrade_has_no_gap_in_the_copies(scene: Scene, privileged: str, export_cpus: str) -> None:
    """Every agent is replaced by one with other rights; copies go on meanwhile, and new taps work afterwards.

    Without privilege, copies made at pods' devices are worked at by a CPU set aside.
    """
    product = scene.product
    web, client = scene.pods(web=0, client=1)
    scene.tap("web")
    stream = scene.exchange(web, client)
    flows_on(stream, 50)
    before = product.pod_of("agent", web.node.name)
    product.upgrade(f"--set=agent.privileged={privileged}", f"--set-string=agent.exportCPUs={export_cpus}")
    context = product.pod_of("agent", web.node.name)["spec"]["containers"][0]["securityContext"]
    assert context.get("privileged", False) is (privileged == "true")
    assert product.pod_of("agent", web.node.name)["metadata"]["uid"] != before["metadata"]["uid"]
    flows_on(stream, 100)
    scene.tap("later", direction="Egress", backend="EBPF")
    after = scene.exchange(web, client, 100).finish()
    crossed = web.node.run("sh", "-c", "cat /sys/class/net/vth*/statistics/tx_packets 2>/dev/null || echo 0").strip()
    assert (int(crossed) >= 100) is bool(export_cpus)
    done = stream.stop()
    scene.closes("web")
    scene.closes("later")
    expect_each_once(scene.stored("web"), done.sent, point(web, "egress"))
    expect_each_once(scene.stored("later"), after.sent, point(web, "egress"))
    assert done.lost == frozenset()


def test_uninstalled_the_nodes_are_as_before(installed: Installation) -> None:
    """With taps at work. The original stream doesn't notice; taps stay, and hold nothing back."""
    assert installed.before, "the release was there before the tests, so nobody knows how the nodes were"
    cluster = installed.cluster
    with cluster.namespace("last") as namespace:
        places = {"web": cluster.workers[0], "client": cluster.workers[1]}
        pods = cluster.start_pods(*(PodSpec(name, namespace, node.name, {"app": name}) for name, node in places.items()))
        web, client = pods
        scene = Scene(installed, namespace, installed.scratch)
        scene.tap("web", pods=1)
        stream = scene.exchange(web, client)
        flows_on(stream, 50)
        installed.uninstall()
        flows_on(stream, 50)
        assert stream.stop().lost == frozenset()
        assert left_in(cluster.kubectl.list("all", NAMESPACE)) == []
        tap = cluster.kubectl.get("vtap", "web", namespace)
        assert not tap["metadata"].get("finalizers")
        scene.remove_tap("web")

    def traces() -> list[str]:
        return [line for line in differences(installed.before, cluster.snapshots()) if not line.endswith(_EMPTY_DIRECTORIES)]

    assert comes_true(lambda: not traces(), 30, every=2), "\n".join(traces())
    wait_for(lambda: cluster.kubectl.list("tapnodes") == [], 10, "no TapNode is left", every=0.5)


def left_in(resources: list[Resource]) -> list[str]:
    """What is there and not on its way out; the log of a `helm test` that failed may stay."""
    found = [one for one in resources if "deletionTimestamp" not in one["metadata"]]
    names = [f"{one['kind']}/{one['metadata']['name']}" for one in found]
    return [name for name in names if "/vtap-test" not in name]
