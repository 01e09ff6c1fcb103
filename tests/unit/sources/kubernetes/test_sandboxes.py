"""A pod's network namespace is found by its processes, whoever drives the cgroups, and found again when its sandbox is new."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent.waiting import eventually
from vtap_agent.drivers import procs
from vtap_agent.sources.kubernetes import sandboxes as module
from vtap_agent.sources.kubernetes.sandboxes import Sandboxes

UID = "fbd4ebf0-c662-45da-aab7-0bd3500117d9"
UNDER = UID.replace("-", "_")
CONTAINER = "1f7c0c2e" * 8


@pytest.mark.parametrize(
    ("cgroup", "uid"),
    [
        (
            f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDER}.slice/cri-containerd-{CONTAINER}.scope",
            UID,
        ),
        (f"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDER}.slice/cri-containerd-{CONTAINER}.scope\n", UID),
        (f"0::/kubepods/burstable/pod{UID}/{CONTAINER}\n", UID),
        (f"0::/../../kubepods-burstable-pod{UNDER}.slice/crio-{CONTAINER}.scope\n", UID),
        (f"12:memory:/kubepods/pod{UID}/{CONTAINER}\n11:cpu,cpuacct:/kubepods/pod{UID}/{CONTAINER}\n0::/\n", UID),
        (f"5:pids:/system.slice/containerd.service/kubepods-besteffort-pod{UNDER}.slice:cri-containerd:{CONTAINER}\n", UID),
        (f"0::/docker/{CONTAINER}/kubelet/kubepods/besteffort/pod{UID}/{CONTAINER}\n", UID),
        ("0::/kubepods.slice/kubepods-pod0123456789abcdef0123456789abcdef.slice/x.scope\n", "0123456789abcdef0123456789abcdef"),
        (f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/crio-conmon-{CONTAINER}.scope\n", ""),
        (f"0::/machine.slice/libpod-{CONTAINER}.scope/container\n", ""),
        ("0::/system.slice/pods.service\n", ""),
        ("", ""),
    ],
)
def test_the_pod_of_a_cgroup(cgroup: str, uid: str) -> None:
    assert procs.pod_uid(cgroup.encode()) == uid


def test_the_start_time_of_a_process_with_an_odd_name() -> None:
    fields = " ".join(str(number) for number in range(3, 53))
    assert procs.start_time(f"42 (a) b (c) {fields}".encode()) == 22


class Node:
    """A proc directory with real processes in it, whose cgroups say what a test wants."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        (proc / "self").mkdir(parents=True)

    def process(self, uid: str, *, own_network: bool = True) -> int:
        command = ["sleep", "1000"]
        child = subprocess.Popen(["unshare", "-n", *command] if own_network else command)
        self.running[child.pid] = child
        if own_network:
            here = Path("/proc/self/ns/net").stat().st_ino
            eventually(lambda: Path(f"/proc/{child.pid}/ns/net").stat().st_ino != here)
        place = self.proc / str(child.pid)
        place.mkdir()
        (place / "ns").symlink_to(f"/proc/{child.pid}/ns")
        (place / "stat").symlink_to(f"/proc/{child.pid}/stat")
        (place / "cgroup").write_text(f"0::/kubepods/pod{uid}/{CONTAINER}\n")
        return child.pid

    def kill(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid))
        child = self.running.pop(pid)
        child.kill()
        child.wait()

    def clean(self) -> None:
        for pid in list(self.running):
            self.kill(pid)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare(1), to make network namespaces")
    made = Node(tmp_path / "proc")
    yield made
    made.clean()


@pytest.fixture
def sandboxes(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandboxes]:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(module, "RETRY_LAST", 0.05)
    made = Sandboxes(lambda: None, node.proc)
    made.start()
    yield made
    made.stop()


def test_a_pod_is_found_as_soon_as_its_sandbox_runs_and_again_when_that_is_new(node: Node, sandboxes: Sandboxes) -> None:
    uid = str(uuid.uuid4())
    sandboxes.want(frozenset({uid}))
    eventually(lambda: sandboxes.settled)
    assert sandboxes.paths() == {}
    first = node.process(uid)
    eventually(lambda: sandboxes.paths() == {uid: f"{node.proc}/{first}/ns/net"})
    second = node.process(uid)
    node.kill(first)
    eventually(lambda: sandboxes.paths() == {uid: f"{node.proc}/{second}/ns/net"})
    node.kill(second)
    eventually(lambda: sandboxes.paths() == {})
    third = node.process(uid)
    eventually(lambda: sandboxes.paths() == {uid: f"{node.proc}/{third}/ns/net"})
    sandboxes.want(frozenset())
    eventually(lambda: sandboxes.paths() == {})


def test_of_several_processes_the_oldest_counts_that_is_not_in_the_nodes_network(node: Node, sandboxes: Sandboxes) -> None:
    uid = str(uuid.uuid4())
    node.process(uid, own_network=False)
    oldest = node.process(uid)
    node.process(uid)
    sandboxes.want(frozenset({uid}))
    eventually(lambda: sandboxes.paths() == {uid: f"{node.proc}/{oldest}/ns/net"})


def test_a_look_that_fails_is_not_the_last(node: Node, sandboxes: Sandboxes) -> None:
    pid = node.process(UID)
    away = node.proc.with_name("away")
    node.proc.rename(away)
    sandboxes.want(frozenset({UID}))
    eventually(lambda: "can't be looked at" in sandboxes.problem)
    assert not sandboxes.settled
    away.rename(node.proc)
    eventually(lambda: sandboxes.paths() == {UID: f"{node.proc}/{pid}/ns/net"})
    assert sandboxes.settled and not sandboxes.problem


def test_nothing_is_held_open_after_the_end(node: Node) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    uid = str(uuid.uuid4())
    node.process(uid)
    made = Sandboxes(lambda: None, node.proc)
    made.start()
    made.want(frozenset({uid}))
    eventually(lambda: bool(made.paths()))
    made.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
