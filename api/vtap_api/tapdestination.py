"""TapDestination: where copies go, how they travel, and who may send there."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vtap_api.base import API_VERSION, Model, rules
from vtap_api.meta import ClusterMeta, Conditions, LabelSelector
from vtap_api.problems import fault
from vtap_api.values import (
    LARGEST,
    AbsolutePath,
    Between,
    DnsSubdomain,
    HttpUrl,
    IPAddress,
    MacAddress,
    Quantity,
    QuantityBetween,
)

GRE_IN_UDP_PORT = 4754
"""RFC 8086."""
VXLAN_PORT = 4789
"""RFC 7348."""
KINDS = ("collector", "gre", "vxlan", "erspan", "rewrite")

Port = Annotated[int, Between(1, 65535)]
Address = Annotated[str, IPAddress()]


class Transport(StrEnum):
    """How copies travel to our collector."""

    GRE_IN_UDP = "GREInUDP"
    GRE = "GRE"
    VXLAN = "VXLAN"
    ERSPAN = "ERSPAN"


class NamespacesFrom(StrEnum):
    """Which namespaces may use a destination."""

    ALL = "All"
    SELECTOR = "Selector"


class OversizePolicy(StrEnum):
    """What happens to a copy that does not fit the path's MTU."""

    FRAGMENT = "Fragment"
    TRUNCATE = "Truncate"


class IdsKind(StrEnum):
    """How copies are told apart."""

    PER_STREAM = "PerStream"
    FIXED = "Fixed"


class CollectorControl(Model):
    """How agents reach a collector's control channel, on which they announce streams and report totals (HTTP, JSON)."""

    model_config = rules(
        ("has(self.url) != has(self.unixSocket)", "write exactly one of url and unixSocket"),
        ("!has(self.url) || has(self.tokenFile)", "url needs tokenFile, as anybody could reach it", ".tokenFile"),
    )

    url: Annotated[str, HttpUrl] | None = None
    """The collector's `--listen` address, such as `http://10.0.9.2:9471`; needs `tokenFile`."""
    unix_socket: Annotated[str, AbsolutePath] | None = None
    """Path of the collector's Unix socket on this machine, such as `/run/vtap/collector.sock`."""
    token_file: Annotated[str, AbsolutePath] | None = None
    """Path of a file that holds the bearer token, the same as the collector's `--token-file`."""

    @model_validator(mode="after")
    def _one_way(self) -> CollectorControl:
        if self.url is not None and self.unix_socket is not None:
            raise fault("has url and unixSocket", "write one of them")
        if self.url is None and self.unix_socket is None:
            raise fault("says no way to the collector", "write url and tokenFile, or unixSocket")
        if self.url is not None and self.token_file is None:
            raise fault("is missing, which url needs", "write the path of the collector's token file", ("tokenFile",))
        return self

    @property
    def endpoint(self) -> str:
        """``http://HOST:PORT`` without a trailing slash, or ``unix:PATH``."""
        return f"unix:{self.unix_socket}" if self.url is None else self.url.rstrip("/")


class StorageKind(StrEnum):
    """What holds captured files."""

    EMPTY_DIR = "EmptyDir"
    PERSISTENT_VOLUME_CLAIM = "PersistentVolumeClaim"


class CollectorStorage(Model):
    """Where a collector that the operator runs keeps its files. The oldest are deleted before `size` is reached."""

    model_config = rules(
        (
            "!has(self.storageClassName) || self.type == 'PersistentVolumeClaim'",
            "storageClassName goes with a claim",
            ".storageClassName",
        ),
    )

    type: StorageKind = StorageKind.EMPTY_DIR
    """`EmptyDir` goes with the collector's pod; a `PersistentVolumeClaim` outlives it."""
    size: Annotated[Quantity, QuantityBetween(Quantity("64Mi"), Quantity("1Pi"))] = Quantity("10Gi")
    """Bytes for captured files, as a quantity."""
    storage_class_name: Annotated[str, DnsSubdomain] | None = None
    """The claim's storage class. Default: the cluster's."""

    @model_validator(mode="after")
    def _class_fits(self) -> CollectorStorage:
        if self.storage_class_name is not None and self.type is not StorageKind.PERSISTENT_VOLUME_CLAIM:
            raise fault("means nothing to type EmptyDir", "write type: PersistentVolumeClaim", ("storageClassName",))
        return self


