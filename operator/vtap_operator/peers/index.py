"""Which addresses each peer selector has, kept up to date one change at a time.

Pods that share namespace and labels make a *kind*: whether a selector selects them is asked once a kind, not once a pod.
Addresses, labels and label sets are interned, so that 150,000 pods take tens of megabytes. A change of a pod costs work in
proportion to the selectors that select its kind; nothing is searched through, but for the selectors' own slices.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vtap_api import LabelSelector
from vtap_api.selectors import NAMESPACE_NAME_LABEL
from vtap_operator.peers.layout import Layout, pack
from vtap_operator.peers.selectors import Matcher, PeerKey, matcher, parsed

STALE_KINDS = 1000
"""Kinds of pods that go, at least, until labels that nothing has any more are forgotten: each job's pods have labels of their
own."""

Pair = tuple[str, str]
LabelSet = tuple[Pair, ...]
Labels = Mapping[str, str]


class Group:
    """A selector as far as its result goes, its result, and the taps' namespaces that use it. Known by identity."""

    __slots__ = ("key", "layout", "namespaces", "pods", "users")

    def __init__(self, key: PeerKey) -> None:
        self.key = key
        self.pods = matcher(None if key.pod_selector is None else parsed(key.pod_selector))
        self.namespaces = None if key.namespace_selector is None else matcher(parsed(key.namespace_selector))
        self.layout = Layout()
        self.users: set[str] = set()

    def selectors(self) -> list[PeerKey]:
        """The selectors that have this result."""
        return [self.key._replace(tap_namespace=namespace) for namespace in sorted(self.users)]


class Kind:
    """Pods of one namespace with the same labels. `groups` are those that select them, `services` those that lead to them."""

    __slots__ = ("groups", "labels", "members", "namespace", "services")

    def __init__(self, namespace: str, labels: LabelSet) -> None:
        self.namespace = namespace
        self.labels = labels
        self.members: list[PodEntry] = []
        self.groups: tuple[Group, ...] = ()
        self.services: tuple[ServiceEntry, ...] = ()


class PodEntry:
    """A pod. `addresses` are interned; `listing` is the listing it was last seen in."""

    __slots__ = ("addresses", "kind", "listing", "node")

    def __init__(self, kind: Kind, addresses: tuple[int, ...], node: str, listing: int) -> None:
        self.kind = kind
        self.addresses = addresses
        self.node = node
        self.listing = listing

    def selected_by(self, group: Group) -> bool:
        """Whether `group` has its addresses."""
        return group in self.kind.groups


class ServiceEntry:
    """A Service with a selector. `kinds` are the pods it leads to."""

    __slots__ = ("addresses", "kinds", "listing", "namespace", "selector")

    def __init__(self, namespace: str, selector: frozenset[Pair], addresses: tuple[int, ...], listing: int) -> None:
        self.namespace = namespace
        self.selector = selector
        self.addresses = addresses
        self.kinds: set[Kind] = set()
        self.listing = listing

    def selected_by(self, group: Group) -> bool:
        """Whether `group` has its addresses: it leads to a pod that is selected."""
        return any(group in kind.groups for kind in self.kinds)


Owner = PodEntry | ServiceEntry


