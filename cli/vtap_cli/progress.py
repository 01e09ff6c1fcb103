"""One line on standard error that says what is waited for, and how long it has been; nothing where nobody looks at a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY = 0.2
FIRST = 0.4
"""Seconds before there is anything to say: what is quick needs no progress."""


class Progress:
    """What is waited for; may be changed while waiting."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._shown = False

    def _run(self) -> None:
        wait = FIRST
        while not self._ended.wait(wait):
            wait = EVERY
            self._shown = True
            sys.stderr.write(f"\r\x1b[K{self.text} … {time.monotonic() - self._began:.0f} s")
            sys.stderr.flush()

    def _end(self, thread: threading.Thread) -> None:
        self._ended.set()
        thread.join()
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextmanager
def progress(text: str) -> Iterator[Progress]:
    """Says `text` for as long as the block takes; an empty one says nothing until it is given a text."""
    made = Progress(text)
    if not text or not sys.stderr.isatty():
        yield made
        return
    thread = threading.Thread(target=made._run, name="progress", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made._end(thread)
