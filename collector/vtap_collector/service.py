"""The collector as one object: core, registry and storage, and what happens every second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vtap_collector import ledger
from vtap_collector.announcements import Announcement, TapName, Totals
from vtap_collector.metrics import Numbers
from vtap_collector.native import ConsumerCounts, Core, CoreCounts, StreamCounts
from vtap_collector.registry import STALE_SECONDS, STATE_FILE, Entry, Registry
from vtap_collector.storage import Retained, Storage, StoredFile

log = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 1.0
LOOK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Consumer:
    """A live consumer; `name` is how the ledger shows it."""

    number: int
    name: str


class Service:
    """Owned by the event loop; what blocks runs in threads."""

    def __init__(self, core: Core, registry: Registry, storage: Storage, retain_bytes: int) -> None:
        self.core = core
        self.registry = registry
        self.storage = storage
        self._retain_bytes = retain_bytes
        self._consumers: dict[int, Consumer] = {}
        self._past_live_dropped = 0
        self._deleted_files = 0
        self._stored_bytes = 0
        self._written = 0
        self._looked_at: float | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if retain_bytes:
            core.allow_bytes(0, self._wake)
        self._saving = asyncio.Lock()
        self._save_failed = False
        self._write_error = 0
        self._silent: set[str] = set()
        self._rings_down = self._ring_outages = 0

    # ---- the control channel ----

    async def announce(self, node: str, announcement: Announcement) -> None:
        """Raises Refused."""
        self.registry.announce(node, announcement)
        await self.save()

    def totals(self, node: str, totals: Totals) -> list[dict[str, Any]]:
        """What has arrived of these streams."""
        self.registry.totals(node, totals)
        return self.registry.received(node, totals)

    async def save(self) -> None:
        """Write the registry down where it has changed. A disk that refuses is tried again every second."""
        async with self._saving:
            if not self.registry.changed:
                return
            self.registry.changed = False
            try:
                await asyncio.to_thread(self.storage.write_state, STATE_FILE, self.registry.saved())
                self._save_failed = False
            except OSError as error:
                self.registry.changed = True
                if not self._save_failed:
                    log.warning("announcements cannot be saved, trying again: %s", error.strerror)
                self._save_failed = True

    # ---- consumers ----

    def consumers(self) -> list[tuple[str, ConsumerCounts]]:
        found = ((consumer.name, self.core.live_counts(number)) for number, consumer in self._consumers.items())
        return [(name, counts) for name, counts in found if counts is not None]

    def add_consumer(self, number: int, name: str) -> None:
        self._consumers[number] = Consumer(number, name)

    async def remove_consumer(self, number: int) -> None:
        counts = self.core.live_counts(number)
        self._past_live_dropped += counts.dropped if counts else 0
        del self._consumers[number]
        await asyncio.to_thread(self.core.close_live, number)

    # ---- numbers ----

    def sums(self) -> Mapping[TapName, StreamCounts]:
        """By tap, over all its streams."""
        sums = {name: tap.past for name, tap in self.registry.taps().items()}
        for entry in self.registry.entries():
            sums[entry.stream.tap] = sums[entry.stream.tap] + self.registry.counts(entry)
        return sums

    def ledger(self, only: TapName | None = None) -> dict[str, Any]:
        """What `GET /v1/ledger` answers. Of one tap: nothing that names another, whose readers may be others."""
        if only is not None:
            return {
                "since": self.registry.since,
                "streams": [self._row(entry) for entry in self.registry.entries() if entry.stream.tap == only],
                "taps": ledger.tap_rows({name: counts for name, counts in self.sums().items() if name == only}),
                **ledger.own_terms(self.core.counts()),
            }
        return {
            "since": self.registry.since,
            "streams": [self._row(entry) for entry in self.registry.entries()],
            "taps": ledger.tap_rows(self.sums()),
            "forgottenTaps": ledger.terms(self.registry.forgotten),
            **ledger.own_terms(self.core.counts()),
            "consumers": ledger.consumer_rows(self.consumers()),
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        stale = self.registry.is_stale(entry)
        agent = ledger.agent_side(entry.agent, entry.sent)
        return ledger.stream_row(entry.node, entry.stream, entry.open, stale, self.registry.counts(entry), agent)

    def numbers(self) -> Numbers:
        """What a scrape of `/metrics` shows."""
        consumers = self.consumers()
        return Numbers(
            taps=self.sums(),
            core=self.core.counts(),
            open_streams=sum(entry.open for entry in self.registry.entries()),
            stale_streams=sum(self.registry.is_stale(entry) for entry in self.registry.entries()),
            live_consumers=len(consumers),
            live_dropped=self._past_live_dropped + sum(counts.dropped for _name, counts in consumers),
            stored_bytes=self._stored_bytes,
            deleted_files=self._deleted_files,
        )

    # ---- files ----

    def is_open(self, file: StoredFile) -> bool:
        """Is it being written now?"""
        tap = self.registry.taps().get(TapName.model_construct(namespace=file.namespace, name=file.tap))
        return tap is not None and self.core.tap_file(tap.number) == file.name

    # ---- time passing ----

    async def housekeep(self) -> None:
        """Until cancelled: save, sweep closed streams, keep within the retained bytes, say when the disk fails and recovers."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._retain_from_time_to_time())
            both.create_task(self._keep_house())

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            for work in (self.save, self._sweep):
                await _survive(work)

    async def _sweep(self) -> None:
        self.registry.sweep()
        self._tell_silence()
        counts = self.core.counts()
        self._tell_rings(counts)
        error = counts.last_write_error
        if error != self._write_error:
            log.warning("capture files: %s", f"writing fails: {os.strerror(error)}" if error else "writing works again")
            self._write_error = error

    def _tell_rings(self, counts: CoreCounts) -> None:
        for bit, name in enumerate(self.core.rings):
            is_down, was_down = counts.rings_down >> bit & 1, self._rings_down >> bit & 1
            if is_down and not was_down:
                log.warning("ring on %s: the interface is down or gone; capturing goes on when one of that name is up", name)
            elif was_down and not is_down:
                log.warning("ring on %s: the interface is up again", name)
        if counts.ring_outages > self._ring_outages and counts.rings_down == self._rings_down == 0:
            log.warning("a ring's interface was down for a moment")
        self._rings_down, self._ring_outages = counts.rings_down, counts.ring_outages

    def _tell_silence(self) -> None:
        stale = {entry.node for entry in self.registry.entries() if self.registry.is_stale(entry)}
        for node in sorted(stale - self._silent):
            log.warning("node %s: its agent has been silent for %g s; its streams are shown as stale", node, STALE_SECONDS)
        for node in sorted(self._silent - stale):
            log.info("node %s: no stream of it is stale any more", node)
        self._silent = stale

    # ---- retention ----

    async def _retain_from_time_to_time(self) -> None:
        """Every second, and at once when the writer has written as much as it may."""
        loop = asyncio.get_running_loop()
        full = asyncio.Event()

        def wake() -> None:
            os.eventfd_read(self._wake)
            self._looked_at = None
            full.set()

        loop.add_reader(self._wake, wake)
        try:
            while True:
                await _survive(self._retain)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(full.wait(), HOUSEKEEPING_SECONDS)
                full.clear()
        finally:
            loop.remove_reader(self._wake)

    async def _retain(self) -> None:
        """The directory is read only where it may have outgrown the limit, or not for LOOK_SECONDS."""
        written = self.core.counts().written_bytes
        self._stored_bytes += written - self._written
        self._written = written
        fits = self._retain_bytes == 0 or self._stored_bytes <= self._retain_bytes
        if fits and self._looked_at is not None and time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        kept = await asyncio.to_thread(self._retain_now, written)
        self._stored_bytes, self._looked_at = kept.left, time.monotonic()
        self._deleted_files += kept.deleted

    def _retain_now(self, written: int) -> Retained:
        kept = self.storage.retain(self._retain_bytes, self.is_open)
        if kept.deleted_open:
            self.core.close_deleted()
        if self._retain_bytes:
            self.core.allow_bytes(written + max(0, self._retain_bytes - kept.left), self._wake)
        return kept


async def _survive(work: Callable[[], Awaitable[None]]) -> None:
    """One pass that the operating system fails (a directory that vanishes, no descriptors left) must not end the next."""
    try:
        await work()
    except OSError as error:
        log.warning("housekeeping: %s", error)
