"""The demo is what newcomers see first: it comes out right, and leaves nothing however it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtap_api.virtualtap import BackendName
from vtap_lab import preflight, registry, traces
from vtap_lab.capture import tshark
from vtap_lab.demo import BACKENDS
from vtap_lab.errors import wait_for

TERMS = ("seen", "excluded", "unsampled", "sent", "received", "stored", "lost", "dropped", "unaccounted")
COMMAND = [sys.executable, "-m", "vtap_lab.demo"]

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _needs_a_lab() -> None:
    if reason := preflight.why_no_lab():
        pytest.skip(reason)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], registry.Record]]:
    """A demo whose traffic is on, and its lab's record."""
    known = {record.id for record in registry.records()}
    output = tmp_path / "output"
    with output.open("wb") as out:
        process = subprocess.Popen([*COMMAND, f"--captures={tmp_path}"], stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(lambda: ", stored " in output.read_text() or process.poll() is not None, 60, "the demo's table is shown")
        assert process.poll() is None, output.read_text()
        (record,) = [r for r in registry.records() if r.id not in known and r.owner.pid == process.pid]
        yield process, record
    finally:
        process.kill()
        process.wait()
        registry.sweep()


def _left_of(record: registry.Record) -> list[str]:
    return [line for line in traces.traces() if record.id in line]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != BackendName.AUTO])
def test_it_ends_with_a_ledger_that_adds_up(tmp_path: Path, backend: str) -> None:
    chosen = [f"--backend={backend}"] if backend else []
    done = subprocess.run([*COMMAND, f"--captures={tmp_path}", *chosen], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("ledger: ")
    terms = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", last)}
    assert tuple(terms) == TERMS
    assert terms["unaccounted"] == 0
    assert terms["stored"] > 0
    assert terms["excluded"] > 0
    assert "none of its unicast packets is in the capture" in done.stdout
    path = re.search(r"^ {2}(/.*\.pcapng)$", done.stdout, re.MULTILINE)
    assert path is not None
    assert tmp_path in Path(path[1]).parents
    assert "HTTP" in tshark(Path(path[1]), "-Y", "http", "-c", "1000")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(running: tuple[subprocess.Popen[bytes], registry.Record], number: signal.Signals) -> None:
    process, record = running
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert _left_of(record) == []


def test_killed_it_is_cleared_away_by_the_next(running: tuple[subprocess.Popen[bytes], registry.Record]) -> None:
    process, record = running
    process.kill()
    process.wait()
    assert _left_of(record) != []
    registry.sweep()  # As each lab does before anything else.
    assert _left_of(record) == []
