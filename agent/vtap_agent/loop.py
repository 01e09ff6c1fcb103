"""The loop of a node: observe → plan → apply → verify → report.

A pass runs when something changed, and at the latest every RESYNC seconds. Between passes a tick every second reads the counters
and tells collectors what has left. Only this thread touches Open vSwitch and the kernel, but for the lease, which has its own.
Others read the view: values that are replaced whole and never edited.

Nothing that a pass meets ends the agent: what is raised on purpose becomes a sentence in the status, what nobody foresaw is
logged with its traceback and counted as well, and the pass is tried again, ever more seldom. The data plane goes on meanwhile.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vtap_agent.accounts import SETTLE, Accounts
from vtap_agent.errors import VtapError, Wait
from vtap_agent.events import Mailbox
from vtap_agent.inventory import Observer
from vtap_agent.lease import Lease
from vtap_agent.pipeline import Pipeline, PipelineStep
from vtap_agent.plan.assembly import Announced, Plan, assemble
from vtap_agent.plan.auto import Leanings, Unavailable, unavailable
from vtap_agent.plan.dataplane import Backend, DataPlane, Feed, NodeCounters, TapPointName
from vtap_agent.plan.hookless import Hookless
from vtap_agent.plan.hookless import hookless as find_hookless
from vtap_agent.plan.inventory_model import Inventory
from vtap_agent.plan.leaning import Leaning
from vtap_agent.plan.mirror_health import EVIDENCE
from vtap_agent.plan.moves import with_old_feeds
from vtap_agent.plan.reception import Reception, Withheld, withheld
from vtap_agent.plan.recover import without_edges
from vtap_agent.plan.selection import Desired, Selection, remotes, select
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.slots import Assignment, SlotTable
from vtap_agent.plan.steadiness import vanished, with_interfaces, with_switch
from vtap_agent.plan.steps import Phase, Step, ordered
from vtap_agent.plan.streams import StreamId
from vtap_agent.plan.verdicts import TapVerdict
from vtap_agent.report.announcer import LINGER, Announcer
from vtap_agent.report.ids import lacking_ids
from vtap_agent.report.ledger import Row, with_uncopied
from vtap_agent.report.metrics import AgentMetrics, Reading
from vtap_agent.report.rates import Rate, Sample, rates
from vtap_agent.report.status import Observations, TapStatus, tap_status
from vtap_api import TapDestination

log = logging.getLogger(__name__)

TICK = 1.0
RESYNC = 10.0
RETRY_FIRST, RETRY_LAST = 0.1, 5.0
HEALTH_EVERY, HEALTH_EVERY_AFTER_CHANGE, CHANGE_WATCHED = 5.0, 1.0, 10.0
"""Seconds between looks at whether feeds copy; more often for a while after a change, which may have passed flows by, and after
a look that found something new."""
BLINK = 5.0
"""Seconds that a pod whose interfaces cannot be seen keeps the tap points it has."""
AWAY = "Open vSwitch does not answer: what is copied stays so, and nothing new can be until it runs again (check ovs-vswitchd)"


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


class CopyBackend(Protocol):
    """One way to make copies. Each does its own part of the wanted data plane, and leaves the others' alone.

    Where nothing is wanted of it, a backend works without Open vSwitch too; else what it has to look at may raise Wait.
    """

    @property
    def backend(self) -> Backend:
        """Which it is."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what harms no tap."""
        ...

    @property
    def purges(self) -> int:
        """How often running flows of Open vSwitch were purged since the start."""
        ...

    def refusals(self, wanted: DataPlane) -> Mapping[Feed, str]:
        """The feeds of its own that cannot be had, and why; of OVSGroup as a clause, else with what a person has to change."""
        ...

    def plan(self, wanted: DataPlane) -> Sequence[Step]:
        """The steps from what is to `wanted`, which `apply` tells from the others'."""
        ...

    def apply(self, steps: Iterable[Step]) -> None:
        """Apply its own among the steps of one phase, in one transaction where it has such."""
        ...

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        """What still differs from `wanted`, and whom it concerns."""
        ...

    def problems(self, wanted: DataPlane, suspects: frozenset[Feed]) -> Mapping[Feed, str]:
        """Sentences about feeds of its own that do not copy as they should. Packets that fit no source arrive at `suspects`."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives."""

    taps: TapSource
    observer: Observer
    backends: tuple[CopyBackend, ...]
    pipeline: Pipeline
    announcer: Announcer
    accounts: Accounts
    mailbox: Mailbox
    uncopied: Callable[[], Mapping[Assignment, int]] = dict[Assignment, int]
    """Packets that a switch left out itself, because no tap of their pod wants them; also of streams that had a slot before."""
    with_edges: Callable[[tuple[TapDestination, ...], Inventory], Inventory] = without_edges
    """Serves the monitors of this node and adds the ways of copies without a tunnel."""
    switch_expected: Callable[[], bool] = lambda: True
    """Whether there is an Open vSwitch on this node that should answer."""
    passed_by: Callable[[frozenset[Feed]], frozenset[Feed]] = lambda _hooks: frozenset()
    """Those of these EBPF feeds that packets pass by, and so are not copied; asked every tick."""
    without_place: Callable[[frozenset[Feed]], Mapping[Feed, str]] = lambda _hooks: {}
    """Those of these EBPF feeds at which nothing can be attached, and why, in a sentence; asked every pass."""


