"""The resources of VirtualTap (`vtap.dev/v1alpha1`): models, defaults, validation. Pure; imports nothing of ours.

Names are imported when they are first asked for: building the models takes a third of a second, and `vtap ledger` needs none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtap_api.kinds import KINDS, Resource
    from vtap_api.meta import Condition, LabelSelector, LabelSelectorRequirement
    from vtap_api.tapdestination import TapDestination, TapDestinationSpec
    from vtap_api.tapnode import TapNode
    from vtap_api.tappeerslice import TapPeerSlice
    from vtap_api.virtualtap import MAX_MATCHES, Filter, FilterRule, Peer, PortRange, VirtualTap, VirtualTapSpec

_HOMES = {
    "kinds": ("KINDS", "Resource"),
    "meta": ("Condition", "LabelSelector", "LabelSelectorRequirement"),
    "tapdestination": ("TapDestination", "TapDestinationSpec"),
    "tapnode": ("TapNode",),
    "tappeerslice": ("TapPeerSlice",),
    "virtualtap": ("MAX_MATCHES", "Filter", "FilterRule", "Peer", "PortRange", "VirtualTap", "VirtualTapSpec"),
}

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


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"vtap_api.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
