"""The loop of a node: observe → plan → apply → verify → report.

A pass runs when something changed, and at the latest every RESYNC seconds. Between passes a tick every second renews the lease,
reads the counters and tells collectors what has left. Only this thread touches Open vSwitch and the kernel.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import Protocol

from vtap_agent.accounts import SETTLE, Accounts
from vtap_agent.backends.ovs_mirror import OvsMirrorBackend
from vtap_agent.errors import VtapError, Wait
from vtap_agent.events import Mailbox
from vtap_agent.inventory import Observer
from vtap_agent.pipeline import Pipeline, PipelineStep
from vtap_agent.plan.assembly import Plan, assemble
from vtap_agent.plan.dataplane import DataPlane, NodeCounters
from vtap_agent.plan.inventory_model import Inventory
from vtap_agent.plan.mirror_health import unhealthy
from vtap_agent.plan.mirrors import MirrorStep
from vtap_agent.plan.selection import Desired, remotes, select
from vtap_agent.plan.steps import Phase, ordered
from vtap_agent.plan.verdicts import TapVerdict
from vtap_agent.report.announcer import LINGER, Announcer
from vtap_agent.report.ledger import Row
from vtap_agent.report.metrics import AgentMetrics, Reading
from vtap_agent.report.status import Observations, TapStatus, tap_status

log = logging.getLogger(__name__)

TICK = 1.0
RESYNC = 10.0
LEASE = 10.0
RETRY_FIRST, RETRY_LAST = 0.1, 5.0


class DesiredSnapshot(Protocol):
    """What a tap source holds: what is wanted, and sentences about what is wrong with the rest."""

    @property
    def desired(self) -> Desired: ...

    @property
    def problems(self) -> tuple[str, ...]: ...


class TapSource(Protocol):
    """Where desired taps come from."""

    def snapshot(self) -> DesiredSnapshot:
        """What is desired now."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives."""

    taps: TapSource
    observer: Observer
    mirrors: OvsMirrorBackend
    pipeline: Pipeline
    announcer: Announcer
    accounts: Accounts
    mailbox: Mailbox


@dataclass(slots=True)
class _View:
    """What is served to those who ask; replaced, never edited."""

    counters: NodeCounters = field(default_factory=lambda: NodeCounters({}, {}, 0))
    statuses: tuple[TapStatus, ...] = ()
    problems: tuple[str, ...] = ()


