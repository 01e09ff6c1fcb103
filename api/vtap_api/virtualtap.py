"""VirtualTap: which pods' packets are copied, which of them, how much of each, and where to."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from vtap_api.base import API_VERSION, Flag, Model, Unique, list_of, rules
from vtap_api.meta import Conditions, LabelSelector, NamespacedMeta
from vtap_api.problems import fault, show
from vtap_api.values import (
    LARGEST,
    Between,
    Cidr,
    DnsSubdomain,
    Duration,
    DurationBetween,
    Quantity,
    QuantityBetween,
    Text,
)

MAX_MATCHES = 128
"""Entries that one tap's filter may compile to; every pair of a pod port and a peer port is one."""
MAX_RULES = 64
MAX_PORTS = 16
ALL_INTERFACES = "*"
MIN_BURST = Quantity("524288")
"""Bits of the largest super-packet (64 KiB): a smaller burst would never let one pass."""

PROTOCOLS = {
    "ICMP": 1,
    "IGMP": 2,
    "IPIP": 4,
    "TCP": 6,
    "UDP": 17,
    "DCCP": 33,
    "IPv6": 41,
    "GRE": 47,
    "ESP": 50,
    "AH": 51,
    "ICMPv6": 58,
    "OSPF": 89,
    "PIM": 103,
    "VRRP": 112,
    "SCTP": 132,
    "UDPLite": 136,
}
"""IP protocol numbers (IANA) by the names a rule may use."""
_WITH_PORTS = ("TCP", "UDP", "SCTP")
_PORTED_NUMBERS = frozenset(PROTOCOLS[name] for name in _WITH_PORTS)


class Direction(StrEnum):
    """As the pod sees it: Ingress is toward the pod, Egress from it."""

    BOTH = "Both"
    INGRESS = "Ingress"
    EGRESS = "Egress"


class FilterAction(StrEnum):
    """What happens to a packet."""

    INCLUDE = "Include"
    EXCLUDE = "Exclude"


class BackendName(StrEnum):
    """How copies are made."""

    AUTO = "Auto"
    OVS_MIRROR = "OVSMirror"
    OVS_GROUP = "OVSGroup"
    EBPF = "EBPF"


class SamplingKind(StrEnum):
    """How packets are chosen."""

    PER_INTERVAL = "PerInterval"
    ONE_IN = "OneIn"
    FLOWS = "Flows"


class TcpFlag(StrEnum):
    """A flag of the TCP header."""

    FIN = "FIN"
    SYN = "SYN"
    RST = "RST"
    PSH = "PSH"
    ACK = "ACK"
    URG = "URG"
    ECE = "ECE"
    CWR = "CWR"


class _ProtocolType:
    """A protocol by name or number; kept as the user wrote it."""

    def check(self, value: Any) -> str | int:
        known = isinstance(value, str) and value in PROTOCOLS
        if known or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255):
            return value
        close = next((name for name in PROTOCOLS if isinstance(value, str) and name.lower() == value.lower()), None)
        right = f"write {close}" if close else f"write a number from 0 to 255 or one of {', '.join(PROTOCOLS)}"
        raise fault(f"{show(value)} is not a protocol", right)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        names = "|".join(PROTOCOLS)
        return {"x-kubernetes-int-or-string": True, "minimum": 0, "maximum": 255, "maxLength": 16, "pattern": f"^({names})$"}


class PortRange(Model):
    """A port, or a range of ports."""

    model_config = rules(("!has(self.endPort) || self.endPort >= self.port", "endPort must not be less than port", ".endPort"))

    port: Annotated[int, Between(1, 65535)]
    """The port, or the first of a range."""
    end_port: Annotated[int, Between(1, 65535)] | None = None
    """The last port of the range."""

    @model_validator(mode="after")
    def _ordered(self) -> PortRange:
        if self.end_port is not None and self.end_port < self.port:
            raise fault(f"{self.end_port} is less than port {self.port}", "write the last port of the range", ("endPort",))
        return self

    @property
    def last(self) -> int:
        """The last port of the range; both ends belong to it."""
        return self.port if self.end_port is None else self.end_port


