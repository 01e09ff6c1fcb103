"""What flows have left out, as one agent keeps it for the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtap_agent.backends import group_counts
from vtap_agent.backends.group_counts import BridgeCounts, CountsMemory, SwitchCounts
from vtap_agent.plan.groups import Counted
from vtap_agent.plan.slots import Assignment

COOKIE = 0x7654 << 48 | 9
COUNTS = SwitchCounts(
    {Assignment(3, "0badcafe"): 1 << 40},
    {
        "br0": BridgeCounts(77, {3: "0badcafe"}, {COOKIE: (3,)}, {COOKIE: Counted("table=1, priority=5,ip", 12)}),
        "br1": BridgeCounts(),
    },
)


def test_the_next_agent_knows_what_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "state" / "counts.json"
    assert CountsMemory(file).recall() == SwitchCounts()
    CountsMemory(file).keep(COUNTS)
    assert CountsMemory(file).recall() == COUNTS


def test_counts_of_before_the_node_was_booted_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, boot = tmp_path / "counts.json", tmp_path / "boot_id"
    boot.write_text("one\n")
    monkeypatch.setattr(group_counts, "BOOT", boot)
    CountsMemory(file).keep(COUNTS)
    assert CountsMemory(file).recall() == COUNTS
    boot.write_text("two\n")
    assert CountsMemory(file).recall() == SwitchCounts()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}', "{"])
def test_a_damaged_file_costs_counts_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    file = tmp_path / "counts.json"
    file.write_text(text)
    assert CountsMemory(file).recall() == SwitchCounts()
    assert f"{file} can't be read" in caplog.text and "counted from zero" in caplog.text


def test_a_file_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    CountsMemory(tmp_path / "file" / "counts.json").keep(COUNTS)
    assert "can't be written" in caplog.text and "make room" in caplog.text