class Loop:
    """One node's loop. `run` returns after `Mailbox.stop`."""

    def __init__(self, parts: Parts, first_key: int) -> None:
        self._parts = parts
        self._first_key = first_key
        self._view = _View()
        self._verdicts: tuple[TapVerdict, ...] = ()
        self._wanted = DataPlane()
        self._unverified: tuple[str, ...] = ()
        self._unhealthy: tuple[str, ...] = ()
        self._source_problems: tuple[str, ...] = ()
        self._inventory_problems: tuple[str, ...] = ()
        self._retry = RETRY_FIRST
        self.metrics = AgentMetrics(self.reading)

    # --- what others ask -------------------------------------------------------------------------------------------------

    def reading(self) -> Reading:
        """For a scrape: as of the last tick."""
        parts = self._parts
        return Reading(
            rows=parts.accounts.rows(self._view.counters),
            counters=self._view.counters,
            taps=self._view.statuses,
            map_bytes=parts.pipeline.map_bytes(),
            purges=parts.mirrors.purges,
            files_refused=len(self._source_problems),
        )

    def fresh_counters(self) -> NodeCounters:
        """Read now; call it on the loop's thread."""
        self._view.counters = self._parts.pipeline.counters(self._parts.accounts.used_slots())
        return self._view.counters

    def ledger(self) -> tuple[tuple[Row, ...], NodeCounters]:
        """Rows and counters, read now; call it on the loop's thread."""
        counters = self.fresh_counters()
        return self._parts.accounts.rows(counters), counters

    @property
    def statuses(self) -> tuple[TapStatus, ...]:
        """The taps of this node, as of the last pass or tick."""
        return self._view.statuses

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences about files and pods that belong to no tap."""
        return self._view.problems

    # --- the loop --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until stopped."""
        mailbox = self._parts.mailbox
        next_resync = next_tick = time.monotonic()
        while True:
            changed, stopping = mailbox.wait(min(next_resync, next_tick))
            if stopping:
                return
            now = time.monotonic()
            if changed or now >= next_resync:
                next_resync = time.monotonic() + (RESYNC if self._pass() else self._backoff())
            if now >= next_tick:
                self._tick()
                next_tick = time.monotonic() + TICK

    def _backoff(self) -> float:
        self._retry, now = min(RETRY_LAST, self._retry * 2), self._retry
        return now

    def _pass(self) -> bool:
        """One pass; False where it has to be tried again soon."""
        with self.metrics.pass_seconds.time():
            try:
                self._converge()
                outcome = "converged" if not self._unverified else "unverified"
            except VtapError as error:
                log.warning("%s", error)
                self._unverified = (str(error),)
                outcome = "failed"
        self.metrics.passes.labels(outcome).inc()
        if outcome == "converged":
            self._retry = RETRY_FIRST
        self._report()
        return outcome == "converged"

    def _converge(self) -> None:
        parts = self._parts
        snapshot = parts.taps.snapshot()
        self._source_problems = snapshot.problems
        desired = snapshot.desired
        inventory = parts.observer.snapshot(remotes(desired))
        self._inventory_problems = inventory.problems
        if not inventory.switch.reachable:
            raise Wait("Open vSwitch does not answer; taps stay as they are until it returns")
        plan = self._plan(desired, inventory)
        self._verdicts = plan.verdicts
        parts.announcer.submit(plan.announcements)
        self._wanted = plan.dataplane
        self._apply(plan.dataplane)
        self._unverified = self._verify(plan.dataplane)

    def _plan(self, desired: Desired, inventory: Inventory) -> Plan:
        parts = self._parts
        selection = select(desired, inventory)
        parts.accounts.admit(candidate.stream for candidate in selection.candidates)
        for answer in parts.announcer.acknowledgements().values():
            parts.accounts.confirm(answer.streams)
        arguments = (selection, parts.accounts.slots, self._first_key, parts.accounts.confirmed, inventory)
        plan = assemble(*arguments)
        refused = parts.mirrors.refusals(plan.dataplane)
        return assemble(*arguments, refused) if refused else plan

    def _apply(self, wanted: DataPlane) -> None:
        """Every step in the order of its phase; those of the mirrors together, in one transaction, at their place in it."""
        parts = self._parts
        tap_ports = {key: parts.pipeline.tap_port_devices(key) for key in wanted.mirrors}
        for key in wanted.mirrors:
            parts.pipeline.ensure_tap_port(key)
        steps = ordered([*parts.pipeline.plan(wanted, tap_ports), *parts.mirrors.plan(wanted)])
        for phase, group in itertools.groupby(steps, key=lambda step: step.phase):
            self._apply_phase(phase, list(group))
        for key in parts.pipeline.tap_ports() - wanted.mirrors.keys():
            parts.pipeline.remove_tap_port(key)

    def _apply_phase(self, phase: Phase, steps: list[MirrorStep | PipelineStep]) -> None:
        for step in steps:
            log.info("%s", step)
        self._parts.mirrors.apply(steps)
        for step in steps:
            if not isinstance(step, MirrorStep):
                self._parts.pipeline.apply(step)
        self.metrics.steps.labels(phase.name.lower()).inc(len(steps))

    def _verify(self, wanted: DataPlane) -> tuple[str, ...]:
        """Look again: what still differs from what is wanted."""
        return (*self._parts.pipeline.verify(wanted), *self._parts.mirrors.verify(wanted))

    def remove_everything(self) -> None:
        """As if nothing were wanted: copies end, what was counted is kept, and collectors get their last word."""
        parts = self._parts
        parts.accounts.admit(())
        self._apply(DataPlane())
        counters = self._settled_counters()
        parts.accounts.settle(counters, at_once=True)
        parts.announcer.report(parts.accounts.totals(counters))
        parts.announcer.submit({})
        parts.announcer.drain(LINGER + 1)

    def _settled_counters(self) -> NodeCounters:
        """Once no copy is between `pick` and `send` any more, or after SETTLE seconds."""
        until = time.monotonic() + SETTLE
        counters, before = self.fresh_counters(), None
        while counters != before and time.monotonic() < until:
            time.sleep(SETTLE / 20)
            before, counters = counters, self.fresh_counters()
        return counters

    def _tick(self) -> None:
        parts = self._parts
        try:
            parts.pipeline.renew_lease(LEASE)
            counters = self.fresh_counters()
            parts.announcer.report(parts.accounts.totals(counters))
            if parts.accounts.due():
                parts.accounts.settle(counters)
            self._unhealthy = unhealthy(parts.mirrors.check_health(self._wanted))
        except VtapError as error:
            log.warning("%s", error)
            parts.mailbox.changed()
        self._report()

    def _report(self) -> None:
        answers = self._parts.announcer.acknowledgements()
        observations = Observations(
            unverified=(*self._unverified, *self._unhealthy),
            collector_problems={name: answer.problem for name, answer in answers.items() if answer.problem},
            confirming=frozenset(name for name, answer in answers.items() if answer.streams and not answer.problem),
        )
        self._view.statuses = tuple(tap_status(verdict, observations) for verdict in self._verdicts)
        self._view.problems = (*self._source_problems, *self._inventory_problems)
