"""A Kubernetes node's network without Kubernetes: pods on an Open vSwitch bridge, and a collector behind a router.

    pod ns: eth0 ── veth1 ┐
    pod ns: eth0 ── veth2 ┤ br0 (Open vSwitch)     node ns: up0 ── router ns ── eth0 :collector ns
    pod ns: eth0 ── veth3 ┘

The machine's own namespace gets neither address nor device.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from vtap_lab import registry
from vtap_lab.daemons import Agent, Collector
from vtap_lab.errors import LabError, wait_for
from vtap_lab.processes import LabProcess, run_in, start_in, with_own_sysfs
from vtap_lab.switch import Switch

BRIDGE = "br0"
PLAIN_BRIDGE = "bridge"
START_TIMEOUT = 20.0

NODE_BRIDGE_ADDRESS = "10.10.0.1"
"""The node as the pods without a VLAN see it, and their default gateway."""
NODE_ADDRESS = "198.18.1.2"
NODE_ADDRESS6 = "fd00:198:1::2"
COLLECTOR_ADDRESS = "198.18.2.2"
COLLECTOR_ADDRESS6 = "fd00:198:2::2"
DATA_PORT = 4754
CONTROL_PORT = 9471


@dataclass(frozen=True)
class Pod:
    """A network namespace that plays a pod, and its veth. `vlan` is the access tag of its bridge port, 0 for none."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    netns: str
    interface: str
    host_name: str
    mac: str
    ipv4: str
    ipv6: str
    vlan: int
    sandbox: str = ""
    """The namespace that Kubernetes would know, where the one with the interface is not it: that of a pod whose interface is a
    socket, which no network namespace shows."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class LabOptions:
    """What a lab is like. MTUs in bytes of IP packet; `underlay_mtu` is that of both hops to the collector."""

    userspace_tso: bool = False
    datapath: str = "netdev"
    """Of Open vSwitch: "netdev" or "system". PLAIN_BRIDGE: pods are on a bridge of the kernel's, and there is no Open vSwitch."""
    mtu: int = 1500
    underlay_mtu: int = 1500
    outlives_maker: bool = False
    """Processes live on when the maker ends; with it `Lab.leave_running` is allowed."""


