"""What an agent that starts makes of files that hold a mistake now and held none before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.sources.test_directory import tap
from vtap_agent.sources.desired import KEPT
from vtap_agent.sources.directory import TapDirectory
from vtap_agent.sources.pods import NamespacePods, PodsFile


@pytest.fixture
def taps(tmp_path: Path) -> Path:
    directory = tmp_path / "taps"
    directory.mkdir()
    return directory


def started(taps: Path, memory: Path) -> tuple[dict[str, str], tuple[str, ...], dict[str, int]]:
    """(the app that each tap selects, problems, generations) of an agent that starts, as soon as it has."""
    source = TapDirectory(taps, memory=memory)
    source.start()
    source.stop()
    found = source.snapshot()
    apps = {one.metadata.name: one.spec.pod_selector.match_labels["app"] for one in found.taps}
    return apps, found.problems, dict(found.generations)


def test_a_file_that_is_bad_at_the_start_leaves_its_tap_as_it_was_and_says_so(taps: Path, tmp_path: Path) -> None:
    memory = tmp_path / "state" / "taps.json"
    (taps / "a.yaml").write_text(tap())
    (taps / "b.yaml").write_text(tap("two"))
    assert started(taps, memory)[0] == {"one": "web", "two": "web"}
    (taps / "a.yaml").write_text(tap(app="db"))
    assert started(taps, memory)[0] == {"one": "db", "two": "web"}
    (taps / "a.yaml").write_text("kind: VirtualTap\nspec: [")
    (taps / "b.yaml").unlink()
    for _ in range(2):
        apps, problems, _ = started(taps, memory)
        assert apps == {"one": "db"}, "deleted files are gone, mistakes change nothing"
        assert len(problems) == 1 and problems[0].startswith("a.yaml") and problems[0].endswith(KEPT)
    (taps / "a.yaml").write_text(tap(app="cache"))
    assert started(taps, memory)[:2] == ({"one": "cache"}, ())


def test_generations_go_on(taps: Path, tmp_path: Path) -> None:
    memory = tmp_path / "taps.json"
    for number, app in enumerate(("web", "db", "cache"), 1):
        (taps / "a.yaml").write_text(tap(app=app))
        for _ in range(2):
            assert started(taps, memory)[2] == {"VirtualTap/shop/one": number}


def test_a_name_that_is_claimed_twice_stays_with_the_file_that_had_it(taps: Path, tmp_path: Path) -> None:
    memory = tmp_path / "taps.json"
    (taps / "b.yaml").write_text(tap(app="had-it"))
    started(taps, memory)
    (taps / "a.yaml").write_text(tap(app="came-later"))
    apps, problems, _ = started(taps, memory)
    assert apps == {"one": "had-it"} and "is already in b.yaml" in problems[0]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "texts": 7, "generations": {}}'])
def test_a_memory_that_cannot_be_read_is_said_and_costs_nothing_else(taps: Path, tmp_path: Path, text: str) -> None:
    memory = tmp_path / "taps.json"
    memory.write_text(text)
    (taps / "bad.yaml").write_text("[")
    source = TapDirectory(taps, memory=memory)
    source.start()
    source.stop()
    assert [str(memory) in sentence for sentence in source.snapshot().problems] == [True, False]
    (taps / "a.yaml").write_text(tap())
    assert started(taps, memory)[0] == {"one": "web"}
    assert len(started(taps, memory)[1]) == 1, "it has been written anew"


def test_a_memory_that_cannot_be_written_is_said_and_taps_run_all_the_same(taps: Path, tmp_path: Path) -> None:
    (tmp_path / "taps.json.new").mkdir()
    (taps / "a.yaml").write_text(tap())
    apps, problems, _ = started(taps, tmp_path / "taps.json")
    assert apps == {"one": "web"} and "can't be kept for the agent's next start" in problems[0]


def test_what_this_version_takes_no_more_is_not_refused_silently(taps: Path, tmp_path: Path) -> None:
    memory = tmp_path / "taps.json"
    (taps / "a.yaml").write_text("[")
    memory.write_text(json.dumps({"format": 1, "texts": {"a.yaml": tap().replace("podSelector", "oldField")}, "generations": {}}))
    apps, problems, _ = started(taps, memory)
    assert apps == {} and "can't be used by this version" in problems[0] and "spec.podSelector: is missing" in problems[0]


def pods_of(source: PodsFile | NamespacePods) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    source.start()
    source.stop()
    found = source.snapshot()
    return [(pod.ref.name, pod.labels.get("app", "")) for pod in found.pods], found.problems


def test_a_list_of_pods_that_is_bad_at_the_start_leaves_the_pods_as_they_were(tmp_path: Path) -> None:
    file, memory = tmp_path / "pods.yaml", tmp_path / "pods.json"
    file.write_text("- {name: web-0, netns: /proc/self/ns/net, labels: {app: web}}")
    assert pods_of(PodsFile(file, memory=memory)) == ([("web-0", "web")], ())
    file.write_text("- {name: WEB}")
    for _ in range(2):
        pods, problems = pods_of(PodsFile(file, memory=memory))
        assert pods == [("web-0", "web")] and problems and problems[-1].endswith(KEPT)
    assert pods_of(PodsFile(file))[0] == []
