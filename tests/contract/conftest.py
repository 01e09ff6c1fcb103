"""The contract of mirrors runs on the fake and on real Open vSwitch, that of taps on every backend and datapath."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.contract.columns import Column, columns_of, why_not
from tests.contract.networks import FakeNetwork, Network, OvsNetwork
from tests.contract.scene import Scene
from vtap_lab import preflight


@pytest.fixture(params=["fake", pytest.param("ovs", marks=pytest.mark.lab)])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    if request.param == "fake":
        yield FakeNetwork()
        return
    real = OvsNetwork(request.getfixturevalue("shared_lab"))
    try:
        yield real
    finally:
        real.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "column" in metafunc.fixturenames:
        columns = columns_of(metafunc.cls.backend) if metafunc.cls else []
        marks = (pytest.mark.lab, pytest.mark.slow)
        params = [pytest.param(column, id=str(column), marks=marks) for column in columns]
        metafunc.parametrize("column", params, indirect=True, scope="module")


@pytest.fixture(scope="module")
def column(request: pytest.FixtureRequest) -> Column:
    return request.param


@pytest.fixture(scope="module")
def staged(column: Column, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The product at work on a column."""
    if os.environ.get("CI") and (reason := preflight.why_no_lab()):
        pytest.fail(reason)
    if reason := why_not(column):
        pytest.skip(reason)
    with column.lab() as lab:
        yield Scene(column, lab, tmp_path_factory.mktemp("captures"))


@pytest.fixture
def scene(staged: Scene) -> Iterator[Scene]:
    """The column's, with taps of the case's own."""
    staged.begin()
    try:
        yield staged
    finally:
        staged.end()
