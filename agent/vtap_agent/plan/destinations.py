"""What a TapDestination means to a node, before it is known how to get there. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vtap_agent.plan.dataplane import Encapsulation, Oversize
from vtap_agent.plan.streams import ControlEndpoint
from vtap_api import TapDestination
from vtap_api.tapdestination import CollectorTarget, OversizePolicy, TapDestinationSpec, Transport

ENCAPSULATIONS = {
    Transport.GRE_IN_UDP: Encapsulation.GRE_UDP,
    Transport.GRE: Encapsulation.GRE,
    Transport.VXLAN: Encapsulation.VXLAN,
    Transport.ERSPAN: Encapsulation.ERSPAN2,
}


@dataclass(frozen=True, slots=True)
class ResolvedDestination:
    """`remote` is an IPv4 or IPv6 address; `port` a UDP port, 0 where the encapsulation has none.

    `control` is None for endpoints that are not ours: they are told nothing.
    """

    name: str
    encapsulation: Encapsulation
    remote: str
    port: int
    trailer: bool
    oversize: Oversize
    fixed_id: int | None
    control: ControlEndpoint | None
    is_pod: bool = False
    """Whether the address is that of a pod, which another pod may get: a collector's that the operator runs."""
    mac: str = ""
    """Rewritten copies only: the MAC address that they are sent to, empty where the monitor's edge is ours."""

    @property
    def way(self) -> str:
        """Names the way there among the inventory's next hops: copies without a tunnel go another than the stack's own."""
        return f"{self.remote} {self.mac or 'edge'}" if self.encapsulation is Encapsulation.REWRITE else self.remote

    @property
    def receiver(self) -> str:
        """Names who receives: the destination's name, then all that makes another receiver of it. For the names of streams."""
        told = self.control.url if self.control else "-"
        return f"{self.name} {self.encapsulation.name} {self.way} {self.port} {told}"


def resolve_destination(destination: TapDestination) -> ResolvedDestination | None:
    """None where the destination has no address yet.

    Of a collector that the operator runs, the status says where it is.
    """
    spec, collector = destination.spec, destination.spec.collector
    runs = destination.status.collector if collector is not None and collector.address is None else None
    address = runs.address if runs is not None else spec.address
    if address is None:
        return None
    encapsulation, port = _encapsulation(spec)
    return ResolvedDestination(
        name=destination.metadata.name,
        encapsulation=encapsulation,
        remote=address,
        port=runs.port if runs is not None and port else port,
        trailer=collector is not None and encapsulation is Encapsulation.GRE_UDP,
        oversize=Oversize.TRUNCATE if spec.oversize is OversizePolicy.TRUNCATE else Oversize.FRAGMENT,
        fixed_id=spec.fixed_id,
        control=ControlEndpoint(runs.url.rstrip("/"), "") if runs is not None else _control(collector),
        is_pod=runs is not None,
        mac=(spec.rewrite.mac_address or "") if spec.rewrite is not None else "",
    )


def _encapsulation(spec: TapDestinationSpec) -> tuple[Encapsulation, int]:
    if spec.collector is not None:
        return ENCAPSULATIONS[spec.collector.transport], spec.collector.data_port
    if spec.vxlan is not None:
        return Encapsulation.VXLAN, spec.vxlan.port
    if spec.rewrite is not None:
        return Encapsulation.REWRITE, 0
    return (Encapsulation.GRE if spec.gre is not None else Encapsulation.ERSPAN2), 0


def _control(collector: CollectorTarget | None) -> ControlEndpoint | None:
    if collector is None or collector.control is None:
        return None
    return ControlEndpoint(collector.control.endpoint, collector.control.token_file or "")
