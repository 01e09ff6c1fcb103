"""The matrix says of every cell what became of it, and lets none be forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.columns import DATAPATHS, NO_SWITCH, PLAIN, Column, columns_of, why_not
from tests.contract.matrix import Cell, Verdict, draw, unexplained
from vtap_api.virtualtap import BackendName
from vtap_lab import preflight

pytest_plugins = ["pytester"]

COLUMNS = [("OVSMirror", "netdev"), ("OVSMirror", "kernel"), ("EBPF", "bridge")]
CASES = ["egress alone", "access vlan"]
CHOSEN = [Cell(case, *column) for case in CASES for column in COLUMNS]
NO_MODULE = "openvswitch.ko is not in this kernel: make test-kernel"


def test_a_cell_is_a_verdict_or_a_number_that_leads_to_a_reason() -> None:
    verdicts = {cell: Verdict() for cell in CHOSEN}
    verdicts |= {cell: Verdict(reason=NO_MODULE) for cell in CHOSEN if cell.datapath == "kernel"}
    verdicts[Cell("access vlan", "OVSMirror", "netdev")] = Verdict(failed=True)
    verdicts[Cell("access vlan", "EBPF", "bridge")] = Verdict(reason="a plain bridge")
    assert draw(CASES, COLUMNS, CHOSEN, verdicts).splitlines() == [
        "              OVSMirror       EBPF",
        "              netdev  kernel  bridge",
        "egress alone  ok      [1]     ok",
        "access vlan   FAIL    [1]     [2]",
        f"[1] {NO_MODULE}",
        "[2] a plain bridge",
    ]
    assert unexplained(CHOSEN, verdicts) == []


def test_a_backend_of_one_column_has_room_for_its_name() -> None:
    columns = [("OVSMirror", "tso"), ("OVSGroup", "netdev"), ("OVSGroup", "tso"), ("EBPF", "bridge")]
    cells = [Cell("ipv6", *column) for column in columns]
    assert draw(["ipv6"], columns, cells, {cell: Verdict(failed=True) for cell in cells}).splitlines() == [
        "      OVSMirror  OVSGroup      EBPF",
        "      tso        netdev  tso   bridge",
        "ipv6  FAIL       FAIL    FAIL  FAIL",
    ]


def test_a_cell_that_was_chosen_and_never_judged_shows() -> None:
    chosen = CHOSEN[:-1]
    verdicts = {cell: Verdict() for cell in chosen[1:]}
    lines = draw(CASES, COLUMNS, chosen, verdicts).splitlines()
    assert lines[2] == "egress alone  ?       ok      ok"
    assert lines[3] == "access vlan   ok      ok      ·"
    assert lines[4:] == ["·   not chosen by the arguments of this run", "?   neither verdict nor reason: a failure"]
    assert unexplained(chosen, verdicts) == [chosen[0]]


@pytest.mark.parametrize("backend", [BackendName.OVS_MIRROR, BackendName.OVS_GROUP, BackendName.EBPF])
def test_every_backend_has_a_column_of_every_datapath_and_a_reason_where_it_can_never_be(backend: BackendName) -> None:
    columns = columns_of(backend)
    assert columns == [Column(backend.value, datapath) for datapath in DATAPATHS]
    alone = next(column for column in columns if column.datapath == PLAIN)
    assert why_not(alone) == (preflight.why_no_lab() or (None if backend is BackendName.EBPF else NO_SWITCH))


SUITE = """
import pytest
from tests.contract.columns import Column

@pytest.fixture
def column(request):
    return request.param

COLUMNS = pytest.mark.parametrize("column", [Column("OVSMirror", "netdev"), Column("EBPF", "bridge")], indirect=True, ids=str)

@COLUMNS
def test_good(column):
    pass

@COLUMNS
def test_not_everywhere(column):
    if column.backend == "EBPF":
        pytest.skip(REASON)
"""
CONFTEST = """
from tests.contract.matrix import MatrixPlugin

def pytest_configure(config):
    config.pluginmanager.register(MatrixPlugin())
"""


@pytest.mark.parametrize(
    ("workers", "reason", "status", "shown"),
    [
        ([], '"it has none"', 0, ["good*ok*ok", "not everywhere*ok*[[]1]", "[[]1] it has none"]),
        (["-n1"], '""', 1, ["good*ok*ok", "not everywhere*ok*?"]),
    ],
    ids=["explained", "unexplained, by a worker"],
)
def test_a_skip_without_a_reason_fails_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: list[str], reason: str, status: int, shown: list[str]
) -> None:
    """Also where workers run the cases and another process draws the matrix."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE.replace("REASON", reason))
    done = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", *workers)
    assert done.ret == status
    done.stdout.fnmatch_lines([f"*{line}*" for line in shown])
