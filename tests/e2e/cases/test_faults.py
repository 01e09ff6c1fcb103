"""Things break, one at a time: originals fare no worse than without a tap, and every copy is accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.dataplane.site import expect_none_missing_within_the_lease
from tests.e2e.cases.faults import Fared, suffer
from tests.e2e.cases.installation import NAMESPACE, Installation
from tests.e2e.cases.scene import Scene, expect_each_once, point
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.kubectl import Resource
from tests.e2e.cluster.nodes import Node
from tests.e2e.cluster.pods import RunningPod, is_ready
from vtap_lab.errors import wait_for


@dataclass(frozen=True)
class Stage:
    """Two pairs of pods across the workers, of which the first is tapped."""

    scene: Scene
    web: RunningPod
    client: RunningPod
    untapped: tuple[RunningPod, RunningPod]

    @property
    def product(self) -> Installation:
        return self.scene.product


@pytest.fixture
def stage(scene: Scene, request: pytest.FixtureRequest) -> Stage:
    """The tapped pod is on the first worker, and `Auto` taps it, unless a case says on which and how."""
    here, backend = getattr(request, "param", (0, "Auto"))
    there = 1 - here
    web, client, *untapped = scene.pods(web=here, client=there, plain_1=here, plain_2=there)
    scene.tap("web", backend=backend)
    return Stage(scene, web, client, (untapped[0], untapped[1]))


def fares(stage: Stage, fault: Callable[[], None]) -> Fared:
    """What became of both streams; the tapped one must not have fared worse."""
    fared = suffer(stage.scene, (stage.web, stage.client), stage.untapped, fault)
    fared.expect_no_harm()
    return fared


class Away:
    """For how long, in seconds, an agent can have been away at most."""

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._since


def expect_no_gap(stage: Stage, fared: Fared, away: Away) -> None:
    summary = stage.scene.closes("web")
    assert summary["lost"] == 0
    stored, sent = stage.scene.stored("web"), fared.tapped.exchanged.sent
    expect_none_missing_within_the_lease(stored, sent, point(stage.web, "egress"), summary["dropped"], away.seconds)


def test_agent_killed_leaves_no_gap_in_the_copies(stage: Stage) -> None:
    node = stage.web.node.name
    pod = stage.product.pod_of("agent", node)

    away = Away()

    def fault() -> None:
        with away:
            stage.product.kill(pod, "vtap-agent")
            restarted(stage.product, pod)

    fared = fares(stage, fault)
    expect_no_gap(stage, fared, away)


def test_operator_killed_matters_to_nobody(stage: Stage) -> None:
    pod = stage.product.pod_of("operator")

    def fault() -> None:
        stage.product.kill(pod, "vtap-operator")
        stage.scene.remove_tap("web")  # Nothing of ours holds it back.
        stage.scene.write_tap("web")
        restarted(stage.product, pod)

    fares(stage, fault)
    stage.scene.delivers("web", pods=1)
    after = stage.scene.exchange(stage.web, stage.client, 200).finish()
    stage.scene.closes("web")
    expect_each_once(stage.scene.stored("web"), after.sent, point(stage.web, "egress"))


def test_collector_killed_loses_only_what_it_missed(stage: Stage) -> None:
    pod = stage.product.pod_of("collector", destination="default")

    def fault() -> None:
        stage.product.kill(pod, "vtap-collector")
        restarted(stage.product, pod)
        stage.scene.delivers("web", pods=1)

    fared = fares(stage, fault)
    summary = stage.scene.closes("web")
    found = stage.scene.stored("web")
    sent = fared.tapped.exchanged.sent
    twice = [one for one in sent if found[point(stage.web, "egress"), one] > 1]
    missing = [one for one in sent if found[point(stage.web, "egress"), one] == 0]
    assert twice == []
    assert len(missing) <= summary["lost"] + summary["dropped"], "what is missing is said to be"
    expect_each_once(found, sent[-200:], point(stage.web, "egress"))


def test_collector_pod_deleted_moves_the_copies(stage: Stage) -> None:
    """Another pod, another address: nobody has to do anything. What the first knew of copies went with its EmptyDir."""
    stage.scene.unclosed.add("web")
    pod = stage.product.pod_of("collector", destination="default")

    def fault() -> None:
        stage.product.cluster.kubectl.delete("pod", pod["metadata"]["name"], namespace=NAMESPACE)
        stage.product.pod_of("collector", destination="default")
        stage.product.destination_is_ready("default")
        stage.scene.delivers("web", pods=1)

    fared = fares(stage, fault)
    last = fared.tapped.exchanged.sent[-200:]
    wait_for(lambda: stage.scene.stored("web")[point(stage.web, "egress"), last[-1]], 30, "the last copy is stored", every=1)
    expect_each_once(stage.scene.stored("web"), last, point(stage.web, "egress"))


@pytest.mark.parametrize("stage", [(0, "OVSMirror"), (0, "OVSGroup")], indirect=True, ids=["OVSMirror", "OVSGroup"])
def test_vswitchd_killed_comes_back_with_the_tap(stage: Stage) -> None:
    node = stage.web.node
    [before] = node.run("pidof", "ovs-vswitchd").split()

    def fault() -> None:
        node.run("kill", "-9", before)
        wait_for(lambda: node.run("pidof", "ovs-vswitchd", check=False).strip() not in ("", before), 60, "a new one", every=0.3)

    fares(stage, fault)
    stage.scene.delivers("web", pods=1)
    after = stage.scene.exchange(stage.web, stage.client, 200).finish()
    stage.scene.closes("web")
    expect_each_once(stage.scene.stored("web"), after.sent, point(stage.web, "egress"))


@pytest.mark.parametrize("stage", [(1, "OVSMirror")], indirect=True, ids=["agent-killed-meanwhile"])
def test_api_server_away_stops_no_copy(stage: Stage) -> None:
    """Copies go on, and an agent that starts while there is no API server goes on with what it remembers.

    On the other worker: kubelet waits longer before each further start of one container, longer than the lease at last.
    """
    kubectl = stage.product.cluster.kubectl
    [leader] = [node for node in stage.product.cluster.nodes if node not in stage.product.cluster.workers]
    manifest, aside = "/etc/kubernetes/manifests/kube-apiserver.yaml", "/etc/kubernetes/kube-apiserver.yaml"
    agent = stage.product.pod_of("agent", stage.web.node.name)
    away = Away()

    def answers() -> bool:
        try:
            kubectl.run("get", "--raw", "/readyz", timeout=10)
        except ClusterError:
            return False
        return True

    def fault() -> None:
        # Killed, and not ended: one that ends in peace takes its address out of its Service, and kube-proxy has to follow.
        leader.run("sh", "-c", f"mv {manifest} {aside} && kill -9 $(pidof kube-apiserver)")
        try:
            wait_for(lambda: not answers(), 90, "the API server goes away", every=0.5)
            with away:
                stage.product.kill(agent, "vtap-agent")
                wait_for(lambda: agent_is_ready(stage.web.node), 60, "the agent works without the API server", every=0.5)
        finally:
            leader.run("mv", aside, manifest)
        wait_for(answers, 180, "the API server comes back", every=1)

    fared = fares(stage, fault)
    stage.scene.delivers("web", pods=1)
    expect_no_gap(stage, fared, away)
    stage.product.is_ready()


def agent_is_ready(node: Node) -> bool:
    """By its own port on the node; nobody else is asked."""
    script = "exec 3<>/dev/tcp/127.0.0.1/9473 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3"
    return " 200 " in node.run("bash", "-c", script, check=False)


def restarted(product: Installation, pod: Resource) -> None:
    """Return once the pod's container runs anew and is ready."""
    [before] = pod["status"]["containerStatuses"]

    def holds(now: Resource) -> bool:
        [container] = now["status"]["containerStatuses"]
        return container["restartCount"] > before["restartCount"] and is_ready(now)

    product.cluster.kubectl.until("pod", pod["metadata"]["name"], holds, "it runs anew", namespace=NAMESPACE, timeout=120)
