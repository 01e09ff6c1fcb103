"""The two networks that the contract's cases run on: the fake bridge, and Open vSwitch with a namespace a pod."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from tests.contract.fake_bridge import FakeMirror, FakeSwitch
from tests.contract.frames import Frame
from tests.contract.sockets import PacketSocket, gather
from vtap_agent.backends.ovs_mirror import OvsMirrorBackend
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.plan.dataplane import Backend, Direction, Feed, Mirror
from vtap_agent.plan.mirrors import ObservedMirrors, diff, refusals
from vtap_agent.plan.stamps import Stamp
from vtap_agent.plan.steps import Step
from vtap_agent.plan.tap_ports import AddTapPort, tap_port_name
from vtap_lab.lab import BRIDGE, Lab, Pod

NODE = "node-a"
STAMP = Stamp(NODE, 1)
EGRESS_TAP = tap_port_name(NODE, Feed(Backend.OVS_MIRROR, BRIDGE, Direction.EGRESS))
INGRESS_TAP = tap_port_name(NODE, Feed(Backend.OVS_MIRROR, BRIDGE, Direction.INGRESS))


class Network(Protocol):
    """One bridge with pods. Ports are named as their pods; MACs are the network's to choose."""

    def add_pod(self, name: str, vlan: int = 0) -> str:
        """Attach a pod; its MAC."""
        ...

    def delete_pod(self, name: str) -> None:
        """Its port leaves the bridge."""
        ...

    def port(self, pod: str) -> str:
        """The UUID of a pod's port."""
        ...

    def observe(self) -> ObservedMirrors: ...

    def apply(self, steps: Sequence[Step]) -> None:
        """Make the devices that the steps need, apply them, and wait until they reach running flows."""
        ...

    def add_foreign_mirror(self, name: str) -> None:
        """Somebody else's mirror, which selects nothing and leads nowhere."""
        ...

    def delete_mirror(self, name: str) -> None:
        """Somebody else deletes a mirror of ours."""
        ...

    def exchange(self, sender: str, frame: Frame, expected: int) -> dict[str, list[Frame]]:
        """Send a frame from a pod; what leaves each port, by pod or tap port. `expected` frames are waited for."""
        ...


def want(network: Network, egress: Iterable[str] = (), ingress: Iterable[str] = ()) -> dict[Feed, Mirror]:
    """The mirrors that copy these pods' packets."""
    wanted = ((Direction.EGRESS, egress), (Direction.INGRESS, ingress))
    mirrors = [(Feed(Backend.OVS_MIRROR, BRIDGE, direction), frozenset(map(network.port, pods))) for direction, pods in wanted]
    return {key: Mirror(key, ports) for key, ports in mirrors if ports}


def converge(network: Network, desired: Mapping[Feed, Mirror]) -> dict[Feed, str]:
    """One pass: plan, apply, and see that nothing is left to do. Returns what was refused."""
    refused = refusals(network.observe(), desired, NODE)
    network.apply(diff(network.observe(), desired, STAMP))
    assert diff(network.observe(), desired, STAMP) == ()
    return refused


def tap(network: Network, egress: Iterable[str] = (), ingress: Iterable[str] = ()) -> dict[Feed, str]:
    """Copy these pods' packets, and no others'."""
    return converge(network, want(network, egress, ingress))


class FakeNetwork:
    """On the packet-level fake."""

    def __init__(self) -> None:
        self.switch = FakeSwitch(BRIDGE)
        self.bridge = self.switch.bridges[BRIDGE]
        self._made = 0

    def add_pod(self, name: str, vlan: int = 0) -> str:
        self.switch.add_port(BRIDGE, name, vlan)
        self._made += 1
        return f"02:fa:4e:00:00:{self._made:02x}"

    def delete_pod(self, name: str) -> None:
        self.bridge.delete_port(name)

    def port(self, pod: str) -> str:
        return self.bridge.named(pod).uuid

    def observe(self) -> ObservedMirrors:
        return self.switch.observe()

    def apply(self, steps: Sequence[Step]) -> None:
        self.switch.apply(steps)

    def add_foreign_mirror(self, name: str) -> None:
        self.switch.add_mirror(BRIDGE, FakeMirror("", name))

    def delete_mirror(self, name: str) -> None:
        self.bridge.mirrors = {key: row for key, row in self.bridge.mirrors.items() if row.name != name}

    def exchange(self, sender: str, frame: Frame, expected: int) -> dict[str, list[Frame]]:
        return self.bridge.send(sender, frame)


class OvsNetwork:
    """On real Open vSwitch. Close it, so that the lab is as it was."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.connection = OvsdbConnection(lab.switch.db_remote)
        self.backend = OvsMirrorBackend(self.connection, NODE, STAMP.generation)
        self.pods: dict[str, Pod] = {}
        self.sockets: dict[str, PacketSocket] = {}
        self._tap_devices: list[str] = []

    def add_pod(self, name: str, vlan: int = 0, mtu: int | None = None) -> str:
        pod = self.lab.add_pod(name, vlan=vlan, mtu=mtu)
        self.pods[name] = pod
        self.sockets[name] = PacketSocket(pod.netns, pod.interface)
        return pod.mac

    def delete_pod(self, name: str) -> None:
        self.sockets.pop(name).close()
        self.lab.delete_pod(self.pods.pop(name))

    def port(self, pod: str) -> str:
        return self.lab.switch.vsctl("get", "Port", self.pods[pod].host_name, "_uuid")

    def observe(self) -> ObservedMirrors:
        return self.backend.observe()

    def apply(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, AddTapPort) and step.name not in self._tap_devices:
                self.make_tap_device(step.name)
        self.backend.apply(steps)
        assert self.backend.settle(5)

    def make_tap_device(self, name: str, mtu: int = 1500) -> None:
        """As the pipeline does: a veth whose far end is read, and takes whatever the near end may send."""
        far_end = f"far{name[4:]}"
        self.lab.ip(
            self.lab.node,
            f"link add {name} mtu {mtu} type veth peer name {far_end} mtu 65535",
            f"link set {name} up",
            f"link set {far_end} up",
        )
        self._tap_devices.append(name)
        self.sockets[name] = PacketSocket(self.lab.node, far_end)

    def delete_tap_device(self, name: str) -> None:
        self.sockets.pop(name).close()
        self._tap_devices.remove(name)
        self.lab.ip(self.lab.node, f"link delete {name}")

    def add_foreign_mirror(self, name: str) -> None:
        self.lab.switch.vsctl(
            *("--id=@m", "create", "Mirror", f"name={name}", "external_ids:owner=mirror-producer.ovs-cni.network.kubevirt.io"),
            *("--", "add", "Bridge", BRIDGE, "mirrors", "@m"),
        )

    def delete_mirror(self, name: str) -> None:
        self.lab.switch.vsctl("--id=@m", "get", "Mirror", name, "--", "remove", "Bridge", BRIDGE, "mirrors", "@m")

    def exchange(self, sender: str, frame: Frame, expected: int) -> dict[str, list[Frame]]:
        for end in self.sockets.values():
            end.receive()
        self.sockets[sender].send(frame)
        return gather(self.sockets, expected)

    def close(self) -> None:
        for name in list(self.pods):
            self.delete_pod(name)
        self.lab.switch.vsctl("clear", "Bridge", BRIDGE, "mirrors")
        for name in list(self._tap_devices):
            self.lab.switch.vsctl("--if-exists", "del-port", BRIDGE, name)
            self.delete_tap_device(name)
        self.backend.close()
        self.connection.close()