@dataclass(frozen=True, slots=True)
class View:
    """What is served to those who ask, as of the last tick or pass."""

    counters: NodeCounters = field(default_factory=lambda: NodeCounters({}, {}, 0))
    rows: tuple[Row, ...] = ()
    read_at: float = field(default_factory=time.monotonic)
    """When counters and rows were read, in seconds of a monotonic clock."""
    rates: Mapping[str, Rate] = field(default_factory=dict[str, Rate])
    """By incarnation."""
    statuses: tuple[TapStatus, ...] = ()
    problems: tuple[str, ...] = ()
    """Sentences about files and pods that belong to no tap."""
    files_refused: int = 0
    map_bytes: int = 0
    purges: int = 0
    inventory: Inventory | None = None
    """As the last pass found it."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, and what it was made of: made of the same it would be the same."""

    desired: Desired
    inventory: Inventory
    slots: SlotTable
    confirmed: Announced
    withheld: Mapping[str, Withheld]
    hookless: Hookless
    """Where eBPF has no place, and Open vSwitch a port."""
    leanings: Leanings
    """Where `Auto` would have Open vSwitch copy, and how."""
    unavailable: Unavailable
    """What of it can't be had, and why."""
    selection: Selection
    """With what `Auto` takes there instead."""
    unrefused: Plan
    """As if every feed could be had, and the preprocessor held every program."""
    refused: tuple[Mapping[Feed, str], Mapping[str, str]]
    """Feeds and programs that cannot be had, and why."""
    plan: Plan


