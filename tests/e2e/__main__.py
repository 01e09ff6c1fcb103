"""`make e2e`: the cases that `cases.txt` lists, all of them, on a cluster of their own which is deleted afterwards.

    python -m tests.e2e                                            a new cluster of kind
    CLUSTER=existing NETWORK=preinstalled python -m tests.e2e      the one that KUBECONFIG names, with networks as it has them
    CLUSTER=NAME python -m tests.e2e                               one of `python -m tests.e2e.cluster up NAME`

Neighbouring cases that the list calls `together` run two at a time, each in a namespace of its own.
What needs no cluster (the real API server alone, the chart) is tested beside the first of them, on a new cluster.
A case that is listed and not there, or there and not listed, or skipped, is a failure. The last line is `N passed, M failed`.
Arguments go to pytest (`-k quickstart`); the last line then says, too, how many of the listed cases they left out.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest

from tests.e2e.cluster.cache import the_cache
from tests.e2e.cluster.lifecycle import build
from tests.e2e.cluster.product import product_images
from tests.e2e.cluster.use import RUN_FOLDER, cluster_in_use
from vtap_lab.errors import LabError

_HERE = Path(__file__).parent
_LIST = _HERE / "cases.txt"
_OF_OUR_NODES = "kind"
"""Said of a case that needs nodes of our own making: their plugin, their containers, a place beside them."""
_TOGETHER = "together"
"""Said of a case, and of all in its file, that others beside it do not disturb. It counts on a cluster made for the run."""
_AT_A_TIME = 2
_NO_CLUSTER = ("apiserver", "test_harness.py", "../unit/chart")
"""Tests, from here, that need none, and what clusters are made of."""


@dataclass(frozen=True)
class Case:
    """One line of the list: a test below tests/e2e, whether it runs on any cluster, and whether with others at the same time."""

    name: str
    anywhere: bool
    together: bool = False

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]


@dataclass(eq=False)
class Outcomes:
    """What pytest said of each case, gathered while it runs. Plugins of pytest have to be hashable."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    verdicts: dict[str, str] = field(default_factory=dict[str, str])
    collected: set[str] = field(default_factory=set[str])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest."""
        self.collected |= {_short(item.nodeid) for item in session.items}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Called by pytest-xdist with what each of its workers has found."""
        self.collected |= set(map(_short, ids))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for set-up, call and tear-down of each."""
        name = _short(report.nodeid)
        self.seconds[name] = self.seconds.get(name, 0) + report.duration
        if not report.passed:
            self.verdicts[name] = "failed"
        elif report.when == "call":
            self.verdicts.setdefault(name, "passed")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 when every case of the list, or of those that `arguments` for pytest leave of it, has passed."""
    started = time.monotonic()
    _translate_environment()
    cases = list(listed(_LIST.read_text().splitlines(), on_our_nodes=_on_our_nodes()))
    if not _build():
        return 1
    outcomes = Outcomes()
    try:
        failed_meanwhile = _run(cases, arguments, outcomes)
    except LabError as error:
        print(f"0 passed, 1 failed: {error}")
        return 1
    chosen = [case for case in cases if case.name in outcomes.collected] if arguments else cases
    if not chosen:
        print("no case was chosen")
        return 1
    failed = _print(chosen, outcomes, time.monotonic() - started, len(cases) - len(chosen), failed_meanwhile)
    return 1 if failed else 0


@dataclass
class Meanwhile:
    """Tests in a process of their own, beside the first phase, which leaves much of the machine idle."""

    process: subprocess.Popen[bytes] | None = None
    output: Path | None = None
    failed: int = 0
    """1 where they did."""

    def finish(self) -> None:
        """Wait for them and print what they said."""
        if self.process is None or self.output is None:
            return
        self.failed = int(self.process.wait() != 0)
        print(self.output.read_text(), flush=True)
        self.process = None


@contextmanager
def _tested_meanwhile(*, wanted: bool) -> Iterator[Meanwhile]:
    with tempfile.TemporaryDirectory(prefix="vtap-e2e-") as folder:
        if not wanted:
            yield Meanwhile()
            return
        output = Path(folder) / "output"
        command = [sys.executable, "-m", "pytest", "-q", "--numprocesses=2", "--dist=loadfile"]
        with output.open("wb") as log:
            process = subprocess.Popen([*command, *(str(_HERE / name) for name in _NO_CLUSTER)], stdout=log, stderr=log)
        started = Meanwhile(process, output)
        try:
            yield started
        finally:
            if started.process is not None:
                # Nobody waited for it: something else has failed. Its fixtures end with it.
                started.process.send_signal(signal.SIGINT)
            started.finish()


