"""Which tap points there should be on this node, and what to tell the owners of taps that cannot be had. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vtap_agent.plan import verdicts
from vtap_agent.plan.auto import Leanings, Unavailable, by
from vtap_agent.plan.backend_choice import Choice, NoChoice, choose, next_best
from vtap_agent.plan.cluster import COMPONENT_LABEL, Cluster, tap_key
from vtap_agent.plan.compile import compile_tap
from vtap_agent.plan.dataplane import MAX_PEER_ADDRESSES, Backend, Direction, Feed, TapPointName, TapProgram
from vtap_agent.plan.destinations import ResolvedDestination, resolve_destination
from vtap_agent.plan.groups_told import Sieve
from vtap_agent.plan.inventory_model import BridgePort, Inventory, Pod, PodInterface
from vtap_agent.plan.leaning import Leaning, Leans, due
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
    cluster: Cluster | None = None
    """None on one machine."""

    def applied(self, tap: VirtualTap) -> VirtualTap | None:
        """The version of a tap to carry out; None where there is none yet, as its peers are not known."""
        name = tap_key(tap)
        if self.cluster is None or name not in self.cluster.waiting:
            return tap
        return self.cluster.former.get(name)

    def labels(self, namespace: str) -> Mapping[str, str] | None:
        """What a namespaceSelector sees of a namespace; None where that is not known yet."""
        return namespace_labels(namespace) if self.cluster is None else self.cluster.namespaces.get(namespace)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tap point that should exist, before it has a slot."""

    name: TapPointName
    interface: PodInterface
    choice: Choice
    destination: str
    receiver: ResolvedDestination

    @property
    def stream(self) -> StreamName:
        """Names its slot."""
        return StreamName(self.name, self.receiver.receiver, self.receiver.control is not None)

    @property
    def port(self) -> BridgePort | None:
        """The port that Open vSwitch copies at; None where eBPF does."""
        return self.interface.port if self.choice.backend is not Backend.EBPF else None

    @property
    def feed(self) -> Feed:
        """Where its packets come from."""
        port = self.port
        if port is None:
            return Feed(Backend.EBPF, self.interface.host_name, self.name.direction, self.interface.host_ifindex)
        return Feed(self.choice.backend, port.bridge, self.name.direction)

    @property
    def tap(self) -> tuple[str, str]:
        """(namespace, name) of its tap."""
        return (self.name.tap_namespace, self.name.tap_name)

    @property
    def program(self) -> str:
        """Names its program."""
        return "/".join(self.tap)


@dataclass(frozen=True, slots=True)
class TapFailure:
    """A tap ("namespace/name") on which planning failed in a way that nobody foresaw."""

    tap: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Selection:
    """What there should be. `destinations` and `programs` hold at least those that some candidate names."""

    candidates: tuple[Candidate, ...]
    programs: Mapping[str, TapProgram]
    peer_sets: Mapping[int, frozenset[str]]
    destinations: Mapping[str, ResolvedDestination]
    verdicts: tuple[TapVerdict, ...]
    failures: tuple[TapFailure, ...] = ()
    leans: Mapping[TapPointName, Leaning] = field(default_factory=dict[TapPointName, Leaning])
    """Whether flows could leave out something, as `Auto` goes by, at the tap points where that matters."""

    @property
    def due(self) -> float:
        """When it would be another, of the same, in seconds of a monotonic clock."""
        return due(self.leans)

    @property
    def leanings(self) -> Leanings:
        """Where `Auto` would have Open vSwitch copy, which not every bridge allows."""
        found = {(one.choice.by_auto, one.choice.backend, one.feed) for one in self.candidates}
        groups, mirrors, named = (
            frozenset(feed for left, backend, feed in found if (left, backend) == wanted)
            for wanted in ((True, Backend.OVS_GROUP), (True, Backend.OVS_MIRROR), (False, Backend.OVS_MIRROR))
        )
        return Leanings(groups, mirrors, named)

    def without(self, refused: Unavailable) -> Selection:
        """With what `Auto` takes instead at feeds that cannot be had."""
        if not refused.groups and not refused.mirrors:
            return self
        return replace(self, candidates=tuple(_settled(one, refused) for one in self.candidates))


