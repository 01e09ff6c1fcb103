"""One installation for all cases; each case's ledger closes."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cases.installation import Installation, installation_on
from tests.e2e.cases.scene import Scene
from tests.e2e.cluster.commands import ClusterError
from tests.e2e.cluster.handle import Cluster
from tests.e2e.cluster.use import RUN_FOLDER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What removes the release comes last, however the tests were named."""
    items.sort(key=lambda item: item.path.name == "test_release.py")


@pytest.fixture(scope="session")
def installed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The chart of this checkout, installed by Helm; gone afterwards if no case has uninstalled it.

    A release that is there already is used as it is, and stays; so does one that the next part of a run goes on with.
    """
    product = installation_on(cluster, tmp_path_factory.mktemp("collected"))
    shared = os.environ.get(RUN_FOLDER, "")
    before = Path(shared, "before") if shared else None
    if product.is_installed():
        product.is_ready()
        if before and before.exists():
            product.before = pickle.loads(before.read_bytes())
        yield product
        return
    product.before = cluster.snapshots()
    if before:
        before.write_bytes(pickle.dumps(product.before))
    product.install()
    yield product
    if shared:
        return
    with contextlib.suppress(ClusterError):  # The case of uninstalling judges; here it only tidies up after a failure.
        product.uninstall()


@pytest.fixture
def scene(installed: Installation, tmp_path: Path) -> Iterator[Scene]:
    """A namespace on the installation. At the end every tap's ledger accounts for every packet; the rest goes by itself."""
    with installed.cluster.namespace() as name:
        made = Scene(installed, name, tmp_path)
        try:
            yield made
            for tap in made.taps():
                if tap not in made.unclosed | made.closed:
                    made.closes(tap)
        finally:
            installed.cluster.kubectl.delete("vtap", "--all", namespace=name)
