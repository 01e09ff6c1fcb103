"""The cluster itself: pods on both networks reach each other, and Open vSwitch says of them what OVS-CNI says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.exchange import Exchanged, start_exchange
from tests.e2e.cluster.handle import Cluster, differences
from tests.e2e.cluster.networks import BRIDGE
from tests.e2e.cluster.nodes import Node
from tests.e2e.cluster.pods import STATUS, PodSpec, RunningPod
from vtap_lab.errors import wait_for

_COUNT = 300
_GONE_TIMEOUT = 30.0


@pytest.fixture(scope="module")
def trio(cluster: Cluster) -> Iterator[list[RunningPod]]:
    """Two pods on one node and one on another."""
    one, other = cluster.workers[0].name, cluster.workers[1].name
    with cluster.namespace("trio") as namespace:
        places = {"a": one, "b": one, "c": other}
        yield cluster.start_pods(*(PodSpec(name, namespace, node) for name, node in places.items()))


def ports_of(node: Node, uid: str) -> dict[str, dict[str, str]]:
    """Open vSwitch ports of a pod, by name, with their external_ids."""
    columns = ["--format=json", "--columns=name,external_ids", "find", "Port", f'external_ids:contPodUid="{uid}"']
    rows = json.loads(node.run("ovs-vsctl", "--timeout=20", *columns))["data"]
    return {name: dict(ids[1]) for name, ids in rows}


def everything_arrived(exchanged: Exchanged) -> bool:
    return len(exchanged.sent) == _COUNT and exchanged.received == exchanged.sent


def test_each_node_has_a_switch_that_segments_and_an_ebpf_file_system_of_its_own(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.run("ovs-vsctl", "get", "Open_vSwitch", ".", "other_config:userspace-tso-enable").strip() == '"true"'
        assert node.run("stat", "--file-system", "--format=%T", "/sys/fs/bpf").strip() == "bpf_fs"
    first, *others = cluster.nodes
    first.run("mkdir", "-p", "/sys/fs/bpf/vtap-e2e")
    try:
        assert all("vtap-e2e" not in node.run("ls", "-A", "/sys/fs/bpf") for node in others)
    finally:
        first.run("rmdir", "/sys/fs/bpf/vtap-e2e")


@pytest.mark.parametrize("interface", ["net1", "eth0"])
@pytest.mark.parametrize("target", ["b", "c"])
def test_datagrams_arrive_on_the_same_node_and_across(
    cluster: Cluster, trio: list[RunningPod], interface: str, target: str
) -> None:
    source, destination = trio[0], next(pod for pod in trio if pod.name == target)
    exchanged = start_exchange(cluster.kubectl, source, destination, interface=interface, count=_COUNT).finish()
    assert everything_arrived(exchanged), f"{len(exchanged.sent)} sent, {len(exchanged.received)} received"


def test_bulk_tcp_flows_across_the_second_network(cluster: Cluster, trio: list[RunningPod]) -> None:
    source, _, destination = trio
    destination.spawn(cluster.kubectl, "iperf3.out", "iperf3", "--server", "--one-off", "--forceflush")
    wait_for(lambda: "listening" in destination.read_log("iperf3.out"), 15, "iperf3 listens", every=0.2)
    argv = ["iperf3", "--client", destination.addresses["net1"], "--bytes", "100M", "--json"]
    result = json.loads(cluster.kubectl.exec(source.name, *argv, namespace=source.namespace))
    # The server counts until the client says that it is done, which overtakes what is still in buffers.
    assert result["end"]["sum_received"]["bytes"] >= 0.9 * result["end"]["sum_sent"]["bytes"] >= 90_000_000


def test_services_and_names_work(cluster: Cluster, trio: list[RunningPod]) -> None:
    source, _, destination = trio
    cluster.kubectl.patch("pod", destination.name, {"metadata": {"labels": {"app": "numbered"}}}, destination.namespace)
    metadata = {"name": "numbered", "namespace": destination.namespace}
    ports = [{"port": 4000, "protocol": "UDP"}]
    cluster.kubectl.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": {"app": "numbered"}, "ports": ports}}
    )
    address = cluster.kubectl.get("service", "numbered", destination.namespace)["spec"]["clusterIP"]
    lookup = (
        "python3",
        "-c",
        "import socket, sys; print(socket.gethostbyname(sys.argv[1]))",
        f"numbered.{destination.namespace}.svc",
    )

    def resolves() -> bool:
        told = cluster.kubectl.exec(source.name, "sh", "-c", '"$@" || true', "sh", *lookup, namespace=source.namespace)
        return told.strip() == address

    wait_for(resolves, 30, f"the name of the service becoming {address}", every=0.5)

    def through_the_service(count: int) -> Exchanged:
        return start_exchange(cluster.kubectl, source, destination, address=address, port=4000, count=count).finish()

    wait_for(lambda: not through_the_service(5).lost, 60, "the source's node knows the way to the service")
    assert everything_arrived(through_the_service(_COUNT))


def test_the_switch_knows_each_pod_as_ovs_cni_writes_it(cluster: Cluster, trio: list[RunningPod]) -> None:
    for pod in trio:
        [(port, ids)] = ports_of(pod.node, pod.uid).items()
        assert ids.pop("contNetns").startswith("/var/run/netns/cni-")
        assert ids == {"contIface": "net1", "contPodUid": pod.uid, "owner": "ovs-cni.network.kubevirt.io"}
        assert port.startswith("veth")
        assert pod.node.run("ovs-vsctl", "port-to-br", port).strip() == BRIDGE
        assert pod.node.run("ovs-vsctl", "get", "Interface", port, "external_ids").strip() == "{}"
        assert pod.node.run("ovs-vsctl", "get", "Port", port, "other_config").strip() == "{}"
        assert "veth" in pod.node.run("ip", "-d", "link", "show", port)


def test_the_pod_is_told_its_networks_as_multus_writes_it(cluster: Cluster, trio: list[RunningPod]) -> None:
    pod = trio[0]
    annotations = cluster.kubectl.get("pod", pod.name, pod.namespace)["metadata"]["annotations"]
    default, second = json.loads(annotations[STATUS])
    assert (default["interface"], default["default"]) == ("eth0", True)
    address = pod.addresses["net1"]
    mac = "0a:58:" + ":".join(f"{int(part):02x}" for part in address.split("."))
    assert second == {"name": "default/ovs-net", "interface": "net1", "ips": [address], "mac": mac, "dns": {}}
    inside = json.loads(cluster.kubectl.exec(pod.name, "ip", "-j", "address", "show", "dev", "net1", namespace=pod.namespace))[0]
    assert (inside["address"], inside["mtu"]) == (mac, 1450)
    assert address in {one["local"] for one in inside["addr_info"]}


def test_segments_with_a_vlan_are_apart(cluster: Cluster, namespace: str) -> None:
    names = ("default/ovs-net", "default/ovs-vlan")
    nodes = [worker.name for worker in cluster.workers]
    one, other = cluster.start_pods(
        *(PodSpec(f"v{number}", namespace, node, networks=names) for number, node in enumerate(nodes))
    )
    assert start_exchange(cluster.kubectl, one, other, interface="net2", count=50).finish().lost == frozenset()
    tags = {
        ids["contIface"]: one.node.run("ovs-vsctl", "get", "Port", port, "tag").strip()
        for port, ids in ports_of(one.node, one.uid).items()
    }
    assert tags == {"net1": "[]", "net2": "100"}


def test_a_killed_sandbox_gets_a_new_port_under_the_same_uid(cluster: Cluster, namespace: str) -> None:
    pod = cluster.start_pod(PodSpec("reborn", namespace, cluster.workers[0].name))
    [before] = ports_of(pod.node, pod.uid)
    netns = ports_of(pod.node, pod.uid)[before]["contNetns"].rpartition("/")[2]
    # The sandbox's own process is the one whose program is `pause`.
    script = f'for pid in $(ip netns pids {netns}); do [ "$(cat /proc/$pid/comm)" != pause ] || kill -9 $pid; done'
    pod.node.run("sh", "-c", script)
    wait_for(lambda: ports_of(pod.node, pod.uid).keys() - {before}, 60, "a new port", every=0.3)
    wait_for(lambda: before not in ports_of(pod.node, pod.uid), 60, "the old port's end", every=0.3)


def call_plugin(pod: RunningPod, command: str, container: str, netns: str) -> None:
    """As the container runtime would; ClusterError with what the plugin says when it fails."""
    conflist = json.loads(pod.node.run("cat", "/etc/cni/net.d/10-pods.conflist"))
    before = {"cniVersion": "0.4.0", "interfaces": [], "ips": [{"version": "4", "address": f"{pod.addresses['eth0']}/32"}]}
    own = {**conflist["plugins"][-1], "cniVersion": conflist["cniVersion"], "name": conflist["name"], "prevResult": before}
    told = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};K8S_POD_NAME={pod.name}",
    }
    environment = [f"{key}={value}" for key, value in told.items()]
    pod.node.run("env", *environment, "/opt/cni/bin/vtap-second-networks", stdin=json.dumps(own))


def test_the_plugin_may_be_called_again_and_again(cluster: Cluster, namespace: str) -> None:
    pod = cluster.start_pod(PodSpec("again", namespace, cluster.workers[1].name))
    [(first, ids)] = ports_of(pod.node, pod.uid).items()
    states = pod.node.run("grep", "-l", first, "-r", "/var/lib/cni/vtap-second-networks").split()
    [container] = [state.rpartition("/")[2].removesuffix("-net1.json") for state in states]

    def call(command: str) -> None:
        call_plugin(pod, command, container, ids["contNetns"])

    call("CHECK")
    pod.node.run("ovs-vsctl", "del-port", first)
    with pytest.raises(ClusterError, match=f"port {first} of net1 is gone"):
        call("CHECK")
    call("ADD")
    [second] = ports_of(pod.node, pod.uid)
    assert second != first
    call("CHECK")
    call("DEL")
    call("DEL")
    assert ports_of(pod.node, pod.uid) == {}
    assert second not in pod.node.run("ip", "-o", "link", "show")


def test_a_killed_switch_comes_back_and_traffic_with_it(cluster: Cluster, trio: list[RunningPod]) -> None:
    source, _, destination = trio
    running = start_exchange(cluster.kubectl, source, destination, count=0, rate=200)
    node = destination.node
    [before] = node.run("pidof", "ovs-vswitchd").split()
    node.run("kill", "-9", before)
    at_least = running.received_so_far()
    wait_for(lambda: running.received_so_far() > at_least + 500, 60, "datagrams arrive again", every=0.3)
    assert node.run("pidof", "ovs-vswitchd").split() != [before]
    assert len(running.stop().received) > 500


def test_deleted_pods_leave_the_nodes_as_they_were(cluster: Cluster) -> None:
    before = cluster.snapshots()
    with cluster.namespace() as namespace:
        pods = cluster.start_pods(
            *(PodSpec(f"p{number}", namespace, worker.name) for number, worker in enumerate(cluster.workers))
        )
        assert all(ports_of(pod.node, pod.uid) for pod in pods)
        names = [pod.name for pod in pods]
        cluster.kubectl.delete("pod", *names, namespace=namespace)
        wait_for(lambda: not any(ports_of(pod.node, pod.uid) for pod in pods), _GONE_TIMEOUT, "the ports' end", every=0.3)
    assert differences(before, cluster.snapshots()) == []


def test_a_network_that_is_not_there_is_said(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl.apply(
        PodSpec("lost", namespace, cluster.workers[0].name, networks=("default/nowhere",)).manifest(cluster.pods_image)
    )

    def told() -> bool:
        events = cluster.kubectl.list("events", namespace)
        return any("there is no network default/nowhere" in event["message"] for event in events)

    wait_for(told, 60, "an event that says so", every=0.5)
