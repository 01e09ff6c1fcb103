"""The operator with 10,000 taps and 150,000 pods: how long a full resolve of all peer selectors takes, and a change of one pod.

The operator is a process of its own; the API server is a stand-in that speaks its list and watch protocol (bench.api_server) and
sends whole pods, as the real one does. A pod's change is timed from its watch event until the last slice that has it is written.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.api_server import Clock, Collection, Name, Object, StandIn
from bench.measure import progress, table, write_json
from bench.reaction import percentile, resident_bytes
from vtap_operator import resources as known
from vtap_operator.health import free_port
from vtap_operator.resources import Resource

TAPS_A_NAMESPACE = 10
PODS_A_KIND = 10
TEAMS = 100
ROLES = 20
STATEFUL = 5
"""One pod in so many has a label of its own, as a StatefulSet's."""
PATIENCE = 300.0
GOALS = {"resolve": 10.0, "change": 0.050, "memory": 512 * 2**20}

_POD = """{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%(name)s","generateName":"%(app)s-5d8f7c9b6-",
"namespace":"%(namespace)s","uid":"%(uid)s","resourceVersion":"%(version)s","creationTimestamp":"2026-01-01T00:00:00Z","labels":%(labels)s,
"annotations":{"kubernetes.io/config.seen":"2026-01-01T00:00:00Z","prometheus.io/scrape":"true"},
"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"%(app)s-5d8f7c9b6","uid":"owner","controller":true}],
"managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":
{"f:metadata":{"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:role":{},"f:pod-template-hash":{}},"f:ownerReferences":{}},
"f:spec":{"f:containers":{"k:{\\"name\\":\\"main\\"}":{".":{},"f:image":{},"f:name":{},"f:resources":{},"f:ports":{}}}}}}]},
"spec":{"volumes":[{"name":"kube-api-access","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},
{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}}],"defaultMode":420}}],
"containers":[{"name":"main","image":"registry.example/team/app:1.2.3","ports":[{"containerPort":8080,"protocol":"TCP"}],
"env":[{"name":"A","value":"b"},{"name":"POD_IP","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"status.podIP"}}}],
"resources":{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"100m","memory":"128Mi"}},
"volumeMounts":[{"name":"kube-api-access","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}],
"terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent"}],"restartPolicy":"Always",
"terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"default","nodeName":"%(node)s",
"tolerations":[{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}]},
"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"},
{"type":"ContainersReady","status":"True","lastTransitionTime":"2026-01-01T00:00:00Z"},{"type":"PodScheduled","status":"True"}],
"hostIP":"192.0.2.1","podIP":"%(address)s","podIPs":[{"ip":"%(address)s"}],"startTime":"2026-01-01T00:00:00Z",
"containerStatuses":[{"name":"main","state":{"running":{"startedAt":"2026-01-01T00:00:00Z"}},"ready":true,"restartCount":0,
"image":"registry.example/team/app:1.2.3","imageID":"sha256:0","containerID":"containerd://0","started":true}],"qosClass":"Burstable"}}""".replace(
    "\n", ""
)
"""A pod of some 3 KB, as the API server sends them."""


