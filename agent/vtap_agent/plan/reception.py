"""Whether a collector's address is still its own. Pure.

The operator says where a collector's pod is. While the operator is away nobody does, and a pod's address may become that of
another tenant's pod: so the collector itself has to say which its addresses are, and to go on answering.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from vtap_agent.plan.destinations import ResolvedDestination

SILENCE = 15.0
"""Seconds for which a collector may not answer before nothing is sent any more to an address that is a pod's."""


@dataclass(frozen=True, slots=True)
class Reception:
    """What is known of a collector: the addresses that it says are its own, None where it has not said, and for how many seconds
    it has not answered."""

    addresses: frozenset[str] | None
    silence: float


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why copies are not sent to a destination: a reason, and a sentence that says what helps."""

    reason: str
    sentence: str


def withheld(destinations: Mapping[str, ResolvedDestination], known: Mapping[str, Reception]) -> dict[str, Withheld]:
    """By destination. An address that an admin wrote down is the admin's to be right about; who is not `known` was not asked."""
    judged = ((name, item, known[name]) for name, item in destinations.items() if item.is_pod and name in known)
    return {name: why for name, item, reception in judged if (why := _why(item, reception)) is not None}


def _why(destination: ResolvedDestination, reception: Reception) -> Withheld | None:
    what = "copies are dropped and counted as notReady"
    remote = destination.remote
    if reception.silence > SILENCE:
        return Withheld(
            "CollectorSilent",
            f"the collector of TapDestination {destination.name!r} has not answered for more than {SILENCE:g} s, so that "
            f"{remote} may be another pod's by now: {what} until it answers",
        )
    if reception.addresses is not None and str(ipaddress.ip_address(remote)) not in reception.addresses:
        where = ", ".join(sorted(reception.addresses)) or "none"
        return Withheld(
            "CollectorMoved",
            f"{remote} is not the address of TapDestination {destination.name!r}'s collector any more, which is at {where}: "
            f"{what} until the operator has said where it is; look whether the operator runs",
        )
    return None
