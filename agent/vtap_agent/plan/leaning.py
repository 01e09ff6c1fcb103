"""Whether flows could leave out something at a tap point, as `Auto` goes by: held to while peers come and go. Pure.

How many peers a filter's selector means decides whether its match can be said in flows, and a Deployment that rolls its pods may
cross that number back and forth. So `Auto` goes by another answer once it has been the same for REGAIN seconds. An edit of the
filter is a person's, and counts at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vtap_agent.plan.auto import REGAIN
from vtap_agent.plan.dataplane import TapPointName
from vtap_api.virtualtap import Filter


@dataclass(frozen=True, slots=True)
class Leaning:
    """What is gone by at one tap point, for this filter."""

    sifts: bool
    filter: Filter | None
    otherwise_since: float = math.inf
    """Since when the answer has been the other one, in seconds of a monotonic clock."""


@dataclass(slots=True)
class Leans:
    """Those of one selection after another; `before` are the last one's."""

    before: Mapping[TapPointName, Leaning]
    now: float
    found: dict[TapPointName, Leaning] = field(default_factory=dict[TapPointName, Leaning])

    def waits(self, name: TapPointName) -> bool:
        """Whether the answer has become another one, by which `Auto` doesn't go yet."""
        return name in self.found and self.found[name].otherwise_since < math.inf

    def settle(self, name: TapPointName, wanted: Filter | None, *, sifts: bool) -> bool:
        """What to go by where the answer is `sifts` now."""
        last = self.before.get(name)
        if last is None or last.filter != wanted or last.sifts == sifts:
            self.found[name] = Leaning(sifts, wanted)
            return sifts
        since = min(last.otherwise_since, self.now)
        over = self.now - since >= REGAIN
        self.found[name] = Leaning(sifts, wanted) if over else Leaning(last.sifts, wanted, since)
        return self.found[name].sifts


def due(leans: Mapping[TapPointName, Leaning]) -> float:
    """When the next of them changes, if nothing else does."""
    return min((one.otherwise_since for one in leans.values()), default=math.inf) + REGAIN