class Loop:
    """One node's loop. `run` returns after `Mailbox.stop`."""

    def __init__(self, parts: Parts, first_key: int) -> None:
        self._parts = parts
        self._first_key = first_key
        self._lease = Lease(parts.pipeline.renew_lease)
        self._sample = Sample(0.0, ())
        self._verdicts: tuple[TapVerdict, ...] = ()
        self._wanted = self._applied = DataPlane()
        self._failure = ""
        self._tick_failure = ""
        self._unverified: tuple[Shortfall, ...] = ()
        self._feed_problems: Mapping[Feed, str] = {}
        self._new_problems = False
        self._passed_by = frozenset[Feed]()
        self._lacking_ids: Mapping[str, float] = {}
        self._source_problems: tuple[str, ...] = ()
        self._inventory_problems: tuple[str, ...] = ()
        self._inventory: Inventory | None = None
        self._last_seen: Inventory | None = None
        self._planned: _Planned | None = None
        self._unavailable = Unavailable()
        self._hookless = Hookless()
        self._leans: Mapping[TapPointName, Leaning] = {}
        self._strays: Mapping[Feed, int] = {}
        self._reported: tuple[Row, ...] | None = None
        self._said: tuple[Observations, tuple[TapVerdict, ...]] | None = None
        self._blinking: Mapping[str, float] = {}
        self._maps_changed = True
        self._changed_at = self._health_at = -math.inf
        self._retry = RETRY_FIRST
        self.ready = False
        """Whether a pass has done all that can be done; without Open vSwitch that is little."""
        self.view = View()
        """Any thread may read it; take it once for one answer."""
        self.metrics = AgentMetrics(self.reading)

    # --- what others ask -------------------------------------------------------------------------------------------------

    def reading(self) -> Reading:
        """For a scrape."""
        view = self.view
        return Reading(
            rows=view.rows,
            counters=view.counters,
            taps=view.statuses,
            map_bytes=view.map_bytes,
            purges=view.purges,
            files_refused=view.files_refused,
            age=max(0.0, time.monotonic() - view.read_at),
        )

    @property
    def silence(self) -> float:
        """Seconds since the loop last moved."""
        return self._lease.silence

    def refresh(self) -> None:
        """Read the counters now, for the next `reading`; call it on the loop's thread."""
        rows, counters = self.ledger()
        self.view = replace(self.view, counters=counters, rows=rows, read_at=time.monotonic())

    def ledger(self) -> tuple[tuple[Row, ...], NodeCounters]:
        """Rows and counters, read now; call it on the loop's thread."""
        counters = self._counters()
        return self._parts.accounts.rows(counters), counters

    def _counters(self) -> NodeCounters:
        parts = self._parts
        assigned = parts.accounts.slots.assigned.values()
        counters = with_uncopied(parts.pipeline.counters(parts.accounts.used_slots()), parts.uncopied(), assigned)
        parts.accounts.observe(counters)
        return counters

    # --- the loop --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until stopped."""
        self._lease.start()
        self._parts.announcer.adopt(self._parts.accounts.told)
        try:
            self._run()
        finally:
            self._lease.end()

    def _run(self) -> None:
        mailbox = self._parts.mailbox
        next_resync = next_tick = time.monotonic()
        while True:
            changed, stopping = mailbox.wait(min(next_resync, next_tick))
            if stopping:
                return
            self._lease.beat()
            if changed or time.monotonic() >= next_resync:
                next_resync = time.monotonic() + self._pass()
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + TICK

    def _guard(self, what: str, act: Callable[[], None]) -> str:
        """Do it; returns the sentence that says why it failed, empty where it did not."""
        try:
            act()
        except VtapError as error:
            return str(error)
        except Exception as error:
            log.exception("the %s failed unexpectedly", what)
            self.metrics.failures.labels(what).inc()
            return f"the agent's {what} failed unexpectedly ({type(error).__name__}: {error}); it is tried again, see its log"
        return ""

    def _pass(self) -> float:
        """One pass; returns the seconds after which the next is due at the latest."""
        with self.metrics.pass_seconds.time():
            before, self._failure = self._failure, self._guard("pass", self._converge)
        if self._failure and self._failure != before:
            log.warning("%s", self._failure)
        outcome = "failed" if self._failure else "unverified" if self._unverified else "converged"
        self.metrics.passes.labels(outcome).inc()
        self.ready = self.ready or outcome == "converged" or self._failure == AWAY
        self._report()
        if outcome != "converged":
            self._retry, now = min(RETRY_LAST, self._retry * 2), self._retry
            return now
        self._retry = RETRY_FIRST
        return TICK if self._blinking else RESYNC

    def _converge(self) -> None:
        parts = self._parts
        snapshot = parts.taps.snapshot()
        self._source_problems = snapshot.problems
        desired = snapshot.desired
        seen = parts.observer.snapshot(remotes(desired))
        inventory = self._inventory = parts.with_edges(desired.destinations, seen)
        self._inventory_problems = inventory.problems
        if not inventory.switch.reachable and self._misses_switch():
            self._converge_without_switch(desired, inventory)
            return
        inventory = self._last_seen = self._steadied(inventory)
        plan = self._plan(desired, inventory)
        self._begin(plan)
        wanted, portless = self._with_tap_ports(plan.dataplane)
        changed = self._apply(wanted)
        parts.accounts.unfed()
        self._unverified = (*portless, *self._verify(wanted, parts.backends, changed=changed))

    def _misses_switch(self) -> bool:
        """Whether there should be an Open vSwitch: a node without one is a node like others, whose taps need none."""
        return self._parts.switch_expected() or (self._last_seen is not None and self._last_seen.switch.reachable)

    def _converge_without_switch(self, desired: Desired, inventory: Inventory) -> None:
        """Copies that Open vSwitch has no part in are made as ever. Of the others those of taps that are gone end at once all the
        same, and edits reach the copies that there are. Raises Wait where a tap needs more."""
        if self._last_seen is None:
            self._verdicts = tuple(replace(verdict, points=()) for verdict in select(desired, inventory).verdicts)
            raise Wait(AWAY)
        plan = self._plan(desired, self._steadied(with_switch(inventory, self._last_seen)))
        self._begin(plan)
        able = [one for one in self._parts.backends if one.backend is Backend.EBPF]
        wanted = plan.dataplane.limited_to(self._parts.pipeline.tap_ports() | plan.dataplane.hooks)
        changed = self._apply_steps([*self._pipeline_steps(wanted), *(step for one in able for step in one.plan(wanted))])
        self._parts.accounts.unfed()
        self._unverified = self._verify(wanted, able, changed=changed)
        if plan.dataplane.tap_ports or any(point.feed is None for verdict in plan.verdicts for point in verdict.points):
            raise Wait(AWAY)

    def _begin(self, plan: Plan) -> None:
        self._verdicts = plan.verdicts
        self._wanted = plan.dataplane
        self._parts.accounts.tell(plan.announcements)
        self._parts.announcer.submit(plan.announcements, self._parts.accounts.leaving)

    def _steadied(self, inventory: Inventory) -> Inventory:
        """Pods that cannot be looked into for a moment are as they were."""
        if self._last_seen is None:
            return inventory
        now = time.monotonic()
        blinking = {uid: self._blinking.get(uid, now) for uid in vanished(inventory, self._last_seen)}
        self._blinking = {uid: since for uid, since in blinking.items() if now - since < BLINK}
        return with_interfaces(inventory, self._last_seen, self._blinking)

    def _plan(self, desired: Desired, inventory: Inventory) -> Plan:
        parts = self._parts
        for answer in parts.announcer.acknowledgements().values():
            parts.accounts.confirm(answer.streams)
        known = self._planned
        if known is None or not self._still_holds(known, desired, inventory):
            known = self._planned_anew(desired, inventory)
        wanted = known.unrefused.dataplane
        refused = (self._refused_feeds(wanted, inventory), parts.pipeline.refusals(wanted))
        if refused != known.refused:
            plan = self._assemble(known.selection, inventory, known.withheld, *refused) if any(refused) else known.unrefused
            known = replace(known, refused=refused, plan=plan)
        self._planned = known
        return known.plan

    def _refused_feeds(self, wanted: DataPlane, inventory: Inventory) -> Mapping[Feed, str]:
        able = [one for one in self._parts.backends if inventory.switch.reachable or one.backend is Backend.EBPF]
        return {feed: sentence for one in able for feed, sentence in one.refusals(wanted).items()}

    def _still_holds(self, known: _Planned, desired: Desired, inventory: Inventory) -> bool:
        accounts = self._parts.accounts
        return (
            known.desired is desired
            and known.slots is accounts.slots
            and known.confirmed == accounts.confirmed
            and known.withheld == self._withheld(known.selection)
            and known.inventory == inventory
            and time.monotonic() < known.selection.due
            and known.hookless == self._without_hooks(inventory)
            and known.unavailable == self._unavailable_to_auto(known.leanings, inventory)
        )

    def _planned_anew(self, desired: Desired, inventory: Inventory) -> _Planned:
        accounts = self._parts.accounts
        hookless = self._without_hooks(inventory)
        preferred = select(desired, inventory, self._leans, time.monotonic(), hookless.clauses)
        self._leans = preferred.leans
        leanings = preferred.leanings
        unavailable = self._unavailable_to_auto(leanings, inventory)
        selection = preferred.without(unavailable)
        for failure in selection.failures:
            log.error("tap %s cannot be planned", failure.tap, exc_info=failure.error)
            self.metrics.failures.labels("plan").inc()
        accounts.admit(candidate.stream for candidate in selection.candidates)
        kept_back = self._withheld(selection)
        plan = self._assemble(selection, inventory, kept_back)
        made_of = (desired, inventory, accounts.slots, accounts.confirmed, kept_back, hookless, leanings, unavailable)
        return _Planned(*made_of, selection, plan, ({}, {}), plan)

    def _without_hooks(self, inventory: Inventory) -> Hookless:
        ask, now = self._parts.without_place, time.monotonic()
        self._hookless = find_hookless(inventory, ask, self._hookless, self._unavailable, now)
        return self._hookless

    def _unavailable_to_auto(self, leanings: Leanings, inventory: Inventory) -> Unavailable:
        """What `Auto` would take and can't have; as seen last while Open vSwitch does not answer."""
        if inventory.switch.reachable:
            before, now = self._unavailable, time.monotonic()
            self._unavailable = unavailable(leanings, lambda asked: self._refused_feeds(asked, inventory), before, now)
        return self._unavailable

    def _withheld(self, selection: Selection) -> Mapping[str, Withheld]:
        """Destinations to which nothing may be sent, as their collectors answer now."""
        now = time.monotonic()
        answers = self._parts.announcer.acknowledgements()
        known = {name: Reception(answer.addresses, now - answer.heard_at) for name, answer in answers.items()}
        return withheld(selection.destinations, known)

    def _assemble(
        self,
        selection: Selection,
        inventory: Inventory,
        kept_back: Mapping[str, Withheld],
        refused_feeds: Mapping[Feed, str] | None = None,
        refused_programs: Mapping[str, str] | None = None,
    ) -> Plan:
        accounts = self._parts.accounts
        refused = (refused_feeds, refused_programs)
        return assemble(selection, accounts.slots, self._first_key, accounts.confirmed, inventory, *refused, kept_back)

    def _with_tap_ports(self, wanted: DataPlane) -> tuple[DataPlane, tuple[Shortfall, ...]]:
        """(what of it can be had, why the rest cannot): a tap port that cannot be made is no other bridge's trouble."""
        portless: dict[Feed, Shortfall] = {}
        bridges = self._last_seen.switch.bridges if self._last_seen is not None else ()
        polled = {bridge.name for bridge in bridges if bridge.polled}
        for feed in sorted(wanted.tap_ports):
            try:
                self._parts.pipeline.ensure_tap_port(feed, polled=feed.place in polled)
            except (VtapError, OSError) as error:
                sentence = f"the tap port for {feed.direction} of bridge {feed.place} cannot be made ({error}); it is tried again"
                portless[feed] = Shortfall(sentence, frozenset({feed}))
                log.warning("%s", sentence)
        if not portless:
            return wanted, ()
        return wanted.limited_to(wanted.feeds - portless.keys()), tuple(portless.values())

    def _apply(self, wanted: DataPlane) -> bool:
        """Every step in the order of its phase; those of a backend together, in one transaction, at their place in it.

        False where there was none to do.
        """
        between = with_old_feeds(self._applied, wanted)
        moved = between is not wanted and self._apply_plane(between)
        changed = self._apply_plane(wanted)
        self._applied = wanted
        return moved or changed

    def _apply_plane(self, wanted: DataPlane) -> bool:
        parts = self._parts
        steps: list[Step] = [*self._pipeline_steps(wanted), *(step for one in parts.backends for step in one.plan(wanted))]
        changed = self._apply_steps(steps)
        for feed in parts.pipeline.tap_ports() - wanted.tap_ports:
            parts.pipeline.remove_tap_port(feed)
        return changed

    def _pipeline_steps(self, wanted: DataPlane) -> list[PipelineStep]:
        pipeline = self._parts.pipeline
        with self._lease.lock:
            return pipeline.plan(wanted, {feed: pipeline.tap_port_devices(feed) for feed in wanted.tap_ports})

    def _apply_steps(self, steps: Sequence[Step]) -> bool:
        """False where there is none."""
        if steps:
            self._maps_changed = True
            self._changed_at = time.monotonic()
        for phase, group in itertools.groupby(ordered(steps), key=lambda step: step.phase):
            self._apply_phase(phase, list(group))
        return bool(steps)

    def _apply_phase(self, phase: Phase, steps: list[Step]) -> None:
        for step in steps:
            log.info("%s", step)
        for one in self._parts.backends:
            one.apply(steps)
        for step in steps:
            if self._parts.pipeline.owns(step):
                with self._lease.lock:
                    self._parts.pipeline.apply(step)
        self.metrics.steps.labels(phase.name.lower()).inc(len(steps))

    def _verify(self, wanted: DataPlane, backends: Iterable[CopyBackend], *, changed: bool) -> tuple[Shortfall, ...]:
        """Look again where something was changed: what still differs from what is wanted."""
        with self._lease.lock:
            left = self._parts.pipeline.shortfalls(wanted) if changed else ()
        return (*left, *(shortfall for one in backends for shortfall in one.verify(wanted)))

    def remove_everything(self) -> None:
        """As if nothing were wanted: copies end, what was counted is kept, and collectors get their last word."""
        parts = self._parts
        parts.accounts.admit(())
        self._apply(DataPlane())
        counters = self._settled_counters()
        parts.accounts.unfed()
        parts.accounts.settle(counters, at_once=True)
        parts.announcer.report(parts.accounts.totals(parts.accounts.rows(counters)))
        parts.announcer.submit({})
        if parts.announcer.drain(LINGER + 1):
            parts.accounts.all_heard()

    def _settled_counters(self) -> NodeCounters:
        """Once no copy is between `pick` and `send` any more, or after SETTLE seconds."""
        until = time.monotonic() + SETTLE
        counters, before = self._counters(), None
        while counters != before and time.monotonic() < until:
            time.sleep(SETTLE / 20)
            before, counters = counters, self._counters()
        return counters

    def _tick(self) -> None:
        before, self._tick_failure = self._tick_failure, self._guard("tick", self._look_at_counters)
        if self._tick_failure:
            if self._tick_failure != before:
                log.warning("%s", self._tick_failure)
            self._parts.mailbox.changed()
        self._report()

    def _look_at_counters(self) -> None:
        parts = self._parts
        counters = self._counters()
        rows = parts.accounts.rows(counters)
        self._take_view(counters, rows)
        if rows is not self._reported:
            parts.announcer.report(parts.accounts.totals(rows))
            self._reported = rows
        if parts.accounts.due():
            parts.accounts.settle(counters)
            parts.mailbox.changed()
        if self._planned is not None and self._withheld(self._planned.selection) != self._planned.withheld:
            parts.mailbox.changed()
        self._passed_by = parts.passed_by(self._wanted.hooks)
        self._look_at_feeds()

    def _look_at_feeds(self) -> None:
        now = time.monotonic()
        watched = now - self._changed_at < CHANGE_WATCHED or self._new_problems
        if now - self._health_at < (HEALTH_EVERY_AFTER_CHANGE if watched else HEALTH_EVERY):
            return
        self._health_at = now
        strays, self._strays = self._strays, self.view.counters.unattributed
        suspects = frozenset(key for key, count in self._strays.items() if count - strays.get(key, count) >= EVIDENCE)
        found = [one.problems(self._wanted, suspects) for one in self._parts.backends]
        known, self._feed_problems = self._feed_problems, {of: said for problems in found for of, said in problems.items()}
        # What looks the same again may stay for good, as a filter of somebody's that nothing of ours can pass.
        self._new_problems = not self._feed_problems.items() <= known.items()

    def _take_view(self, counters: NodeCounters, rows: tuple[Row, ...]) -> None:
        parts = self._parts
        before, self._sample = self._sample, Sample(time.monotonic(), rows)
        self._lacking_ids = lacking_ids(self._lacking_ids, before, self._sample)
        map_bytes = parts.pipeline.map_bytes() if self._maps_changed else self.view.map_bytes
        self._maps_changed = False
        self.view = replace(
            self.view,
            counters=counters,
            rows=rows,
            read_at=self._sample.at,
            rates=rates(before, self._sample),
            map_bytes=map_bytes,
            purges=sum(one.purges for one in parts.backends),
        )

    def _report(self) -> None:
        answers = self._parts.announcer.acknowledgements()
        unarriving = frozenset[StreamId]().union(*(answer.unarriving for answer in answers.values()))
        observations = Observations(
            stopped=self._failure,
            switch_away=self._failure == AWAY,
            unverified=self._unverified,
            feed_problems=self._feed_problems,
            passed_by=self._passed_by,
            told=frozenset(answers),
            collector_problems={name: answer.problem for name, answer in answers.items() if answer.problem},
            confirming=frozenset(name for name, answer in answers.items() if answer.streams and not answer.problem),
            unarriving=frozenset(row.name for row in self.view.rows if (row.key, row.incarnation) in unarriving),
            unidentified=frozenset(row.name for row in self.view.rows if row.incarnation in self._lacking_ids),
        )
        said = (observations, self._verdicts)
        if said == self._said:
            statuses = self.view.statuses
        else:
            statuses = tuple(tap_status(verdict, observations) for verdict in self._verdicts)
        self._said = said
        self.view = replace(
            self.view,
            statuses=statuses,
            problems=(
                *self._source_problems,
                *self._inventory_problems,
                *(note for one in self._parts.backends for note in one.notes),
                *(shortfall.sentence for shortfall in self._unverified if shortfall.concerns_nobody),
            ),
            files_refused=len(self._source_problems),
            inventory=self._inventory,
        )