class Addresses:
    """Addresses as numbers. A number is free again when nothing owns the address."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []
        self._owners: list[tuple[Owner, ...]] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, text: str) -> int:
        """The number of an address, a new one where it has none."""
        known = self._numbers.get(text)
        if known is not None:
            return known
        if self._free:
            made = self._free.pop()
            self._texts[made], self._owners[made] = text, ()
        else:
            made = len(self._texts)
            self._texts.append(text)
            self._owners.append(())
        self._numbers[text] = made
        return made

    def find(self, text: str) -> int | None:
        """The number of an address that somebody has."""
        return self._numbers.get(text)

    def text(self, number: int) -> str:
        """The address."""
        return self._texts[number]

    def owners(self, number: int) -> tuple[Owner, ...]:
        """Who has it."""
        return self._owners[number]

    def own(self, number: int, owner: Owner) -> None:
        """One owner more."""
        self._owners[number] = (*self._owners[number], owner)

    def disown(self, number: int, owner: Owner) -> None:
        """One owner less."""
        rest = tuple(one for one in self._owners[number] if one is not owner)
        self._owners[number] = rest
        if not rest:
            del self._numbers[self._texts[number]]
            self._texts[number] = ""
            self._free.append(number)


class _View:
    """Groups by a label that their pods, or their namespaces, must have."""

    def __init__(self, select: Callable[[Group], Matcher], groups: Iterable[Group] = ()) -> None:
        self._select = select
        self._anchored: dict[Pair, list[Group]] = defaultdict(list)
        self._others: list[Group] = []
        for group in groups:
            self.add(group)

    def _places(self, group: Group) -> list[list[Group]]:
        return [self._anchored[pair] for pair in self._select(group).anchors] or [self._others]

    def add(self, group: Group) -> None:
        for one in self._places(group):
            one.append(group)

    def discard(self, group: Group) -> None:
        for one in self._places(group):
            if group in one:
                one.remove(group)

    def selecting(self, labels: Labels) -> Iterator[Group]:
        """Each group once, as a group's anchors are values of one label."""
        anchored, select = self._anchored, self._select
        for pair in labels.items():
            for group in anchored.get(pair, ()):
                if select(group)(labels):
                    yield group
        for group in self._others:
            if select(group)(labels):
                yield group


def _by_pods(groups: Iterable[Group] = ()) -> _View:
    return _View(lambda group: group.pods, groups)


def _by_namespaces(groups: Iterable[Group] = ()) -> _View:
    return _View(lambda group: group.namespaces or group.pods, groups)


@dataclass(slots=True)
class _Namespace:
    """A namespace: its labels, its pods' kinds, its Services, and the groups that reach it in particular."""

    name: str
    labels: Labels
    kinds: dict[LabelSet, Kind]
    services: dict[str, ServiceEntry]
    view: _View


