"""A real API server for the tests of this folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.apiserver.running import Operator, running_operator
from tests.e2e.apiserver.server import ApiServer, why_not


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    """One for a module; tests take names of their own."""
    if reason := why_not():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with tempfile.TemporaryDirectory(prefix="vtap-api-") as folder, ApiServer(Path(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def operator(api: ApiServer) -> Iterator[Operator]:
    """At work on it."""
    with running_operator(api) as made:
        yield made