class CollectorTarget(Model):
    """A collector of ours. On one machine say where it is; in a cluster leave this empty, and the operator runs one."""

    model_config = rules(
        ("!has(self.address) || has(self.control)", "address and control go together", ".control"),
        ("!has(self.control) || has(self.address)", "address and control go together", ".address"),
        ("!has(self.port) || has(self.address)", "port needs address", ".port"),
        ("!has(self.address) || !has(self.storage)", "storage is of a collector that the operator runs", ".storage"),
        ("!has(self.port) || self.transport in ['GREInUDP', 'VXLAN']", "port needs transport GREInUDP or VXLAN", ".port"),
    )

    address: Address | None = None
    """Where copies go: IPv4 or IPv6."""
    port: Port | None = None
    """UDP port for copies. Default: 4754 for GREInUDP, 4789 for VXLAN."""
    transport: Transport = Transport.GRE_IN_UDP
    """How copies travel. GREInUDP carries original length, capture time and sequence numbers; receiving needs no privilege."""
    control: CollectorControl | None = None
    """How agents announce streams."""
    storage: CollectorStorage | None = None
    """In a cluster: what holds the files of the collector that the operator runs. Default: an EmptyDir of 10Gi."""

    @model_validator(mode="after")
    def _complete(self) -> CollectorTarget:
        if self.address is not None and self.control is None:
            raise fault("is missing", "write control: {url: …, tokenFile: …} or control: {unixSocket: …}", ("control",))
        if self.control is not None and self.address is None:
            raise fault("is missing", "write the IPv4 or IPv6 address that the collector receives copies on", ("address",))
        if self.port is not None and self.transport in (Transport.GRE, Transport.ERSPAN):
            raise fault(f"means nothing to transport {self.transport}", "remove it, or write transport: GREInUDP", ("port",))
        if self.storage is not None and self.address is not None:
            raise fault("is of a collector that the operator runs", "remove it, or remove address and control", ("storage",))
        if self.port is not None and self.address is None:
            raise fault("has no address to go with", "write address and control too, or remove it", ("port",))
        return self

    @property
    def data_port(self) -> int:
        """UDP port for copies; 0 for transports without one."""
        defaults = {Transport.GRE_IN_UDP: GRE_IN_UDP_PORT, Transport.VXLAN: VXLAN_PORT}
        return self.port if self.port is not None else defaults.get(self.transport, 0)


class GreTarget(Model):
    """Transparent Ethernet over GRE with key and sequence number (RFC 2784, RFC 2890)."""

    address: Address
    """Where copies go: IPv4 or IPv6."""


class VxlanTarget(Model):
    """VXLAN (RFC 7348). Carries no sequence number."""

    address: Address
    """Where copies go: IPv4 or IPv6."""
    port: Port = VXLAN_PORT
    """UDP port."""


class ErspanTarget(Model):
    """ERSPAN type II over GRE. The 20-bit index tells streams apart."""

    address: Address
    """Where copies go: IPv4 or IPv6."""
    session_id: Annotated[int, Between(0, 1023)] | None = None
    """Session of all copies. Default: the low 10 bits of each stream's key."""


class RewriteTarget(Model):
    """A monitor in the nodes' own layer-2 domain, to which copies go without a header of ours: their destination MAC and
    IP addresses become the monitor's, their source MAC address an id for what they were, and its edge restores them."""

    address: Address
    """The monitor's IP address, which each copy's destination becomes. The pod that has it is served by the agent on its node."""
    mac_address: Annotated[str, MacAddress] | None = None
    """The MAC address that each copy's destination becomes, of a monitor without an agent of ours on its node: then a rule of
    somebody else's has to recover copies, else the monitor answers them. Default: a locally administered address, for which the
    agent on the monitor's node answers."""


class AllowedNamespaces(Model):
    """Whose taps may use a destination."""

    model_config = rules(
        ("(self.from == 'Selector') == has(self.selector)", "selector goes with from: Selector, and only with it", ".selector")
    )

    from_: NamespacesFrom = NamespacesFrom.ALL
    """`All`, or those that `selector` selects."""
    selector: LabelSelector | None = None
    """Namespaces by their labels."""

    @model_validator(mode="after")
    def _selector_fits(self) -> AllowedNamespaces:
        if self.from_ is NamespacesFrom.SELECTOR and self.selector is None:
            raise fault("is missing, which from: Selector needs", "add it, or write from: All", ("selector",))
        if self.from_ is NamespacesFrom.ALL and self.selector is not None:
            raise fault("means nothing to from: All", "write from: Selector", ("selector",))
        return self


class StreamIds(Model):
    """How copies of different tap points are told apart."""

    model_config = rules(("(self.type == 'Fixed') == has(self.fixed)", "fixed goes with type Fixed, and only with it", ".fixed"))

    type: IdsKind = IdsKind.PER_STREAM
    """`PerStream`: each tap point has a key of its own. `Fixed`: all copies carry `fixed`."""
    fixed: Annotated[int, Between(0, 2**32 - 1)] | None = None
    """The GRE key or VXLAN network identifier of all copies."""

    @model_validator(mode="after")
    def _fixed_fits(self) -> StreamIds:
        if self.type is IdsKind.FIXED and self.fixed is None:
            raise fault("is missing, which type Fixed needs", "write the GRE key or VXLAN network identifier", ("fixed",))
        if self.type is IdsKind.PER_STREAM and self.fixed is not None:
            raise fault("means nothing to type PerStream", "write type: Fixed", ("fixed",))
        return self


