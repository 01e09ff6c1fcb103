"""Nothing is sent to an address that may be another pod's."""

from __future__ import annotations

import pytest

from tests.unit.plan.test_planning import COLLECTOR, collector, interface, inventory, only, plan, pod, tap
from vtap_agent.plan.assembly import assemble
from vtap_agent.plan.dataplane import DestinationState
from vtap_agent.plan.destinations import ResolvedDestination, resolve_destination
from vtap_agent.plan.reception import SILENCE, Reception, withheld
from vtap_agent.plan.selection import Desired, select
from vtap_agent.plan.slots import SlotTable, allocate
from vtap_agent.plan.verdicts import PointState
from vtap_api import TapDestination

SEEN = inventory([pod(1)], [interface(pod(1), 1)])


def run_by_the_operator(address: str = COLLECTOR) -> TapDestination:
    status = {"collector": {"address": address, "port": 4754, "url": "https://vtap-collector-default.vtap-system.svc:9471"}}
    body = {"metadata": {"name": "default"}, "spec": {"collector": {}}, "status": status}
    return TapDestination.model_validate(body)


def resolved(destination: TapDestination) -> dict[str, ResolvedDestination]:
    known = resolve_destination(destination)
    assert known is not None
    return {"default": known}


@pytest.mark.parametrize(
    ("reception", "reason"),
    [
        (Reception(None, 0.0), None),
        (Reception(None, SILENCE), None),
        (Reception(None, SILENCE + 1), "CollectorSilent"),
        (Reception(frozenset({COLLECTOR, "fd00::1"}), 0.0), None),
        (Reception(frozenset({"198.18.2.3"}), 0.0), "CollectorMoved"),
        (Reception(frozenset(), 0.0), "CollectorMoved"),
        (Reception(frozenset({COLLECTOR}), SILENCE + 1), "CollectorSilent"),
    ],
)
def test_who_answers_elsewhere_or_not_at_all_gets_nothing(reception: Reception, reason: str | None) -> None:
    found = withheld(resolved(run_by_the_operator()), {"default": reception})
    assert [why.reason for why in found.values()] == ([reason] if reason else [])
    assert all(COLLECTOR in why.sentence and "notReady" in why.sentence for why in found.values())


def test_an_address_is_the_same_however_it_is_written() -> None:
    said = Reception(frozenset({"fd00::7"}), 0.0)
    assert withheld(resolved(run_by_the_operator("FD00:0::7")), {"default": said}) == {}


def test_on_one_machine_copies_go_on_whoever_answers() -> None:
    """The address is what an admin wrote, and a collector that is started again there loses only what it missed."""
    for reception in (Reception(None, 1e9), Reception(frozenset({"198.18.2.3"}), 0.0)):
        assert withheld(resolved(collector()), {"default": reception}) == {}


def test_who_was_never_asked_is_not_judged() -> None:
    assert withheld(resolved(run_by_the_operator()), {}) == {}


def test_what_is_withheld_is_dropped_and_counted_and_said() -> None:
    desired = Desired((tap(),), (run_by_the_operator(),))
    fed = plan(desired, SEEN)
    selection = select(desired, SEEN)
    table = allocate(SlotTable(), [one.stream for one in selection.candidates], map("{:016x}".format, range(1, 9)).__next__).table
    heard = frozenset(stream.id for told in fed.announcements.values() for stream in told.streams)
    why = withheld(selection.destinations, {"default": Reception(frozenset({"198.18.2.3"}), 0.0)})
    outcome = assemble(selection, table, 4096, heard, SEEN, None, None, why)
    assert outcome.dataplane.destinations["default"].state is DestinationState.NOT_READY
    assert outcome.dataplane.sources == fed.dataplane.sources and outcome.announcements == fed.announcements
    points = only(outcome.verdicts).points
    assert {(point.state, point.reason, point.fed) for point in points} == {(PointState.WAITING, "CollectorMoved", True)}
