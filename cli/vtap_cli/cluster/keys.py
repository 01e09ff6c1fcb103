"""`kubectl vtap keys`: from the TapNodes, in the form in which an agent answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vtap_cli.cluster.api import of_group
from vtap_cli.cluster.objects import Object, destination_of, identity, name_of
from vtap_cli.cluster.session import Session


def read(session: Session) -> dict[str, Any]:
    """Tap points of the namespace's taps that have a key. Raises CliError."""
    taps = {identity(tap): destination_of(tap) for tap in session.taps()}
    return {"keys": list(keys(taps, session.api.list(of_group("tapnodes"))))}


def keys(taps: dict[tuple[str, str], str], nodes: Iterable[Object]) -> Iterable[dict[str, Any]]:
    """`taps` are the destinations of those that are meant. Pure.

    A TapNode names no incarnation, as keys are all that a sensor sees.
    """
    for node in nodes:
        for point in (node.get("status") or {}).get("points") or ():
            tap = (str(point.get("tapNamespace", "")), str(point.get("tapName", "")))
            if tap in taps and point.get("key"):
                yield {
                    "key": point["key"],
                    "incarnation": "",
                    "tap": {"namespace": tap[0], "name": tap[1]},
                    "pod": {"namespace": tap[0], "name": point.get("podName", ""), "uid": point.get("podUID", "")},
                    "interface": point.get("interface", ""),
                    "direction": point.get("direction", ""),
                    "destination": taps[tap],
                    "node": name_of(node),
                }
