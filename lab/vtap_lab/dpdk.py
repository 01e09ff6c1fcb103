"""Open vSwitch on DPDK, without hugepages, network cards or a trace on the machine; and pods on ports that DPDK moves packets of.

    pod ns: eth0 ── veth1 ── af_packet ┐
                                       │ br0 (poll-mode threads)      node ns
    sandbox ns: (nothing)   vhost-user ┘
                                ╎ a socket
    pod ns: eth0 ── veth2 ── af_packet ── virtio-user                 apps ns: a second switch, the pod's DPDK application

DPDK's drivers come from the distribution. scripts/setup unpacks vswitchd-dpdk and does not install it, so that the machine's own
choice of a vswitchd (update-alternatives) stays. Memory is ordinary memory (`--no-huge`), and idle threads sleep.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from vtap_lab import preflight, registry
from vtap_lab.errors import LabError, wait_for
from vtap_lab.lab import BRIDGE, Lab, LabOptions, Pod
from vtap_lab.switch import Switch

MEMORY = 448
"""MiB for each switch. With memory per port, a port takes some 60 of them."""
APPLICATIONS_BRIDGE = "apps"
_PROGRAM = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_DRIVERS = (
    "librte_net_af_packet",
    "librte_net_null",
    "librte_net_ring",
    "librte_net_virtio",
    "librte_bus_vdev",
    "librte_mempool_ring",
)
_IDLE_SLEEP = "1000"
"""Microseconds that an idle poll-mode thread sleeps at most: labs share their machine."""
_CONNECT_TIMEOUT = 15.0


def find_vswitchd() -> Path | None:
    """ovs-vswitchd with DPDK: that of the machine, else what scripts/setup unpacked."""
    places = (Path(os.environ.get("OVS_DPDK_PREFIX") or "/"), preflight.CHECKOUT / ".cache/ovs-dpdk")
    return next((place / _PROGRAM for place in places if os.access(place / _PROGRAM, os.X_OK)), None)


def why_no_dpdk() -> str | None:
    """A sentence, or None when a switch with DPDK can run here."""
    if find_vswitchd() is None:
        return "Open vSwitch with DPDK is not here; scripts/setup test provides it"
    folders = [*Path("/usr/lib").glob("*-linux-gnu/dpdk/pmds-*")]
    if missing := [name for name in _DRIVERS if not any(folder.glob(f"{name}.so*") for folder in folders)]:
        return f"DPDK's drivers {', '.join(missing)} are not here; scripts/setup test installs them"
    return None


@dataclass
class DpdkSwitch(Switch):
    """A switch whose netdev datapath is DPDK's. `cores` are the numbers of those that poll-mode threads run on.

    `idle_sleep` False lets them poll without pause, as they do in production: for measuring.
    """

    cores: Sequence[int] = (0,)
    memory: int = MEMORY
    idle_sleep: bool = True

    def __post_init__(self) -> None:
        mask = sum(1 << core for core in self.cores)
        # No configuration or telemetry shared with other processes: several labs run side by side.
        options = f"--no-pci --no-huge --legacy-mem --no-shconf --no-telemetry -m {self.memory}"
        self.other_config = {
            "dpdk-init": "true",
            "dpdk-extra": f'"{options}"',
            "per-port-memory": "true",
            "pmd-cpu-mask": f"{mask:#x}",
            # The one is what Open vSwitch 3.1 calls it, the other what it is called since.
            **({"pmd-maxsleep": _IDLE_SLEEP, "pmd-sleep-max": _IDLE_SLEEP} if self.idle_sleep else {}),
            **self.other_config,
        }
        super().__post_init__()

    def _vswitchd_program(self) -> str:
        program = find_vswitchd()
        if program is None:
            raise LabError(why_no_dpdk() or "")
        # Under the name that it has where it is installed; its control socket is called by it.
        link = self.directory / "ovs-vswitchd"
        link.unlink(missing_ok=True)
        link.symlink_to(program)
        return str(link)

    def add_device(self, bridge: str, name: str, arguments: str, *settings: str) -> None:
        """Add one of DPDK's virtual devices, such as "net_null0,size=64"; `settings` are further columns of Interface."""
        self._add(bridge, name, "type=dpdk", f'options:dpdk-devargs="{arguments}"', *settings)

    def add_vhost_user(self, bridge: str, name: str, socket: Path, *settings: str) -> None:
        """Add a port that connects to an application's vhost-user socket."""
        self._add(bridge, name, "type=dpdkvhostuserclient", f'options:vhost-server-path="{socket}"', *settings)

    def _add(self, bridge: str, name: str, *settings: str) -> None:
        self.vsctl("add-port", bridge, name, "--", "set", "Interface", name, *settings)
        if problem := self.vsctl("get", "Interface", name, "error").strip("[]"):
            raise LabError(f"port {name} of bridge {bridge}: {problem}")


