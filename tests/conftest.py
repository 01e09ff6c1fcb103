"""Fixtures that tests of every kind share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.contract.matrix import MatrixPlugin
from vtap_lab import preflight
from vtap_lab.lab import Lab, LabOptions

pytest.register_assert_rewrite(
    "tests.contract.contract", "tests.contract.scene", "tests.contract.traffic", "tests.dataplane.scenes", "tests.dataplane.site"
)


def pytest_configure(config: pytest.Config) -> None:
    """A shell without job control starts what goes to the background deaf to SIGINT, and so would be all that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(MatrixPlugin(), "contract-matrix")
    preflight.use_unpacked_switch()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """A worker for each core: labs wait as much as they compute, but what shares its core with others makes waiting a lottery."""
    return max(2, len(os.sched_getaffinity(0)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and {"lab", "shared_lab"} & set(item.fixturenames):
            item.add_marker(pytest.mark.lab)


def _make_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if reason := preflight.why_no_lab():
        # Where changes are judged, a machine that can't hold a lab is itself the failure.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    options = getattr(request, "param", LabOptions())
    with Lab(options) as lab:
        yield lab


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of the test's own, without pods; parametrize it indirectly with `LabOptions` for another kind."""
    yield from _make_lab(request)


@pytest.fixture(scope="module")
def shared_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that the tests of one module share; they leave it as they found it."""
    yield from _make_lab(request)
