"""The directory: which files are ours, which go first, and what is never followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtap_collector.announcements import TapName
from vtap_collector.errors import CollectorError
from vtap_collector.storage import Retained, Storage

TAP = TapName(namespace="shop", name="checkout")


def store(directory: Path, number: int, size: int = 100, day: int = 1) -> Path:
    file = directory / "shop" / "checkout" / f"checkout-202601{day:02}T000000Z-{number}.pcapng"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    return file


def test_oldest_first_by_time_and_number(tmp_path: Path) -> None:
    for number, day in ((10, 1), (9, 1), (1, 2)):
        store(tmp_path, number, day=day)
    (tmp_path / "shop" / "checkout" / "notes.txt").write_text("not ours")
    assert [(file.order[1], file.order[0][6:8]) for file in Storage(tmp_path).files(TAP)] == [(9, "01"), (10, "01"), (1, "02")]


def test_retention_deletes_the_oldest_closed_files(tmp_path: Path) -> None:
    files = [store(tmp_path, number) for number in range(1, 6)]
    storage = Storage(tmp_path)
    assert storage.retain(250, lambda file: file.name == files[0].name) == Retained(200, 3, 0)
    assert [file.exists() for file in files] == [True, False, False, False, True]
    assert storage.retain(0, lambda _file: False) == Retained(200, 0, 0)


def test_open_files_go_where_the_closed_ones_do_not_do(tmp_path: Path) -> None:
    files = [store(tmp_path, number) for number in range(1, 6)]
    storage = Storage(tmp_path)
    assert storage.retain(150, lambda file: file.name != files[3].name) == Retained(100, 4, 3)
    assert [file.exists() for file in files] == [False, False, False, False, True]


def test_retention_leaves_some_room(tmp_path: Path) -> None:
    for number in range(1, 101):
        store(tmp_path, number, size=10)
    assert Storage(tmp_path).retain(999, lambda _file: False).left == 930


def test_symbolic_links_lead_nowhere(tmp_path: Path) -> None:
    outside = store(tmp_path / "outside", 1)
    inside = tmp_path / "inside"
    (inside / "shop").mkdir(parents=True)
    (inside / "linked").symlink_to(tmp_path / "outside" / "shop")
    (inside / "shop" / "checkout").symlink_to(outside.parent)
    storage = Storage(inside)
    assert storage.files() == []
    assert storage.files(TAP) == []
    (inside / "shop" / "checkout").unlink()
    (inside / "shop" / "checkout").mkdir()
    (inside / "shop" / "checkout" / outside.name).symlink_to(outside)
    assert storage.files() == []
    assert storage.retain(1, lambda _file: False) == Retained(0, 0, 0)
    assert outside.exists()


def test_state_is_replaced_and_leaves_nothing_else(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert storage.read_state("x.json") is None
    storage.write_state("x.json", b"one")
    storage.write_state("x.json", b"two")
    assert storage.read_state("x.json") == b"two"
    assert [path.name for path in (tmp_path / ".state").iterdir()] == ["x.json"]


def test_a_directory_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CollectorError, match=r"--directory .*/file: File exists"):
        Storage(tmp_path / "file")