class DpdkLab(Lab):
    """A lab whose node runs DPDK.

    A pod of `add_pod` is a veth that DPDK polls, one of `add_application` a vhost-user socket, one of `add_generator` a device of
    DPDK's. `cores` and `idle_sleep` are as `DpdkSwitch` has them.
    """

    def __init__(
        self,
        options: LabOptions | None = None,
        *,
        cores: Sequence[int] = (0,),
        idle_sleep: bool = True,
        memory: int = MEMORY,
    ) -> None:
        super().__init__(options or LabOptions())
        self._memory = memory
        self._cores, self._idle_sleep = cores, idle_sleep
        self.applications: DpdkSwitch | None = None

    @property
    def dpdk(self) -> DpdkSwitch:
        """The node's switch."""
        return self._dpdk

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.applications is not None:
            self.applications.stop()  # Before the other one, which would wait for its sockets.
        super().__exit__(kind, error, trace)

    def _make_switch(self, directory: Path) -> DpdkSwitch:
        tso = self.options.userspace_tso
        self._dpdk = DpdkSwitch(directory, self.node, tso, cores=self._cores, idle_sleep=self._idle_sleep, memory=self._memory)
        return self._dpdk

    def port_of(self, pod: Pod) -> str:
        """Ports of DPDK are called as their maker likes."""
        return f"app-{pod.host_name}" if pod.sandbox else f"dpdk-{pod.host_name}"

    def _attach(self, pod: Pod, port_settings: Sequence[str]) -> None:
        name = self.port_of(pod)
        self._dpdk.add_device(BRIDGE, name, _af_packet(pod.host_name))
        self._set_port(name, pod, port_settings)

    def _set_port(self, name: str, pod: Pod, settings: Sequence[str]) -> None:
        columns = [*([f"tag={pod.vlan}"] if pod.vlan else []), *settings]
        if columns:
            self._dpdk.vsctl("set", "Port", name, *columns)

    def add_application(
        self,
        name: str,
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        vlan: int = 0,
        port_settings: Sequence[str] = (),
    ) -> Pod:
        """A pod with no interface but a vhost-user socket; its traffic begins and ends in `netns`, behind a second switch."""
        pod = self._new_pod(name, namespace, labels or {}, vlan)
        pod = replace(pod, sandbox=self.add_namespace(f"{pod.host_name}-sandbox"))
        apps = self._applications()
        self._plug(pod, self.options.mtu, f"{apps.namespace}")
        port, socket, device = self.port_of(pod), self.directory / f"{pod.host_name}.sock", pod.host_name
        self._dpdk.add_vhost_user(BRIDGE, port, socket, *_ids(pod))
        self._set_port(port, pod, port_settings)
        virtio, packets = f"virtio-{device}", f"dpdk-{device}"
        apps.add_device(APPLICATIONS_BRIDGE, virtio, f"virtio_user_{device},path={socket},server=1,queues=1")
        apps.add_device(APPLICATIONS_BRIDGE, packets, _af_packet(device))
        for one, other in ((virtio, packets), (packets, virtio)):
            apps.ofctl("add-flow", APPLICATIONS_BRIDGE, f"in_port={one},actions=output:{other}")
        wait_for(lambda: self._is_connected(port), _CONNECT_TIMEOUT, f"port {port} is connected")
        self._register(pod)
        return pod

    def add_generator(self, name: str, driver: str, settings: str, mac: str, *, namespace: str, labels: Mapping[str, str]) -> Pod:
        """A pod whose port is a virtual device of DPDK's that makes packets, such as ("net_null", "size=64"), from `mac`."""
        pod = replace(self._new_pod(name, namespace, labels, 0), mac=mac)
        pod = replace(pod, sandbox=pod.netns)
        self._dpdk.add_device(BRIDGE, self.port_of(pod), f"{driver}_{pod.host_name},{settings}", *_ids(pod))
        self._register(pod)
        return pod

    def _is_connected(self, port: str) -> bool:
        return "status=connected" in self._dpdk.vsctl("get", "Interface", port, "status")

    def delete_pod(self, pod: Pod) -> None:
        """An application ends first, as its end of the socket does."""
        if pod.sandbox not in ("", pod.netns) and self.applications is not None:
            for name in (f"virtio-{pod.host_name}", f"dpdk-{pod.host_name}"):
                self.applications.delete_port(APPLICATIONS_BRIDGE, name)
        super().delete_pod(pod)

    def _applications(self) -> DpdkSwitch:
        if self.applications is None:
            namespace = self.add_namespace("apps")
            core = min(1, (os.cpu_count() or 1) - 1)
            self.applications = DpdkSwitch(self.directory / registry.APPLICATIONS, namespace, cores=(core,))
            self.applications.start()
            self.applications.add_bridge(APPLICATIONS_BRIDGE)
            self.applications.ofctl("del-flows", APPLICATIONS_BRIDGE)
        return self.applications


def _ids(pod: Pod) -> list[str]:
    """What tells whose port it is, as columns of Interface."""
    owner = {"attached-mac": pod.mac, "pod-name": pod.name, "pod-namespace": pod.namespace}
    return [f'external_ids:{key}="{value}"' for key, value in owner.items()]


def _af_packet(device: str) -> str:
    """DPDK at a device of the kernel, with rings small enough for many of them."""
    return f"net_af_packet_{device},iface={device},qdisc_bypass=1,blocksz=65536,framesz=2048,framecnt=1024"
