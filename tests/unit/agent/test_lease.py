"""Copies go on while the loop is busy, and end where it is dead."""

from __future__ import annotations

import threading

import pytest

from tests.unit.agent.waiting import eventually
from vtap_agent import lease as module
from vtap_agent.errors import Retry
from vtap_agent.lease import LEASE, Lease


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_EVERY", 0.01)


def test_it_is_renewed_while_a_pass_takes_long() -> None:
    renewed: list[float] = []
    lease = Lease(renewed.append)
    lease.start()
    eventually(lambda: len(renewed) > 5)
    lease.end()
    assert set(renewed) == {LEASE}


def test_a_loop_that_hangs_for_good_loses_it_until_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUNG_AFTER", 0.05)
    renewed: list[float] = []
    lease = Lease(renewed.append)
    lease.start()

    def stands_still() -> bool:
        before = len(renewed)
        return not threading.Event().wait(0.05) and len(renewed) == before

    eventually(stands_still)
    before = len(renewed)
    lease.beat()
    eventually(lambda: len(renewed) > before)
    lease.end()


def test_a_failure_is_tried_again() -> None:
    tries: list[float] = []

    def renew(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 1:
            raise Retry("the map is busy")
        if len(tries) == 2:
            raise OSError(12, "no memory")
        if len(tries) == 3:
            raise KeyError("nobody foresaw it")

    lease = Lease(renew)
    lease.start()
    eventually(lambda: len(tries) > 4)
    lease.end()
