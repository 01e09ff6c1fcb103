"""A node with a pipeline, for tests that need the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.pipeline.node import Node, why_not


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    with Node() as made:
        yield made
