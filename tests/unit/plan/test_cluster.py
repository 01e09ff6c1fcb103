"""What a tap in a cluster copies while the operator has not said everything yet, and what nobody may tap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.plan.test_planning import COLLECTOR, HOP, gre, interface, inventory, only, plan, pod, tap
from vtap_agent.plan.cluster import Cluster, InForce, PeerKey, complete_sets, expired, settle, tap_key
from vtap_agent.plan.selection import Desired, remotes
from vtap_agent.plan.verdicts import TapVerdict
from vtap_agent.report.status import Observations, tap_status
from vtap_api import TapDestination, TapPeerSlice, VirtualTap

DATABASES = {"podSelector": {"matchLabels": {"app": "db"}}}
OURS = "vtap-system"


def filtered(peer: Mapping[str, Any] = DATABASES, name: str = "web", **spec: Any) -> VirtualTap:
    rules = {"defaultAction": "Exclude", "rules": [{"action": "Include", "peer": peer}]}
    return tap(name, filter=rules, **spec)


def peer_slice(*addresses: str, index: int = 0, count: int = 1, namespace: str = "shop", **selectors: Any) -> TapPeerSlice:
    spec = {"tapNamespace": namespace, "index": index, "count": count, "addresses": addresses, **(selectors or DATABASES)}
    return TapPeerSlice.model_validate({"metadata": {"name": f"peer-x-{index}", "namespace": OURS}, "spec": spec})


def collector(address: str = "", **spec: object) -> TapDestination:
    status = {"collector": {"address": address, "url": "https://vtap-collector-default.vtap-system.svc:9471"}} if address else {}
    body = {"metadata": {"name": "default"}, "spec": {"collector": {}, **spec}, "status": status}
    return TapDestination.model_validate(body)


def wanted(*taps: VirtualTap, slices: tuple[TapPeerSlice, ...] = (), before: InForce | None = None, **more: Any) -> Desired:
    """As the source does it."""
    now, waiting = settle(taps, slices, before or InForce())
    former = {name: now.taps[name] for name in waiting if name in now.taps}
    cluster = Cluster(own_namespace=OURS, namespaces={"shop": {"env": "test"}}, peers=now.peers, former=former, waiting=waiting)
    return Desired(tuple(taps), more.pop("destinations", (gre(),)), cluster=replace(cluster, **more))


def seen_pods() -> Any:
    pods = [pod(1), pod(2)]
    return inventory(pods, [interface(owner, number) for number, owner in enumerate(pods, 1)])


def conditions(verdict: TapVerdict) -> dict[str, tuple[str, str, str]]:
    return {item.type: (item.status, item.reason, item.message) for item in tap_status(verdict, Observations()).conditions}


def test_a_new_tap_copies_nothing_until_its_peers_are_resolved_and_then_only_theirs() -> None:
    outcome = plan(wanted(filtered()), seen_pods())
    assert outcome.dataplane.sources == () and outcome.dataplane.points == ()
    said = conditions(only(outcome.verdicts))
    assert said["Accepted"][0] == "True"
    assert said["Programmed"][:2] == ("False", "PeersUnresolved") and "check that vtap-operator runs" in said["Programmed"][2]
    assert said["Delivering"][:2] == ("False", "PeersUnresolved")
    outcome = plan(wanted(filtered(), slices=(peer_slice("10.0.7.1", "fd00::7"),)), seen_pods())
    assert set(outcome.dataplane.peer_sets.values()) == {frozenset({"10.0.7.1", "fd00::7"})}
    assert conditions(only(outcome.verdicts))["Programmed"][0] == "True"


def test_no_address_at_all_is_an_answer_too() -> None:
    outcome = plan(wanted(filtered(), slices=(peer_slice(),)), seen_pods())
    assert set(outcome.dataplane.peer_sets.values()) == {frozenset()}
    assert len(outcome.dataplane.points) == 4


def test_an_edited_tap_goes_on_as_it_was_until_its_new_peers_are_resolved() -> None:
    first = filtered(direction="Egress", packet={"snapLength": 64})
    slices = (peer_slice("10.0.7.1"),)
    before, waiting = settle([first], slices, InForce())
    assert not waiting
    edited = filtered({"podSelector": {"matchLabels": {"app": "cache"}}})
    outcome = plan(wanted(edited, slices=slices, before=before), seen_pods())
    (program,) = outcome.dataplane.programs.values()
    assert program.snap_length == 64 and set(outcome.dataplane.peer_sets.values()) == {frozenset({"10.0.7.1"})}
    assert {point.name.direction.value for point in outcome.dataplane.points} == {"Egress"}
    verdict = only(outcome.verdicts)
    assert "goes on as it was before" in conditions(verdict)["Programmed"][2]
    cache = peer_slice("10.0.8.1", podSelector={"matchLabels": {"app": "cache"}})
    outcome = plan(wanted(edited, slices=(*slices, cache), before=before), seen_pods())
    assert set(outcome.dataplane.peer_sets.values()) == {frozenset({"10.0.8.1"})} and len(outcome.dataplane.points) == 4


def test_a_tap_made_anew_under_the_same_name_is_a_new_tap() -> None:
    def named(uid: str, peer: Mapping[str, Any]) -> VirtualTap:
        made = filtered(peer)
        return made.model_copy(update={"metadata": made.metadata.model_copy(update={"uid": uid})})

    before, _ = settle([named("one", DATABASES)], [peer_slice("10.0.7.1")], InForce())
    other = {"podSelector": {"matchLabels": {"app": "cache"}}}
    now, waiting = settle([named("two", other)], [peer_slice("10.0.7.1")], before)
    assert now.taps == {} and "nothing is copied" in waiting["shop/web"]


def test_addresses_hold_while_slices_are_rewritten_one_by_one() -> None:
    one = filtered()
    before, _ = settle([one], [peer_slice("10.0.7.1")], InForce())
    growing, waiting = settle([one], [peer_slice("10.0.7.1", count=2)], before)
    assert growing == before and not waiting
    grown, _ = settle([one], [peer_slice("10.0.7.1", count=2), peer_slice("10.0.7.2", index=1, count=2)], growing)
    assert set(grown.peers.values()) == {frozenset({"10.0.7.1", "10.0.7.2"})}
    assert settle([], [], grown)[0] == InForce(), "what no tap uses is forgotten"


@pytest.mark.parametrize(
    "slices",
    [
        (peer_slice(count=2),),
        (peer_slice(index=1, count=2),),
        (peer_slice(count=2), peer_slice(count=2)),
        (peer_slice(count=2), peer_slice(index=1, count=3)),
    ],
)
def test_half_a_set_of_slices_is_none(slices: tuple[TapPeerSlice, ...]) -> None:
    assert complete_sets(slices) == {}


def test_slices_of_another_namespace_or_selector_are_not_ours() -> None:
    everywhere = peer_slice("10.9.9.9", namespaceSelector={}, podSelector={"matchLabels": {"app": "db"}})
    found = complete_sets([peer_slice("10.9.9.8", namespace="bank"), everywhere])
    assert PeerKey.of("shop", filtered().spec.filter.rules[0].peer) not in found  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    assert len(found) == 2


def test_a_collector_that_has_no_address_yet_is_waited_for() -> None:
    desired = wanted(tap(), destinations=(collector(),))
    assert remotes(desired) == frozenset()
    outcome = plan(desired, seen_pods())
    verdict = only(outcome.verdicts)
    assert outcome.dataplane.points == () and verdict.matched_pods == 2
    assert conditions(verdict)["Programmed"][:2] == ("False", "CollectorStarting")
    desired = wanted(tap(), destinations=(collector(COLLECTOR),))
    assert remotes(desired) == {COLLECTOR}
    outcome = plan(desired, inventory([pod(1)], [interface(pod(1), 1)], HOP))
    (told,) = outcome.announcements.values()
    assert told.endpoint.url == "https://vtap-collector-default.vtap-system.svc:9471"


def test_on_one_machine_such_a_collector_never_comes() -> None:
    outcome = plan(Desired((tap(),), (collector(),)), seen_pods())
    assert only(outcome.verdicts).reason == "DestinationUnusable"


def test_a_tap_ends_with_its_time() -> None:
    made = tap(ttl="30s")
    made = made.model_copy(update={"metadata": made.metadata.model_copy(update={"creation_timestamp": "2026-01-31T12:00:00Z"})})
    created = 1769860800.0
    assert expired([made, tap("other")], created + 29.9) == (frozenset(), created + 30)
    over, following = expired([made], created + 30)
    assert over == {"shop/web"} and following is None
    outcome = plan(wanted(made, expired=over), seen_pods())
    assert outcome.dataplane.points == ()
    assert conditions(only(outcome.verdicts))["Accepted"][:2] == ("False", "Expired")
    assert expired([tap(ttl="30s")], 1e12) == (frozenset(), None), "nobody has created it"


def test_what_is_ours_is_never_tapped_and_elsewhere_the_label_means_nothing() -> None:
    ours = replace(pod(1, namespace=OURS), labels={"app": "web", "vtap.dev/component": "collector"})
    theirs = replace(pod(2), labels={"app": "web", "vtap.dev/component": "collector"})
    seen = inventory([ours, theirs], [interface(ours, 1), interface(theirs, 2)])
    outcome = plan(wanted(tap(namespace=OURS), tap()), seen)
    assert {point.name.pod_namespace for point in outcome.dataplane.points} == {"shop"}
    refused = next(verdict for verdict in outcome.verdicts if verdict.namespace == OURS).points
    assert [point.reason for point in refused] == ["IsOurs"]


def test_a_namespace_whose_labels_are_unknown_is_not_taken_for_one_without() -> None:
    untested = {"from": "Selector", "selector": {"matchExpressions": [{"key": "env", "operator": "DoesNotExist"}]}}
    destination = gre(allowedNamespaces=untested)
    outcome = plan(wanted(tap(), destinations=(destination,), namespaces={}), seen_pods())
    assert only(outcome.verdicts).reason == "NamespaceUnknown" and outcome.dataplane.points == ()
    outcome = plan(wanted(tap(), destinations=(destination,)), seen_pods())
    assert only(outcome.verdicts).reason == "DestinationNotAllowed"
    outcome = plan(wanted(tap(), destinations=(destination,), namespaces={"shop": {}}), seen_pods())
    assert only(outcome.verdicts).reason == "Accepted" and tap_key(tap()) == "shop/web"
