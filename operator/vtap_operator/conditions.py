"""Conditions and the status of a tap as values: read leniently, compared, given their times, and written. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

MAX_MESSAGE = 32768


@dataclass(frozen=True, slots=True)
class Condition:
    """As metav1.Condition. `since` is its lastTransitionTime, empty while it is not written yet."""

    type: str
    status: str
    reason: str
    message: str
    observed_generation: int
    since: str = ""

    def to_json(self) -> dict[str, Any]:
        """As in an object."""
        return {
            "type": self.type,
            "status": self.status,
            "reason": self.reason,
            "message": self.message[:MAX_MESSAGE],
            "observedGeneration": self.observed_generation,
            "lastTransitionTime": self.since,
        }


@dataclass(frozen=True, slots=True)
class TapStatus:
    """Of a VirtualTap."""

    observed_generation: int = 0
    matched: int = 0
    attached: int = 0
    failed: int = 0
    conditions: tuple[Condition, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As in an object."""
        return {
            "observedGeneration": self.observed_generation,
            "matchedPods": self.matched,
            "attachedPods": self.attached,
            "failedPods": self.failed,
            "conditions": [one.to_json() for one in self.conditions],
        }

    def condition(self, kind: str) -> Condition | None:
        """One of them."""
        return next((one for one in self.conditions if one.type == kind), None)


NO_STATUS = TapStatus()
"""Nothing was said yet."""


def conditions_from(raw: Any) -> tuple[Condition, ...]:
    """What can be read of an object's conditions."""
    found: list[Condition] = []
    for one in raw if isinstance(raw, list) else ():
        if isinstance(one, Mapping):
            kind, status, reason, message = (sys.intern(str(one.get(key, ""))) for key in ("type", "status", "reason", "message"))
            since = str(one.get("lastTransitionTime", ""))
            found.append(Condition(kind, status, reason, message, _number(one.get("observedGeneration")), since))
    return tuple(found)


def tap_status_from(raw: Any) -> TapStatus:
    """What can be read of an object's status."""
    if not isinstance(raw, Mapping):
        return NO_STATUS
    keys = ("observedGeneration", "matchedPods", "attachedPods", "failedPods")
    generation, matched, attached, failed = (_number(raw.get(key)) for key in keys)
    return TapStatus(generation, matched, attached, failed, conditions_from(raw.get("conditions")))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def with_times(wanted: Iterable[Condition], held: Iterable[Condition], now: datetime) -> tuple[Condition, ...]:
    """Each has the time since when its status is what it is."""
    before = {one.type: one for one in held}
    return tuple(replace(one, since=_since(one, before.get(one.type), now)) for one in wanted)


def _since(wanted: Condition, held: Condition | None, now: datetime) -> str:
    if held is not None and held.status == wanted.status and held.since:
        return held.since
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