Ports = Annotated[tuple[PortRange, ...], Field(min_length=1, max_length=MAX_PORTS, json_schema_extra=list_of("atomic"))]


class Peer(Model):
    """The other end of a packet: a network, or pods."""

    model_config = rules(
        (
            "has(self.cidr) != (has(self.podSelector) || has(self.namespaceSelector))",
            "write either cidr, or podSelector and/or namespaceSelector",
        )
    )

    cidr: Annotated[str, Cidr()] | None = None
    """An IPv4 or IPv6 network, such as `10.96.0.10/32` or `fd00::/8`."""
    pod_selector: LabelSelector | None = None
    """Pods by their labels, of the tap's own namespace or of those that `namespaceSelector` selects; all their addresses."""
    namespace_selector: LabelSelector | None = None
    """Namespaces by their labels; without `podSelector`, all pods in them."""

    @model_validator(mode="after")
    def _one_kind(self) -> Peer:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if self.cidr is not None and selects:
            other = "podSelector" if self.pod_selector is not None else "namespaceSelector"
            raise fault(f"has cidr and {other}", "write one of them, and a rule of its own for the other")
        if self.cidr is None and not selects:
            raise fault("says nobody", "write cidr, podSelector or namespaceSelector, or leave peer out to mean everybody")
        return self


class TcpFlags(Model):
    """TCP flags that must be set or clear; the others don't matter."""

    model_config = rules(
        (
            "(has(self.set) && size(self.set) > 0) || (has(self.clear) && size(self.clear) > 0)",
            "name at least one flag in set or clear",
        ),
        (
            "!has(self.set) || !has(self.clear) || self.set.all(flag, !(flag in self.clear))",
            "a flag can't be both set and clear",
            ".clear",
        ),
    )

    set_: Annotated[tuple[TcpFlag, ...], Field(max_length=8, json_schema_extra=list_of("set")), Unique] = ()
    """Flags that must be set."""
    clear: Annotated[tuple[TcpFlag, ...], Field(max_length=8, json_schema_extra=list_of("set")), Unique] = ()
    """Flags that must be clear."""

    @model_validator(mode="after")
    def _decided(self) -> TcpFlags:
        if not self.set_ and not self.clear:
            raise fault("names no flag", "write at least one in set or clear")
        for flag in self.clear:
            if flag in self.set_:
                raise fault(f"{show(str(flag))} is in set too", "remove it from one of them", ("clear",))
        return self


_PROTOCOL_IS = "has(self.protocol) && (type(self.protocol) == string ? self.protocol in [{names}] : self.protocol in [{numbers}])"


def _protocol_is(*names: str) -> str:
    return _PROTOCOL_IS.format(
        names=", ".join(f"'{name}'" for name in names), numbers=", ".join(str(PROTOCOLS[name]) for name in names)
    )


_CIDR_OF = "has(self.peer) && has(self.peer.cidr) && {found}self.peer.cidr.contains(':')"