class PeerIndex:
    """All of it. Nothing is resolved before `start`, so that a listing of everything costs little."""

    def __init__(self) -> None:
        self.addresses = Addresses()
        self._groups: dict[PeerKey, Group] = {}
        self._everywhere = _by_pods()
        self._own: dict[str, list[Group]] = defaultdict(list)
        self._elsewhere = _by_namespaces()
        self._namespaces: dict[str, _Namespace] = {}
        self._pods: dict[str, PodEntry] = {}
        self._services: dict[str, ServiceEntry] = {}
        self._pairs: dict[Pair, Pair] = {}
        self._kinds = self._kinds_gone = 0
        self._nodes: dict[str, str] = {}
        self._listing = {"pods": 0, "services": 0}
        self._changed: dict[Group, set[int]] = defaultdict(set)
        self.started = False

    # What is selected.

    @property
    def groups(self) -> Iterable[Group]:
        """All selectors."""
        return self._groups.values()

    @property
    def pod_count(self) -> int:
        """Pods that are known."""
        return len(self._pods)

    def group(self, key: PeerKey) -> Group | None:
        """The result of a selector."""
        return self._groups.get(key.resolution)

    def resolved(self, key: PeerKey) -> frozenset[str]:
        """A selector's addresses; of none that was not added."""
        group = self._groups[key.resolution]
        return frozenset(self.addresses.text(number) for one in group.layout.slices for number in one)

    def take_changes(self) -> dict[Group, set[int]]:
        """Slices that changed since they were last taken, by number. They may be gone by now."""
        changed = dict(self._changed)
        self._changed.clear()
        return changed

    def add_selectors(self, keys: Iterable[PeerKey]) -> None:
        """Many at once cost one look at every kind of pods that any of them may reach."""
        fresh: list[Group] = []
        for key in keys:
            group = self._groups.get(key.resolution)
            if group is None:
                group = self._groups[key.resolution] = Group(key.resolution)
                fresh.append(group)
            if key.tap_namespace not in group.users:
                group.users.add(key.tap_namespace)
                self._changed[group] |= group.layout.all_slices()
        if not fresh:
            return
        particular = self._enter(fresh)
        if self.started:
            everywhere = _by_pods(group for group in fresh if _is_everywhere(group))
            for name, place in self._namespaces.items():
                view = _by_pods(particular.get(name, ()))
                for kind in place.kinds.values():
                    self._extend(kind, view, everywhere)

    def _extend(self, kind: Kind, *views: _View) -> None:
        labels = dict(kind.labels)
        added = [group for view in views for group in view.selecting(labels)]
        if added:
            self._select(kind, (*kind.groups, *added))

    def drop_selectors(self, keys: Iterable[PeerKey]) -> None:
        """Those that no tap has any more."""
        gone: set[Group] = set()
        for key in keys:
            group = self._groups.get(key.resolution)
            if group is None:
                continue
            group.users.discard(key.tap_namespace)
            if not group.users:
                gone.add(group)
                del self._groups[key.resolution]
        if not gone:
            return
        for group in gone:
            self._changed.pop(group, None)
            self._leave_views(group)
        for place in self._reached(gone):
            for group in gone:
                place.view.discard(group)
            for kind in place.kinds.values():
                if not gone.isdisjoint(kind.groups):
                    kind.groups = tuple(group for group in kind.groups if group not in gone)

    def _leave_views(self, group: Group) -> None:
        if group.namespaces is None:
            self._own[group.key.tap_namespace].remove(group)
        else:
            (self._everywhere if _is_everywhere(group) else self._elsewhere).discard(group)

    def _reached(self, groups: set[Group]) -> list[_Namespace]:
        if any(group.namespaces is not None for group in groups):
            return list(self._namespaces.values())
        names = {group.key.tap_namespace for group in groups}
        return [self._namespaces[name] for name in names if name in self._namespaces]

    def _enter(self, groups: Iterable[Group]) -> dict[str, list[Group]]:
        """Put groups where pods find them; those that reach some of the known namespaces only, by namespace."""
        particular: dict[str, list[Group]] = defaultdict(list)
        selecting = _by_namespaces()
        for group in groups:
            if group.namespaces is None:
                self._own[group.key.tap_namespace].append(group)
                particular[group.key.tap_namespace].append(group)
            elif _is_everywhere(group):
                self._everywhere.add(group)
            else:
                self._elsewhere.add(group)
                selecting.add(group)
        for name, place in self._namespaces.items():
            reaching = [*particular.get(name, ()), *selecting.selecting(place.labels)]
            particular[name] = reaching
            for group in reaching:
                place.view.add(group)
        return particular

    # What there is.

    def _place(self, name: str) -> _Namespace:
        place = self._namespaces.get(name)
        if place is None:
            labels = {NAMESPACE_NAME_LABEL: name}
            place = self._namespaces[name] = _Namespace(name, labels, {}, {}, self._view(name, labels))
        return place

    def _view(self, name: str, labels: Labels) -> _View:
        return _by_pods((*self._own.get(name, ()), *self._elsewhere.selecting(labels)))

    def put_namespace(self, name: str, labels: Labels) -> None:
        """A namespace, or new labels of one."""
        place = self._place(name)
        if place.labels == labels:
            return
        place.labels = dict(labels)
        place.view = self._view(name, labels)
        if self.started:
            for kind in place.kinds.values():
                self._select(kind, self._selecting(kind, place))

    def drop_namespace(self, name: str) -> None:
        """It is gone; what is still said to be in it has its name for a label only."""
        place = self._namespaces.get(name)
        if place is not None:
            self.put_namespace(name, {NAMESPACE_NAME_LABEL: name})
            self._forget_place(place)

    def _forget_place(self, place: _Namespace) -> None:
        """Where nothing is in it, and nothing is known of it that its name does not say, it is made again when it is needed."""
        if not place.kinds and not place.services and place.labels == {NAMESPACE_NAME_LABEL: place.name}:
            del self._namespaces[place.name]

    def put_pod(self, namespace: str, name: str, labels: Labels, addresses: Iterable[str], node: str = "") -> None:
        """A pod as it is now. `addresses` is empty for a pod that is nobody's peer, such as one on its node's network."""
        key = f"{namespace}/{name}"
        label_set = self._label_set(labels)
        own = tuple(dict.fromkeys(self.addresses.number(text) for text in addresses))
        node = self._nodes.setdefault(node, node)
        known = self._pods.get(key)
        if known is not None:
            known.listing = self._listing["pods"]
            known.node = node
            if known.kind.labels == label_set and known.addresses == own:
                return
            made = self._entry(namespace, label_set, own, node)
            self._pods[key] = made
            self._join(made)
            self._leave(known)
            return
        made = self._pods[key] = self._entry(namespace, label_set, own, node)
        self._join(made)

    def _entry(self, namespace: str, labels: LabelSet, addresses: tuple[int, ...], node: str) -> PodEntry:
        place = self._place(namespace)
        kind = place.kinds.get(labels)
        if kind is None:
            kind = place.kinds[labels] = Kind(place.name, labels)
            self._kinds += 1
            for service in place.services.values():
                if service.selector <= set(labels):
                    kind.services = (*kind.services, service)
                    service.kinds.add(kind)
            if self.started:
                self._select(kind, self._selecting(kind, place))
        return PodEntry(kind, addresses, node, self._listing["pods"])

    def drop_pod(self, namespace: str, name: str) -> None:
        """It is gone, or has no packets any more."""
        known = self._pods.pop(f"{namespace}/{name}", None)
        if known is not None:
            self._leave(known)

    def put_service(self, namespace: str, name: str, selector: Labels, addresses: Iterable[str]) -> None:
        """A Service as it is now. One without a selector leads nowhere that we know of."""
        key = f"{namespace}/{name}"
        wanted = frozenset(self._pairs.setdefault(pair, pair) for pair in selector.items())
        own = tuple(dict.fromkeys(self.addresses.number(text) for text in addresses)) if wanted else ()
        known = self._services.get(key)
        if known is not None:
            known.listing = self._listing["services"]
            if known.selector == wanted and known.addresses == own:
                return
            self.drop_service(namespace, name)
            own = tuple(dict.fromkeys(self.addresses.number(text) for text in addresses)) if wanted else ()
        if not own:
            return
        service = self._services[key] = ServiceEntry(namespace, wanted, own, self._listing["services"])
        place = self._place(namespace)
        place.services[name] = service
        for number in own:
            self.addresses.own(number, service)
        for kind in place.kinds.values():
            if wanted <= set(kind.labels):
                self._lead(service, kind)

    def _lead(self, service: ServiceEntry, kind: Kind) -> None:
        for group in kind.groups:
            self._gain(group, service.addresses)
        kind.services = (*kind.services, service)
        service.kinds.add(kind)

    def drop_service(self, namespace: str, name: str) -> None:
        """It is gone."""
        service = self._services.pop(f"{namespace}/{name}", None)
        if service is None:
            return
        place = self._namespaces[namespace]
        del place.services[name]
        for number in service.addresses:
            self.addresses.disown(number, service)
        for kind in service.kinds:
            kind.services = tuple(one for one in kind.services if one is not service)
        for group in {group for kind in service.kinds for group in kind.groups}:
            self._lose(group, service.addresses)
        self._forget_place(place)

    # Listings: what was there before and is not in a new one is gone.

    def begin_listing(self, what: str) -> None:
        """`what` is pods or services."""
        self._listing[what] += 1

    def end_listing(self, what: str) -> None:
        """Forget what the listing did not have."""
        number = self._listing[what]
        entries: Mapping[str, Owner] = self._pods if what == "pods" else self._services
        drop = self.drop_pod if what == "pods" else self.drop_service
        for key in [key for key, entry in entries.items() if entry.listing != number]:
            namespace, _, name = key.partition("/")
            drop(namespace, name)

    # Resolving.

    def start(self, held: Mapping[PeerKey, Sequence[Sequence[str]]] | None = None) -> None:
        """Resolve everything. `held` are slices that are there already: addresses stay where they are as far as they can."""
        self.started = True
        wanted: dict[Group, array[int]] = {group: array("I") for group in self._groups.values()}
        for place in self._namespaces.values():
            for kind in place.kinds.values():
                kind.groups = self._selecting(kind, place)
                if kind.groups:
                    own = array("I", self._addresses_of(kind))
                    for group in kind.groups:
                        wanted[group].extend(own)
        while wanted:
            group, addresses = wanted.popitem()
            there = (held or {}).get(group.selectors()[0], ()) if group.users else ()
            find = self.addresses.find
            kept = [[number for text in one if (number := find(text)) is not None] for one in there]
            group.layout = pack(kept, addresses)
            self._changed[group] |= group.layout.all_slices()

    @staticmethod
    def _addresses_of(kind: Kind) -> set[int]:
        own = {number for pod in kind.members for number in pod.addresses}
        if kind.members:
            own.update(number for service in kind.services for number in service.addresses)
        return own

    def _selecting(self, kind: Kind, place: _Namespace) -> tuple[Group, ...]:
        labels = dict(kind.labels)
        return (*self._everywhere.selecting(labels), *place.view.selecting(labels))

    def _join(self, pod: PodEntry) -> None:
        for group in pod.kind.groups:
            self._gain(group, pod.addresses)
        pod.kind.members.append(pod)
        for number in pod.addresses:
            self.addresses.own(number, pod)

    def _leave(self, pod: PodEntry) -> None:
        kind = pod.kind
        kind.members.remove(pod)
        for number in pod.addresses:
            self.addresses.disown(number, pod)
        for group in kind.groups:
            self._lose(group, pod.addresses)
        if not kind.members:
            self._forget_kind(kind)

    def _forget_kind(self, kind: Kind) -> None:
        """The last pod is gone: Services no longer lead here."""
        self._select(kind, ())
        for service in kind.services:
            service.kinds.discard(kind)
        place = self._namespaces[kind.namespace]
        del place.kinds[kind.labels]
        self._forget_place(place)
        self._kinds -= 1
        self._kinds_gone += 1
        if self._kinds_gone > max(STALE_KINDS, self._kinds):
            self._forget_labels()

    def _forget_labels(self) -> None:
        """Those that no pod and no Service has. Its cost is shared by as many kinds as it looks at."""
        self._kinds_gone = 0
        used = {pair for place in self._namespaces.values() for kind in place.kinds.values() for pair in kind.labels}
        used.update(pair for service in self._services.values() for pair in service.selector)
        self._pairs = {pair: pair for pair in used}

    def _select(self, kind: Kind, groups: tuple[Group, ...]) -> None:
        """Make these the groups that select a kind of pods."""
        before = kind.groups
        owners: list[Owner] = [*kind.members, *kind.services]
        numbers = {number for owner in owners for number in owner.addresses}
        for group in set(groups).difference(before):
            self._gain(group, numbers)
        kind.groups = groups
        for group in set(before).difference(groups):
            self._lose(group, numbers)

    # A group's set holds an address where some owner of it is selected. So what a change brings is asked before the change,
    # and what it takes is asked after it.

    def _gain(self, group: Group, numbers: Iterable[int]) -> None:
        """Before an owner of these becomes selected."""
        if self.started:
            for number in numbers:
                if not self._has(group, number):
                    self._changed[group] |= group.layout.add(number)

    def _lose(self, group: Group, numbers: Iterable[int]) -> None:
        """After an owner of these was selected."""
        if self.started:
            for number in numbers:
                if not self._has(group, number):
                    self._changed[group] |= group.layout.remove(number)

    def _has(self, group: Group, number: int) -> bool:
        return any(owner.selected_by(group) for owner in self.addresses.owners(number))

    def _label_set(self, labels: Labels) -> LabelSet:
        return tuple(self._pairs.setdefault(pair, pair) for pair in sorted(labels.items()))

    # Counting.

    def census(self, namespace: str, selector: LabelSelector) -> Counter[str]:
        """Pods that a selector selects in a namespace, by node; those without a node by the empty name."""
        found: Counter[str] = Counter()
        place = self._namespaces.get(namespace)
        if place is None:
            return found
        selects: Matcher = matcher(selector)
        for kind in place.kinds.values():
            if selects(dict(kind.labels)):
                for pod in kind.members:
                    found[pod.node] += 1
        return found


def _is_everywhere(group: Group) -> bool:
    return group.namespaces is not None and group.namespaces.selects_all
