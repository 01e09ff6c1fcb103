"""Which backend copies a pod interface's packets, or why the one that a tap names cannot. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vtap_agent.plan.dataplane import Backend
from vtap_agent.plan.inventory_model import Bridge, BridgePort, PodInterface
from vtap_api.virtualtap import BackendName


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and the sentence that says why it is this one."""

    backend: Backend
    why: str


@dataclass(frozen=True, slots=True)
class NoChoice:
    """`reason` is a word for programs, `sentence` says what to change."""

    reason: str
    sentence: str


def choose(wanted: BackendName, interface: PodInterface, bridge: Bridge | None) -> Choice | NoChoice:
    """How to copy from an interface. `bridge` is the one that its port is on, None where it has no port or that is not known."""
    port = interface.port
    if wanted is BackendName.EBPF:
        return _ebpf(interface, "spec.backend names it")
    if port is None:
        return NoChoice("NoPort", no_port(interface))
    if wanted is BackendName.AUTO:
        return Choice(Backend.OVS_MIRROR, f"the interface is port {port.name} of Open vSwitch bridge {port.bridge}")
    if wanted is BackendName.OVS_GROUP:
        return _group(port, bridge)
    return Choice(Backend.OVS_MIRROR, "spec.backend names it")


def _group(port: BridgePort, bridge: Bridge | None) -> Choice | NoChoice:
    if bridge is not None and bridge.controllers:
        return NoChoice("BridgeControlled", bridge_controlled(port, bridge))
    return Choice(Backend.OVS_GROUP, "spec.backend names it")


def _ebpf(interface: PodInterface, why: str) -> Choice | NoChoice:
    if not interface.host_ifindex:
        return NoChoice("NoVeth", no_veth(interface))
    return Choice(Backend.EBPF, why)


def no_port(interface: PodInterface) -> str:
    """Why an interface cannot be copied by Open vSwitch."""
    where = f"{interface.host_name}, which is on no Open vSwitch bridge" if interface.host_name else "nothing on this node"
    return (
        f"pod {interface.pod} interface {interface.name} leads to {where}; "
        "attach it to a bridge (ovs-vsctl add-port BRIDGE INTERFACE), or leave it out in spec.interfaces"
    )


def no_veth(interface: PodInterface) -> str:
    """Why an interface has no device on the node that eBPF could look at."""
    return (
        f"spec.backend: EBPF copies at the node's end of a veth, which pod {interface.pod} interface {interface.name} lacks; "
        "use OVSMirror if it is on an Open vSwitch bridge, or leave it out in spec.interfaces"
    )


def bridge_controlled(port: BridgePort, bridge: Bridge) -> str:
    """Why flows of ours may not be put into a bridge."""
    owner = ", ".join(bridge.controllers)
    return (
        f"spec.backend: OVSGroup needs flows of its own in bridge {port.bridge}, which belongs to the controller {owner}; "
        "use OVSMirror or EBPF"
    )
