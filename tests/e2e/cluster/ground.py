"""The network namespace in which podman keeps the nodes' network, so that the machine's own gets no address and no route.

podman and its helpers work in the network namespace of whoever calls them; kind is therefore given a `podman` that enters
`NAMESPACE` first. All clusters of a machine share it: podman keeps one name server for all its networks. Their API servers are
reached from the machine's own namespace through a listener on loopback (`forward`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.cluster.cache import CHECKOUT, Cache
from tests.e2e.cluster.commands import ClusterError, run, succeeds
from tests.e2e.cluster.machine import containers_conf, raise_watch_limit, restore_watch_limit
from vtap_lab.errors import comes_true, wait_for

NAMESPACE = "vtap-e2e"
NETWORK = "vtap-e2e"
"""podman's name for the network of all nodes."""

PATH = Path("/run/netns") / NAMESPACE
ENTER = ("nsenter", f"--net={PATH}", "--")


def prepare(cache: Cache) -> dict[str, str]:
    """Make the namespace and the network unless they exist; the environment in which kind finds them."""
    if not PATH.exists():
        run(["ip", "netns", "add", NAMESPACE])
    run(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"])
    _leave_bridged_packets_alone()
    raise_watch_limit(_watch_limit(cache))
    wrapped = cache.folder("wrapped") / "podman"
    settings = wrapped.with_name("containers.conf")
    settings.write_text(containers_conf())
    wrapped.write_text(f'#!/bin/sh\nexport CONTAINERS_CONF={settings}\nexec {" ".join(ENTER)} /usr/bin/podman "$@"\n')
    wrapped.chmod(0o755)
    if not succeeds(["podman", "network", "exists", NETWORK]):
        run([wrapped, "network", "create", NETWORK])
    path = f"{wrapped.parent}:{cache.bin}:{os.environ['PATH']}"
    return {"PATH": path, "KIND_EXPERIMENTAL_PROVIDER": "podman", "KIND_EXPERIMENTAL_PODMAN_NETWORK": NETWORK}


def _leave_bridged_packets_alone() -> None:
    """Else podman's masquerading gives what nodes send to each other's pods, over one bridge, the bridge's own address."""
    for family in ("iptables", "ip6tables"):
        if Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}").exists():
            run([*ENTER, "sysctl", "--quiet", "--write", f"net.bridge.bridge-nf-call-{family}=0"])


def clear(cache: Cache) -> None:
    """Remove network and namespace once no node is left in them, and take back what was changed for nodes."""
    if run(["podman", "ps", "--all", "--quiet", "--filter", f"network={NETWORK}"]).strip():
        return
    if succeeds(["podman", "network", "exists", NETWORK]):
        run([*ENTER, "podman", "network", "rm", NETWORK])
    if PATH.exists():
        run(["ip", "netns", "delete", NAMESPACE])
    restore_watch_limit(_watch_limit(cache))


def _watch_limit(cache: Cache) -> Path:
    return cache.root / "watch-limit-before"


# --- the way to the API server


def start_forwarding(cache: Cache, name: str, port: int) -> None:
    """Listen on the machine's loopback; what comes goes to the same port of the namespace's loopback. Outlives the caller."""
    stop_forwarding(cache, name)
    log = cache.cluster(name) / "forward.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.cluster.forward", str(PATH), str(port)],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _pid_file(cache, name).write_text(str(process.pid))
    wait_for(lambda: _listens(port) or process.poll() is not None, 10, f"a listener on port {port}")
    if process.poll() is not None:
        raise ClusterError(f"the way to the API server ended at once: {log.read_text()[-500:]}")


def stop_forwarding(cache: Cache, name: str) -> None:
    file = _pid_file(cache, name)
    if not file.exists():
        return
    pid = int(file.read_text())
    if _is_forwarder(pid):
        os.kill(pid, signal.SIGTERM)
        comes_true(lambda: not _is_forwarder(pid), 5)
    file.unlink()


def _pid_file(cache: Cache, name: str) -> Path:
    return cache.cluster(name) / "forward.pid"


def _is_forwarder(pid: int) -> bool:
    """A number may by now belong to somebody else."""
    try:
        return b"tests.e2e.cluster.forward" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _listens(port: int) -> bool:
    wanted = f"0100007F:{port:04X}"
    return any(
        line.split()[1] == wanted and line.split()[3] == "0A" for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
    )
