"""Every case of the contract runs twice: on the fake and on real Open vSwitch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.networks import FakeNetwork, Network, OvsNetwork


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
