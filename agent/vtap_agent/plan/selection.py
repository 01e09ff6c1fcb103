"""Which tap points there should be on this node, and what to tell the owners of taps that cannot be had. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from vtap_agent.plan import verdicts
from vtap_agent.plan.compile import compile_tap
from vtap_agent.plan.dataplane import Direction, MirrorKey, TapPointName, TapProgram
from vtap_agent.plan.destinations import ResolvedDestination, resolve_destination
from vtap_agent.plan.inventory_model import BridgePort, Inventory, Pod, PodInterface
from vtap_agent.plan.peers import PeerSets, namespace_labels
from vtap_agent.plan.selectors import matches
from vtap_agent.plan.slots import StreamName
from vtap_agent.plan.verdicts import PointVerdict, TapVerdict
from vtap_api import TapDestination, VirtualTap
from vtap_api.refusals import destination_unusable, refusal


@dataclass(frozen=True, slots=True)
class Desired:
    """What users want, with the generation of each object by "Kind/namespace/name" (cluster-scoped: "Kind//name")."""

    taps: tuple[VirtualTap, ...] = ()
    destinations: tuple[TapDestination, ...] = ()
    generations: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tap point that should exist, before it has a slot."""

    name: TapPointName
    interface: PodInterface
    port: BridgePort
    destination: str
    receiver: ResolvedDestination

    @property
    def stream(self) -> StreamName:
        """Names its slot."""
        return StreamName(self.name, self.receiver.receiver, self.receiver.control is not None)

    @property
    def mirror(self) -> MirrorKey:
        """The mirror that feeds it."""
        return MirrorKey(self.port.bridge, self.name.direction)

    @property
    def tap(self) -> tuple[str, str]:
        """(namespace, name) of its tap."""
        return (self.name.tap_namespace, self.name.tap_name)

    @property
    def program(self) -> str:
        """Names its program."""
        return "/".join(self.tap)


@dataclass(frozen=True, slots=True)
class Selection:
    """What there should be. `destinations` and `programs` hold at least those that some candidate names."""

    candidates: tuple[Candidate, ...]
    programs: Mapping[str, TapProgram]
    peer_sets: Mapping[int, frozenset[str]]
    destinations: Mapping[str, ResolvedDestination]
    verdicts: tuple[TapVerdict, ...]


def remotes(desired: Desired) -> frozenset[str]:
    """Addresses that copies go to: what the inventory has to find the way to."""
    named = {tap.spec.destination_ref.name for tap in desired.taps}
    resolved = (resolve_destination(item) for item in desired.destinations if item.metadata.name in named)
    return frozenset(item.remote for item in resolved if item is not None)


def select(desired: Desired, inventory: Inventory) -> Selection:
    """Every tap point that should exist on this node, and a verdict for each tap."""
    destinations = {item.metadata.name: item for item in desired.destinations}
    resolved = {name: known for name, item in destinations.items() if (known := resolve_destination(item)) is not None}
    finder = _PointFinder(inventory, frozenset(item.remote for item in resolved.values()))
    peers = PeerSets(inventory)
    candidates: list[Candidate] = []
    programs: dict[str, TapProgram] = {}
    said: list[TapVerdict] = []
    for tap in sorted(desired.taps, key=lambda item: (item.metadata.namespace, item.metadata.name)):
        namespace, name = tap.metadata.namespace, tap.metadata.name
        generation = desired.generations.get(f"VirtualTap/{namespace}/{name}", 1)
        reason, refusal = _refusal(tap, destinations, resolved)
        verdict = TapVerdict(namespace, name, generation, reason, refusal, 0, tap.spec.destination_ref.name)
        if not refusal:
            pods, found, refused = finder.points(tap, resolved[verdict.destination])
            candidates.extend(found)
            programs[f"{namespace}/{name}"] = compile_tap(tap.spec, lambda peer, own=namespace: peers.resolve(peer, own))
            verdict = replace(verdict, matched_pods=pods, points=tuple(refused))
        said.append(verdict)
    return Selection(tuple(candidates), programs, peers.sets, resolved, tuple(said))


