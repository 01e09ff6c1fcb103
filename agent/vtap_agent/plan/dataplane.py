"""The desired data plane of a node, as immutable values: what `plan` decides and `backends` and `pipeline` make true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum

ANY_VLAN = 0xFFFF
MAX_SLOTS = 4096
MAX_MATCHES = 128
"""Flat matches that one tap's filter may compile to."""
MAX_POINTS_PER_SOURCE = 128
MAX_FLOOD_ENTRIES = 1024
MAX_SOURCES = 2 * MAX_SLOTS
"""Sources that the preprocessor holds: what all slots may need, one for untagged frames and one for any VLAN each."""
MAX_FLOOD_LISTS = MAX_SLOTS
"""(feed, VLAN) pairs with receivers of broadcasts."""
MAX_PEER_ADDRESSES = 1 << 16
"""Addresses of all peer sets: half of what the kernel's map holds, since old and new sets are there side by side for a while."""
MAX_TAP_PORTS = 128
"""Likewise half of what the map of tap ports holds."""


class Direction(StrEnum):
    """As the pod sees it: Ingress is toward the pod, Egress from it."""

    INGRESS = "Ingress"
    EGRESS = "Egress"


class Action(IntEnum):
    """What a filter does with a packet."""

    EXCLUDE = 0
    INCLUDE = 1


@dataclass(frozen=True, slots=True)
class PortRange:
    """Transport ports, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Match:
    """One flat entry of a compiled filter; None means "any". The first that matches decides.

    `peer` is ``(network, prefix_length)`` with the network as 4 or 16 bytes; `peer_set` names a set of addresses in
    `DataPlane.peer_sets`. A match with ports or TCP flags never matches a packet without a transport header (non-first
    fragments, other protocols). `vlan` is the tag that the pod sees; 0 means untagged.
    """

    action: Action
    ip_version: int | None = None
    peer: tuple[bytes, int] | None = None
    peer_set: int | None = None
    protocol: int | None = None
    pod_ports: PortRange | None = None
    peer_ports: PortRange | None = None
    vlan: int | None = None
    tcp_flags: tuple[int, int] | None = None
    """(value, mask) on byte 13 of the TCP header."""


class SamplingType(IntEnum):
    """Which sampler decides after the filter."""

    ALL = 0
    PER_INTERVAL = 1
    ONE_IN = 2
    FLOWS = 3


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampler parameters, in wire packets and nanoseconds."""

    type: SamplingType = SamplingType.ALL
    packets: int = 0
    interval_ns: int = 0
    one_in: int = 1
    flow_threshold: int = 0
    """FLOWS: a flow is kept when its symmetric hash (32 bits) is below this; 2**32 keeps all."""


@dataclass(frozen=True, slots=True)
class TapProgram:
    """What the preprocessor does for one tap; swapped whole. `snap_length` 0 means whole packets; rates 0 mean no limit."""

    default_action: Action
    matches: tuple[Match, ...]
    sampling: Sampling = Sampling()
    rate_bits_per_second: int = 0
    burst_bits: int = 0
    snap_length: int = 0
    headers_only: bool = False


class Encapsulation(IntEnum):
    """How copies travel."""

    GRE_UDP = 0
    GRE = 1
    VXLAN = 2
    ERSPAN2 = 3
    REWRITE = 4
    """Without a header of ours: `remote` and `gateway_mac` are the monitor's, `source_mac` begins the node's ids."""


class Oversize(IntEnum):
    """What happens to copies that do not fit the underlay's MTU."""

    FRAGMENT = 0
    TRUNCATE = 1


class DestinationState(IntEnum):
    """Whether copies may leave, and if not, under which reason they are counted."""

    READY = 0
    NO_ROUTE = 1
    NO_NEIGHBOUR = 2
    NOT_READY = 3
    """Streams not announced yet, or refused."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A resolved destination. Addresses are 4 or 16 bytes, MACs 6 bytes; `mtu` is that of the outer IP packet."""

    name: str
    encapsulation: Encapsulation
    state: DestinationState
    remote: bytes
    local: bytes
    ifindex: int
    source_mac: bytes
    gateway_mac: bytes
    mtu: int
    port: int
    trailer: bool
    oversize: Oversize
    fixed_id: int | None = None
    """The key, VNI or session that all streams share; None gives each stream its key's own."""


@dataclass(frozen=True, slots=True, order=True)
class TapPointName:
    """What a tap point is, apart from its slot: stable across restarts of the agent."""

    tap_namespace: str
    tap_name: str
    pod_namespace: str
    pod_name: str
    pod_uid: str
    interface: str
    direction: Direction


@dataclass(frozen=True, slots=True)
class TapPoint:
    """A tap point with its slot, program and destination."""

    name: TapPointName
    slot: int
    key: int
    incarnation: str
    program: str
    """Names a `TapProgram`: "namespace/name" of the tap."""
    destination: str


