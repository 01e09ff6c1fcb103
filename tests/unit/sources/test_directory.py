"""A directory of files, written to as people and machines do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vtap_agent.sources.desired import DesiredSnapshot
from vtap_agent.sources.directory import TapDirectory, is_wanted
from vtap_agent.sources.files import Content, FileReader

DEADLINE = 5.0


def tap(name: str = "one", app: str = "web") -> str:
    return f"""\
apiVersion: vtap.dev/v1alpha1
kind: VirtualTap
metadata: {{name: {name}, namespace: shop}}
spec: {{podSelector: {{matchLabels: {{app: {app}}}}}}}
"""


class Followed:
    """A started source that can be waited for. `seen` has every state that its callback could have read."""

    def __init__(self, directory: Path) -> None:
        self.source = TapDirectory(directory)
        self.seen: list[dict[str, str]] = []
        self._changed = threading.Condition()
        self.source.on_change(self._note)
        self.source.start()

    def _note(self) -> None:
        with self._changed:
            self.seen.append(self.apps)
            self._changed.notify_all()

    @property
    def snapshot(self) -> DesiredSnapshot:
        return self.source.snapshot()

    @property
    def apps(self) -> dict[str, str]:
        return {item.metadata.name: item.spec.pod_selector.match_labels["app"] for item in self.snapshot.taps}

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE), self.snapshot

    def becomes(self, apps: dict[str, str]) -> None:
        self.wait(lambda: self.apps == apps)


@pytest.fixture
def taps(tmp_path: Path) -> Path:
    directory = tmp_path / "taps"
    directory.mkdir()
    return directory


@pytest.fixture
def followed(taps: Path) -> Iterator[Followed]:
    follower = Followed(taps)
    yield follower
    follower.source.stop()


def test_what_is_there_at_the_start_is_there_after_start(taps: Path) -> None:
    (taps / "a.yaml").write_text(tap())
    follower = Followed(taps)
    assert follower.apps == {"one": "web"}
    follower.source.stop()


def test_create_change_rename_delete(taps: Path, followed: Followed) -> None:
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    (taps / "a.yaml").write_text(tap(app="db"))
    followed.becomes({"one": "db"})
    (taps / "a.yaml").rename(taps / "b.yaml")
    (taps / "c.yaml").write_text(tap("two"))
    followed.becomes({"one": "db", "two": "web"})
    assert {"two": "web"} not in followed.seen, "a renamed file's tap must not vanish in between"
    (taps / "b.yaml").unlink()
    followed.becomes({"two": "web"})


def test_a_file_replaced_at_once(taps: Path, followed: Followed) -> None:
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    (taps / ".a.yaml.new").write_text(tap(app="db"))
    (taps / ".a.yaml.new").rename(taps / "a.yaml")
    followed.wait(lambda: len(followed.seen) >= 2)
    assert followed.seen == [{"one": "web"}, {"one": "db"}]


def test_changes_follow_within_twenty_milliseconds(taps: Path, followed: Followed) -> None:
    """The median of twenty; one such series counts, as other work on the machine must not decide. No polling would get there."""

    def delays(series: int) -> list[float]:
        found: list[float] = []
        for number in range(20):
            text = tap(app=f"app-{series}-{number}")
            begun = time.monotonic()
            (taps / "a.yaml").write_text(text)
            followed.becomes({"one": f"app-{series}-{number}"})
            found.append(time.monotonic() - begun)
        return found

    assert any(sorted(delays(series))[10] < 0.02 for series in range(10))


def test_a_file_still_open_for_writing_does_not_count_yet(taps: Path, followed: Followed) -> None:
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    whole = tap(app="db") + "---\n" + tap("two")
    with (taps / "a.yaml").open("w") as file:
        file.write(whole[: whole.index("---")])  # A valid document, and yet only half of what is meant.
        file.flush()
        (taps / "marker.yaml").write_text(tap("marker"))
        followed.becomes({"one": "web", "marker": "web"})
        file.write(whole[whole.index("---") :])
    followed.becomes({"one": "db", "two": "web", "marker": "web"})
    assert all("two" in state for state in followed.seen if state.get("one") == "db")
    assert followed.snapshot.problems == ()


def test_a_file_that_is_open_for_writing_at_the_start(taps: Path) -> None:
    with (taps / "a.yaml").open("w") as file:
        file.write(tap())
        file.flush()
        follower = Followed(taps)
        assert follower.snapshot.taps == () and follower.snapshot.problems == ()
    follower.becomes({"one": "web"})
    follower.source.stop()


def test_a_bad_file_and_its_recovery(taps: Path, followed: Followed) -> None:
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    (taps / "a.yaml").write_text("kind: [")
    followed.wait(lambda: bool(followed.snapshot.problems))
    assert followed.apps == {"one": "web"}
    (taps / "a.yaml").write_text(tap(app="db"))
    followed.becomes({"one": "db"})
    assert followed.snapshot.problems == ()


def test_same_size_and_time_still_counts_as_another_content(taps: Path, followed: Followed) -> None:
    for app in ("aaa", "bbb", "ccc", "ddd"):
        (taps / "a.yaml").write_text(tap(app=app))
        os.utime(taps / "a.yaml", ns=(time.time_ns(), time.time_ns()))
        followed.becomes({"one": app})


def publish(volume: Path, version: str, **files: str) -> None:
    """As the kubelet's AtomicWriter lays it out: NAME → ..data/NAME, ..data → a timed directory."""
    target = volume / f"..{version}"
    target.mkdir(parents=True)
    for name, text in files.items():
        (target / f"{name}.yaml").write_text(text)
    (volume / "..data_tmp").symlink_to(target.name)
    (volume / "..data_tmp").rename(volume / "..data")
    for name in files:
        if not (volume / f"{name}.yaml").is_symlink():
            (volume / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")


def test_a_config_map_that_is_switched_over_while_it_is_read_is_never_seen_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    publish(volume, "v1", a=tap(), b=tap("two"))
    follower = Followed(volume)
    read, switched = FileReader.read, threading.Event()

    def switch_and_read(self: FileReader, path: Path) -> Content | None:
        if path.name == "b.yaml" and not switched.is_set():
            switched.set()
            publish(volume, "v2", a=tap(app="db"), b=tap("two", "db"))
        return read(self, path)

    monkeypatch.setattr(FileReader, "read", switch_and_read)
    (volume / "c.yaml").write_text(tap("three"))
    follower.becomes({"one": "db", "two": "db", "three": "web"})
    assert all(state["one"] == state["two"] for state in follower.seen), follower.seen
    follower.source.stop()


def test_a_mounted_config_map_is_switched_over(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    publish(volume, "v1", a=tap(), b=tap("two"))
    follower = Followed(volume)
    assert follower.apps == {"one": "web", "two": "web"}
    publish(volume, "v2", a=tap(app="db"), b=tap("two", "db"))
    follower.becomes({"one": "db", "two": "db"})
    follower.wait(lambda: len(follower.seen) >= 1)
    assert follower.seen == [{"one": "db", "two": "db"}]
    follower.source.stop()


def test_the_target_of_a_link_is_followed(tmp_path: Path, taps: Path, followed: Followed) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real").write_text(tap())
    (taps / "a.yaml").symlink_to(elsewhere / "real")
    followed.becomes({"one": "web"})
    (elsewhere / "real").write_text(tap(app="db"))
    followed.becomes({"one": "db"})


def test_a_directory_that_comes_late_goes_and_is_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    follower = Followed(directory)
    assert str(directory) in follower.snapshot.problems[0]
    directory.mkdir(parents=True)
    (directory / "a.yaml").write_text(tap())
    follower.becomes({"one": "web"})
    directory.rename(tmp_path / "not" / "away")
    follower.becomes({})
    directory.mkdir()
    (directory / "a.yaml").write_text(tap(app="db"))
    follower.becomes({"one": "db"})
    follower.source.stop()


@pytest.mark.parametrize("name", [".a.yaml", ".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913", "a.yaml.bak", "notes.txt", "..data"])
def test_editors_and_hidden_files_are_not_wanted(name: str) -> None:
    assert not is_wanted(name)


def test_directories_and_pipes_with_wanted_names_are_passed_over(taps: Path, followed: Followed) -> None:
    (taps / "d.yaml").mkdir()
    os.mkfifo(taps / "p.yaml")
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    assert followed.snapshot.problems == ()


def test_a_link_that_leads_to_itself_and_a_name_that_is_no_text(taps: Path, followed: Followed) -> None:
    (taps / "loop.yaml").symlink_to("loop.yaml")
    Path(os.fsdecode(os.fsencode(taps) + b"/\xff.yaml")).write_text("[")
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    assert [problem.encode() for problem in followed.snapshot.problems], "every sentence can be printed"
    assert any("loop.yaml" in problem for problem in followed.snapshot.problems)


def test_hundreds_of_writes_at_once_end_in_the_last(taps: Path, followed: Followed) -> None:
    for number in range(200):
        (taps / f"{number % 10}.yaml").write_text(tap(f"tap-{number % 10}", f"app-{number}"))
    followed.becomes({f"tap-{number}": f"app-{190 + number}" for number in range(10)})


def test_nothing_is_left_open(taps: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        follower = Followed(taps)
        (taps / "a.yaml").write_text(tap(app=f"app-{_}"))
        follower.becomes({"one": f"app-{_}"})
        follower.source.stop()
    assert (descriptors(), threading.active_count()) == (before, threads)


def test_a_look_that_fails_in_a_way_nobody_foresaw_does_not_end_the_following(taps: Path, followed: Followed) -> None:
    (taps / "a.yaml").write_text(tap())
    followed.becomes({"one": "web"})
    real, failures = followed.source._load, []

    def load(text: str, name: str):
        if not failures:
            failures.append(name)
            raise RecursionError("surprise")
        return real(text, name)

    followed.source._load = load
    (taps / "b.yaml").write_text(tap("two"))
    followed.becomes({"one": "web", "two": "web"})
    assert failures