class FilterRule(Model):
    """One rule: what is not said matches everything. All parts must match."""

    model_config = rules(
        (f"!has(self.podPorts) || ({_protocol_is(*_WITH_PORTS)})", "podPorts need protocol TCP, UDP or SCTP", ".podPorts"),
        (f"!has(self.peerPorts) || ({_protocol_is(*_WITH_PORTS)})", "peerPorts need protocol TCP, UDP or SCTP", ".peerPorts"),
        (f"!has(self.tcpFlags) || ({_protocol_is('TCP')})", "tcpFlags need protocol TCP", ".tcpFlags"),
        (f"!({_CIDR_OF.format(found='!')}) || !({_protocol_is('ICMPv6')})", "ICMPv6 never has an IPv4 peer", ".protocol"),
        (f"!({_CIDR_OF.format(found='')}) || !({_protocol_is('ICMP')})", "ICMP never has an IPv6 peer", ".protocol"),
    )

    action: FilterAction
    """What happens to packets that match."""
    peer: Peer | None = None
    """The other end: the source of Ingress packets, the destination of Egress packets."""
    protocol: Annotated[str | int, _ProtocolType()] | None = None
    """The IP protocol: a number, or one of TCP, UDP, SCTP, ICMP, ICMPv6, IGMP, GRE, ESP, AH, IPIP, IPv6, OSPF, PIM, VRRP, DCCP,
    UDPLite."""
    pod_ports: Ports | None = None
    """Ports at the pod's end, any of them. Never matches fragments without a transport header."""
    peer_ports: Ports | None = None
    """Ports at the peer's end, any of them. Never matches fragments without a transport header."""
    vlan: Annotated[int, Between(0, 4094)] | None = None
    """The VLAN tag that the pod sees; 0 means untagged."""
    tcp_flags: TcpFlags | None = None
    """TCP flags. Never matches fragments without a transport header."""

    @property
    def protocol_number(self) -> int | None:
        """The IP protocol number; None where the rule names none."""
        return PROTOCOLS[self.protocol] if isinstance(self.protocol, str) else self.protocol

    @property
    def match_count(self) -> int:
        """Flat entries this rule compiles to: one for each pair of a pod port and a peer port."""
        return len(self.pod_ports or (None,)) * len(self.peer_ports or (None,))

    @model_validator(mode="after")
    def _parts_fit(self) -> FilterRule:
        number, right = self.protocol_number, "write protocol: TCP, UDP or SCTP"
        if number not in _PORTED_NUMBERS and (self.pod_ports or self.peer_ports):
            field = "podPorts" if self.pod_ports else "peerPorts"
            wrong = "needs a protocol that has ports" if number is None else f"means nothing to protocol {self.protocol}"
            raise fault(wrong, right, (field,))
        if self.tcp_flags and number != PROTOCOLS["TCP"]:
            raise fault("needs TCP", "write protocol: TCP, or remove tcpFlags", ("tcpFlags",))
        self._refuse_family_mismatch()
        return self

    def _refuse_family_mismatch(self) -> None:
        cidr = self.peer.cidr if self.peer else None
        if cidr is None:
            return
        for name, other, mismatch in (("ICMPv6", "ICMP", ":" not in cidr), ("ICMP", "ICMPv6", ":" in cidr)):
            if mismatch and self.protocol_number == PROTOCOLS[name]:
                version = "IPv6" if ":" in cidr else "IPv4"
                raise fault(
                    f"{name} never has an {version} peer such as {cidr}", f"write {other}, or another cidr", ("protocol",)
                )


_PORT_PAIRS = "(has(r.podPorts) ? size(r.podPorts) : 1) * (has(r.peerPorts) ? size(r.peerPorts) : 1)"


class Filter(Model):
    """Which packets are copied. Rules are tried in order and the first that matches decides."""

    model_config = rules(
        (
            "!has(self.rules) || size(self.rules) == 0 || has(self.defaultAction)",
            "say in defaultAction what happens to packets that no rule matches",
            ".defaultAction",
        ),
        (
            f"!has(self.rules) || self.rules.map(r, {_PORT_PAIRS}).sum() <= {MAX_MATCHES}",
            f"the rules need more than {MAX_MATCHES} entries; every pair of a pod port and a peer port is one",
            ".rules",
        ),
    )

    default_action: FilterAction | None = None
    """What happens to packets that no rule matches. Required where there are rules: said, never guessed."""
    rules: Annotated[tuple[FilterRule, ...], Field(max_length=MAX_RULES, json_schema_extra=list_of("atomic"))] = ()
    """Rules, most specific first. Together they may need at most 128 entries; every pair of a pod port and a peer port is one."""

    @property
    def match_count(self) -> int:
        """Flat entries all rules compile to."""
        return sum(rule.match_count for rule in self.rules)

    @model_validator(mode="after")
    def _complete(self) -> Filter:
        if self.rules and self.default_action is None:
            right = "write Include or Exclude for packets that no rule matches"
            raise fault("is missing", right, ("defaultAction",))
        if self.match_count > MAX_MATCHES:
            wrong = (
                f"needs {self.match_count} entries, more than {MAX_MATCHES}, as every pair of a pod port and a peer port is one"
            )
            raise fault(wrong, "write ranges with endPort, or fewer ports in one rule", ("rules",))
        return self