class Backend(StrEnum):
    """How copies are made."""

    OVS_MIRROR = "OVSMirror"
    OVS_GROUP = "OVSGroup"
    EBPF = "EBPF"


@dataclass(frozen=True, slots=True, order=True)
class Feed:
    """Where packets of one direction come to `pick`; all taps share it.

    `place` is the bridge's name for Open vSwitch's backends, whose copies arrive at a tap port of ours. For EBPF it is the name
    of a pod interface's host-side device, at which `pick` sees the originals themselves; `ifindex` then says which device of that
    name it is, and is 0 else.
    """

    backend: Backend
    place: str
    direction: Direction
    ifindex: int = 0

    @property
    def has_tap_port(self) -> bool:
        """Whether a device of ours carries its copies."""
        return self.backend is not Backend.EBPF

    def __str__(self) -> str:
        where = "bridge" if self.has_tap_port else "device"
        return f"{self.backend} of {self.direction} at {where} {self.place}"


@dataclass(frozen=True, slots=True)
class Mirror:
    """The ports that one mirror copies."""

    feed: Feed
    ports: frozenset[str]
    """UUIDs of the OVS ports whose packets are copied."""


@dataclass(frozen=True, slots=True, order=True)
class GroupMember:
    """A pod interface whose packets a bridge's flows copy, and what its taps want of them.

    `vlan` is the access port's tag, 0 where the port has none. `programs` names those of `DataPlane.programs` that select it, in
    the order of `slots`: a packet is wanted where at least one of them wants it.
    """

    port_uuid: str
    mac: bytes
    vlan: int
    slots: tuple[int, ...]
    programs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The pod interfaces that the flows of one bridge copy, by port."""

    feed: Feed
    members: tuple[GroupMember, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Whose packets arrive at a feed.

    At a tap port they are matched by (VLAN in the copy, MAC): `vlan` is 0 for untagged copies, ANY_VLAN for a trunk port's.
    `strip` removes a tag that only the bridge sees. Broadcast and multicast toward pods belong to every Ingress source of the
    same feed and VLAN but the sender's own. Everything at an EBPF feed is its one source's, with ANY_VLAN and a MAC of zeros.
    """

    feed: Feed
    vlan: int
    mac: bytes
    strip: bool
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DataPlane:
    """Everything this node should have. Applying the same value twice changes nothing."""

    mirrors: Mapping[Feed, Mirror] = field(default_factory=dict[Feed, Mirror])
    sources: tuple[Source, ...] = ()
    points: tuple[TapPoint, ...] = ()
    programs: Mapping[str, TapProgram] = field(default_factory=dict[str, TapProgram])
    destinations: Mapping[str, Destination] = field(default_factory=dict[str, Destination])
    peer_sets: Mapping[int, frozenset[str]] = field(default_factory=dict[int, frozenset[str]])
    """Addresses (no prefix length) by set id; an id names one immutable content."""
    groups: Mapping[Feed, Group] = field(default_factory=dict[Feed, Group])
    hooks: frozenset[Feed] = frozenset()
    """EBPF feeds: the devices that `pick` is attached to."""

    @property
    def tap_ports(self) -> frozenset[Feed]:
        """Feeds whose copies come through a tap port of ours."""
        return frozenset((*self.mirrors, *self.groups))

    @property
    def feeds(self) -> frozenset[Feed]:
        """All of them."""
        return self.tap_ports | self.hooks

    def limited_to(self, feeds: frozenset[Feed]) -> DataPlane:
        """What of it these feeds bring."""
        return replace(
            self,
            mirrors={feed: mirror for feed, mirror in self.mirrors.items() if feed in feeds},
            groups={feed: group for feed, group in self.groups.items() if feed in feeds},
            hooks=self.hooks & feeds,
            sources=tuple(source for source in self.sources if source.feed in feeds),
        )


@dataclass(frozen=True, slots=True)
class PointCounters:
    """Wire packets of one slot, summed over CPUs; bytes are those of the frames the pod saw, `sent_bytes` of outer packets."""

    seen: int = 0
    seen_bytes: int = 0
    excluded: int = 0
    unsampled: int = 0
    limited: int = 0
    handed: int = 0
    """Given to the normalising pair by `pick`."""
    arrived: int = 0
    """Taken from the pair by `send`."""
    sent: int = 0
    sent_bytes: int = 0
    next_sequence: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    """By reason, as in docs/architecture.md."""


@dataclass(frozen=True, slots=True)
class NodeCounters:
    """One reading of everything the preprocessor counts."""

    points: Mapping[int, PointCounters]
    """By slot."""
    unattributed: Mapping[Feed, int]
    """Packets at a feed that fit no source; those of all EBPF feeds of a direction are one, without a place."""
    pair_dropped: int
    """Segments the kernel dropped between `pick` and `send`, by the pair's own device counters."""
    stale: int = 0
    """Packets that came out of the pair and were no copy, or so late that nobody knew any more whose."""
