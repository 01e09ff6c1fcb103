"""What the tests' cluster holds: namespace shop with pods, taps and a collector, on two nodes."""

from __future__ import annotations

from typing import Any

from tests.unit.cli.fake_cluster import Collector, FakeCluster

SERVICE = ("vtap-system", "vtap-collector-default")


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "observedGeneration": 1}


GOOD = [
    condition("Accepted", "True", "Accepted", "the tap is valid"),
    condition("Programmed", "True", "Programmed", "2 tap points copy"),
]


def point(pod: str, direction: str = "Ingress", **other: Any) -> dict[str, Any]:
    return {
        "tapNamespace": "shop",
        "tapName": "web",
        "podName": pod,
        "podUID": f"uid-{pod}",
        "interface": "eth0",
        "direction": direction,
        "key": 4096 if direction == "Ingress" else 4097,
        "backend": "OVSMirror",
        "why": "spec.backend names it",
        "state": "Ready",
        "reason": "Programmed",
        "message": f"mirrored at veth-{pod} on br1",
        **other,
    }


def pod(cluster: FakeCluster, name: str, node: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    status = {"phase": "Running", "podIPs": [{"ip": "10.1.0.7"}]}
    return cluster.add("Pod", name, "shop", labels=labels, spec={"nodeName": node, **spec}, status=status)


def fill(cluster: FakeCluster) -> Collector:
    """A shop that works: tap web selects web-0 on node-a and web-1 on node-b, where it is refused."""
    for name in ("shop", SERVICE[0]):
        cluster.add("Namespace", name, labels={"kubernetes.io/metadata.name": name})
    url = f"https://{SERVICE[1]}.{SERVICE[0]}.svc:9471"
    status = {"collector": {"address": "10.1.0.9", "port": 4754, "url": url}}
    cluster.add("TapDestination", "default", spec={"collector": {}}, status=status)
    cluster.add("TapDestination", "sensor", spec={"gre": {"address": "10.0.9.2"}})
    counts = {"matchedPods": 2, "attachedPods": 1, "failedPods": 1}
    spec = {"podSelector": {"matchLabels": {"app": "web"}}}
    cluster.add("VirtualTap", "web", "shop", spec=spec, status={**counts, "conditions": GOOD})
    pod(cluster, "web-0", "node-a", {"app": "web"})
    pod(cluster, "web-1", "node-b", {"app": "web"})
    pod(cluster, "db-0", "node-a", {"app": "db"})
    on_node = {"namespace": "shop", "name": "web", "matchedPods": 1, "attachedPods": 1, "failedPods": 0, "conditions": GOOD}
    points = [point("web-0"), point("web-0", "Egress")]
    cluster.add("TapNode", "node-a", spec={"keyBlock": {"first": 4096}}, status={"points": points, "taps": [on_node]})
    sentence = "pod shop/web-1 interface eth0 leads to veth9, which is on no Open vSwitch bridge; attach it to a bridge"
    refused = point("web-1", key=0, direction="Ingress", state="Refused", reason="NoPort", message=sentence)
    trouble = {
        **on_node,
        "attachedPods": 0,
        "failedPods": 1,
        "conditions": [condition("Programmed", "False", "NoPort", sentence)],
    }
    cluster.add("TapNode", "node-b", spec={"keyBlock": {"first": 8192}}, status={"points": [refused], "taps": [trouble]})
    for node in ("node-a", "node-b"):
        cluster.add(
            "Pod",
            f"vtap-agent-{node}",
            "vtap-system",
            labels={"vtap.dev/component": "agent"},
            spec={"nodeName": node},
            status={"phase": "Running"},
        )
        cluster.metrics[f"vtap-agent-{node}"] = lambda: ""
    return cluster.collectors.setdefault(SERVICE, Collector())


LABELS = 'tap_namespace="shop",tap="web",pod_namespace="shop",pod="web-0",interface="eth0",direction="Egress"'


def metrics(**counts: int) -> str:
    """What an agent's /metrics says of one tap point."""
    lines = [
        f'vtap_tap_point_packets_total{{{LABELS},fate="{fate}"}} {count}'
        for fate, count in counts.items()
        if fate in ("seen", "excluded", "unsampled", "limited", "sent")
    ]
    lines += [
        f"vtap_tap_point_{name}_total{{{LABELS}}} {counts[name]}" for name in ("seen_bytes", "sent_bytes") if name in counts
    ]
    if "pair" in counts:
        lines.append(f'vtap_tap_point_dropped_packets_total{{{LABELS},reason="pair"}} {counts["pair"]}')
    return "\n".join([*lines, 'vtap_unattributed_packets_total{bridge="br1",direction="Ingress"} 6', ""])