class PerInterval(Model):
    """The first packets of each interval."""

    packets: Annotated[int, Between(1, 1_000_000_000)]
    """How many packets of each interval are copied."""
    interval: Annotated[Duration, DurationBetween(Duration("1ms"), Duration("24h"))]
    """How long an interval is, `1ms` to `24h`."""


class Flows(Model):
    """Whole flows, both directions of each."""

    percent: Annotated[int, Between(1, 100)]
    """Share of flows that are copied; every packet of a chosen flow is."""


class Sampling(Model):
    """Which of the included packets are copied. Counts per tap point (tap, pod interface, direction)."""

    model_config = rules(
        (
            "(self.type == 'PerInterval') == has(self.perInterval)",
            "perInterval goes with type PerInterval, and only with it",
            ".perInterval",
        ),
        ("(self.type == 'OneIn') == has(self.oneIn)", "oneIn goes with type OneIn, and only with it", ".oneIn"),
        ("(self.type == 'Flows') == has(self.flows)", "flows goes with type Flows, and only with it", ".flows"),
    )

    type: SamplingKind
    """`PerInterval`: N packets each interval. `OneIn`: one packet in N, at random. `Flows`: a share of flows, whole."""
    per_interval: PerInterval | None = None
    """For type PerInterval."""
    one_in: Annotated[int, Between(1, 1_000_000_000)] | None = None
    """For type OneIn: N, where one packet in N is copied."""
    flows: Flows | None = None
    """For type Flows."""

    @model_validator(mode="after")
    def _one_kind(self) -> Sampling:
        given = {SamplingKind.PER_INTERVAL: self.per_interval, SamplingKind.ONE_IN: self.one_in, SamplingKind.FLOWS: self.flows}
        names = {SamplingKind.PER_INTERVAL: "perInterval", SamplingKind.ONE_IN: "oneIn", SamplingKind.FLOWS: "flows"}
        if given[self.type] is None:
            raise fault(f"is missing, which type {self.type} needs", f"add {names[self.type]}", (names[self.type],))
        for kind, value in given.items():
            if kind is not self.type and value is not None:
                raise fault(f"belongs to type {kind}, and type is {self.type}", "remove it, or change type", (names[kind],))
        return self


class RateLimit(Model):
    """A token bucket on the bits of copied packets, Ethernet header included. Counts per tap point and combines with sampling."""

    bits_per_second: Annotated[Quantity, QuantityBetween(Quantity("1k"), Quantity("1T"))]
    """Bits a second, over all packets of a tap point, as a quantity."""
    burst: Annotated[Quantity, QuantityBetween(MIN_BURST, Quantity("1T"))] | None = None
    """Bits that may pass at once after silence. Default: a tenth of a second's worth, at least 524288 (64 KiB)."""


class PacketCut(Model):
    """How much of each packet is copied. The original length is kept."""

    model_config = rules(("!has(self.snapLength) || !self.headersOnly", "write either snapLength or headersOnly"))

    snap_length: Annotated[int, Between(14, 65535)] | None = None
    """Bytes of the frame that are copied, from its Ethernet header on."""
    headers_only: Flag = False
    """Copy Ethernet, IP and transport headers, and no payload."""

    @model_validator(mode="after")
    def _one_kind(self) -> PacketCut:
        if self.snap_length is not None and self.headers_only:
            raise fault("says snapLength and headersOnly", "write one of them")
        return self