def _refusal(
    tap: VirtualTap, destinations: Mapping[str, TapDestination], resolved: Mapping[str, ResolvedDestination]
) -> tuple[str, str]:
    """(reason, sentence) why a tap cannot be had at all; the sentence is empty where it can."""
    wanted = tap.spec.destination_ref.name
    refused = refusal(tap, destinations, namespace_labels(tap.metadata.namespace))
    if wanted in destinations and wanted not in resolved and (refused is None or refused.reason == "BackendUnavailable"):
        refused = destination_unusable(wanted)
    return ("Accepted", "") if refused is None else (refused.reason, refused.sentence)


class _PointFinder:
    """Finds the tap points of one tap after another in the same inventory."""

    def __init__(self, inventory: Inventory, receivers: frozenset[str]) -> None:
        self._pods: dict[tuple[str, ...], list[Pod]] = defaultdict(list)
        for pod in inventory.pods:
            self._pods[(pod.ref.namespace,)].append(pod)
            for label in pod.labels.items():
                self._pods[(pod.ref.namespace, *label)].append(pod)
        self._receivers = receivers
        self._interfaces: dict[str, list[PodInterface]] = defaultdict(list)
        for interface in inventory.interfaces:
            self._interfaces[interface.pod.uid].append(interface)

    def points(self, tap: VirtualTap, receiver: ResolvedDestination) -> tuple[int, list[Candidate], list[PointVerdict]]:
        """(number of matched pods, tap points, what cannot be tapped)."""
        pods = [pod for pod in self._worth_a_look(tap) if matches(tap.spec.pod_selector, pod.labels)]
        found: list[Candidate] = []
        refused: list[PointVerdict] = []
        for pod in pods:
            refusal = self._pod_refusal(pod)
            if refusal is not None:
                refused.append(refusal)
                continue
            own = self._interfaces.get(pod.ref.uid, [])
            wanted = [interface for interface in own if _wants(tap, interface.name)]
            if not wanted:
                has = tuple(interface.name for interface in own)
                sentence = verdicts.no_interface(pod, tap.spec.interfaces, has)
                refused.append(verdicts.pod_refused(pod, "", "NoInterface", sentence))
            for interface in wanted:
                if interface.port is None:
                    refused.append(verdicts.pod_refused(pod, interface.name, "NoPort", verdicts.no_port(interface)))
                else:
                    found.extend(_candidates(tap, pod, interface, interface.port, receiver))
        return len(pods), found, refused

    def _worth_a_look(self, tap: VirtualTap) -> list[Pod]:
        """The pods of the tap's namespace, only those with its first wanted label where it wants one."""
        label = next(iter(tap.spec.pod_selector.match_labels.items()), ())
        return self._pods.get((tap.metadata.namespace, *label), [])

    def _pod_refusal(self, pod: Pod) -> PointVerdict | None:
        if pod.host_network:
            return verdicts.pod_refused(pod, "", "HostNetwork", verdicts.host_network(pod))
        own = {address for interface in self._interfaces.get(pod.ref.uid, []) for address in interface.addresses}
        if received := own & self._receivers:
            return verdicts.pod_refused(pod, "", "IsReceiver", verdicts.is_receiver(pod, frozenset(received)))
        return None


def _wants(tap: VirtualTap, interface: str) -> bool:
    return "*" in tap.spec.interfaces or interface in tap.spec.interfaces


def _candidates(
    tap: VirtualTap, pod: Pod, interface: PodInterface, port: BridgePort, receiver: ResolvedDestination
) -> Iterable[Candidate]:
    both = (Direction.INGRESS, Direction.EGRESS)
    for direction in both if tap.spec.direction == "Both" else (Direction(tap.spec.direction),):
        ref = pod.ref
        name = TapPointName(
            tap.metadata.namespace, tap.metadata.name, ref.namespace, ref.name, ref.uid, interface.name, direction
        )
        yield Candidate(name, interface, port, tap.spec.destination_ref.name, receiver)
