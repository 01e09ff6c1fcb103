"""Our chart on a cluster, as a user installs it: Helm, `kubectl vtap`, and the files that collectors write."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tests.e2e.cluster.cache import CHECKOUT
from tests.e2e.cluster.commands import ClusterError, run
from tests.e2e.cluster.handle import Cluster
from tests.e2e.cluster.kubectl import Resource, condition
from tests.e2e.cluster.pods import is_ready
from tests.e2e.cluster.product import product_images
from tests.e2e.cluster.snapshot import Snapshot
from vtap_lab.errors import PATIENCE, wait_for

CHART = CHECKOUT / "charts" / "vtap"
NAMESPACE = "vtap-system"
RELEASE = "vtap"
STORAGE = "/var/lib/vtap"
_READY_TIMEOUT = 180.0
_HELM_TIMEOUT = 600.0
_COPY_TIMEOUT = 120.0
_IMAGES = "VTAP_E2E_CHART_VALUES"
"""A values file that says where our images are; needed for clusters that are not of our making, and nothing is built then."""


@dataclass
class Installation:
    """A release of the chart. `before` is what the nodes held before it came."""

    cluster: Cluster
    values: tuple[str, ...]
    """Helm's arguments that name our images."""
    scratch: Path
    """For files that cases copy from it."""
    before: list[Snapshot] = field(default_factory=list[Snapshot])

    # --- Helm

    def install(self, *arguments: str) -> None:
        """Namespace and release, and wait until everything is ready."""
        labels = {"pod-security.kubernetes.io/enforce": "privileged"}
        self.cluster.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
        self._helm("install", RELEASE, str(CHART), *self.values, *arguments)
        self.is_ready()

    def upgrade(self, *arguments: str) -> None:
        """To the chart as it is, with other values, and wait until everything is ready."""
        self._helm("upgrade", RELEASE, str(CHART), *self.values, *arguments)
        self.is_ready()

    def uninstall(self) -> None:
        """As the documentation says; Helm returns when its hook has cleaned the nodes."""
        self._helm("uninstall", RELEASE, "--wait", "--timeout=9m")

    def test(self) -> str:
        """`helm test`."""
        return self._helm("test", RELEASE, "--timeout=5m")

    def is_installed(self) -> bool:
        """Whether Helm knows the release."""
        listed = json.loads(self.cluster.helm("list", f"--namespace={NAMESPACE}", "--all", "--output=json"))
        return any(one["name"] == RELEASE for one in listed)

    def _helm(self, command: str, *arguments: str) -> str:
        return self.cluster.helm(command, *arguments, f"--namespace={NAMESPACE}", timeout=_HELM_TIMEOUT)

    def is_ready(self) -> None:
        """Return once operator, agents and the default destination's collector work."""
        kubectl = self.cluster.kubectl
        kubectl.rollout("deployment/vtap-operator", NAMESPACE, _READY_TIMEOUT)
        kubectl.rollout("daemonset/vtap-agent", NAMESPACE, _READY_TIMEOUT)
        self.destination_is_ready("default")
        for node in self.cluster.nodes:
            kubectl.until("tapnode", node.name, is_true("Ready"), "the agent works", timeout=_READY_TIMEOUT)

    def destination_is_ready(self, name: str) -> Resource:
        """Return once a TapDestination says that it is Ready."""
        return self.cluster.kubectl.until(
            "tapdestination", name, is_true("Ready"), "the collector receives", timeout=_READY_TIMEOUT
        )

    # --- our pods

    def pod_of(self, component: str, node: str = "", destination: str = "") -> Resource:
        """The pod of a component that is Ready: "operator", "agent" of a node, "collector" of a destination."""
        chosen = f"vtap.dev/component={component}" + (f",vtap.dev/destination={destination}" if destination else "")
        found: list[Resource] = []

        def look() -> bool:
            pods = self.cluster.kubectl.list("pods", NAMESPACE, chosen)
            found[:] = [one for one in pods if is_ready(one) and node in ("", one["spec"]["nodeName"])]
            return bool(found)

        wait_for(look, _READY_TIMEOUT, f"a ready pod of {component} {destination or node}", every=0.5)
        return found[0]

    def kill(self, pod: Resource, program: str) -> None:
        """SIGKILL to the processes of a pod whose command line has `program` in it, on the pod's own node."""
        uid: str = pod["metadata"]["uid"]
        self.cluster.node(pod["spec"]["nodeName"]).run("sh", "-s", uid, uid.replace("-", "_"), program, stdin=_KILL)

    # --- kubectl vtap

    def vtap(self, *arguments: str, namespace: str = "", timeout: float = 120) -> str:
        """What `kubectl vtap ARGUMENTS` printed; ClusterError with its sentence when it fails."""
        return run(self.vtap_argv(*arguments, namespace=namespace), timeout=timeout, env=self.vtap_environment())

    def vtap_argv(self, *arguments: str, namespace: str = "") -> list[str]:
        """The command line, for who wants to run it otherwise."""
        command, *others = arguments
        where = [f"--namespace={namespace}"] if namespace else []
        return [self.cluster.kubectl.program, "vtap", command, f"--kubeconfig={self.cluster.kubectl.kubeconfig}", *where, *others]

    def vtap_environment(self) -> dict[str, str]:
        """kubectl finds its plugin, and the plugin kubectl."""
        folders = (Path(sys.executable).parent, Path(self.cluster.kubectl.program).parent)
        return {"PATH": ":".join([*map(str, folders), os.environ["PATH"]])}

    # --- what collectors have

    def files(self, folder: Path, namespace: str, tap: str, destination: str = "default") -> list[Path]:
        """A tap's files as the collector has written them so far, copied from its pod into `folder`."""
        pod = self.pod_of("collector", destination=destination)["metadata"]["name"]
        script = f'cd {STORAGE} && if [ -d "$1/$2" ]; then tar -cf - "$1/$2"; fi'
        argv = self.cluster.kubectl.argv("exec", pod, "--", "sh", "-c", script, "sh", namespace, tap, namespace=NAMESPACE)
        done = subprocess.run(argv, capture_output=True, timeout=_COPY_TIMEOUT * PATIENCE, check=False)
        # GNU tar has status 1 when a file grew while it was read.
        if done.returncode not in (0, 1) or (done.returncode == 1 and b"changed as we read" not in done.stderr):
            raise ClusterError(f"files of {namespace}/{tap}: {done.stderr.decode(errors='replace')[-500:]}")
        return _unpacked(done.stdout, folder)