@dataclass(frozen=True)
class Size:
    """How much there is of everything."""

    taps: int
    pods: int

    @property
    def namespaces(self) -> int:
        return max(1, self.taps // TAPS_A_NAMESPACE)

    @property
    def pods_a_namespace(self) -> int:
        return -(-self.pods // self.namespaces)


def pod_fields(number: int, size: Size) -> tuple[str, str, dict[str, str], str]:
    """(namespace, name, labels, address) of a pod by its number."""
    place, index = divmod(number, size.pods_a_namespace)
    app = f"app-{index // PODS_A_KIND}"
    labels = {"app": app, "role": f"role-{index // PODS_A_KIND % ROLES}", "pod-template-hash": "5d8f7c9b6"}
    name = f"{app}-5d8f7c9b6-{number:06d}"
    if index % STATEFUL == 0:
        labels["statefulset.kubernetes.io/pod-name"] = name
    return f"team-{place}", name, labels, f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


@dataclass
class Pods(Collection):
    """Pods that are written when they are asked for: so many would not fit as objects."""

    size: Size = field(default_factory=lambda: Size(0, 0))
    sent: int = 0
    """Bytes of lists."""

    def body(self, number: int, address: str = "") -> str:
        namespace, name, labels, own = pod_fields(number, self.size)
        return _POD % {
            "name": name, "app": labels["app"], "namespace": namespace, "uid": f"pod-{number}", "labels": json.dumps(labels),
            "version": self.clock.version, "node": f"node-{number % 1000}", "address": address or own,
        }  # fmt: skip

    def page(self, namespace: str, selector: str, start: int, limit: int) -> tuple[Iterator[bytes], int]:
        self.pages += 1
        if namespace:
            return iter(()), 0
        count = min(limit or self.size.pods, self.size.pods - start)
        bodies = [self.body(number).encode() for number in range(start, start + count)]
        self.sent += sum(len(one) for one in bodies)
        return iter(bodies), self.size.pods - start - count

    def change(self, number: int, address: str) -> None:
        """A pod has another address, as one that was replaced."""
        self.clock.tick()
        self.tell("MODIFIED", json.loads(self.body(number, address)))


def tap(number: int) -> Object:
    """A tap with a selector of its own namespace's pods and one of a team's, and a network."""
    place, index = divmod(number, TAPS_A_NAMESPACE)
    own = {"podSelector": {"matchLabels": {"app": f"app-{index}"}}}
    team = {
        "namespaceSelector": {"matchLabels": {"team": f"team-{number % TEAMS}"}},
        "podSelector": {"matchLabels": {"role": f"role-{number // TEAMS % ROLES}"}},
    }
    peers = (own, team, {"cidr": "10.96.0.0/16"})
    spec = {
        "podSelector": {"matchLabels": {"app": f"app-{(index + 1) % TAPS_A_NAMESPACE}"}},
        "filter": {"defaultAction": "Exclude", "rules": [{"action": "Include", "peer": peer} for peer in peers]},
        "destinationRef": {"name": "sensor"},
    }
    return {"metadata": {"name": f"tap-{index}", "namespace": f"team-{place}"}, "spec": spec}


def fill(server: StandIn, size: Size) -> None:
    """Everything but pods, which are there by their number."""
    for number in range(size.namespaces):
        labels = {"kubernetes.io/metadata.name": f"team-{number}", "team": f"team-{number % TEAMS}"}
        server[known.NAMESPACES].put({"metadata": {"name": f"team-{number}", "labels": labels}})
        for service in range(5):
            spec = {
                "clusterIP": f"172.{16 + service}.{number >> 8}.{number & 255}",
                "selector": {"app": f"app-{service}"},
                "type": "ClusterIP",
            }
            server[known.SERVICES].put({"metadata": {"name": f"app-{service}", "namespace": f"team-{number}"}, "spec": spec})
    for number in range(1000):
        server[known.NODES].put({"metadata": {"name": f"node-{number}"}})
        block = {"keyBlock": {"first": 4096 * (number + 1), "size": 4096}}
        server[known.TAP_NODES].put({"metadata": {"name": f"node-{number}"}, "spec": block})
    server[known.TAP_DESTINATIONS].put({"metadata": {"name": "sensor"}, "spec": {"gre": {"address": "192.0.2.9"}}})
    for number in range(size.taps):
        server[known.VIRTUAL_TAPS].put(tap(number))


@dataclass
class Writes:
    """When slices were written, and which addresses they had then."""

    count: int = 0
    last: float = 0.0
    addresses: dict[Name, list[str]] = field(default_factory=dict)
    waited_for: str = ""
    seen: list[float] = field(default_factory=list)

    def note(self, resource: Resource, body: Object) -> None:
        if resource is not known.TAP_PEER_SLICES:
            return
        self.count += 1
        self.last = time.perf_counter()
        if self.waited_for and self.waited_for in body["spec"]["addresses"]:
            self.seen.append(self.last)


@dataclass(frozen=True)
class Result:
    """Seconds and bytes."""

    listed: float
    resolved: float
    written: float
    slices: int
    changes: tuple[float, ...]
    touched: float
    memory: int
    peak: int
    list_bytes: int
    start_cpu: float
    change_cpu: float


class Operator:
    """The process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


async def start_operator(server: StandIn, folder: Path) -> Operator:
    config = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "clusters": [{"name": "bench", "cluster": {"server": server.url}}],
        "users": [{"name": "bench", "user": {"token": "bench"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    command = shutil.which("vtap-operator", path=Path(sys.executable).parent)
    assert command, "vtap-operator is not installed beside this Python"
    port, log = free_port(), folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            command, "--listen", f"127.0.0.1:{port}", "--existing-certificates",
            env={**os.environ, "KUBECONFIG": str(folder / "kubeconfig")}, stdout=output, stderr=output,
        )  # fmt: skip
    return Operator(process, port, log)


async def until(what: str, holds: object, operator: Operator, poll: float = 0.05) -> None:
    """`holds` is called until it is true."""
    assert callable(holds)
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if operator.process.returncode is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the operator did not come to this: {what}\n{operator.log.read_text()[-2000:]}")
        await asyncio.sleep(poll)


def expected_slices(size: Size) -> int:
    """One for each different selector: both of each tap, as far as they differ."""
    keys = set[tuple[str, str]]()
    for number in range(size.taps):
        body = tap(number)
        for rule in body["spec"]["filter"]["rules"][:2]:
            keys.add((body["metadata"]["namespace"], json.dumps(rule["peer"], sort_keys=True)))
    return len(keys)


def peak_bytes(pid: int) -> int:
    """The most that was ever resident (proc(5), VmHWM)."""
    (kib,) = [int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return kib * 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(size: Size, changes: int) -> Result:
    clock = Clock()
    pods = Pods(known.PODS, clock, size=size)
    with tempfile.TemporaryDirectory(prefix="vtap-bench-") as name:
        async with StandIn([pods], clock) as server:
            fill(server, size)
            writes = Writes()
            server.on_apply = writes.note
            operator = await start_operator(server, Path(name))
            try:
                return await _measure(size, changes, server, pods, writes, operator)
            finally:
                if operator.process.returncode is None:
                    operator.process.terminate()
                await operator.process.wait()


async def _measure(size: Size, changes: int, server: StandIn, pods: Pods, writes: Writes, operator: Operator) -> Result:
    await until("it asks for pods", lambda: pods.pages > 1, operator)
    started = time.perf_counter()
    progress("  pods are listed")
    await until("it writes slices", lambda: writes.count > 0, operator)
    listed = time.perf_counter() - started
    expected = expected_slices(size)
    progress("  slices are written")
    await until("all slices are written", lambda: len(server[known.TAP_PEER_SLICES].objects) >= expected, operator)
    written = writes.last - started
    resolved = await asyncio.to_thread(operator.metric, "vtap_operator_full_resolve_seconds")
    listed -= resolved
    await _quiet(server, operator)
    start_cpu = cpu_seconds(operator.process.pid)
    times: list[float] = []
    touched: list[int] = []
    selected = (one * 7919 % size.pods for one in itertools.count())
    for number, chosen in enumerate(itertools.islice((one for one in selected if _slices_of(one, size)), changes)):
        progress(f"  change {number + 1} of {changes}")
        writes.waited_for, writes.seen = f"198.{18 + number // 65536}.{number >> 8 & 255}.{number & 255}", []
        count = _slices_of(chosen, size)
        began = time.perf_counter()
        pods.change(chosen, writes.waited_for)
        await until("a change is written", lambda count=count: len(writes.seen) >= count, operator, poll=0.002)
        times.append(writes.seen[-1] - began)
        touched.append(count)
        await asyncio.sleep(0.05)
    progress("")
    pid = operator.process.pid
    change_cpu = (cpu_seconds(pid) - start_cpu) / changes
    return Result(
        listed,
        resolved,
        written,
        expected,
        tuple(times),
        statistics.mean(touched),
        resident_bytes(pid),
        peak_bytes(pid),
        pods.sent,
        start_cpu,
        change_cpu,
    )


async def _quiet(server: StandIn, operator: Operator) -> None:
    """Until every tap has its status and nothing was asked of the server for a second, watches and pages aside."""
    taps = server[known.VIRTUAL_TAPS].objects
    await until("all taps have a status", lambda: all("status" in one for one in taps.values()), operator, poll=0.5)
    while True:
        before = len(server.requests)
        await asyncio.sleep(1.0)
        if len(server.requests) - before < 20:
            return


def _slices_of(number: int, size: Size) -> int:
    """In how many slices a pod's address is."""
    namespace, _, labels, _ = pod_fields(number, size)
    place = int(namespace.removeprefix("team-"))
    team = place % TEAMS
    own = sum(1 for index in range(TAPS_A_NAMESPACE) if labels["app"] == f"app-{index}")
    teams = {one // TAPS_A_NAMESPACE for one in range(team, size.taps, TEAMS) if f"role-{one // TEAMS % ROLES}" == labels["role"]}
    return own + len(teams)


def main() -> int:
    """Print the table, write bench/results/operator_scale.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator_scale", description=__doc__)
    parser.add_argument("--taps", type=int, default=10_000)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--changes", type=int, default=200)
    arguments = parser.parse_args()
    size = Size(arguments.taps, arguments.pods)
    result = asyncio.run(measure(size, arguments.changes))
    p50, p99 = statistics.median(result.changes), percentile(result.changes, 99)

    def row(what: str, shown: str, goal: str = "", reached: bool | None = None) -> list[str]:
        return [what, shown, goal, "" if reached is None else "reached" if reached else "MISSED"]

    rows = [
        row(f"list {result.list_bytes / 2**20:.0f} MiB of pods", f"{result.listed:.1f} s"),
        row("full resolve", f"{result.resolved:.2f} s", "10 s", result.resolved <= GOALS["resolve"]),
        row(f"all {result.slices} slices written, since the first page", f"{result.written:.1f} s"),
        row("pod change, p50", f"{p50 * 1000:.1f} ms", "50 ms", p50 <= GOALS["change"]),
        row(f"pod change, p99 ({result.touched:.1f} slices each)", f"{p99 * 1000:.1f} ms", "50 ms", p99 <= GOALS["change"]),
        row("CPU from start to all written", f"{result.start_cpu:.1f} s"),
        row("CPU a pod change", f"{result.change_cpu * 1000:.1f} ms"),
        row("resident", f"{result.memory / 2**20:.0f} MiB", "512 MiB", result.memory <= GOALS["memory"]),
        row("resident, at most", f"{result.peak / 2**20:.0f} MiB", "512 MiB", result.peak <= GOALS["memory"]),
    ]
    title = (
        f"Operator: {size.taps} taps, {size.pods} pods, {result.slices} peer selectors; machine's load {os.getloadavg()[0]:.1f}"
    )
    print(table(title, ("", "", "goal", ""), rows))
    write_json("operator_scale", {"taps": size.taps, "pods": size.pods, "load": os.getloadavg(), **result.__dict__})
    return 0


if __name__ == "__main__":
    sys.exit(main())
