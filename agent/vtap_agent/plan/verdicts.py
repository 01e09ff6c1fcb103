"""What planning has to say of each tap and tap point: a state, a reason for machines, and a sentence that says what to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from vtap_agent.plan.backend_choice import Choice
from vtap_agent.plan.dataplane import (
    MAX_FLOOD_ENTRIES,
    MAX_PEER_ADDRESSES,
    MAX_POINTS_PER_SOURCE,
    MAX_TAP_PORTS,
    Backend,
    Direction,
    Feed,
    TapPointName,
)
from vtap_agent.plan.inventory_model import BridgePort, NextHop, NextHopState, Pod, PodInterface


class PointState(StrEnum):
    """How far a tap point has come."""

    READY = "Ready"
    WAITING = "Waiting"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True)
class PointVerdict:
    """What is to be said of one tap point, or of a pod that could have none (then `interface` may be empty)."""

    pod_namespace: str
    pod_name: str
    interface: str
    direction: str
    state: PointState
    reason: str
    message: str
    backend: str = ""
    why: str = ""
    """The sentence that says why it is this backend."""
    feed: Feed | None = None
    """Where its packets come from, None where it gets none."""
    port: str = ""
    """The UUID of its OVS port, empty where it has none."""
    fed: bool = False
    """Whether the data plane gives it copies, if only to count them as dropped."""


@dataclass(frozen=True, slots=True)
class TapVerdict:
    """What is to be said of one tap on this node. `refusal` is a sentence, empty for an accepted tap."""

    namespace: str
    name: str
    generation: int
    reason: str
    refusal: str
    matched_pods: int
    destination: str
    points: tuple[PointVerdict, ...] = ()
    direction: str = "Both"
    """As the tap's spec says."""
    waiting_reason: str = ""
    waiting: str = ""
    """Why an accepted tap is not in force as it stands: a sentence, empty where it is."""


def pod_refused(pod: Pod, interface: str, reason: str, sentence: str) -> PointVerdict:
    """A pod, or one of its interfaces, that cannot be tapped."""
    return PointVerdict(pod.ref.namespace, pod.ref.name, interface, "", PointState.REFUSED, reason, sentence)


def point_verdict(name: TapPointName, choice: Choice, state: PointState, reason: str, sentence: str) -> PointVerdict:
    """A tap point in some state, not fed."""
    return PointVerdict(
        pod_namespace=name.pod_namespace,
        pod_name=name.pod_name,
        interface=name.interface,
        direction=name.direction.value,
        state=state,
        reason=reason,
        message=sentence,
        backend=choice.backend.value,
        why=choice.why,
    )


def delivery_verdict(
    name: TapPointName, choice: Choice, remote: str, hop: NextHop, feed: Feed, port: BridgePort | None, *, fed: bool
) -> PointVerdict:
    """A tap point whose collector, if any, has been told of it, or cannot be: whether its copies can leave."""
    if hop.state is NextHopState.NO_ROUTE:
        what = "copies are dropped and counted as noRoute" if fed else "nothing is copied"
        sentence = f"there is no route to {remote}: {what}; add a route on the node"
        made = point_verdict(name, choice, PointState.WAITING, "NoRoute", sentence)
    elif hop.state is NextHopState.NO_NEIGHBOUR:
        what = "copies are dropped and counted as noNeighbour" if fed else "nothing is copied"
        sentence = f"the next hop to {remote} on {hop.ifname} does not answer: {what}; check that it is up"
        made = point_verdict(name, choice, PointState.WAITING, "NoNeighbour", sentence)
    elif hop.state is NextHopState.ROUTED:
        made = point_verdict(name, choice, PointState.WAITING, "Routed", routed(remote, hop))
    elif hop.state is NextHopState.NO_EDGE:
        made = point_verdict(name, choice, PointState.WAITING, "NoEdge", no_edge(remote, hop))
    else:
        made = point_verdict(name, choice, PointState.READY, "Programmed", copied_at(feed, port, choice))
    return replace(made, feed=feed, port=port.uuid if port else "", fed=fed)


def routed(remote: str, hop: NextHop) -> str:
    """Why copies without a tunnel do not leave: a router would have to know the way back."""
    return (
        f"{remote} is behind the router {hop.gateway} on {hop.ifname}, and rewritten copies go no further than their layer-2 "
        "domain: they are dropped and counted as noRoute; let the monitor have an address in a network that this node is in, "
        "or name a destination of another kind"
    )


def no_edge(remote: str, hop: NextHop) -> str:
    """Why copies without a tunnel do not leave: nobody would recover them."""
    return (
        f"nobody at the edge of the monitor {remote} answers on {hop.ifname}: copies are dropped and counted as notReady; run an "
        "agent on the monitor's node, which must know the monitor's pod, or write spec.rewrite.macAddress of the destination and "
        "recover copies yourself"
    )


def passed_by(point: PointVerdict) -> PointVerdict:
    """A tap point whose packets go past the node's end of its pod's device: it is for a person to choose another way for them."""
    if point.state is not PointState.READY or point.feed is None:
        return point
    pod, device = f"{point.pod_namespace}/{point.pod_name}", f"{point.feed.place}, the node's end of its {point.interface}"
    if point.direction == Direction.INGRESS:
        sentence = (
            f"packets reach pod {pod} past {device} (by bpf_redirect_peer, as with Cilium's eBPF host routing or Calico's eBPF "
            "data plane): they are not copied; set bpf.hostLegacyRouting=true in Cilium or bpfRedirectToPeer: Disabled in "
            "Calico, or tap direction Egress"
        )
    else:
        sentence = (
            f"packets leave pod {pod} past {device} (as from Cilium's netkit devices): they are not copied; set "
            "bpf.datapathMode=veth in Cilium"
        )
    return replace(point, state=PointState.REFUSED, reason="PastTheDevice", message=sentence)


