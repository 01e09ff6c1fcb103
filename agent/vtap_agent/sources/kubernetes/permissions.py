"""What the agent asks the API server for, as data: the chart's ClusterRole is tested against it, and so is the client."""

from __future__ import annotations

from dataclasses import dataclass

VTAP = "vtap.dev"
CORE = ""


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """`verb` on `resource` (``plural`` or ``plural/subresource``) of the API group `group`, "" for the core group."""

    group: str
    resource: str
    verb: str


PERMISSIONS = frozenset(
    {
        *(Permission(VTAP, "virtualtaps", verb) for verb in ("list", "watch")),
        *(Permission(VTAP, "tapdestinations", verb) for verb in ("list", "watch")),
        *(Permission(VTAP, "tappeerslices", verb) for verb in ("list", "watch")),
        *(Permission(VTAP, "tapnodes", verb) for verb in ("list", "watch")),
        Permission(VTAP, "tapnodes/status", "patch"),
        *(Permission(CORE, "pods", verb) for verb in ("list", "watch")),
        *(Permission(CORE, "namespaces", verb) for verb in ("list", "watch")),
    }
)
"""tappeerslices in the agent's own namespace alone; everything else in the whole cluster, as the API server has no narrower
right to watch. tapnodes are listed with a field selector for the node's own; a ValidatingAdmissionPolicy guards the patch."""
