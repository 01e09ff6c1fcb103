"""The matrix of cases and columns: gathered from pytest's reports, also from those of xdist's workers, and drawn at the end.

A cell is "ok", "FAIL", or a number that leads to the reason why it is empty. One with none of these has failed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "contract"
"""In a report's user properties: [case, backend, datapath]."""
_OK, _FAIL, _UNEXPLAINED, _NOT_CHOSEN = "ok", "FAIL", "?", "·"
_NO_REASON = ("", "Skipped", "unconditional skip")


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A case on a backend and a datapath."""

    case: str
    backend: str
    datapath: str

    @property
    def column(self) -> tuple[str, str]:
        return (self.backend, self.datapath)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` says why there is none; empty where there is one."""

    failed: bool = False
    reason: str = ""


def unexplained(chosen: Iterable[Cell], verdicts: Mapping[Cell, Verdict]) -> list[Cell]:
    """Cells that should have been judged and have neither verdict nor reason."""
    return sorted(cell for cell in set(chosen) if cell not in verdicts)


def draw(
    cases: Sequence[str], columns: Sequence[tuple[str, str]], chosen: Iterable[Cell], verdicts: Mapping[Cell, Verdict]
) -> str:
    """The matrix as text, cases and columns in the order given, with the reasons below it."""
    wanted, notes = set(chosen), _Notes()
    marks = [[_mark(Cell(case, *column), wanted, verdicts, notes) for column in columns] for case in cases]
    widths = _widths(columns)
    first = max((len(case) for case in cases), default=0) + 2
    lines = [" " * first + _heading(columns, widths), " " * first + _row([name for _, name in columns], widths)]
    lines += [f"{case:{first}}{_row(row, widths)}" for case, row in zip(cases, marks, strict=True)]
    return "\n".join([*(line.rstrip() for line in lines), *notes.lines()])


class _Notes:
    """Reasons, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._marks: set[str] = set()

    def mark(self, reason: str) -> str:
        return f"[{self._numbers.setdefault(reason, len(self._numbers) + 1)}]"

    def use(self, mark: str) -> str:
        self._marks.add(mark)
        return mark

    def lines(self) -> list[str]:
        legend = {_NOT_CHOSEN: "not chosen by the arguments of this run", _UNEXPLAINED: "neither verdict nor reason: a failure"}
        lines = [f"[{number}] {reason}" for reason, number in self._numbers.items()]
        return lines + [f"{mark}   {text}" for mark, text in legend.items() if mark in self._marks]


def _mark(cell: Cell, chosen: set[Cell], verdicts: Mapping[Cell, Verdict], notes: _Notes) -> str:
    verdict = verdicts.get(cell)
    if verdict is None:
        return notes.use(_UNEXPLAINED if cell in chosen else _NOT_CHOSEN)
    if verdict.reason:
        return notes.mark(verdict.reason)
    return _FAIL if verdict.failed else _OK


def _heading(columns: Sequence[tuple[str, str]], widths: Sequence[int]) -> str:
    """Each backend once, over its columns."""
    spans = {
        backend: sum(width for (name, _), width in zip(columns, widths, strict=True) if name == backend) for backend, _ in columns
    }
    return "".join(backend.ljust(span) for backend, span in spans.items())


def _widths(columns: Sequence[tuple[str, str]]) -> list[int]:
    """Of each column, so that a backend's name fits over its columns, the last of which is widened."""
    widths = [max(len(datapath), len(_FAIL)) + 2 for _, datapath in columns]
    for backend in dict.fromkeys(backend for backend, _ in columns):
        at = [number for number, (name, _) in enumerate(columns) if name == backend]
        widths[at[-1]] += max(0, len(backend) + 2 - sum(widths[number] for number in at))
    return widths


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))


class MatrixPlugin:
    """Registered in every session; draws nothing where no case of the contract was chosen."""

    def __init__(self) -> None:
        self.cells: dict[Cell, None] = {}
        """Chosen, in the order of collection."""
        self.verdicts: dict[Cell, Verdict] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        if (cell := _cell_of_item(item)) is not None:
            item.user_properties.append((PROPERTY, [cell.case, cell.backend, cell.datapath]))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.cells |= {cell: None for item in session.items if (cell := _cell_of_item(item)) is not None}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Skips of one reason are told as one, wherever the case is written."""
        report = yield
        if report.skipped and isinstance(report.longrepr, tuple) and _cell_of_item(item) is not None:
            report.longrepr = (str(Path(__file__).with_name("columns.py")), 1, report.longrepr[2])
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = [value for name, value in report.user_properties if name == PROPERTY]
        if found:
            case, backend, datapath = (str(part) for part in found[0])  # pyright: ignore[reportGeneralTypeIssues]
            self._take(Cell(case, backend, datapath), report)

    def _take(self, cell: Cell, report: pytest.TestReport) -> None:
        if report.failed:
            self.verdicts[cell] = Verdict(failed=True)
        elif report.skipped:
            reason = _reason(report)
            if reason not in _NO_REASON:
                self.verdicts.setdefault(cell, Verdict(reason=reason))
        elif report.when == "call":
            self.verdicts.setdefault(cell, Verdict())

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """What a worker of xdist had collected: the controller collects nothing."""
        output: Mapping[str, Any] = getattr(node, "workeroutput", None) or {}
        self.cells |= {Cell(*parts): None for parts in output.get(PROPERTY, [])}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[PROPERTY] = [[cell.case, cell.backend, cell.datapath] for cell in self.cells]
        elif not session.config.option.collectonly and unexplained(self.cells, self.verdicts) and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.cells or terminalreporter.config.option.collectonly:
            return
        cases = list(dict.fromkeys(cell.case for cell in self.cells))
        columns = sorted(dict.fromkeys(cell.column for cell in self.cells), key=lambda column: _BACKENDS.index(column[0]))
        terminalreporter.section("the contract: cases and backends")
        terminalreporter.write_line(draw(cases, columns, self.cells, self.verdicts))
        if missing := unexplained(self.cells, self.verdicts):
            terminalreporter.write_line(f"{len(missing)} cells have neither a verdict nor a reason", red=True)


_BACKENDS = ("OVSMirror", "OVSGroup", "EBPF")


def _cell_of_item(item: pytest.Item) -> Cell | None:
    callspec = getattr(item, "callspec", None)
    column = callspec.params.get("column") if callspec else None
    if column is None or not isinstance(item, pytest.Function):
        return None
    return Cell(item.originalname.removeprefix("test_").replace("_", " "), column.backend, column.datapath)


def _reason(report: pytest.TestReport) -> str:
    """Of a skip, whose report is (path, line, "Skipped: reason")."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").strip()
