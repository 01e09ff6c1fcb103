"""Ways to have copies cut, and what each copy must then be: its bytes, the length that its frame had, and the trailer's flags."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from vtap_agent.plan.dataplane import Action, Oversize, TapProgram

OUTER, TRAILER = 54, 20
"""What is around the frame in GRE-in-UDP over IPv4 to a collector of ours."""
CUT, OVERSIZE = 1, 2
MTU = 1000
Told = tuple[bytes, int, int]
"""(the frame as far as it is kept, its own length, flags)."""


@dataclass(frozen=True)
class Cutting:
    """A tap's way, a destination's, or both. Lengths in bytes; 0 is no limit."""

    snap_length: int = 0
    headers_only: bool = False
    mtu: int = 0

    @property
    def program(self) -> TapProgram:
        """That copies everything."""
        return TapProgram(Action.INCLUDE, (), snap_length=self.snap_length, headers_only=self.headers_only)

    @property
    def destination(self) -> dict[str, Any]:
        """What it differs in from others."""
        return {"mtu": self.mtu, "oversize": Oversize.TRUNCATE} if self.mtu else {}

    def of(self, frame: bytes, headers: int) -> Told:
        """What a copy of a frame must be, whose headers, to the end of the transport's, are so long."""
        wanted = min(len(frame), self.snap_length or len(frame), headers if self.headers_only else len(frame))
        room = self.mtu - (OUTER - 14) - TRAILER if self.mtu else wanted
        flags = (CUT if wanted < len(frame) else 0) | (OVERSIZE if room < wanted else 0)
        return frame[: min(wanted, room)], len(frame), flags


CUTTINGS = {
    "snapLength": Cutting(snap_length=64),
    "snapLength that some packets do not reach": Cutting(snap_length=80),
    "headersOnly": Cutting(headers_only=True),
    "Truncate": Cutting(mtu=MTU),
    "snapLength and Truncate": Cutting(snap_length=1100, mtu=MTU),
    "headersOnly and Truncate": Cutting(headers_only=True, mtu=MTU),
}


def told(copy: bytes) -> Told:
    """What a copy says."""
    length, flags = struct.unpack_from(">IH", copy, len(copy) - TRAILER + 8)
    return copy[OUTER:-TRAILER], length, flags
