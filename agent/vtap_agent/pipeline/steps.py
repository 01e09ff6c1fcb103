"""The pipeline's steps: what to write where, decided by `diff`, done by `Kernel`."""

from __future__ import annotations

from dataclasses import dataclass

from vtap_agent.plan.dataplane import Feed
from vtap_agent.plan.steps import Phase


@dataclass(frozen=True, slots=True)
class TapPortDevices:
    """The veth pair of one mirror: Open vSwitch writes to `switch`, `pick` listens at `ours`."""

    switch: str
    ours: str


@dataclass(frozen=True, slots=True, order=True)
class Selection:
    """A source with its tap points' entries: slot in the low 16 bits, index of the program in the high ones."""

    feed: Feed
    vlan: int
    mac: bytes
    strip: bool
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AddPeers:
    """A peer set becomes exactly these addresses. Its number stands for this very content, so none of them is new to a reader
    unless somebody else has changed the map, or a kill has cut an earlier step short."""

    number: int
    addresses: frozenset[str]
    phase: Phase = Phase.PREPARE

    def __str__(self) -> str:
        return f"make peer set {self.number} the {len(self.addresses)} addresses it stands for"


@dataclass(frozen=True, slots=True)
class PutProgram:
    """A tap's program, swapped whole: packets meet the old one or the new one."""

    index: int
    name: str
    value: bytes
    phase: Phase = Phase.PREPARE

    def __str__(self) -> str:
        return f"swap in the program of {self.name} at {self.index}"


@dataclass(frozen=True, slots=True)
class PutDestination:
    """A destination, swapped whole."""

    index: int
    name: str
    value: bytes
    phase: Phase = Phase.PREPARE

    def __str__(self) -> str:
        return f"swap in destination {self.name} at {self.index}"


@dataclass(frozen=True, slots=True)
class PutPoint:
    """A point with a new incarnation starts from zero counters and sequence 0."""

    slot: int
    name: str
    value: bytes
    phase: Phase = Phase.PREPARE

    def __str__(self) -> str:
        return f"set tap point {self.name} in slot {self.slot}"


@dataclass(frozen=True, slots=True)
class MakePair:
    """The normalising pair with `send` at its far end."""

    phase: Phase = Phase.PREPARE

    def __str__(self) -> str:
        return "make the normalising pair"


@dataclass(frozen=True, slots=True)
class AttachPick:
    """`pick` at the ingress of a tap port, in place of an older one."""

    feed: Feed
    device: str
    phase: Phase = Phase.ATTACH

    def __str__(self) -> str:
        return f"attach pick to {self.device}"


@dataclass(frozen=True, slots=True)
class Select:
    """Sources that gain tap points gain them; none loses any."""

    selections: tuple[Selection, ...]
    phase: Phase = Phase.SELECT

    def __str__(self) -> str:
        return f"select {len(self.selections)} sources, growing"


@dataclass(frozen=True, slots=True)
class Park:
    """Sources lose tap points that are to come to another feed: for a moment these are at none."""

    selections: tuple[Selection, ...]
    phase: Phase = Phase.DESELECT

    def __str__(self) -> str:
        return f"select {len(self.selections)} sources, without what moves"


@dataclass(frozen=True, slots=True)
class Drain:
    """Packets of which the old feed has made copies pass the new one, if they are to: else these would be copied twice."""

    seconds: float
    phase: Phase = Phase.DESELECT

    def __str__(self) -> str:
        return f"let {self.seconds:g} s pass, so that nothing is copied at two places"


@dataclass(frozen=True, slots=True)
class Deselect:
    """Exactly these sources: what is not among them is copied no more."""

    selections: tuple[Selection, ...]
    phase: Phase = Phase.DESELECT

    def __str__(self) -> str:
        return f"select {len(self.selections)} sources and no others"


@dataclass(frozen=True, slots=True)
class DropPoint:
    """A slot that no source names any more."""

    slot: int
    phase: Phase = Phase.RETIRE

    def __str__(self) -> str:
        return f"free slot {self.slot}"


@dataclass(frozen=True, slots=True)
class DropProgram:
    """A program that no point names any more."""

    index: int
    phase: Phase = Phase.RETIRE

    def __str__(self) -> str:
        return f"drop program {self.index}"


@dataclass(frozen=True, slots=True)
class DropDestination:
    """A destination that no point names any more."""

    index: int
    phase: Phase = Phase.RETIRE

    def __str__(self) -> str:
        return f"drop destination {self.index}"


@dataclass(frozen=True, slots=True)
class DropPeers:
    """A peer set that no program names any more."""

    number: int
    phase: Phase = Phase.RETIRE

    def __str__(self) -> str:
        return f"drop peer set {self.number}"


PipelineStep = (
    AddPeers
    | PutProgram
    | PutDestination
    | PutPoint
    | MakePair
    | AttachPick
    | Select
    | Park
    | Drain
    | Deselect
    | DropPoint
    | DropProgram
    | DropDestination
    | DropPeers
)
