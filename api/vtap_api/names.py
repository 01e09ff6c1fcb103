"""Names and labels of objects that the operator makes, for whoever has to find them. Pure."""

from __future__ import annotations

import hashlib

COMPONENT_LABEL = "vtap.dev/component"
"""On our pods: operator, agent or collector."""
DESTINATION_LABEL = "vtap.dev/destination"
"""On all that belongs to a collector: the TapDestination's name, as `label_value` gives it."""
PEER_LABEL = "vtap.dev/peer"
"""On TapPeerSlices: the hash of the selector."""
MAX_NAME = 63
_HASH = 10


def collector_name(destination: str, suffix: int = len("-tls")) -> str:
    """The name of a collector's Deployment, Service and so on. Room is left for `suffix` characters after it."""
    return _fitting("vtap-collector-", destination, MAX_NAME - suffix)


def label_value(name: str) -> str:
    """An object's name as a label's value: as it is where it fits."""
    return name if len(name) <= MAX_NAME else _cut(name, name, MAX_NAME)


def _fitting(prefix: str, name: str, room: int) -> str:
    """A DNS label. Dots do not fit there, and a name that had to be changed gets a hash, so that no two become one."""
    plain = prefix + name.replace(".", "-")
    return plain if plain == prefix + name and len(plain) <= room else _cut(plain, name, room)


def _cut(text: str, name: str, room: int) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH]
    return f"{text[: room - _HASH - 1].rstrip('-.')}-{digest}"