def copied_at(feed: Feed, port: BridgePort | None, choice: Choice) -> str:
    """Where a tap point's copies are made, and why there where nobody has asked for it."""
    why = f" ({choice.why})" if choice.by_auto else ""
    if feed.backend is Backend.EBPF or port is None:
        return f"cloned at {feed.place}{why}"
    how = "mirrored" if feed.backend is Backend.OVS_MIRROR else "copied by flows"
    return f"{how} at {port.name} on {port.bridge}{why}"


def no_group(cause: str) -> str:
    """Why a tap that names OVSGroup does not get it."""
    return f"spec.backend: use Auto, OVSMirror or EBPF, as OVSGroup can't be had: {cause}"


def no_mirror(sentence: str, choice: Choice) -> str:
    """Why a tap point does not get the mirror that its tap names, or that `Auto` takes where flows can't copy either."""
    if not choice.by_auto:
        return f"{sentence}; or use spec.backend: Auto, which takes another way where it can"
    return f"{sentence}; or change what keeps OVSGroup from it: {choice.no_group}" if choice.no_group else sentence


def host_network(pod: Pod) -> str:
    """Why a host-network pod is refused."""
    return f"pod {pod.ref} uses the node's network; a tap on it would copy the whole node, so it is refused"


def is_ours(pod: Pod) -> str:
    """Why a pod of ours is refused."""
    return f"pod {pod.ref} is a part of VirtualTap itself; tapping it would copy copies, so it is refused"


def expired(ttl: str) -> str:
    """Why a tap copies nothing any more."""
    return f"spec.ttl: the {ttl} that the tap was to live are over; create it anew to go on"


def namespace_unknown(namespace: str) -> str:
    """Why it can't be told yet whether a tap may use its destination."""
    return f"the labels of namespace {namespace!r} are not known yet, so that nothing is copied; the API server has to tell them"


def collector_starting(destination: str) -> str:
    """Why nothing is copied to a collector that the operator runs."""
    return f"the collector of TapDestination {destination!r} has no address yet; the operator's status of it says how far it is"


def is_receiver(pod: Pod, addresses: frozenset[str]) -> str:
    """Why a pod that receives copies is refused."""
    return f"pod {pod.ref} receives copies at {', '.join(sorted(addresses))}; tapping it would loop, so it is refused"


def no_interface(pod: Pod, wanted: tuple[str, ...], has: tuple[str, ...]) -> str:
    """Why a pod has no tap point."""
    if not has:
        return f"pod {pod.ref} has no network interface yet"
    return f"spec.interfaces: pod {pod.ref} has no interface {' or '.join(wanted)} (it has: {', '.join(sorted(has))})"


def no_key(size: int) -> str:
    """Why a stream has no key."""
    return f"all {size} stream keys of this node are in use; select fewer pods or remove a tap"


def loop(remote: str, hop: NextHop) -> str:
    """Why copies may not be sent."""
    via = f"through {hop.ifname}, which a tap copies," if hop.ifname else "to this very node"
    return f"copies to {remote} would leave {via} and be copied again; send them over an interface that no tap selects"


def announcing(destination: str) -> str:
    """Why a stream is not fed yet."""
    return f"waiting for the collector of TapDestination {destination!r} to acknowledge the stream"


def shared_address(interface: PodInterface, bridge: str) -> str:
    """Why a pod is refused whose packets could be another tenant's. Whose is not for its owner to know."""
    return (
        f"pod {interface.pod} interface {interface.name} has the address {interface.mac} on {bridge}, as a tapped pod of another "
        "namespace has: their packets can't be told apart; give it an address of its own"
    )


def too_many(interface: PodInterface) -> str:
    """Why one more tap on a pod is refused."""
    return f"more than {MAX_POINTS_PER_SOURCE} taps select pod {interface.pod} interface {interface.name}; remove or merge some"


def too_many_receivers(bridge: str) -> str:
    """Why one more tap point that receives is refused on a VLAN."""
    return (
        f"more than {MAX_FLOOD_ENTRIES} Ingress tap points share a VLAN of {bridge} on this node, too many for one broadcast; "
        "select fewer pods, or only direction Egress"
    )


def too_many_tap_ports(bridge: str) -> str:
    """Why a tap point on one more bridge is refused."""
    return (
        f"taps on this node already need {MAX_TAP_PORTS} tap ports, one a bridge and direction, which is all it can have; "
        f"tap pods of fewer bridges, so that {bridge} finds room"
    )


def too_many_peers(selected: int) -> str:
    """Why a tap whose peers select so many addresses is refused."""
    return (
        f"spec.filter.rules: the peers that taps on this node select are {selected} addresses with this tap's, and at most "
        f"{MAX_PEER_ADDRESSES} can be held; select fewer pods, or name their networks by cidr"
    )


def unforeseen(error: Exception) -> str:
    """Why a tap on which planning itself fails is left out."""
    return (
        f"this tap cannot be planned ({type(error).__name__}: {error}), which is a mistake of the agent's: please report what "
        "its log says; other taps are not affected"
    )


def unwritable(sentence: str) -> str:
    """Why a tap whose program has no form in the preprocessor is left out."""
    return (
        f"this tap's filter, sampling or rate cannot be put into the preprocessor ({sentence}); change it to less extreme values"
    )
