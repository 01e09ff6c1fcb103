"""Requests that end before they were answered leave nothing behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from tests.unit.collector.core_library import idle_core
from tests.unit.collector.test_storage import store
from vtap_collector.access import TokenAccess
from vtap_collector.registry import Registry
from vtap_collector.server import Server
from vtap_collector.service import Service
from vtap_collector.storage import Storage, StoredFile

DEADLINE = 10.0


class SlowDisk(Storage):
    """Opens the second file only when told to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.opened = 0
        self.waits, self.go_on = threading.Event(), threading.Event()

    def open(self, file: StoredFile) -> int:
        if self.opened == 1:
            self.waits.set()
            assert self.go_on.wait(DEADLINE)
        self.opened += 1
        return super().open(file)


def descriptors_below(directory: Path) -> list[str]:
    found: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(str(directory / "shop")):
            found.append(target)
    return found


def test_a_reader_that_goes_while_files_are_opened_leaves_none_open(tmp_path: Path) -> None:
    for number in range(1, 4):
        store(tmp_path, number)
    disk = SlowDisk(tmp_path)

    async def go_while_opening(server: Server) -> None:
        request = make_mocked_request("GET", "/v1/stored?tap=shop/checkout")
        asked = asyncio.create_task(server._get_stored(request))  # pyright: ignore[reportPrivateUsage]
        assert await asyncio.to_thread(disk.waits.wait, DEADLINE)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        disk.go_on.set()
        async with asyncio.timeout(DEADLINE):
            while disk.opened < 3 or descriptors_below(tmp_path):
                await asyncio.sleep(0.01)

    with idle_core(tmp_path) as core:
        server = Server(Service(core, Registry(core, core.settings), disk, 0), TokenAccess(None), {})
        asyncio.run(go_while_opening(server))
    assert disk.opened == 3 and descriptors_below(tmp_path) == []
