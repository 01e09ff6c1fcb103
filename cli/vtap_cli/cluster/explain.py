"""`kubectl vtap explain POD`: would this pod be tapped, by which tap, over which port and backend, and if not, why.

What agents have decided stands in their TapNodes; what can be said before, by the same rules as theirs, comes from the objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from vtap_api import refusals
from vtap_api.meta import LabelSelector
from vtap_api.selectors import holds, matches
from vtap_api.values import Duration
from vtap_cli.cluster.api import Forbidden, NotFound, of_core, of_group
from vtap_cli.cluster.objects import Object, destination_of, identity, labels_of, name_of, target_of
from vtap_cli.cluster.session import Session
from vtap_cli.cluster.status import Tree, told
from vtap_cli.errors import CliError
from vtap_cli.tables import table

COMPONENT = "vtap.dev/component"


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read. `node` is the TapNode of the pod's node; None where it was not to be had, which `notes` say."""

    pod: Object
    taps: Sequence[Object]
    destinations: Mapping[str, Object] | None
    namespace_labels: Mapping[str, str] | None
    node: Object | None
    vtap_namespace: str
    now: datetime
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TapAnswer:
    """What one tap means to the pod. `tapped`: some tap point copies; `reason` is a sentence where none does."""

    name: str
    selects: bool
    tapped: bool
    destination: str
    reason: str = ""
    points: Sequence[Object] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Answer:
    """`obstacle` is why no tap at all could have the pod, whatever it selects; empty where one could."""

    pod: str
    about: str
    obstacle: str
    taps: Sequence[TapAnswer]
    notes: Sequence[str]

    @property
    def tapped(self) -> bool:
        """Whether anything copies its packets."""
        return any(tap.tapped for tap in self.taps)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "pod": self.pod,
            "about": self.about,
            "tapped": self.tapped,
            "obstacle": self.obstacle,
            "taps": [
                {
                    "name": tap.name,
                    "selects": tap.selects,
                    "tapped": tap.tapped,
                    "destination": tap.destination,
                    "reason": tap.reason,
                    "points": [dict(point) for point in tap.points],
                }
                for tap in self.taps
            ],
            "notes": list(self.notes),
        }


def read(session: Session, text: str) -> Facts:
    """Ask for all that matters. Raises CliError."""
    namespace, name = session.tap_name(text.removeprefix("pod/"))
    try:
        pod = session.api.get(of_core("pods", namespace, name))
    except NotFound as error:
        raise CliError(f"there is no pod {namespace}/{name}; `kubectl get pods -n {namespace}` lists them") from error
    notes: list[str] = []
    taps = sorted(session.api.list(of_group("virtualtaps", namespace)), key=identity)
    destinations, why = session.destinations()
    if why:
        notes.append(f"whether destinations allow this namespace is left out: {why}")
    labels = None
    try:
        labels = labels_of(session.api.get(of_core("namespaces", "", namespace)))
    except Forbidden as error:
        notes.append(f"whether destinations allow this namespace by its labels is left out: {error}")
    return Facts(
        pod,
        taps,
        None if why else destinations,
        labels,
        _tap_node(session, str((pod.get("spec") or {}).get("nodeName") or ""), notes),
        session.vtap_namespace(destinations.values()),
        datetime.now(UTC),
        notes,
    )


def _tap_node(session: Session, node: str, notes: list[str]) -> Object | None:
    if not node:
        return None
    try:
        return session.api.get(of_group("tapnodes", "", node))
    except NotFound:
        notes.append(f"node {node} has no TapNode: either no agent may run there or the operator has not seen it yet")
    except Forbidden as error:
        notes.append(f"what the agent of node {node} says is left out: {error}")
    return None


def explain(facts: Facts) -> Answer:
    """Pure."""
    pod = facts.pod
    obstacle = _obstacle(facts)
    notes = [*facts.notes, *_agent_notes(facts.node)]
    return Answer("/".join(identity(pod)), _about(pod), obstacle, [_tap(tap, facts, obstacle) for tap in facts.taps], notes)


def _about(pod: Object) -> str:
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    addresses = ", ".join(str(item.get("ip")) for item in status.get("podIPs") or ())
    where = f"on node {spec['nodeName']}" if spec.get("nodeName") else "on no node yet"
    return ", ".join(part for part in (where, str(status.get("phase", "")), addresses) if part)