def _settled(candidate: Candidate, refused: Unavailable) -> Candidate:
    if not candidate.choice.by_auto or candidate.port is None:
        return candidate
    no_group = refused.groups.get(by(Backend.OVS_GROUP, candidate.feed), "")
    no_mirror = refused.mirrors.get(by(Backend.OVS_MIRROR, candidate.feed), "")
    return replace(candidate, choice=next_best(candidate.choice, no_group, no_mirror))


def remotes(desired: Desired) -> frozenset[str]:
    """Addresses that copies go to: what the inventory has to find the way to."""
    applied = (desired.applied(tap) for tap in desired.taps)
    named = {tap.spec.destination_ref.name for tap in applied if tap is not None}
    resolved = (resolve_destination(item) for item in desired.destinations if item.metadata.name in named)
    return frozenset(item.remote for item in resolved if item is not None)


def select(
    desired: Desired,
    inventory: Inventory,
    before: Mapping[TapPointName, Leaning] | None = None,
    now: float = 0.0,
    no_hooks: Mapping[Feed, str] | None = None,
) -> Selection:
    """Every tap point that should exist on this node, and a verdict for each tap.

    `before` are the last one's `leans`; `no_hooks` tells at which sides of devices with a port eBPF has no place, and why.
    """
    destinations = {item.metadata.name: item for item in desired.destinations}
    resolved = {name: known for name, item in destinations.items() if (known := resolve_destination(item)) is not None}
    leans = Leans(before or {}, now)
    finder = _PointFinder(inventory, frozenset(item.remote for item in resolved.values()), desired.cluster, leans, no_hooks or {})
    peers = PeerSets(inventory, desired.cluster.peers if desired.cluster else None)
    candidates: list[Candidate] = []
    programs: dict[str, TapProgram] = {}
    said: list[TapVerdict] = []
    failures: list[TapFailure] = []
    for tap in sorted(desired.taps, key=lambda item: (item.metadata.namespace, item.metadata.name)):
        applied = desired.applied(tap)
        verdict = _verdict(tap, applied or tap, desired)
        try:
            chosen = _choose(applied or tap, verdict, desired, destinations, resolved, finder, peers)
        except Exception as error:  # noqa: BLE001  one tap's trouble, whatever it is, must not be every tap's
            failures.append(TapFailure(tap_key(tap), error))
            said.append(replace(verdict, reason="InternalError", refusal=verdicts.unforeseen(error)))
            continue
        candidates.extend(chosen.candidates)
        if chosen.program is not None:
            programs[tap_key(tap)] = chosen.program
        said.append(chosen.verdict)
    return Selection(tuple(candidates), programs, peers.sets, resolved, tuple(said), tuple(failures), leans.found)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What comes of one tap."""

    verdict: TapVerdict
    candidates: tuple[Candidate, ...] = ()
    program: TapProgram | None = None


def _verdict(tap: VirtualTap, applied: VirtualTap, desired: Desired) -> TapVerdict:
    """Of a tap that nothing is known against."""
    namespace, name = tap.metadata.namespace, tap.metadata.name
    generation = desired.generations.get(f"VirtualTap/{namespace}/{name}", 1)
    destination, direction = applied.spec.destination_ref.name, applied.spec.direction
    return TapVerdict(namespace, name, generation, "Accepted", "", 0, destination, direction=direction)


def _choose(
    tap: VirtualTap,
    verdict: TapVerdict,
    desired: Desired,
    destinations: Mapping[str, TapDestination],
    resolved: Mapping[str, ResolvedDestination],
    finder: _PointFinder,
    peers: PeerSets,
) -> _Chosen:
    reason, refusal = _refusal(tap, desired, destinations, resolved)
    if refusal:
        return _Chosen(replace(verdict, reason=reason, refusal=refusal))
    waiting_reason, waiting = _waiting(tap, desired, destinations, resolved)
    verdict = replace(verdict, matched_pods=finder.count(tap), waiting_reason=waiting_reason, waiting=waiting)
    if desired.applied(tap) is None or verdict.destination not in resolved:
        return _Chosen(verdict)
    before = dict(peers.sets)
    program = compile_tap(tap.spec, lambda peer: peers.resolve(peer, tap.metadata.namespace))
    held = sum(map(len, peers.sets.values()))
    if held > MAX_PEER_ADDRESSES:
        peers.sets = before
        return _Chosen(replace(verdict, reason="TooManyPeers", refusal=verdicts.too_many_peers(held)))
    found, refused = finder.points(tap, resolved[verdict.destination], Sieve(program, peers.sets))
    return _Chosen(replace(verdict, points=tuple(refused)), tuple(found), program)


def _refusal(
    tap: VirtualTap,
    desired: Desired,
    destinations: Mapping[str, TapDestination],
    resolved: Mapping[str, ResolvedDestination],
) -> tuple[str, str]:
    """(reason, sentence) why a tap cannot be had at all; the sentence is empty where it can."""
    wanted = tap.spec.destination_ref.name
    if desired.cluster is not None and tap_key(tap) in desired.cluster.expired:
        return "Expired", verdicts.expired(tap.spec.ttl or "")
    labels, destination = desired.labels(tap.metadata.namespace), destinations.get(wanted)
    if labels is None and destination is not None and destination.spec.allowed_namespaces.selector is not None:
        return "NamespaceUnknown", verdicts.namespace_unknown(tap.metadata.namespace)
    refused = refusal(tap, destinations, labels or {})
    unusable = wanted in destinations and wanted not in resolved and not _starts(tap, desired, destinations)
    if unusable and (refused is None or refused.reason == "BackendUnavailable"):
        refused = destination_unusable(wanted)
    return ("Accepted", "") if refused is None else (refused.reason, refused.sentence)


def _waiting(
    tap: VirtualTap,
    desired: Desired,
    destinations: Mapping[str, TapDestination],
    resolved: Mapping[str, ResolvedDestination],
) -> tuple[str, str]:
    """(reason, sentence) why an accepted tap is not in force as it stands, both empty where it is."""
    wanted = tap.spec.destination_ref.name
    if desired.cluster is None:
        return "", ""
    if wanted not in resolved and _starts(tap, desired, destinations):
        return "CollectorStarting", verdicts.collector_starting(wanted)
    sentence = desired.cluster.waiting.get(tap_key(tap), "")
    return ("PeersUnresolved", sentence) if sentence else ("", "")


def _starts(tap: VirtualTap, desired: Desired, destinations: Mapping[str, TapDestination]) -> bool:
    """Whether the destination is a collector that the operator runs: its address comes with its status."""
    destination = destinations.get(tap.spec.destination_ref.name)
    collector = destination.spec.collector if destination is not None else None
    return desired.cluster is not None and collector is not None and collector.address is None


class _PointFinder:
    """Finds the tap points of one tap after another in the same inventory."""

    def __init__(
        self,
        inventory: Inventory,
        receivers: frozenset[str],
        cluster: Cluster | None,
        leans: Leans,
        no_hooks: Mapping[Feed, str],
    ) -> None:
        self._leans = leans
        self._no_hooks = no_hooks
        self._pods: dict[tuple[str, ...], list[Pod]] = defaultdict(list)
        for pod in inventory.pods:
            self._pods[(pod.ref.namespace,)].append(pod)
            for label in pod.labels.items():
                self._pods[(pod.ref.namespace, *label)].append(pod)
        self._receivers = receivers
        self._own_namespace = cluster.own_namespace if cluster else ""
        self._bridges = {bridge.name: bridge for bridge in inventory.switch.bridges}
        self._interfaces: dict[str, list[PodInterface]] = defaultdict(list)
        for interface in inventory.interfaces:
            self._interfaces[interface.pod.uid].append(interface)

    def count(self, tap: VirtualTap) -> int:
        """The number of matched pods."""
        return len(self._matched(tap))

    def _matched(self, tap: VirtualTap) -> list[Pod]:
        return [pod for pod in self._worth_a_look(tap) if matches(tap.spec.pod_selector, pod.labels)]

    def points(self, tap: VirtualTap, receiver: ResolvedDestination, sieve: Sieve) -> tuple[list[Candidate], list[PointVerdict]]:
        """(tap points, what cannot be tapped)."""
        found: list[Candidate] = []
        refused: list[PointVerdict] = []
        for pod in self._matched(tap):
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
                names = {direction: _name(tap, pod, interface, direction) for direction in _directions(tap)}
                choices = {direction: self._choice(tap, interface, name, sieve) for direction, name in names.items()}
                found.extend(
                    Candidate(names[direction], interface, choice, tap.spec.destination_ref.name, receiver)
                    for direction, choice in choices.items()
                    if isinstance(choice, Choice)
                )
                refusals = dict.fromkeys(choice for choice in choices.values() if isinstance(choice, NoChoice))
                refused.extend(verdicts.pod_refused(pod, interface.name, one.reason, one.sentence) for one in refusals)
        return found, refused

    def _choice(self, tap: VirtualTap, interface: PodInterface, name: TapPointName, sieve: Sieve) -> Choice | NoChoice:
        port = interface.port
        bridge = self._bridges.get(port.bridge) if port else None

        def sifts() -> bool:
            answer = port is not None and sieve.leaves_out(name.direction, port)
            return self._leans.settle(name, tap.spec.filter, sifts=answer)

        side = Feed(Backend.EBPF, interface.host_name, name.direction, interface.host_ifindex)
        choice = choose(tap.spec.backend, interface, bridge, sifts, self._no_hooks.get(side, ""))
        if isinstance(choice, NoChoice) or not self._leans.waits(name) or (bridge is not None and bridge.controllers):
            return choice
        return replace(choice, why=f"{choice.why}; this has changed less than a minute ago")

    def _worth_a_look(self, tap: VirtualTap) -> list[Pod]:
        """The pods of the tap's namespace, only those with its first wanted label where it wants one."""
        label = next(iter(tap.spec.pod_selector.match_labels.items()), ())
        return self._pods.get((tap.metadata.namespace, *label), [])

    def _pod_refusal(self, pod: Pod) -> PointVerdict | None:
        if self._own_namespace and pod.ref.namespace == self._own_namespace and COMPONENT_LABEL in pod.labels:
            return verdicts.pod_refused(pod, "", "IsOurs", verdicts.is_ours(pod))
        if pod.host_network:
            return verdicts.pod_refused(pod, "", "HostNetwork", verdicts.host_network(pod))
        own = {address for interface in self._interfaces.get(pod.ref.uid, []) for address in interface.addresses}
        if received := own & self._receivers:
            return verdicts.pod_refused(pod, "", "IsReceiver", verdicts.is_receiver(pod, frozenset(received)))
        return None


def _wants(tap: VirtualTap, interface: str) -> bool:
    return "*" in tap.spec.interfaces or interface in tap.spec.interfaces


def _directions(tap: VirtualTap) -> tuple[Direction, ...]:
    return (Direction.INGRESS, Direction.EGRESS) if tap.spec.direction == "Both" else (Direction(tap.spec.direction),)


def _name(tap: VirtualTap, pod: Pod, interface: PodInterface, direction: Direction) -> TapPointName:
    ref = pod.ref
    return TapPointName(tap.metadata.namespace, tap.metadata.name, ref.namespace, ref.name, ref.uid, interface.name, direction)
