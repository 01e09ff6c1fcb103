"""This node's pods: what the API server says of them, and where the node's processes say their network is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vtap_agent.plan.inventory_model import Pod, PodRef
from vtap_agent.sources.kubernetes.following import Object
from vtap_agent.sources.kubernetes.sandboxes import Sandboxes
from vtap_agent.sources.kubernetes.shelf import Shelf
from vtap_agent.sources.pods import PodsSnapshot
from vtap_api.values import FrozenMap

OVER = frozenset({"Succeeded", "Failed"})
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"
"""Of a static pod: the UID that kubelet knows it by, and so does its cgroup."""
_STATIC_UID = re.compile(r"[0-9a-f]{32}")
"""As kubelet makes it, a hash; all others are UUIDs, with dashes. Whoever may make pods may write the annotation, too: it must
not name another's pod, whose packets would be copied in its stead."""


@dataclass(frozen=True, slots=True)
class PodRecord:
    """What is kept of a pod."""

    namespace: str
    name: str
    uid: str
    labels: FrozenMap
    host_network: bool = False
    cgroup_uid: str = ""
    """Names the pod's cgroup."""

    def as_json(self) -> dict[str, Any]:
        """For the state file."""
        return {
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "labels": dict(self.labels),
            "hostNetwork": self.host_network,
            "cgroupUID": self.cgroup_uid,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PodRecord:
        """The inverse of `as_json`."""
        namespace, name, uid = (str(data[part]) for part in ("namespace", "name", "uid"))
        return cls(namespace, name, uid, FrozenMap(data["labels"]), bool(data["hostNetwork"]), str(data["cgroupUID"]))


def record_of(item: Object) -> PodRecord | None:
    """What is kept of a pod; None of one that runs no more."""
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    if status.get("phase") in OVER:
        return None
    uid = metadata["uid"]
    return PodRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=uid,
        labels=FrozenMap(metadata.get("labels") or {}),
        host_network=bool(spec.get("hostNetwork")),
        cgroup_uid=_cgroup_uid(uid, (metadata.get("annotations") or {}).get(MIRROR_ANNOTATION, "")),
    )


def _cgroup_uid(uid: str, mirrored: str) -> str:
    return mirrored if _STATIC_UID.fullmatch(mirrored) else uid


def pods_of(records: Mapping[str, PodRecord], paths: Mapping[str, str]) -> tuple[Pod, ...]:
    """Pods with the paths of their network namespaces, which are found by the UID of the cgroup. Pure.

    Of pods that claim the same one, none has it: only one of them can be right, and nothing tells which.
    """
    claims = Counter(record.cgroup_uid for record in records.values())
    return tuple(
        Pod(
            PodRef(record.namespace, record.name, record.uid),
            record.labels,
            "" if record.host_network or claims[record.cgroup_uid] > 1 else paths.get(record.cgroup_uid, ""),
            record.host_network,
        )
        for _, record in sorted(records.items())
    )


class KubernetesPods:
    """What `inventory.Observer` asks for its pods. `shelf` is filled by a follower of this node's pods."""

    def __init__(self, sandboxes: Callable[[Callable[[], None]], Sandboxes] = Sandboxes) -> None:
        self._callbacks: list[Callable[[], None]] = []
        self._last: tuple[Mapping[str, PodRecord], Mapping[str, str], str, PodsSnapshot] | None = None
        self.sandboxes = sandboxes(self._notify)
        self.shelf = Shelf(record_of, self._pods_changed)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Register before following begins."""
        self._callbacks.append(callback)

    def snapshot(self) -> PodsSnapshot:
        """The pods now. The same object as long as nothing has changed."""
        records, paths, problem = self.shelf.items(), self.sandboxes.paths(), self.sandboxes.problem
        last = self._last
        if last is not None and last[0] is records and last[1] is paths and last[2] == problem:
            return last[3]
        found = PodsSnapshot(pods_of(records, paths), (problem,) if problem else ())
        self._last = (records, paths, problem, found)
        return found

    def look_for_all(self) -> None:
        """Tell what is to be found; after `shelf` was filled by hand."""
        records = self.shelf.items().values()
        self.sandboxes.want(frozenset(record.cgroup_uid for record in records if not record.host_network))

    def _pods_changed(self) -> None:
        self.look_for_all()
        self._notify()

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()