def _run(cases: list[Case], arguments: Sequence[str], outcomes: Outcomes) -> int:
    """By one run of pytest on a cluster that was there before, else by one for each phase. 1 where what ran meanwhile failed."""
    if os.environ.get("VTAP_E2E_CLUSTER"):
        _pytest(cases, arguments, outcomes)
        return 0
    with _one_cluster(), _tested_meanwhile(wanted=not arguments) as meanwhile:
        for together, phase in phases(cases):
            several = [f"--numprocesses={_AT_A_TIME}", "--dist=load"] if together else []
            _pytest(phase, [*several, *arguments], outcomes)
            meanwhile.finish()
    return meanwhile.failed


def _pytest(cases: list[Case], arguments: Sequence[str], outcomes: Outcomes) -> None:
    """Whole files where all of their cases can run, so that one shows which is not listed."""
    names = (case.file if _on_our_nodes() else case.name for case in cases)
    wanted = [str(_HERE / name) for name in dict.fromkeys(names)]
    options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:randomly"]
    pytest.main([*options, *arguments, *wanted], plugins=[outcomes])


def listed(lines: Iterable[str], *, on_our_nodes: bool) -> Iterable[Case]:
    """The cases that are to run, in their order. Pure."""
    for line in lines:
        words = line.split("#")[0].split()
        if words:
            case = Case(words[0], _OF_OUR_NODES not in words[1:], _TOGETHER in words[1:])
            if case.anywhere or on_our_nodes:
                yield case


def phases(cases: Iterable[Case]) -> Iterator[tuple[bool, list[Case]]]:
    """Cases that may run at the same time, and those that may not, in the list's order. Pure."""
    for together, neighbours in groupby(cases, key=lambda case: case.together):
        yield together, list(neighbours)


@contextmanager
def _one_cluster() -> Iterator[None]:
    """What several runs of pytest, and several processes of one, share: a new cluster and what is known of it."""
    with cluster_in_use() as cluster, tempfile.TemporaryDirectory(prefix="vtap-e2e-") as folder:
        os.environ["VTAP_E2E_CLUSTER"] = cluster.name
        os.environ[RUN_FOLDER] = folder
        yield


def _print(cases: list[Case], outcomes: Outcomes, seconds: float, left_out: int, failed_meanwhile: int) -> int:
    """The list with verdicts, and how many failed."""
    print("\ncases")
    for case in cases:
        verdict = outcomes.verdicts.get(case.name, "missing")
        print(f"  {verdict:8} {outcomes.seconds.get(case.name, 0):6.1f} s  {case.name}")
    names = {case.name for case in cases}
    unlisted = sorted(outcomes.collected - names)
    for name in unlisted:
        print(f"  unlisted            {name}: add it to {_LIST.name}")
    passed = sum(outcomes.verdicts.get(name) == "passed" for name in names)
    if failed_meanwhile:
        print("  failed              tests that need no cluster: see above, where they are")
    failed = len(names) - passed + len(unlisted) + failed_meanwhile
    more = f", {left_out} left out" if left_out else ""
    print(f"{seconds / 60:.1f} minutes\n{passed} passed, {failed} failed{more}", flush=True)
    return failed


def _build() -> bool:
    """Before any test's time counts: what clusters are made of, and our images."""
    if os.environ.get("VTAP_E2E_CLUSTER") == "existing":
        return True
    try:
        built = build(the_cache())
        if not os.environ.get("VTAP_E2E_CHART_VALUES"):
            product_images(built)
    except LabError as error:
        print(f"0 passed, 1 failed: {error}")
        return False
    return True


def _translate_environment() -> None:
    """CLUSTER and NETWORK as `make e2e` takes them."""
    if cluster := os.environ.get("CLUSTER", ""):
        os.environ["VTAP_E2E_CLUSTER"] = cluster
    network = os.environ.get("NETWORK", "")
    if network and network != "preinstalled":
        os.environ["VTAP_E2E_NETWORK"] = network


def _on_our_nodes() -> bool:
    """Whether nodes are containers of this machine with our own network plugin in them."""
    return os.environ.get("VTAP_E2E_CLUSTER") != "existing" and (os.environ.get("VTAP_E2E_NETWORK") or "local") == "local"


def _short(node_id: str) -> str:
    return node_id.removeprefix("tests/e2e/")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
