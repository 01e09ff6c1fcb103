"""A host outside the cluster: a container beside the nodes, on their network, with nothing of ours in it but tcpdump."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import ground
from tests.e2e.cluster.commands import ClusterError, run
from tests.e2e.cluster.handle import Cluster
from tests.e2e.cluster.lifecycle import Built
from vtap_lab.errors import comes_true, wait_for

_FILE = "/tmp/received.pcap"


@dataclass(frozen=True)
class Endpoint:
    """`runtime` is how its container is reached."""

    runtime: str
    name: str
    address: str

    @contextmanager
    def capturing(self, folder: Path) -> Iterator[Path]:
        """Everything but ARP that arrives meanwhile, in the file once the block has ended."""
        file = folder / "received.pcap"
        script = f"tcpdump -i eth0 --immediate-mode -U -w {_FILE} ip proto 47 >/tmp/log 2>&1 & echo $!"
        pid = self._run("sh", "-c", script).strip()
        wait_for(lambda: "listening" in self._run("cat", "/tmp/log"), 15, "tcpdump listens", every=0.2)
        yield file
        size = [-1]

        def rests() -> bool:
            size.append(int(self._run("stat", "-c", "%s", _FILE)))
            return size[-1] == size[-2]

        comes_true(rests, 10, every=0.5)
        self._run("kill", pid)
        wait_for(lambda: self._run("sh", "-c", f"[ -d /proc/{pid} ] && echo there || true") == "", 15, "tcpdump's end", every=0.2)
        run([self.runtime, "cp", f"{self.name}:{_FILE}", file])

    def _run(self, *argv: str) -> str:
        return run([self.runtime, "exec", self.name, *argv])


@contextmanager
def endpoint_on(cluster: Cluster) -> Iterator[Endpoint]:
    """Of the tests' pods' image, on the network of the nodes of a kind cluster of this machine."""
    if cluster.built is None:
        raise ClusterError("an endpoint outside of a cluster that is not of our making can't be had by itself")
    built = cluster.built
    runtime, name = built.way.runtime, f"vtap-e2e-endpoint-{secrets.token_hex(3)}"
    network = "kind" if built.way.is_public else ground.NETWORK
    start, environment = _starter(built)
    options = ("--detach", "--rm", "--name", name, "--network", network, "--cap-add=NET_RAW,NET_ADMIN")
    run([start, "run", *options, cluster.pods_image], env=environment)
    try:
        yield Endpoint(runtime, name, _address(runtime, name, network))
    finally:
        run([start, "rm", "--force", "--time=1", name], env=environment)


def _starter(built: Built) -> tuple[str, dict[str, str]]:
    """What starts and ends containers: podman from within the nodes' network namespace where nodes are built here."""
    if built.way.is_public:
        return built.way.runtime, {}
    return str(built.cache.folder("wrapped") / "podman"), ground.prepare(built.cache)


def _address(runtime: str, name: str, network: str) -> str:
    told = json.loads(run([runtime, "inspect", name]))
    return told[0]["NetworkSettings"]["Networks"][network]["IPAddress"]
