"""Fixtures of the end-to-end tests: one cluster for a run, evidence of what fails.

They run only when asked for (`make e2e`, or naming a path below tests/e2e): making a cluster takes minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster.cache import CHECKOUT
from tests.e2e.cluster.handle import Cluster, collect_evidence
from tests.e2e.cluster.use import cluster_in_use

_HERE = Path(__file__).parent
_NEED_A_CLUSTER = (_HERE / "test_cluster.py", _HERE / "cases", _HERE / "apiserver")
_EVIDENCE = CHECKOUT / "build" / "e2e"
_TIMEOUT = 900
"""Seconds for one test; making the cluster is part of the first one. `python -m tests.e2e.cluster build` comes before."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not any(path in (collection_path, *collection_path.parents) for path in _NEED_A_CLUSTER):
        return None
    asked = any(path == _HERE or _HERE in path.parents for path in _named(config))
    return None if asked else True


def _named(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TIMEOUT, method="signal"))  # Fixtures end then, and the cluster with them.


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Kubernetes of a control plane and two workers with Open vSwitch in each; see `cluster_in_use` for which one."""
    with cluster_in_use() as used:
        yield used


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    with cluster.namespace() as name:
        yield name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """While everything is still there: fixtures end after this."""
    report = yield
    if report.failed and call.when in ("setup", "call") and isinstance(item, pytest.Function):
        cluster = item.funcargs.get("cluster")
        if isinstance(cluster, Cluster):
            folder = _EVIDENCE / re.sub(r"[^\w.-]+", "_", item.nodeid)
            collect_evidence(cluster, folder)
            report.sections.append(("evidence", str(folder)))
    return report