def installation_on(cluster: Cluster, scratch: Path) -> Installation:
    """Of images built from this checkout, unless $VTAP_E2E_CHART_VALUES says where there are some."""
    if file := os.environ.get(_IMAGES, ""):
        return Installation(cluster, (f"--values={file}",), scratch)
    if cluster.built is None:
        return Installation(cluster, (), scratch)
    images = product_images(cluster.built)
    cluster.load(*images.names)
    return Installation(cluster, images.helm_arguments, scratch)


def is_true(*kinds: str) -> Callable[[Resource], bool]:
    """Whether conditions are True of the resource as it is now, and not as it was before an edit."""

    def holds(resource: Resource) -> bool:
        generation = resource["metadata"].get("generation", 0)
        found = [condition(resource, kind) for kind in kinds]
        return all(one.get("status") == "True" and one.get("observedGeneration", generation) >= generation for one in found)

    return holds


def says(kind: str, status: str, *, reason: str = "", words: Sequence[str] = ()) -> Callable[[Resource], bool]:
    """Whether a condition has this status, this reason if any, and a message with all these words."""

    def holds(resource: Resource) -> bool:
        one: dict[str, Any] = condition(resource, kind)
        if one.get("observedGeneration", 0) < resource["metadata"]["generation"]:
            return False
        return one["status"] == status and reason in ("", one["reason"]) and all(word in one["message"] for word in words)

    return holds


def _unpacked(archive: bytes, folder: Path) -> list[Path]:
    if not archive:
        return []
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        members = [one for one in packed.getmembers() if one.isfile() and PurePosixPath(one.name).suffix == ".pcapng"]
        packed.extractall(folder, members, filter="data")
    return sorted(folder / one.name for one in members)


_KILL = """
for process in /proc/[0-9]*; do
  grep -qe "$1" -e "$2" "$process/cgroup" 2>/dev/null || continue
  tr '\\0' ' ' < "$process/cmdline" | grep -qF -- "$3" && kill -9 "${process#/proc/}" && killed=yes
done
[ "${killed:-}" ] || { echo "no process of pod $1 is called $3" >&2; exit 1; }
"""
