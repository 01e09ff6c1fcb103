"""Which slot, and so which key on the wire, each stream of this node has. Pure: a table in, a table out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from vtap_agent.plan.dataplane import MAX_SLOTS, Direction, TapPointName


@dataclass(frozen=True, slots=True, order=True)
class StreamName:
    """A tap point and who receives its copies. Another receiver is another stream, which starts from sequence 0."""

    point: TapPointName
    receiver: str
    """`ResolvedDestination.receiver`."""
    announced: bool = True
    """Whether the receiver is a collector of ours, which is told of the stream."""

    @property
    def destination(self) -> str:
        """The name of the TapDestination that was named."""
        return self.receiver.split(" ", 1)[0]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The slot of one stream and the incarnation it was handed out under."""

    slot: int
    incarnation: str
    """16 hex digits; new each time a slot is handed out."""


@dataclass(frozen=True, slots=True)
class SlotTable:
    """`free` lists slots that have been used and released, least recently used first; `next_unused` is the first never used."""

    assigned: Mapping[StreamName, Assignment] = field(default_factory=dict[StreamName, Assignment])
    free: tuple[int, ...] = ()
    next_unused: int = 0
    size: int = MAX_SLOTS


@dataclass(frozen=True, slots=True)
class Allocation:
    """The new table and what changed."""

    table: SlotTable
    added: tuple[StreamName, ...]
    released: Mapping[StreamName, Assignment]
    refused: tuple[StreamName, ...]
    """Streams for which the node's key block has no slot left."""


def allocate(table: SlotTable, wanted: Iterable[StreamName], new_incarnation: Callable[[], str]) -> Allocation:
    """Keep what is assigned and wanted, release what is not, hand out slots to what is new.

    A slot released now is handed out again only after every other free slot has been, so that copies still on their way
    under the old key are told from new ones by their incarnation's announcement.
    """
    wanted_set = frozenset(wanted)
    kept = {name: value for name, value in table.assigned.items() if name in wanted_set}
    released = {name: value for name, value in table.assigned.items() if name not in wanted_set}
    free = list(table.free) + sorted(value.slot for value in released.values())
    next_unused = table.next_unused
    added: list[StreamName] = []
    refused: list[StreamName] = []
    for name in sorted(wanted_set - kept.keys()):
        if next_unused < table.size:
            slot, next_unused = next_unused, next_unused + 1
        elif free:
            slot = free.pop(0)
        else:
            refused.append(name)
            continue
        kept[name] = Assignment(slot, new_incarnation())
        added.append(name)
    new_table = replace(table, assigned=kept, free=tuple(free), next_unused=next_unused)
    return Allocation(new_table, tuple(added), released, tuple(refused))


def to_json(table: SlotTable) -> dict[str, object]:
    """The table as plain data for the state file."""
    return {
        "size": table.size,
        "nextUnused": table.next_unused,
        "free": list(table.free),
        "assigned": [
            {
                "slot": value.slot,
                "incarnation": value.incarnation,
                "receiver": name.receiver,
                "announced": name.announced,
                "tap": [name.point.tap_namespace, name.point.tap_name],
                "pod": [name.point.pod_namespace, name.point.pod_name, name.point.pod_uid],
                "interface": name.point.interface,
                "direction": name.point.direction.value,
            }
            for name, value in sorted(table.assigned.items())
        ],
    }


def from_json(data: Mapping[str, object]) -> SlotTable:
    """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything that `to_json` did not write."""
    assigned: dict[StreamName, Assignment] = {}
    for row in _rows(data["assigned"]):
        tap, pod = _texts(row["tap"], 2), _texts(row["pod"], 3)
        point = TapPointName(tap[0], tap[1], pod[0], pod[1], pod[2], str(row["interface"]), Direction(str(row["direction"])))
        assigned[StreamName(point, str(row["receiver"]), bool(row["announced"]))] = Assignment(
            _number(row["slot"]), str(row["incarnation"])
        )
    slots = [value.slot for value in assigned.values()]
    free = tuple(_number(slot) for slot in _items(data["free"]))
    table = SlotTable(assigned, free, _number(data["nextUnused"]), _number(data["size"]))
    if len({*slots, *free}) != len(slots) + len(free) or any(not 0 <= slot < table.next_unused for slot in (*slots, *free)):
        raise ValueError("slots are assigned twice or out of range")
    return table


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("expected a list")
    return list(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _rows(value: object) -> list[Mapping[str, object]]:
    rows: list[Mapping[str, object]] = []
    for row in _items(value):
        if not isinstance(row, dict):
            raise TypeError("expected an object")
        rows.append(row)  # pyright: ignore[reportUnknownArgumentType]
    return rows


def _texts(value: object, count: int) -> list[str]:
    texts = [str(item) for item in _items(value)]
    if len(texts) != count:
        raise ValueError(f"expected {count} texts")
    return texts


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("expected a number")
    return value
