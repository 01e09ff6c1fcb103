"""What all nodes say of a tap, summed up into its status. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from vtap_api.refusals import ACCEPTED, Refusal
from vtap_operator.conditions import Condition, TapStatus
from vtap_operator.records import Report, Said

NAMED = 3
"""Nodes that a sentence names; the others are counted."""
GOES_ON = frozenset({"Invalid", "TooManyPeers"})
"""Refusals of a version of a tap, not of the tap: where an earlier one is in force, nodes go on with that."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that a tap's status depends on.

    `pods` are the pods that its selector selects by node, those without a node by the empty name; None while they are not counted
    yet. `agents` are the nodes whose agent works.
    """

    generation: int
    refusal: Refusal | None
    pods: Mapping[str, int] | None
    reports: Mapping[str, Report]
    agents: Collection[str]


def summarise(picture: Picture) -> TapStatus:
    """The status, with conditions that have no times yet."""
    reports = [report for node, report in picture.reports.items() if _counts(picture, node)]
    counted = sum(picture.pods.values()) if picture.pods is not None else sum(report.matched for report in reports)
    attached = sum(report.attached for report in reports)
    failed = sum(report.failed for report in reports)
    return TapStatus(
        picture.generation,
        counted,
        attached,
        failed,
        tuple(
            Condition(kind, said.status, said.reason, said.message, picture.generation)
            for kind, said in (
                ("Accepted", _accepted(picture)),
                ("Programmed", _programmed(picture, attached)),
                ("Delivering", _delivering(picture)),
            )
        ),
    )


def _accepted(picture: Picture) -> Said:
    if picture.refusal is not None:
        return Said("False", picture.refusal.reason, picture.refusal.sentence)
    return Said("True", "Accepted", ACCEPTED)


def _programmed(picture: Picture, attached: int) -> Said:
    if picture.refusal is not None:
        if picture.refusal.reason in GOES_ON and attached:
            earlier = f"; {_count(attached, 'pod')} {_be(attached)} copied as an earlier version says"
            return Said("False", "NotAccepted", "it is not in force as it stands: " + picture.refusal.sentence + earlier)
        return Said("False", "NotAccepted", "nothing is copied: " + picture.refusal.sentence)
    if picture.pods is not None and not picture.pods:
        return Said("False", "NoPods", "spec.podSelector: matches no pod of this namespace")
    if (other := _other_than_true(picture, lambda report: report.programmed)) is not None:
        return other
    nodes = len(_concerned(picture))
    return Said("True", "Programmed", f"{_count(attached, 'pod')} on {_count(nodes, 'node')} {_be(attached)} copied")


def _delivering(picture: Picture) -> Said:
    if picture.refusal is not None or (picture.pods is not None and not picture.pods):
        return Said("False", "NothingProgrammed", "no tap point is programmed, see Programmed")
    if (other := _other_than_true(picture, lambda report: report.delivering)) is not None:
        return other
    said = [picture.reports[node].delivering for node in _concerned(picture)]
    return Said("True", said[0].reason or "Confirmed", said[0].message)


def _counts(picture: Picture, node: str) -> bool:
    """Whether what a node says is of pods that are there: an agent that is gone may have left its last word."""
    goes_on = picture.refusal is not None and picture.refusal.reason in GOES_ON
    return goes_on or picture.pods is None or bool(picture.pods.get(node))


def _concerned(picture: Picture) -> list[str]:
    """Nodes that have matching pods, as far as anybody knows."""
    if picture.pods is not None:
        return sorted(node for node, count in picture.pods.items() if node and count)
    return sorted(node for node, report in picture.reports.items() if report.matched)


def _other_than_true(picture: Picture, aspect: Callable[[Report], Said]) -> Said | None:
    """False if any node says so, else Unknown if any node does, or should say something and does not."""
    concerned = _concerned(picture)
    speaking = {node: picture.reports[node] for node in concerned if _speaks(picture, node)}
    said = {node: aspect(report) for node, report in speaking.items()}
    refused = {node: one for node, one in said.items() if one.status == "False"}
    if refused:
        return _first_of("False", refused)
    if silent := [node for node in concerned if node not in picture.agents]:
        what = f"{_nodes(silent)} {_have(silent)} matching pods but no agent that reports; look at the pods of vtap-agent there"
        return Said("Unknown", "NoAgent", what)
    if late := [node for node in concerned if node not in speaking]:
        what = f"{_nodes(late)} {_have(late)} not said yet what became of generation {picture.generation}"
        return Said("Unknown", "Pending", what)
    if unknown := {node: one for node, one in said.items() if one.status != "True"}:
        return _first_of("Unknown", unknown)
    if not concerned:
        if picture.pods is None:
            return Said("Unknown", "Pending", "no node has said yet what became of it")
        return Said("Unknown", "PodsPending", f"{_count(sum(picture.pods.values()), 'pod')} not running on any node yet")
    return None


def _speaks(picture: Picture, node: str) -> bool:
    report = picture.reports.get(node)
    return node in picture.agents and report is not None and report.generation >= picture.generation


def _first_of(status: str, said: Mapping[str, Said]) -> Said:
    """The first node's sentence, and how many others say the same or something else."""
    first = next(iter(said))
    spoken = said[first]
    others = [one for node, one in said.items() if node != first]
    same = sum(1 for one in others if one.message == spoken.message)
    parts = [f"{_count(same, 'other node')} {'says' if same == 1 else 'say'} the same"] if same else []
    if different := len(others) - same:
        parts.append(f"{_count(different, 'other node')} {'says' if different == 1 else 'say'} something else")
    more = f" ({', '.join(parts)})" if parts else ""
    return Said(status, spoken.reason or status, f"node {first}: {spoken.message}{more}")


def _nodes(names: Collection[str]) -> str:
    shown = sorted(names)
    listed = ", ".join(shown[:NAMED])
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return f"node{'s' if len(shown) > 1 else ''} {listed}{more}"


def _have(names: Collection[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
