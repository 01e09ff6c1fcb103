"""`kubectl vtap status`: a tree of tap, node, pod and interface, with what the operator and the agents say of each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vtap_cli.cluster import agents
from vtap_cli.cluster.agents import Readings
from vtap_cli.cluster.api import Forbidden, of_group
from vtap_cli.cluster.objects import Object, destination_of, identity, name_of, target_of
from vtap_cli.cluster.session import Session
from vtap_cli.progress import progress
from vtap_cli.status import rates_text
from vtap_cli.tables import table

WATCH_SECONDS = 2.0
CLEAR = "\x1b[H\x1b[2J\x1b[3J"


@dataclass(frozen=True, slots=True)
class Tree:
    """A line and what hangs below it."""

    text: str
    below: Sequence[Tree] = ()

    def lines(self) -> Iterator[str]:
        """Drawn with branches."""
        yield self.text
        for index, child in enumerate(self.below):
            last = index == len(self.below) - 1
            for number, line in enumerate(child.lines()):
                lead = ("└─ " if last else "├─ ") if number == 0 else ("   " if last else "│  ")
                yield lead + line


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look at the cluster gave. `notes` are sentences about what could not be seen."""

    taps: Sequence[Object]
    destinations: Mapping[str, Object]
    nodes: Sequence[Object]
    notes: Sequence[str]
    vtap_namespace: str


def look(session: Session, tap: str) -> Seen:
    """All that the API server knows of the taps that are meant. Raises CliError."""
    taps = session.taps(tap)
    notes: list[str] = []
    destinations, why = session.destinations()
    if why:
        notes.append(f"destinations left out: {why}")
    try:
        nodes = sorted(session.api.list(of_group("tapnodes")), key=name_of)
    except Forbidden as error:
        nodes = []
        notes.append(f"nodes left out: {error}")
    return Seen(taps, destinations, nodes, notes, session.vtap_namespace(destinations.values()))


def nodes_with_points(seen: Seen) -> set[str]:
    """Nodes on which one of the taps has a tap point: whose agents are worth asking."""
    wanted = {identity(tap) for tap in seen.taps}
    return {name_of(node) for node in seen.nodes if any(_tap_of(point) in wanted for point in _status(node, "points"))}


def read_counters(session: Session, seen: Seen) -> Readings:
    """The agents' counters as far as they may be read."""
    nodes = nodes_with_points(seen)
    return agents.read(session, seen.vtap_namespace, nodes) if nodes else Readings({})


def answer(seen: Seen, before: Readings, after: Readings) -> dict[str, Any]:
    """What is shown, for programs. Pure."""
    rates = agents.rates(before, after)
    return {
        "taps": [_tap(tap, seen, rates) for tap in seen.taps],
        "notes": [*seen.notes, *_agent_notes(seen), *after.notes("rates")],
    }


def _agent_notes(seen: Seen) -> Iterator[str]:
    for node in seen.nodes:
        for condition in _status(node, "conditions"):
            if condition.get("type") == "Ready" and condition.get("status") != "True":
                yield f"node {name_of(node)}: {condition.get('message', '')}"


def _status(item: Object, name: str) -> list[Any]:
    return list((item.get("status") or {}).get(name) or ())


def _tap_of(point: Object) -> tuple[str, str]:
    return str(point.get("tapNamespace", "")), str(point.get("tapName", ""))


Rates = Mapping[tuple[str, agents.PointKey], Mapping[str, float]]


def _tap(tap: Object, seen: Seen, rates: Rates) -> dict[str, Any]:
    namespace, name = identity(tap)
    status = tap.get("status") or {}
    destination = destination_of(tap)
    known = seen.destinations.get(destination)
    nodes = [made for node in seen.nodes if (made := _node((namespace, name), node, rates))]
    return {
        "namespace": namespace,
        "name": name,
        "generation": (tap.get("metadata") or {}).get("generation", 0),
        "destination": {"name": destination, "target": target_of(known) if known else ""},
        **{field: status.get(field) for field in ("matchedPods", "attachedPods", "failedPods")},
        "conditions": _status(tap, "conditions"),
        "nodes": nodes,
    }


def _node(tap: tuple[str, str], node: Object, rates: Rates) -> dict[str, Any] | None:
    """What one node says of one tap; None where it has nothing to say."""
    points = [point for point in _status(node, "points") if _tap_of(point) == tap]
    said = next((entry for entry in _status(node, "taps") if (entry.get("namespace"), entry.get("name")) == tap), None)
    if not points and said is None:
        return None
    pods: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        pods.setdefault(str(point.get("podName", "")), []).append(_point(tap, node, point, rates))
    said = said or {}
    return {
        "name": name_of(node),
        **{field: said.get(field) for field in ("matchedPods", "attachedPods", "failedPods")},
        "conditions": list(said.get("conditions") or ()),
        "pods": [{"name": pod, "points": found} for pod, found in sorted(pods.items())],
    }