@dataclass
class Lab:
    """Use it as a context manager. Everything it made is gone afterwards, also when the body raises; see registry for kill -9."""

    options: LabOptions = field(default_factory=LabOptions)

    def __post_init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self._numbers = itertools.count(1)
        self._logs = itertools.count(1)
        self._left_running = False

    # Life

    def __enter__(self) -> Self:
        registry.sweep()
        self.record = registry.new_record()
        try:
            self._build()
        except BaseException:
            registry.take_down(self.record)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._left_running:
            with _undisturbed():
                registry.take_down(self.record)

    def leave_running(self) -> None:
        """Leaving the context takes nothing down any more; `make clean` will."""
        if not self.options.outlives_maker:
            raise LabError("only a lab whose processes outlive its maker can be left running")
        self.record = registry.keep(self.record)
        self._left_running = True

    def _build(self) -> None:
        self.directory = self.record.directory
        for folder in (self.run_dir, self.taps, self.directory / "log", self.directory / "state"):
            folder.mkdir()
        self.node, self.router, self.collector = (self.add_namespace(role) for role in ("node", "router", "collector"))
        self._connect_collector()
        self.switch = self._make_switch(self.directory / "ovs")
        self._add_bridge()
        self._write_pods()

    def _make_switch(self, directory: Path) -> Switch:
        return Switch(directory, self.node, userspace_tso=self.options.userspace_tso, datapath=self.options.datapath)

    @property
    def has_switch(self) -> bool:
        """Whether pods are on Open vSwitch, so that `switch` runs."""
        return self.options.datapath != PLAIN_BRIDGE

    def _add_bridge(self) -> None:
        if self.has_switch:
            self.switch.start()
            self.switch.add_bridge(BRIDGE)
            if problem := self.switch.vsctl("get", "Interface", BRIDGE, "error").strip("[]"):
                raise LabError(f"Open vSwitch can't make the device of bridge {BRIDGE}: {problem}")
        else:
            self.ip(self.node, f"link add name {BRIDGE} type bridge")
        self.ip(
            self.node,
            f"link set {BRIDGE} up",
            f"addr add {_pod_address(0, 1)}/16 dev {BRIDGE}",
            f"addr add {_pod_address6(0, 1)}/64 dev {BRIDGE} nodad",
        )

    def _connect_collector(self) -> None:
        mtu = self.options.underlay_mtu
        self.ip(
            self.node,
            f"link add up0 mtu {mtu} type veth peer name node0 mtu {mtu} netns {self.router}",
            "link set up0 up",
            f"addr add {NODE_ADDRESS}/24 dev up0",
            f"addr add {NODE_ADDRESS6}/64 dev up0 nodad",
        )
        self.ip(
            self.router,
            f"link add col0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {self.collector}",
            "link set node0 up",
            "link set col0 up",
            "addr add 198.18.1.1/24 dev node0",
            "addr add fd00:198:1::1/64 dev node0 nodad",
            "addr add 198.18.2.1/24 dev col0",
            "addr add fd00:198:2::1/64 dev col0 nodad",
        )
        self.ip(
            self.collector,
            "link set eth0 up",
            f"addr add {COLLECTOR_ADDRESS}/24 dev eth0",
            f"addr add {COLLECTOR_ADDRESS6}/64 dev eth0 nodad",
            "route add default via 198.18.2.1",
            "-6 route add default via fd00:198:2::1",
        )
        self.ip(self.node, "route add default via 198.18.1.1", "-6 route add default via fd00:198:1::1")
        for namespace in (self.node, self.router):
            self.sysctl(namespace, "net/ipv4/ip_forward", "1")
            self.sysctl(namespace, "net/ipv6/conf/all/forwarding", "1")

    # Where things are

    @property
    def run_dir(self) -> Path:
        """`--run-dir` of agent, collector and `vtap`."""
        return self.directory / "run"

    @property
    def taps(self) -> Path:
        """The directory whose files are the node's taps and destinations."""
        return self.directory / "taps"

    @property
    def pods_file(self) -> Path:
        """What the agent takes as `--pods FILE`."""
        return self.directory / "pods.yaml"

    @property
    def state_dir(self) -> Path:
        """`--state-dir` of the agent."""
        return self.directory / "state"

    # Namespaces and what is in them

    def add_namespace(self, role: str) -> str:
        """A network namespace with loopback up and IPv6 addresses usable at once; its name under /run/netns."""
        name = self.record.namespace(role)
        self.record = self.record.with_namespace(name)
        self.record.save()
        registry.run("ip", "netns", "add", name)
        self.sysctl(name, "net/ipv6/conf/all/accept_dad", "0")
        self.sysctl(name, "net/ipv6/conf/default/accept_dad", "0")
        self.ip(name, "link set lo up")
        return name

    def delete_namespace(self, name: str) -> None:
        """End what runs in it, then remove it with its devices."""
        registry.end_processes_in([name])
        registry.run("ip", "netns", "delete", name)
        self.record = self.record.without_namespace(name)
        self.record.save()

    def ip(self, namespace: str, *commands: str) -> None:
        """Several `ip` commands in one go, e.g. ``lab.ip(lab.node, "link set up0 mtu 1400")``."""
        for families, batch in itertools.groupby(commands, key=lambda line: line.startswith("-6 ")):
            lines = "".join(f"{line.removeprefix('-6 ')}\n" for line in batch)
            run_in(namespace, ["ip", *(["-6"] if families else []), "-batch", "-"], stdin=lines)

    def sysctl(self, namespace: str, path: str, value: str) -> None:
        """Write /proc/sys/PATH as a process of that namespace sees it."""
        run_in(namespace, ["tee", f"/proc/sys/{path}"], stdin=value)

    def run(self, where: str | Pod, *argv: str, check: bool = True, timeout: float = 30) -> str:
        """Run a command in a namespace or pod to its end; what it printed. LabError when it fails."""
        return run_in(_netns(where), argv, check=check, timeout=timeout)

    def spawn(self, where: str | Pod, *argv: str, name: str = "", env: Mapping[str, str] | None = None) -> LabProcess:
        """Start a program in a namespace or pod; it ends with the lab at the latest."""
        name = name or Path(argv[0]).name
        return start_in(
            _netns(where),
            argv,
            name=name,
            log=self.directory / "log" / f"{next(self._logs):03}-{name}.log",
            outlives_maker=self.options.outlives_maker,
            env=env,
        )

    # Pods

    def add_pod(
        self,
        name: str,
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        vlan: int = 0,
        port_settings: Sequence[str] = (),
        mtu: int | None = None,
    ) -> Pod:
        """A pod attached to the bridge. Pods with the same `vlan` share a subnet. `port_settings` are columns of Port."""
        pod = self._new_pod(name, namespace, labels or {}, vlan)
        self._plug(pod, mtu or self.options.mtu, self.node)
        self._attach(pod, port_settings)
        self._register(pod)
        return pod

    def _new_pod(self, name: str, namespace: str, labels: Mapping[str, str], vlan: int) -> Pod:
        """With its namespace, and nothing in it yet."""
        number = next(self._numbers)
        return Pod(
            namespace=namespace,
            name=name,
            labels=dict(labels),
            netns=self.add_namespace(f"pod{number}-{name}"),
            interface="eth0",
            host_name=f"veth{number}",
            mac=f"02:76:74:00:{number >> 8:02x}:{number & 255:02x}",
            ipv4=_pod_address(vlan, number + 1),
            ipv6=_pod_address6(vlan, number + 1),
            vlan=vlan,
        )

    def _register(self, pod: Pod) -> None:
        self.pods[str(pod)] = pod
        self._write_pods()

    def _attach(self, pod: Pod, port_settings: Sequence[str]) -> None:
        if self.has_switch:
            tag = [f"tag={pod.vlan}"] if pod.vlan else []
            self.switch.add_port(BRIDGE, pod.host_name, *tag, *port_settings)
        elif pod.vlan or port_settings:
            raise LabError("pods of a plain bridge have neither VLANs nor settings of a port")
        else:
            self.ip(self.node, f"link set {pod.host_name} master {BRIDGE}")
            wait_for(lambda: self._forwards(pod), 10, f"{BRIDGE} forwards for {pod}")

    def _forwards(self, pod: Pod) -> bool:
        """A kernel's bridge does so once the link watch has seen the port's carrier, some time after both ends are up."""
        (link,) = json.loads(self.run(self.node, "ip", "-d", "-j", "link", "show", "dev", pod.host_name))
        return link["linkinfo"]["info_slave_data"]["state"] == "forwarding"

    def _plug(self, pod: Pod, mtu: int, host: str) -> None:
        """The pod's veth, whose other end is in the namespace `host`."""
        self.ip(
            host,
            f"link add {pod.host_name} mtu {mtu} type veth"
            f" peer name {pod.interface} address {pod.mac} mtu {mtu} netns {pod.netns}",
            f"link set {pod.host_name} up",
        )
        self.ip(
            pod.netns,
            f"link set {pod.interface} up",
            f"addr add {pod.ipv4}/16 dev {pod.interface}",
            f"addr add {pod.ipv6}/64 dev {pod.interface} nodad",
            f"route add default via {_pod_address(pod.vlan, 1)}",
            f"-6 route add default via {_pod_address6(pod.vlan, 1)}",
        )
        if not self.options.userspace_tso and self.options.datapath == "netdev":
            # vswitchd passes partial checksums on as they are unless userspace TSO is on.
            run_in(host, ["ethtool", "-K", pod.host_name, "tx", "off"])
            run_in(pod.netns, ["ethtool", "-K", pod.interface, "tx", "off"])

    def delete_pod(self, pod: Pod) -> None:
        """As a CNI does: the port leaves the bridge, the namespace and with it the veth go."""
        if self.has_switch:
            self.switch.delete_port(BRIDGE, self.port_of(pod))
        self.forget_pod(pod)

    def port_of(self, pod: Pod) -> str:
        """The name of a pod's port."""
        return pod.host_name

    def forget_pod(self, pod: Pod) -> None:
        """Its namespaces and the veth go, the row of the port stays behind in the database."""
        for namespace in filter(None, {pod.netns, pod.sandbox}):
            self.delete_namespace(namespace)
        del self.pods[str(pod)]
        self._write_pods()

    def _write_pods(self) -> None:
        self.write(self.pods_file, yaml.safe_dump([_declaration(pod) for pod in self.pods.values()], sort_keys=False))

    def write(self, file: Path, text: str) -> None:
        """Replace a file at once, so that nobody reads half of it."""
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(text)
        partial.rename(file)

    # Daemons

    def start_collector(self, directory: Path, *arguments: str, address: str = COLLECTOR_ADDRESS) -> Collector:
        """vtap-collector in the collector's namespace, storing under `directory`; returns when it answers."""
        token = self.directory / "token"
        if not token.exists():
            token.write_text(secrets.token_hex())
            token.chmod(0o600)
        host = f"[{address}]" if ":" in address else address
        process = self.spawn(
            self.collector,
            _script("vtap-collector"),
            f"--directory={directory}",
            f"--run-dir={self.run_dir}",
            f"--listen-data={host}:{DATA_PORT}",
            f"--listen={host}:{CONTROL_PORT}",
            f"--token-file={token}",
            *arguments,
            name="collector",
        )
        url = f"http://{host}:{CONTROL_PORT}"
        collector = Collector(process, self.run_dir / "collector.sock", directory, address, url, token)
        process.wait_ready(collector.answers, START_TIMEOUT, "answers")
        return collector

    def start_agent(self, *arguments: str, node: str = "node-a") -> Agent:
        """vtap-agent in the node's namespace, on the lab's taps and pods; returns when it answers."""
        program = [_script("vtap-agent")]
        process = self.spawn(
            self.node,
            *(with_own_sysfs(program) if any(word.startswith("--export-cpus") for word in arguments) else program),
            f"--taps={self.taps}",
            f"--pods={self.pods_file}",
            f"--node={node}",
            f"--run-dir={self.run_dir}",
            f"--state-dir={self.state_dir}",
            f"--ovsdb={self.switch.db_remote}",
            *arguments,
            name="agent",
            env=self.switch.environment,
        )
        agent = Agent(process, self.run_dir / "agent.sock")
        process.wait_ready(agent.answers, START_TIMEOUT, "answers")
        return agent

    def vtap(self, *arguments: str, timeout: float = 30) -> str:
        """`vtap ARGUMENTS --run-dir …`; what it printed."""
        return run_in(self.collector, [_script("vtap"), *arguments, f"--run-dir={self.run_dir}"], timeout=timeout)


def _netns(where: str | Pod) -> str:
    return where.netns if isinstance(where, Pod) else where


def _pod_address(vlan: int, host: int) -> str:
    """10.0.0.0/8 in one /16 a VLAN. VLANs that are 240 apart share one, which the bridge keeps apart."""
    return f"10.{10 + vlan % 240}.{host >> 8}.{host & 255}"


def _pod_address6(vlan: int, host: int) -> str:
    return f"fd00:10:{vlan:x}:1::{host:x}"


def _declaration(pod: Pod) -> dict[str, object]:
    return {
        "namespace": pod.namespace,
        "name": pod.name,
        "labels": dict(pod.labels),
        "netns": str(registry.NETNS / (pod.sandbox or pod.netns)),
    }


def _script(name: str) -> str:
    """A program that lies beside the running Python, as those of one virtual environment do."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise LabError(f"{name} is not installed beside {sys.executable}; run: uv sync")
    return str(path)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not cut the clean-up short."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
