"""How a set of addresses lies in slices, so that a change of one address changes one slice. Pure but for the arrays it owns."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from vtap_api.tappeerslice import MAX_ADDRESSES, MAX_SLICES

SHRINK_AT = 0.75
"""Slices are merged when this share of one slice less would hold all, so that a set about to grow again keeps its slices."""


class Layout:
    """Addresses, as numbers, in slices of at most `limit`. There is always a first slice, if an empty one."""

    __slots__ = ("limit", "slices")

    def __init__(self, slices: Iterable[Sequence[int]] = (), limit: int = MAX_ADDRESSES) -> None:
        self.limit = limit
        self.slices = [array("I", one) for one in slices] or [array("I")]

    def __len__(self) -> int:
        return sum(len(one) for one in self.slices)

    @property
    def overflows(self) -> bool:
        """Whether there are more slices than a selector may have; those beyond are not to be written."""
        return len(self.slices) > MAX_SLICES

    def all_slices(self) -> set[int]:
        """The numbers of all slices."""
        return set(range(len(self.slices)))

    def add(self, address: int) -> set[int]:
        """Put in an address that is not there. The slices that changed; all of them where their count did."""
        for index, one in enumerate(self.slices):
            if len(one) < self.limit:
                one.append(address)
                return {index}
        self.slices.append(array("I", (address,)))
        return self.all_slices()

    def remove(self, address: int) -> set[int]:
        """Take out an address that is there. The slices that changed; all of them where their count did."""
        for index, one in enumerate(self.slices):
            try:
                one.remove(address)
            except ValueError:
                continue
            return self.all_slices() if self._shrink() else {index}
        raise KeyError(address)

    def _shrink(self) -> bool:
        count = len(self.slices)
        if count == 1 or len(self) > (count - 1) * self.limit * SHRINK_AT:
            return False
        self.slices = pack(self.slices, {address for one in self.slices for address in one}, self.limit).slices
        return len(self.slices) != count


def pack(held: Sequence[Sequence[int]], wanted: Iterable[int], limit: int = MAX_ADDRESSES) -> Layout:
    """Lay out `wanted`: addresses that `held` slices have stay where they are as far as they are in the first slices needed."""
    missing = set(wanted)
    needed = max(1, -(-len(missing) // limit))
    count = max(needed, min(len(held), int(len(missing) / (limit * SHRINK_AT)) + 1))
    slices: list[list[int]] = []
    for one in held[:count]:
        kept: list[int] = []
        for address in one[:limit]:
            if address in missing:
                missing.discard(address)
                kept.append(address)
        slices.append(kept)
    slices += [[] for _ in range(count - len(slices))]
    rest = sorted(missing, reverse=True)
    for one in slices:
        while rest and len(one) < limit:
            one.append(rest.pop())
    return Layout(slices, limit)
