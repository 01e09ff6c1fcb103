"""Removes what an agent of a node has left behind, part by part, and tells what may stay of those that could not be reached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vtap_agent.backends.ovs_group import OvsGroupBackend
from vtap_agent.backends.ovs_mirror import OvsMirrorBackend
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.errors import VtapError
from vtap_agent.inventory import give_back_neighbours
from vtap_agent.pipeline import Pipeline
from vtap_agent.pipeline.recover import EdgePrograms
from vtap_agent.plan.dataplane import Backend, DataPlane
from vtap_agent.plan.steps import ordered

LEFT = {
    Backend.OVS_MIRROR: "OVSMirror's mirrors and tap ports",
    Backend.OVS_GROUP: "OVSGroup's flows, groups and tap ports",
    Backend.EBPF: "eBPF programs, maps and devices",
}
"""What a backend leaves. Programs, maps and devices serve all of them, and are EBPF's whole part."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What of ours may stay, and why."""

    backend: Backend
    reason: str


def told(failures: Iterable[Failure]) -> str:
    """What may stay, with each reason once; empty where nothing has failed."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for failure in failures:
        by_reason[failure.reason].append(LEFT[failure.backend])
    sentences = [f"{', and '.join(left)} may stay: {reason}" for reason, left in by_reason.items()]
    return " ".join((*map(_ended, sentences), "Then run --cleanup again")) if sentences else ""


def clean_switch(ovsdb: str, node: str) -> tuple[Failure, ...]:
    """Remove the node's mirrors, flows, groups and tap ports."""
    connection = OvsdbConnection(ovsdb)
    mirrors, groups = OvsMirrorBackend(connection, node), OvsGroupBackend(connection, node)

    def remove_mirrors() -> None:
        mirrors.observe()  # a plan for no mirrors at all would take silence for there being none
        mirrors.apply(ordered(mirrors.plan(DataPlane())))

    try:
        return (*attempt(Backend.OVS_MIRROR, remove_mirrors), *attempt(Backend.OVS_GROUP, groups.sweep))
    finally:
        mirrors.close()
        connection.close()


def clean_kernel(root: Path, node: str) -> frozenset[Backend]:
    """Remove programs, maps, pins and devices, and what we asked of neighbours. Returns the backends that had tap ports.

    Raises TellUser where programs cannot be loaded, Retry where the kernel refuses.
    """
    pipeline = Pipeline.open(root, node)
    backends = frozenset(feed.backend for feed in pipeline.tap_ports())
    EdgePrograms(root).destroy()
    pipeline.destroy()
    give_back_neighbours()
    return backends


def attempt(backend: Backend, remove: Callable[[], object]) -> tuple[Failure, ...]:
    """A failure of one part keeps no other from being removed."""
    try:
        remove()
    except VtapError as error:
        return (Failure(backend, str(error)),)
    return ()


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."