class DestinationRef(Model):
    """Names a TapDestination."""

    name: Annotated[str, DnsSubdomain] = "default"
    """The TapDestination's name."""


Interface = Annotated[
    str,
    Text(
        15,
        "an interface name",
        "eth0",
        r"(\*|[A-Za-z0-9][A-Za-z0-9_.@-]*)",
        min_length=1,
        rules=(("self != 'lo'", "loopback never leaves the pod"),),
    ),
]


class VirtualTapSpec(Model):
    """What is wanted."""

    pod_selector: Annotated[LabelSelector, Field(examples=["{matchLabels: {app: web}}, or {} for every pod of the namespace"])]
    """Pods of the tap's own namespace whose packets are copied; `{}` selects all of them."""
    interfaces: Annotated[
        tuple[Interface, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra=list_of(
                "set",
                ("!('*' in self) || size(self) == 1", '"*" already means every interface'),
            ),
        ),
        Unique,
    ] = (ALL_INTERFACES,)
    """The pods' interfaces; `*` alone means all but loopback, so that a Multus interface isn't missed."""
    direction: Direction = Direction.BOTH
    """Ingress is toward the pod, Egress from it."""
    filter: Filter | None = None
    """Which packets are copied; all of them where it is left out."""
    sampling: Sampling | None = None
    """Which of the included packets are copied; all of them where it is left out."""
    rate_limit: RateLimit | None = None
    """The most that is copied."""
    packet: PacketCut = PacketCut()
    """How much of each packet is copied; whole packets where it is left out."""
    backend: BackendName = BackendName.AUTO
    """How copies are made; `Auto` takes one that can do what the tap asks for, and the status of the node says which and why.
    Packets that eBPF of a network plugin takes past the node's end of a pod's device (Cilium's host routing and netkit, Calico's
    data plane in eBPF) are not copied, and the status says so."""
    destination_ref: DestinationRef = DestinationRef()
    """Where copies go."""
    ttl: Annotated[Duration, DurationBetween(Duration("10s"), Duration("168h"))] | None = None
    """How long the tap lives, counted from its creation: copies end then, and the operator deletes it. In a cluster only."""

    @model_validator(mode="after")
    def _interfaces_make_sense(self) -> VirtualTapSpec:
        if ALL_INTERFACES in self.interfaces and len(self.interfaces) > 1:
            raise fault('"*" already means every interface', 'write either "*" or names', ("interfaces",))
        if "lo" in self.interfaces:
            wrong = "loopback never leaves the pod, so that nothing can be copied"
            raise fault(wrong, "name another interface", ("interfaces", self.interfaces.index("lo")))
        return self


class VirtualTapStatus(Model):
    """What became of it, summed up over all nodes."""

    observed_generation: Annotated[int, Between(0, LARGEST)] = 0
    """The generation this was said of."""
    matched_pods: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Pods that `podSelector` selects."""
    attached_pods: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Pods of which every wanted tap point copies packets."""
    failed_pods: Annotated[int, Between(0, 2**31 - 1)] = 0
    """Pods of which some wanted tap point can't be had."""
    conditions: Conditions = ()
    """`Accepted`: the tap makes sense and may use its destination. `Programmed`: tap points copy. `Delivering`: copies arrive."""


class VirtualTap(Model):
    """Copies packets of selected pods and sends them to a destination."""

    api_version: Literal["vtap.dev/v1alpha1"] = API_VERSION
    """`vtap.dev/v1alpha1`."""
    kind: Literal["VirtualTap"] = "VirtualTap"
    """`VirtualTap`."""
    metadata: NamespacedMeta
    """Name, namespace, labels."""
    spec: VirtualTapSpec
    """What is wanted."""
    status: VirtualTapStatus = VirtualTapStatus()
    """What became of it; written by the operator."""

    def __str__(self) -> str:
        return f"VirtualTap {self.metadata.namespace}/{self.metadata.name}"
