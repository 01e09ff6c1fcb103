"""What is in force after files have come, changed and gone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from vtap_agent.sources.desired import DirectoryState, advance
from vtap_agent.sources.files import UNSETTLED, Content
from vtap_agent.sources.loading import load_documents


def tap(name: str, app: str = "web") -> str:
    return f"""\
apiVersion: vtap.dev/v1alpha1
kind: VirtualTap
metadata: {{name: {name}, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: {app}}}}}}}
"""


DESTINATION = """\
apiVersion: vtap.dev/v1alpha1
kind: TapDestination
metadata: {name: default}
spec: {gre: {address: 198.51.100.7}}
"""


load = cache(load_documents)


def after(*steps: Mapping[str, str | Content]) -> DirectoryState:
    state = DirectoryState()
    for files in steps:
        contents = {name: Content(text) if isinstance(text, str) else text for name, text in files.items()}
        state = advance(state, contents, load)
    return state


def in_force(state: DirectoryState) -> dict[str, str]:
    return {item.metadata.name: item.spec.pod_selector.match_labels["app"] for item in state.snapshot.taps}


def test_documents_of_all_files_are_desired() -> None:
    snapshot = after({"a.yaml": f"{tap('one')}---\n{DESTINATION}", "b.yaml": tap("two")}).snapshot
    assert [item.metadata.name for item in snapshot.taps] == ["one", "two"]
    assert [item.metadata.name for item in snapshot.destinations] == ["default"]
    assert snapshot.generations == {"VirtualTap/shop/one": 1, "VirtualTap/shop/two": 1, "TapDestination//default": 1}
    assert snapshot.problems == ()


def test_a_file_that_turns_bad_leaves_its_tap_and_says_so() -> None:
    state = after({"a.yaml": tap("one")}, {"a.yaml": tap("one").replace("{podS", "{direction: both, podS")})
    assert in_force(state) == {"one": "web"}
    (problem,) = state.snapshot.problems
    assert problem.startswith("a.yaml: line 4: spec.direction: ")
    assert problem.endswith("The version read before stays in force.")


def test_a_file_that_was_never_good_holds_nothing_and_claims_nothing_to_be_kept() -> None:
    state = after({"a.yaml": "kind: ["})
    assert in_force(state) == {}
    assert "stays in force" not in state.snapshot.problems[0]


def test_nothing_of_a_bad_multi_document_file_is_applied() -> None:
    bad = f"{tap('one', app='new')}---\n{tap('two').replace('shop', 'SHOP')}"
    assert in_force(after({"a.yaml": bad})) == {}
    assert in_force(after({"a.yaml": tap("one")}, {"a.yaml": bad})) == {"one": "web"}


def test_an_emptied_file_keeps_its_tap_but_a_deleted_one_does_not() -> None:
    state = after({"a.yaml": tap("one")}, {"a.yaml": ""})
    assert in_force(state) == {"one": "web"} and "holds no document" in state.snapshot.problems[0]
    assert in_force(after({"a.yaml": tap("one")}, {})) == {}


def test_a_file_that_is_being_written_stays_as_it_was() -> None:
    state = after({"a.yaml": tap("one")}, {"a.yaml": UNSETTLED, "b.yaml": UNSETTLED})
    assert in_force(state) == {"one": "web"} and state.snapshot.problems == ()


def test_an_unreadable_file_stays_as_it_was_with_the_reason() -> None:
    state = after({"a.yaml": tap("one")}, {"a.yaml": Content(problem="a.yaml: can't be read; allow it.")})
    assert in_force(state) == {"one": "web"}
    assert state.snapshot.problems == ("a.yaml: can't be read; allow it. The version read before stays in force.",)


def test_the_second_file_with_a_name_is_refused_with_both_named() -> None:
    state = after({"b.yaml": tap("one", "first")}, {"a.yaml": tap("one", "second"), "b.yaml": tap("one", "first")})
    assert in_force(state) == {"one": "first"}
    assert state.snapshot.problems == (
        "a.yaml: VirtualTap shop/one is already in b.yaml; rename it, or remove it from one of the two files.",
    )


def test_two_new_files_with_a_name_are_ordered_by_the_alphabet() -> None:
    state = after({"b.yaml": tap("one", "b"), "a.yaml": tap("one", "a")})
    assert in_force(state) == {"one": "a"}
    assert state.snapshot.problems[0].startswith("b.yaml: VirtualTap shop/one is already in a.yaml")


def test_a_refused_double_takes_over_when_the_first_goes() -> None:
    both = {"a.yaml": tap("one", "a"), "b.yaml": tap("one", "b")}
    state = after({"a.yaml": tap("one", "a")}, both, {"b.yaml": tap("one", "b")})
    assert in_force(state) == {"one": "b"} and state.snapshot.problems == ()


def test_a_file_that_takes_a_name_of_another_keeps_what_it_had() -> None:
    before = {"a.yaml": tap("one"), "b.yaml": tap("two")}
    state = after(before, {"a.yaml": tap("two", "stolen"), "b.yaml": tap("two")})
    assert in_force(state) == {"one": "web", "two": "web"}
    assert state.snapshot.problems == (
        "a.yaml: VirtualTap shop/two is already in b.yaml; rename it, or remove it from one of the two files."
        " The version read before stays in force.",
    )


def test_a_bad_file_keeps_its_names() -> None:
    state = after({"b.yaml": tap("one")}, {"a.yaml": tap("one", "a"), "b.yaml": "["})
    assert in_force(state) == {"one": "web"}
    assert [problem.split(":")[0] for problem in state.snapshot.problems] == ["a.yaml", "b.yaml"]


def test_a_file_counts_again_when_its_rival_is_refused() -> None:
    state = after({"c.yaml": tap("one")}, {"a.yaml": f"{tap('one', 'a')}---\n{tap('two', 'a')}", "c.yaml": tap("two", "c")})
    assert in_force(state) == {"two": "c"}
    assert (
        state.snapshot.problems[0].startswith("a.yaml: VirtualTap shop/one is already in c.yaml")
        and len(state.snapshot.problems) == 1
    )


def test_two_files_may_swap_their_taps() -> None:
    state = after({"a.yaml": tap("one"), "b.yaml": tap("two")}, {"a.yaml": tap("two"), "b.yaml": tap("one")})
    assert in_force(state) == {"one": "web", "two": "web"} and state.snapshot.problems == ()


def test_a_renamed_file_changes_nothing_that_is_desired() -> None:
    before = after({"a.yaml": tap("one")})
    assert advance(before, {"z.yaml": Content(tap("one"))}, load_documents).snapshot == before.snapshot


def test_the_generation_counts_changes_of_the_object_alone() -> None:
    commented = f"# why\n{tap('one')}"
    state = after(
        {"a.yaml": tap("one")},
        {"a.yaml": commented},
        {"a.yaml": tap("one", "db")},
        {"a.yaml": tap("one", "db"), "b.yaml": tap("x")},
    )
    assert state.snapshot.generations == {"VirtualTap/shop/one": 2, "VirtualTap/shop/x": 1}


def test_kinds_that_we_write_ourselves_are_refused() -> None:
    node = "apiVersion: vtap.dev/v1alpha1\nkind: TapNode\nmetadata: {name: n}\nspec: {keyBlock: {first: 4096}}\n"
    problems = after({"a.yaml": node}).snapshot.problems
    assert problems and all(problem.startswith("a.yaml: ") for problem in problems)


NAMES = ("one", "two", "three")
FILES = st.dictionaries(
    st.sampled_from(["a.yaml", "b.yaml", "c.yaml"]),
    st.one_of(
        st.just("["),
        st.just(UNSETTLED),
        st.tuples(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True), st.sampled_from(["web", "db"])).map(
            lambda choice: "---\n".join(tap(name, choice[1]) for name in choice[0])
        ),
    ),
)


@settings(deadline=None)
@given(st.lists(FILES, min_size=1, max_size=5))
def test_no_name_is_ever_in_force_twice_and_good_files_without_rivals_always_are(steps: list[dict[str, str | Content]]) -> None:
    state = after(*steps)
    names = [item.metadata.name for item in state.snapshot.taps]
    assert len(names) == len(set(names))
    for name, content in steps[-1].items():
        wanted = set[str]() if isinstance(content, Content) or content == "[" else {n for n in NAMES if f"name: {n}," in content}
        others = {document.metadata.name for other, file in state.files.items() if other != name for document in file.in_force}
        if wanted and not wanted & others:
            assert wanted <= set(names), state.snapshot.problems
    assert len(state.snapshot.problems) >= sum(content == "[" for content in steps[-1].values())
