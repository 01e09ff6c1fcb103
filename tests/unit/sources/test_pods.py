"""Pods from a list in a file, and from namespaces' own files."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vtap_agent.sources.files import Content
from vtap_agent.sources.pod_files import DeclaredPod, parse_pod, parse_pods
from vtap_agent.sources.pods import PodsFile, PodsSnapshot, pods_of


def declared(*items: tuple[str, str, str]) -> list[tuple[DeclaredPod, str]]:
    return [(DeclaredPod(name=name, netns=netns, uid=uid), netns) for name, netns, uid in items]


def test_pods_with_their_namespaces() -> None:
    text = "- {name: web-0, namespace: shop, labels: {app: web}, netns: web0}\n- {name: db, netns: /proc/7/ns/net, uid: abc}\n"
    pods, problems = parse_pods(Content(text), "pods.yaml")
    assert problems == ()
    assert [(pod.namespace, pod.name, pod.labels, pod.netns, pod.uid) for pod in pods] == [
        ("shop", "web-0", {"app": "web"}, "web0", ""),
        ("default", "db", {}, "/proc/7/ns/net", "abc"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{name: a}", "pods.yaml: line 1: is no list of pods; begin each pod with '- name: …'."),
        ("- {name: a}", "pods.yaml: line 1: [0].netns: is missing; add it."),
        (
            "- {name: a, netns: x}\n- {name: A_b, netns: x}",
            "pods.yaml: line 2: [1].name: \"A_b\" is no DNS name; use lower-case letters, digits and '-'.",
        ),
        (
            "- {name: a, netns: x, label: {}}",
            "pods.yaml: line 1: [0].label: is not a field; the fields of a pod are name, namespace, uid, labels and netns.",
        ),
        ("- {name: a, netns: x, labels: {app: 1}}", "pods.yaml: line 1: [0].labels.app: 1 is not text; write it in quotes."),
        ("- web", 'pods.yaml: line 1: [0]: "web" is not a mapping of fields; write {name: …, netns: …}.'),
        ("[]\n---\n[]", "pods.yaml: line 3: begins a second document; remove the line of dashes."),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_counts(text: str, sentence: str) -> None:
    assert parse_pods(Content(text), "pods.yaml") == ((), (sentence,))


@pytest.mark.parametrize(
    "text", ["[" * 400_000, "- " * 200_000 + "x", "a: &a [*a]\n", "- !!python/object:os.system x", "\0", "- [", "- 2024-99-99"]
)
def test_hostile_text_is_a_sentence_too(text: str) -> None:
    pods, problems = parse_pods(Content(text), "pods.yaml")
    assert pods == () and problems


def test_an_empty_list_is_no_mistake() -> None:
    assert parse_pods(Content(""), "f") == ((), ()) and parse_pods(Content("[]"), "f") == ((), ())


def test_a_namespaces_own_file_says_more_of_it() -> None:
    default = DeclaredPod(name="ns1", netns="ns1")
    pod, problems = parse_pod(Content("{namespace: shop, labels: {app: web}}"), "f", default)
    assert problems == () and pod == DeclaredPod(name="ns1", netns="ns1", namespace="shop", labels={"app": "web"})
    assert parse_pod(Content("{netns: other}"), "f", default)[0] is None


def test_the_namespace_makes_the_pod_where_no_uid_is_given() -> None:
    snapshot = pods_of(declared(("a", "/n/a", ""), ("b", "/n/b", "given")), {"/n/a": "netns:7", "/n/b": "netns:8"}, "f")
    assert [(pod.ref.uid, pod.netns) for pod in snapshot.pods] == [("netns:7", "/n/a"), ("given", "/n/b")]


def test_a_pod_whose_namespace_is_not_there_waits() -> None:
    snapshot = pods_of(declared(("a", "/n/a", "")), {}, "pods.yaml")
    assert snapshot.pods[0].netns == ""
    assert snapshot.problems == ("pods.yaml: pod default/a: there is no network namespace /n/a; its taps wait for it.",)


def test_doubles_are_refused_with_the_reason() -> None:
    items = declared(("a", "/n/a", ""), ("a", "/n/b", ""), ("c", "/n/a2", ""), ("d", "/n/d", "u"), ("e", "/n/e", "u"))
    uids = {"/n/a": "netns:7", "/n/a2": "netns:7", "/n/b": "netns:8", "/n/d": "netns:9", "/n/e": "netns:10"}
    snapshot = pods_of(items, uids, "f")
    assert [pod.ref.name for pod in snapshot.pods] == ["a", "d"]
    assert snapshot.problems == (
        "f: pod default/a is declared twice; rename or remove one.",
        "f: pod default/c is the same network namespace as pod default/a; remove one of the two.",
        "f: pod default/e has the uid of pod default/d; give each its own, or none.",
    )


def test_several_absent_namespaces_are_no_doubles() -> None:
    snapshot = pods_of(declared(("a", "/n/a", ""), ("b", "/n/b", "")), {}, "f")
    assert [pod.ref.name for pod in snapshot.pods] == ["a", "b"]


def test_a_missing_file_holds_no_pods_and_says_so(tmp_path: Path) -> None:
    source = PodsFile(tmp_path / "pods.yaml")
    source.start()
    try:
        assert source.snapshot() == PodsSnapshot(
            problems=(f"{tmp_path / 'pods.yaml'}: there is no such file; make it, or name another with --pods.",)
        )
    finally:
        source.stop()


def test_a_bad_file_keeps_its_pods_also_while_it_is_written_again(tmp_path: Path) -> None:
    file = tmp_path / "pods.yaml"
    file.write_text("- {name: a, netns: vtap-nowhere}\n")
    source = PodsFile(file, netns_directory=tmp_path)
    changed = threading.Event()
    source.on_change(changed.set)
    source.start()
    try:
        before = source.snapshot()
        assert [pod.ref.name for pod in before.pods] == ["a"] and len(before.problems) == 1
        with file.open("w") as writing:
            writing.write("- {name: [")
            writing.flush()
            assert not changed.wait(0.1) and source.snapshot() == before
        assert changed.wait(5)
        assert source.snapshot().pods == before.pods and len(source.snapshot().problems) == 2
    finally:
        source.stop()
