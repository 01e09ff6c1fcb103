"""All kinds together."""

from __future__ import annotations

from vtap_api.tapdestination import TapDestination
from vtap_api.tapnode import TapNode
from vtap_api.tappeerslice import TapPeerSlice
from vtap_api.virtualtap import VirtualTap

Resource = VirtualTap | TapDestination | TapNode | TapPeerSlice
"""A document of any of our kinds."""
KINDS: tuple[type[VirtualTap] | type[TapDestination] | type[TapNode] | type[TapPeerSlice], ...] = (
    VirtualTap,
    TapDestination,
    TapNode,
    TapPeerSlice,
)