def _agent_notes(node: Object | None) -> Iterator[str]:
    for condition in ((node or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            yield f"the agent of node {name_of(node or {})} is not ready: {condition.get('message', '')}"


def _obstacle(facts: Facts) -> str:
    """docs/cluster.md, "Never tapped"."""
    pod = facts.pod
    spec, status, labels = pod.get("spec") or {}, pod.get("status") or {}, labels_of(pod)
    if spec.get("hostNetwork"):
        return "it uses the node's network; a tap on it would copy the whole node, so none is allowed"
    if labels.get(COMPONENT) and identity(pod)[0] == facts.vtap_namespace:
        return f"it is a part of VirtualTap itself (label {COMPONENT}: {labels[COMPONENT]}); tapping it could loop"
    if status.get("phase") in ("Succeeded", "Failed"):
        return f"it has ended ({status['phase']}) and sends nothing any more"
    if not spec.get("nodeName"):
        return "it runs on no node yet; see `kubectl describe pod`"
    return ""


def _tap(tap: Object, facts: Facts, obstacle: str) -> TapAnswer:
    namespace, name = identity(tap)
    spec = tap.get("spec") or {}
    wanted = destination_of(tap)
    destination = (facts.destinations or {}).get(wanted)
    target = wanted + (f" ({target_of(destination)})" if destination else "")
    title = f"{namespace}/{name}"
    mismatch = _mismatch(LabelSelector.model_validate(spec.get("podSelector") or {}), labels_of(facts.pod))
    if mismatch:
        return TapAnswer(title, False, False, target, f"does not select it: {mismatch}")
    points = _points(tap, facts)
    tapped = any(point.get("state") == "Ready" for point in points)
    if tapped or (points and not obstacle):
        return TapAnswer(title, True, tapped, target, "", points)
    reason = _expired(tap, facts.now) or _destination_trouble(wanted, namespace, facts) or obstacle or _silence(tap, facts)
    return TapAnswer(title, True, False, target, reason, points)


def _mismatch(selector: LabelSelector, labels: Mapping[str, str]) -> str:
    """The first part of the selector that does not hold; empty where all do."""
    if matches(selector, labels):
        return ""
    for key, value in selector.match_labels.items():
        if labels.get(key) != value:
            return f"it wants label {key}={value}, and the pod has " + (
                f"{key}={labels[key]}" if key in labels else "no such label"
            )
    for requirement in selector.match_expressions:
        if not holds(requirement, labels):
            values = f" ({', '.join(requirement.values)})" if requirement.values else ""
            has = f"{requirement.key}={labels[requirement.key]}" if requirement.key in labels else "no such label"
            return f"it wants label {requirement.key} {requirement.operator}{values}, and the pod has {has}"
    return ""


def _points(tap: Object, facts: Facts) -> list[Object]:
    """What the node's agent says of this pod and this tap; of an earlier pod of the same name nothing."""
    uid = (facts.pod.get("metadata") or {}).get("uid")
    return [
        point
        for point in ((facts.node or {}).get("status") or {}).get("points") or ()
        if (point.get("tapNamespace"), point.get("tapName")) == identity(tap)
        and point.get("podName") == name_of(facts.pod)
        and (not point.get("podUID") or point.get("podUID") == uid)
    ]


def _expired(tap: Object, now: datetime) -> str:
    ttl = (tap.get("spec") or {}).get("ttl")
    created = (tap.get("metadata") or {}).get("creationTimestamp")
    if not ttl or not created:
        return ""
    end = datetime.fromisoformat(str(created).replace("Z", "+00:00")) + timedelta(seconds=Duration(ttl).nanoseconds / 1e9)
    return f"the tap has ended: its ttl of {ttl} was over at {end:%Y-%m-%dT%H:%M:%SZ}" if end <= now else ""


def _destination_trouble(wanted: str, namespace: str, facts: Facts) -> str:
    if facts.destinations is None:
        return ""
    destination = facts.destinations.get(wanted)
    if destination is None:
        return refusals.destination_not_found(wanted, facts.destinations).sentence
    allowed = (destination.get("spec") or {}).get("allowedNamespaces") or {}
    if allowed.get("from", "All") != "Selector" or facts.namespace_labels is None:
        return ""
    if matches(LabelSelector.model_validate(allowed.get("selector") or {}), facts.namespace_labels):
        return ""
    return refusals.destination_not_allowed(wanted, namespace).sentence


def _silence(tap: Object, facts: Facts) -> str:
    """Why the agent says nothing of a pod that it should say something of."""
    node = str((facts.pod.get("spec") or {}).get("nodeName"))
    if facts.node is None:
        return f"nothing is known of node {node}"
    status = facts.node.get("status") or {}
    for said in status.get("taps") or ():
        if (said.get("namespace"), said.get("name")) == identity(tap):
            for condition in said.get("conditions") or ():
                if condition.get("status") != "True":
                    return f"node {node} says: {condition.get('message', '')}"
    if not (facts.node.get("spec") or {}).get("keyBlock"):
        return f"node {node} has no key block yet, which the operator grants; see `kubectl -n {facts.vtap_namespace} get pods`"
    return (
        f"the agent of node {node} has not said anything of it yet; "
        f"see `kubectl -n {facts.vtap_namespace} get pods -o wide -l {COMPONENT}=agent`"
    )


def render(answer: Answer) -> str:
    """A tree: those taps that select the pod first."""
    verdict = "tapped" if answer.tapped else "not tapped"
    below: list[Tree] = [Tree(f"no tap can have it: {answer.obstacle}")] if answer.obstacle else []
    below += _tap_trees(sorted(answer.taps, key=lambda tap: (not tap.selects, tap.name)), answer.obstacle)
    if not answer.taps:
        below.append(Tree("no VirtualTap in its namespace"))
    lines = [*Tree(f"pod {answer.pod} ({answer.about}): {verdict}", below).lines()]
    return "\n".join([*lines, *(f"note: {note}" for note in answer.notes)])


def _tap_trees(taps: Iterable[TapAnswer], said: str) -> Iterator[Tree]:
    for tap in taps:
        if not tap.selects:
            yield Tree(f"VirtualTap {tap.name} {tap.reason}")
            continue
        reasons = [Tree(tap.reason)] if tap.reason and tap.reason != said else []
        points = [Tree(line) for line in table(("",) * 6, map(_row, told(tap.points))).split("\n")[1:]]
        yield Tree(f"VirtualTap {tap.name} → {tap.destination}: {'tapped' if tap.tapped else 'not tapped'}", [*reasons, *points])


def _row(point: Object) -> Sequence[str]:
    cells = [str(point.get(name) or "-") for name in ("interface", "direction", "backend", "state")]
    return (*cells, f"key {point['key']}" if point.get("key") else "-", str(point.get("message") or ""))