def _point(tap: tuple[str, str], node: Object, point: Object, rates: Rates) -> dict[str, Any]:
    fields = {name: point.get(name) for name in ("interface", "direction", "key", "backend", "why", "state", "reason", "message")}
    key = (*tap, tap[0], str(point.get("podName", "")), str(point.get("interface", "")), str(point.get("direction", "")))
    rate = rates.get((name_of(node), key))
    return {**fields, **({"rates": dict(rate)} if rate else {})}


def render(shown: Mapping[str, Any], nowhere: str) -> str:
    """The tree; `nowhere` is what to say where there is no tap."""
    lines = [line for tap in shown["taps"] for line in (*_tap_tree(tap).lines(), "")]
    if not shown["taps"]:
        lines = [nowhere, ""]
    lines += [f"note: {note}" for note in shown["notes"]]
    return "\n".join(lines).rstrip("\n")


def _tap_tree(tap: Mapping[str, Any]) -> Tree:
    target = tap["destination"]["target"]
    title = f"VirtualTap {tap['namespace']}/{tap['name']} → {tap['destination']['name']}" + (f" ({target})" if target else "")
    conditions = [
        (*(str(item.get(name, "")) for name in ("type", "status", "reason", "message")), _outdated(item, tap["generation"]))
        for item in tap["conditions"]
    ]
    below = [Tree(line) for line in _aligned(conditions)]
    if not conditions:
        below.append(Tree("no status yet; does the operator run?"))
    return Tree(title + _pods(tap), [*below, *_node_trees(tap["nodes"])])


def _outdated(condition: Mapping[str, Any], generation: int) -> str:
    observed = condition.get("observedGeneration") or 0
    return "(of an earlier version of the tap)" if observed and observed < generation else ""


def _pods(counts: Mapping[str, Any]) -> str:
    if counts.get("matchedPods") is None:
        return ""
    return f": pods {counts['matchedPods']}, attached {counts.get('attachedPods') or 0}, failed {counts.get('failedPods') or 0}"


def _node_trees(nodes: Iterable[Mapping[str, Any]]) -> Iterator[Tree]:
    nodes = list(nodes)
    rows = iter(_aligned([_row(point) for node in nodes for pod in node["pods"] for point in told(pod["points"])]))
    for node in nodes:
        troubles = [Tree(_trouble(item)) for item in node["conditions"] if item.get("status") != "True"]
        pods = [Tree(f"pod {pod['name']}", [Tree(next(rows)) for _ in told(pod["points"])]) for pod in node["pods"]]
        yield Tree(f"node {node['name']}{_pods(node)}", [*troubles, *pods])


def told(points: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """For people: what is said of a pod as a whole, and therefore of both directions, is said once."""
    return list({_saying(point): point if point.get("interface") else {**point, "direction": ""} for point in points}.values())


def _saying(point: Mapping[str, Any]) -> tuple[Any, ...]:
    where = (point.get("interface"), point.get("direction")) if point.get("interface") else ()
    return (*where, point.get("state"), point.get("message"))


def _trouble(condition: Mapping[str, Any]) -> str:
    return "  ".join(str(condition.get(name, "")) for name in ("type", "status", "reason", "message"))


def _row(point: Mapping[str, Any]) -> Sequence[str]:
    said = [str(point.get("message") or ""), rates_text(point.get("rates") or {})]
    return (
        str(point.get("interface") or "-"),
        str(point.get("direction") or "-"),
        str(point.get("backend") or "-"),
        str(point.get("state") or "?"),
        f"key {point['key']}" if point.get("key") else "-",
        "; ".join(part for part in said if part),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    return table(("",) * len(rows[0]), rows).split("\n")[1:] if rows else []


Show = Callable[[Mapping[str, Any]], None]


def once(session: Session, tap: str, show: Show) -> None:
    """Call `show` with what there is, rates over a second included. Raises CliError."""
    seen = look(session, tap)
    before = read_counters(session, seen)
    if before.by_node:
        with progress("measuring rates"):
            time.sleep(agents.SECOND_LOOK)
        show(answer(seen, before, read_counters(session, seen)))
    else:
        show(answer(seen, before, before))


def watch(session: Session, tap: str, show: Show) -> None:
    """Call `show` every other second until interrupted, on a cleared terminal. Raises CliError."""
    before = Readings({})
    with suppress(KeyboardInterrupt):
        while True:
            seen = look(session, tap)
            after = read_counters(session, seen)
            if sys.stdout.isatty():
                sys.stdout.write(CLEAR)
            show(answer(seen, before, after))
            sys.stdout.flush()
            before = after
            time.sleep(WATCH_SECONDS)
