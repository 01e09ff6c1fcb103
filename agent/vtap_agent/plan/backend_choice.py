"""Which backend copies a pod interface's packets, or why the one that a tap names cannot. Pure.

`Auto` takes the first of a fixed order that can, which is that of what was measured (docs/decisions/0107, 0117):

1. EBPF where the interface has a device in the node's namespace whose packets the kernel moves. It decides before it copies, and
   a copy shares the original's memory. A side of the device where eBPF has no place is left to Open vSwitch if it has a port.
2. Else Open vSwitch has to copy at the interface's port: OVSGroup where flows can leave out something of what the tap's filter
   excludes and no controller owns the bridge, OVSMirror for all the rest.
3. The other of these two where the bridge turns out to refuse the first (`next_best`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vtap_agent.plan.dataplane import Backend
from vtap_agent.plan.inventory_model import Bridge, BridgePort, PodInterface
from vtap_api.virtualtap import BackendName


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and the sentence that says why it is this one. `by_auto` where the tap left it to us."""

    backend: Backend
    why: str
    by_auto: bool = False
    no_ebpf: str = ""
    """Why `Auto` did not take EBPF, as a clause; empty where it did."""
    no_group: str = ""
    """What keeps OVSGroup from what `Auto` would take it for, as a clause; empty where nothing is known to."""


@dataclass(frozen=True, slots=True)
class NoChoice:
    """`reason` is a word for programs, `sentence` says what to change."""

    reason: str
    sentence: str


NAMED = "spec.backend names it"


def choose(
    wanted: BackendName,
    interface: PodInterface,
    bridge: Bridge | None,
    sifts: Callable[[], bool] = lambda: False,
    no_hook: str = "",
) -> Choice | NoChoice:
    """How to copy from an interface. `sifts` is asked whether flows could leave out something, where that matters.

    `bridge` is the one that its port is on, None where it has no port or that is not known. `no_hook` says, as a clause, why
    there is no place for eBPF at its device; empty where there is.
    """
    port = interface.port
    if wanted is BackendName.AUTO:
        return _cheapest(interface, bridge, sifts, no_hook)
    if wanted is BackendName.EBPF:
        return _ebpf(interface, bridge)
    if port is None:
        return NoChoice("NoPort", no_port(interface))
    if wanted is BackendName.OVS_GROUP:
        return _group(port, bridge)
    return Choice(Backend.OVS_MIRROR, NAMED)


def _cheapest(interface: PodInterface, bridge: Bridge | None, sifts: Callable[[], bool], no_hook: str) -> Choice | NoChoice:
    port, past = interface.port, _past(interface, bridge) or no_hook
    if interface.host_ifindex and not past:
        why = f"Auto takes EBPF, which costs the least, wherever a pod has a device on the node, as {interface.host_name} here"
        return Choice(Backend.EBPF, why, by_auto=True)
    if port is None:
        return NoChoice("NoPort", no_port(interface))
    past = past or "no device on the node leads to the pod"
    if not sifts():
        why = f"Auto takes OVSMirror, as {past} and flows would leave out nothing"
        return Choice(Backend.OVS_MIRROR, why, by_auto=True, no_ebpf=past)
    if bridge is not None and bridge.controllers:
        why = f"Auto takes OVSMirror, as {past}, and {port.bridge} belongs to a controller"
        return Choice(Backend.OVS_MIRROR, why, by_auto=True, no_ebpf=past)
    why = f"Auto takes OVSGroup, as {past} and flows can leave out packets that the filter excludes"
    return Choice(Backend.OVS_GROUP, why, by_auto=True, no_ebpf=past)


def next_best(choice: Choice, no_group: str, no_mirror: str) -> Choice:
    """What `Auto` takes where OVSGroup (a clause says why) or OVSMirror (a sentence does) can't be had, both empty where it can.

    What a tap names stays, and so does what there is nothing better for.
    """
    if not choice.by_auto or choice.backend is Backend.EBPF:
        return choice
    if choice.backend is Backend.OVS_GROUP and no_group:
        why = f"Auto takes OVSMirror, as {choice.no_ebpf} and OVSGroup could not be had: {no_group}"
        return replace(choice, backend=Backend.OVS_MIRROR, why=why, no_group=no_group)
    if choice.backend is Backend.OVS_MIRROR and no_mirror and not no_group:
        why = f"Auto takes OVSGroup, as {choice.no_ebpf} and OVSMirror could not be had: {_cause(no_mirror)}"
        return replace(choice, backend=Backend.OVS_GROUP, why=why)
    return replace(choice, no_group=no_group)


def _cause(sentence: str) -> str:
    """A refusal without its cure, which is of no use to whom something else helps."""
    return sentence.partition("; ")[0]


def _group(port: BridgePort, bridge: Bridge | None) -> Choice | NoChoice:
    if bridge is not None and bridge.controllers:
        return NoChoice("BridgeControlled", bridge_controlled(port, bridge))
    return Choice(Backend.OVS_GROUP, NAMED)


def _ebpf(interface: PodInterface, bridge: Bridge | None) -> Choice | NoChoice:
    if not interface.host_ifindex:
        return NoChoice("NoVeth", no_veth(interface))
    if past := _past(interface, bridge):
        return NoChoice("PastTheKernel", past_the_kernel(interface, past))
    return Choice(Backend.EBPF, NAMED)


def _past(interface: PodInterface, bridge: Bridge | None) -> str:
    """What moves an interface's packets past the hooks of its device on the node; empty where nothing does."""
    if interface.port is not None and interface.port.by_xdp:
        return f"AF_XDP moves the packets of port {interface.port.name} past the kernel"
    return f"DPDK moves the packets of {bridge.name} past the kernel" if bridge is not None and bridge.polled else ""


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


def past_the_kernel(interface: PodInterface, past: str) -> str:
    """Why eBPF would miss packets: DPDK writes to a device without passing its hooks (packet(7), PACKET_QDISC_BYPASS).

    AF_XDP does so, too, and takes what comes before they see it.
    """
    return (
        f"spec.backend: EBPF would miss packets of pod {interface.pod} interface {interface.name}, as {past}; "
        "use OVSMirror or OVSGroup"
    )


def bridge_controlled(port: BridgePort, bridge: Bridge) -> str:
    """Why flows of ours may not be put into a bridge."""
    owner = ", ".join(bridge.controllers)
    return (
        f"spec.backend: OVSGroup needs flows of its own in bridge {port.bridge}, which belongs to the controller {owner}; "
        "use OVSMirror or EBPF"
    )
