"""What a tap's status says, by what its nodes say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_api import VirtualTap
from vtap_api.refusals import Refusal
from vtap_operator.conditions import Condition, TapStatus, tap_status_from, with_times
from vtap_operator.records import Report, Said, read_tap, read_tap_node
from vtap_operator.summary import Picture, summarise

GOOD = Said("True", "Programmed", "2 tap points copy from 1 pods")
CONFIRMED = Said("True", "Confirmed", "the collector acknowledges these streams")
REPORT = Report(3, 1, 1, 0, GOOD, CONFIRMED)
NO_PORT = "pod shop/web-0 interface eth0 leads to nothing on this node; attach it to a bridge"
BROKEN = replace(REPORT, attached=0, failed=1, programmed=Said("False", "NoPort", NO_PORT))


def status(reports: Mapping[str, Report], pods: Mapping[str, int] | None, **other: object) -> TapStatus:
    fields = {"generation": 3, "refusal": None, "agents": set(reports), **other}
    return summarise(Picture(pods=pods, reports=reports, **fields))  # type: ignore[arg-type]


def said(status: TapStatus, kind: str) -> tuple[str, str, str]:
    condition = status.condition(kind)
    assert condition is not None
    return (condition.status, condition.reason, condition.message)


def test_all_is_well() -> None:
    made = status({"a": REPORT, "b": REPORT}, {"a": 1, "b": 1})
    assert (made.matched, made.attached, made.failed) == (2, 2, 0)
    assert said(made, "Accepted") == ("True", "Accepted", "the tap is valid and its destination is allowed")
    assert said(made, "Programmed") == ("True", "Programmed", "2 pods on 2 nodes are copied")
    assert said(made, "Delivering") == ("True", "Confirmed", "the collector acknowledges these streams")


def test_one_node_is_enough_for_false_with_its_sentence_and_a_count_of_others() -> None:
    made = status({"a": REPORT, "b": BROKEN, "c": BROKEN, "d": BROKEN}, dict.fromkeys("abcd", 1))
    assert said(made, "Programmed") == ("False", "NoPort", f"node b: {NO_PORT} (2 other nodes say the same)")
    assert (made.matched, made.attached, made.failed) == (4, 1, 3)


def test_other_sentences_are_counted_as_such() -> None:
    other = replace(BROKEN, programmed=Said("False", "NoInterface", "no eth1"))
    made = status({"a": BROKEN, "b": other}, {"a": 1, "b": 1})
    assert said(made, "Programmed")[2].endswith("(1 other node says something else)")


def test_a_node_without_agent_is_named_and_its_pods_are_counted() -> None:
    made = status({"a": REPORT}, {"a": 1, "b": 2}, agents={"a"})
    assert made.matched == 3
    what = "node b has matching pods but no agent that reports; look at the pods of vtap-agent there"
    assert said(made, "Programmed") == ("Unknown", "NoAgent", what)
    many = status({}, dict.fromkeys(("a", "b", "c", "d", "e"), 1))
    assert "nodes a, b, c and 2 more have matching pods" in said(many, "Programmed")[2]


def test_false_says_more_than_unknown() -> None:
    made = status({"a": BROKEN}, {"a": 1, "b": 1}, agents={"a"})
    assert said(made, "Programmed")[0] == "False"


def test_an_agent_that_dies_is_not_believed_for_ever() -> None:
    made = status({"a": REPORT}, {"a": 1}, agents=set())
    assert said(made, "Programmed")[:2] == ("Unknown", "NoAgent")


def test_what_was_said_of_an_older_generation_does_not_count() -> None:
    made = status({"a": replace(REPORT, generation=2)}, {"a": 1})
    assert said(made, "Programmed") == ("Unknown", "Pending", "node a has not said yet what became of generation 3")


def test_no_pods() -> None:
    made = status({"a": replace(REPORT, matched=0, programmed=Said("False", "NoPods", "…"))}, {})
    assert said(made, "Programmed") == ("False", "NoPods", "spec.podSelector: matches no pod of this namespace")
    assert said(made, "Delivering")[:2] == ("False", "NothingProgrammed")


def test_pods_that_wait_for_a_node() -> None:
    assert said(status({}, {"": 2}), "Programmed") == ("Unknown", "PodsPending", "2 pods not running on any node yet")


def test_a_refused_tap_says_why_wherever_one_looks() -> None:
    made = status({"a": REPORT}, {"a": 1}, refusal=Refusal("DestinationNotFound", "spec.destinationRef.name: there is no …"))
    assert said(made, "Accepted") == ("False", "DestinationNotFound", "spec.destinationRef.name: there is no …")
    assert said(made, "Programmed") == ("False", "NotAccepted", "nothing is copied: spec.destinationRef.name: there is no …")


def test_a_version_that_is_refused_does_not_hide_that_an_earlier_one_goes_on() -> None:
    unread = Refusal("Invalid", "spec.filter: cannot be read")
    made = status({"a": replace(REPORT, generation=2)}, {}, refusal=unread)
    what = "it is not in force as it stands: spec.filter: cannot be read; 1 pod is copied as an earlier version says"
    assert said(made, "Programmed") == ("False", "NotAccepted", what)
    assert said(status({}, {}, refusal=unread), "Programmed")[2] == "nothing is copied: spec.filter: cannot be read"


def test_the_last_word_of_an_agent_whose_pods_are_gone_is_not_counted() -> None:
    made = status({"a": REPORT, "left": REPORT, "failed": BROKEN}, {"a": 1}, agents={"a"})
    assert (made.matched, made.attached, made.failed) == (1, 1, 0)
    assert said(made, "Programmed")[2] == "1 pod on 1 node is copied"


REPORTS = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(
        Report, st.integers(2, 4), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3),
        st.builds(Said, st.sampled_from(["True", "False", "Unknown"]), st.sampled_from(["X", "Y"]), st.sampled_from(["x", "y"])),
        st.builds(Said, st.sampled_from(["True", "False", "Unknown", "Maybe"]), st.just("X"), st.sampled_from(["x", "y"])),
    ),
)  # fmt: skip
PODS = st.none() | st.dictionaries(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 3))


@settings(deadline=None)
@given(REPORTS, PODS, st.sets(st.sampled_from("abcd")))
def test_whatever_nodes_say_the_status_is_valid_and_does_not_depend_on_who_spoke_first(
    reports: dict[str, Report], pods: dict[str, int] | None, agents: set[str]
) -> None:
    made = status(reports, pods, agents=agents)
    assert made == status(dict(reversed(reports.items())), pods, agents=agents)
    timed = replace(made, conditions=with_times(made.conditions, (), datetime(2026, 1, 2, tzinfo=UTC)))
    document = {
        "apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "a"}, "spec": {"podSelector": {}},
        "status": timed.to_json(),
    }  # fmt: skip
    VirtualTap.model_validate(document)
    assert tap_status_from(timed.to_json()) == timed


def test_a_time_changes_with_the_status_only() -> None:
    held = (Condition("Programmed", "False", "NoPods", "…", 1, "2026-01-01T00:00:00Z"),)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    (same,) = with_times([Condition("Programmed", "False", "NoPort", "other", 2)], held, now)
    (other,) = with_times([Condition("Programmed", "True", "Programmed", "", 2)], held, now)
    assert (same.since, other.since) == ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


def tap(spec: object, **meta: object) -> dict[str, object]:
    metadata = {
        "name": "a",
        "namespace": "shop",
        "uid": "u",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        **meta,
    }
    return {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": metadata, "spec": spec}


def test_a_tap_of_another_version_gets_a_sentence() -> None:
    made = read_tap(tap({"podSelector": {}, "direction": "both"}))
    assert made.problem == 'spec.direction: "both" is unknown; write Both.'
    assert read_tap(tap(None)).problem.startswith("spec: is missing")
    assert read_tap({"metadata": {"name": "a"}, "status": "odd", "spec": 7}).problem


def test_any_character_can_be_told_of() -> None:
    problem = read_tap(tap({"podSelector": {}, "ttl": "\U0001f600\u0085\u2028"})).problem
    assert "\U0001f600" in problem and problem.encode()
    assert "cannot be read" in read_tap(tap({"podSelector": {}, "ttl": "\ud83d"})).problem


def test_a_tap_ends_by_its_ttl() -> None:
    made = read_tap(tap({"podSelector": {}, "ttl": "1h30m"}))
    assert made.expiry == datetime(2026, 1, 1, 1, 30, tzinfo=UTC)


def test_a_tap_node_of_another_version_loses_only_what_cannot_be_read() -> None:
    made = read_tap_node({
        "metadata": {"name": "n1", "uid": "u"},
        "spec": {"keyBlock": {"first": 4096, "size": 4096}},
        "status": {"taps": [
            {"namespace": "shop", "name": "a", "generation": 2, "matchedPods": 1, "news": True, "conditions": [
                {"type": "Programmed", "status": "True", "reason": "Programmed", "message": "…"}]},
            {"namespace": "shop", "name": "b", "matchedPods": "many"},
            "odd",
        ]},
    })  # fmt: skip
    assert list(made.reports) == [("shop", "a")] and made.block == (4096, 4096)
    assert made.reports["shop", "a"].programmed.status == "True" and made.reports["shop", "a"].delivering.status == "Unknown"
    assert "upgrade agents and operator together" in made.problem
    assert read_tap_node({"metadata": {"name": "n1"}, "status": {"taps": "odd"}}).reports == {}
