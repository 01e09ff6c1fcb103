"""The loop hears of every change, serves calls, and is held up by neither."""

from __future__ import annotations

import threading
import time

import pytest

from vtap_agent import events
from vtap_agent.errors import Retry
from vtap_agent.events import Mailbox


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_change_during_a_pass_is_followed_by_one_pass() -> None:
    mailbox = Mailbox()
    mailbox.changed()
    mailbox.changed()
    assert mailbox.wait(time.monotonic() + 5) == (True, False)
    assert mailbox.wait(time.monotonic()) == (False, False)


def test_a_call_is_answered_on_the_loops_thread() -> None:
    mailbox, answers = Mailbox(), []
    caller = in_thread(lambda: answers.append(mailbox.call(threading.get_ident)))
    end = time.monotonic() + 5
    while not answers and time.monotonic() < end:
        mailbox.wait(time.monotonic() + 0.01)
        caller.join(0.01)
    assert answers == [threading.get_ident()]


def test_callers_without_end_hold_up_neither_time_nor_changes() -> None:
    mailbox = Mailbox()
    stop = threading.Event()

    def keep_calling() -> None:
        while not stop.is_set():
            mailbox.call(lambda: time.sleep(0.001))

    callers = [in_thread(keep_calling) for _ in range(4)]
    try:
        started = time.monotonic()
        mailbox.wait(started + 0.2)
        assert time.monotonic() - started < 2
        mailbox.changed()
        assert mailbox.wait(time.monotonic() + 5)[0]
    finally:
        stop.set()
        while any(caller.is_alive() for caller in callers):
            mailbox.wait(time.monotonic() + 0.01)


def test_what_a_call_raises_reaches_its_caller_and_not_the_loop() -> None:
    mailbox, raised = Mailbox(), []

    def failing() -> None:
        try:
            mailbox.call(lambda: 1 // 0)
        except ZeroDivisionError as error:
            raised.append(error)

    caller = in_thread(failing)
    end = time.monotonic() + 5
    while caller.is_alive() and time.monotonic() < end:
        mailbox.wait(time.monotonic() + 0.01)
    assert len(raised) == 1


def test_a_call_that_nobody_waits_for_any_more_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "CALL_TIMEOUT", 0.01)
    mailbox, made = Mailbox(), []
    with pytest.raises(Retry, match="busy"):
        mailbox.call(lambda: made.append(1))
    mailbox.wait(time.monotonic() + 0.01)
    assert made == []