_GIVEN = ", ".join(f"has(self.{name})" for name in KINDS)


class TapDestinationSpec(Model):
    """What is wanted: exactly one of collector, gre, vxlan, erspan and rewrite."""

    model_config = rules(
        (f"[{_GIVEN}].filter(given, given).size() == 1", f"write exactly one of {', '.join(KINDS)}"),
        ("has(self.gre) || has(self.vxlan) || self.ids.type == 'PerStream'", "fixed ids go with gre and vxlan only", ".ids.type"),
        (
            "!has(self.vxlan) || !has(self.ids.fixed) || self.ids.fixed <= 16777215",
            "a VXLAN network identifier has 24 bits",
            ".ids.fixed",
        ),
    )

    collector: CollectorTarget | None = None
    """A collector of ours."""
    gre: GreTarget | None = None
    """A GRE endpoint."""
    vxlan: VxlanTarget | None = None
    """A VXLAN endpoint."""
    erspan: ErspanTarget | None = None
    """An ERSPAN endpoint."""
    rewrite: RewriteTarget | None = None
    """A monitor in the nodes' own layer-2 domain, to which copies go without a tunnel: rewritten, and recovered at its edge.
    Never sent, but counted as notRewritable: ARP and what else isn't IP, or not of the address's version; broadcast, multicast
    and tagged packets; the monitor's own traffic."""
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    """Whose taps may use it."""
    oversize: OversizePolicy = OversizePolicy.FRAGMENT
    """A copy that does not fit the path's MTU is sent in fragments of the outer packet, or cut and marked as cut. With `rewrite`,
    which has no outer packet, it is dropped and counted as oversize."""
    ids: StreamIds = StreamIds()
    """How copies of different tap points are told apart."""

    @model_validator(mode="after")
    def _one_kind(self) -> TapDestinationSpec:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if not given:
            raise fault("says nowhere", f"write exactly one of {', '.join(KINDS)}")
        if len(given) > 1:
            raise fault(f"has {' and '.join(given)}", "write one of them, and a TapDestination of its own for the other")
        self._refuse_ids(given[0])
        return self

    def _refuse_ids(self, kind: str) -> None:
        if self.ids.fixed is None:
            return
        if kind not in ("gre", "vxlan"):
            cure = "use erspan.sessionID" if kind == "erspan" else "write type: PerStream"
            raise fault(f"fixed ids mean nothing to {kind}", cure, ("ids", "type"))
        if kind == "vxlan" and self.ids.fixed >= 2**24:
            raise fault(f"{self.ids.fixed} does not fit a VXLAN network identifier", "write at most 16777215", ("ids", "fixed"))

    @property
    def address(self) -> str | None:
        """Where copies go; None for a collector whose address the operator has yet to fill in."""
        target = self.collector or self.gre or self.vxlan or self.erspan or self.rewrite
        return target.address if target else None

    @property
    def fixed_id(self) -> int | None:
        """The GRE key, VXLAN network identifier or ERSPAN session that all copies carry; None gives each stream its own."""
        return self.erspan.session_id if self.erspan else self.ids.fixed


class CollectorAddress(Model):
    """Where the operator runs a collector."""

    address: Address
    """Where copies go."""
    port: Port = GRE_IN_UDP_PORT
    """UDP port for copies."""
    url: Annotated[str, HttpUrl]
    """The control channel."""


class TapDestinationStatus(Model):
    """What became of it."""

    observed_generation: Annotated[int, Between(0, LARGEST)] = 0
    """The generation this was said of."""
    collector: CollectorAddress | None = None
    """Where the collector that the operator runs can be reached."""
    conditions: Conditions = ()
    """`Accepted`: the destination makes sense. `Ready`: copies can be sent there."""


class TapDestination(Model):
    """Where copies go, how they travel, and whose taps may send there."""

    api_version: Literal["vtap.dev/v1alpha1"] = API_VERSION
    """`vtap.dev/v1alpha1`."""
    kind: Literal["TapDestination"] = "TapDestination"
    """`TapDestination`."""
    metadata: ClusterMeta
    """Name, labels."""
    spec: Annotated[TapDestinationSpec, Field(examples=["{gre: {address: 10.0.9.2}}"])]
    """What is wanted."""
    status: TapDestinationStatus = TapDestinationStatus()
    """What became of it; written by the operator."""

    def __str__(self) -> str:
        return f"TapDestination {self.metadata.name}"
