"""The resources of VirtualTap (`vtap.dev/v1alpha1`): models, defaults, validation. Pure; imports nothing of ours."""

from vtap_api.meta import Condition, LabelSelector, LabelSelectorRequirement
from vtap_api.tapdestination import TapDestination, TapDestinationSpec
from vtap_api.tapnode import TapNode
from vtap_api.tappeerslice import TapPeerSlice
from vtap_api.virtualtap import MAX_MATCHES, Filter, FilterRule, Peer, PortRange, VirtualTap, VirtualTapSpec

Resource = VirtualTap | TapDestination | TapNode | TapPeerSlice
"""A document of any of our kinds."""
KINDS: tuple[type[VirtualTap] | type[TapDestination] | type[TapNode] | type[TapPeerSlice], ...] = (
    VirtualTap,
    TapDestination,
    TapNode,
    TapPeerSlice,
)

__all__ = [
    "KINDS",
    "MAX_MATCHES",
    "Condition",
    "Filter",
    "FilterRule",
    "LabelSelector",
    "LabelSelectorRequirement",
    "Peer",
    "PortRange",
    "Resource",
    "TapDestination",
    "TapDestinationSpec",
    "TapNode",
    "TapPeerSlice",
    "VirtualTap",
    "VirtualTapSpec",
]
