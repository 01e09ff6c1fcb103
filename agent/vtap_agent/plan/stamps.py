"""Which rows of Open vSwitch's database are ours: those with a stamp of this node and backend in `external_ids`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vtap_agent.plan.dataplane import Backend

OWNER = "vtap.dev"
_OWNER_ID, _NODE_ID, _GENERATION_ID, _BACKEND_ID = "vtap-owner", "vtap-node", "vtap-generation", "vtap-backend"


@dataclass(frozen=True, slots=True)
class Stamp:
    """Whose row it is. `generation` tells which run of the agent last wrote it; it is never compared.

    Each backend sweeps its own rows only. A row of OVSMirror does not name it, as rows of the first version did not.
    """

    node: str
    generation: int
    backend: Backend = Backend.OVS_MIRROR

    def external_ids(self) -> dict[str, str]:
        """As a Mirror's or Port's `external_ids` carry it."""
        named = {} if self.backend is Backend.OVS_MIRROR else {_BACKEND_ID: str(self.backend)}
        return {_OWNER_ID: OWNER, _NODE_ID: self.node, _GENERATION_ID: str(self.generation), **named}


def read_stamp(external_ids: Mapping[str, str]) -> Stamp | None:
    """The stamp in a row's `external_ids`; None where the row is not ours."""
    if external_ids.get(_OWNER_ID) != OWNER:
        return None
    generation, backend = external_ids.get(_GENERATION_ID, ""), external_ids.get(_BACKEND_ID, "")
    return Stamp(
        node=external_ids.get(_NODE_ID, ""),
        generation=int(generation) if generation.isascii() and generation.isdigit() else 0,
        backend=Backend(backend) if backend in tuple(Backend) else Backend.OVS_MIRROR,
    )


def is_ours(stamp: Stamp | None, node: str, backend: Backend = Backend.OVS_MIRROR) -> bool:
    """Whether this node's agent made the row for this backend."""
    return stamp is not None and (stamp.node, stamp.backend) == (node, backend)
