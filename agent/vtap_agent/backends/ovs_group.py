"""Copies by flows and groups of type ALL: see what is, change a bridge's flows in one bundle, and count what was not copied."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vtap_agent.backends import tap_ports
from vtap_agent.backends.group_observed import observed
from vtap_agent.backends.left_out import LeftOut
from vtap_agent.backends.tap_port_commands import command
from vtap_agent.drivers.ofctl import Ofctl
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.errors import Retry, TellUser, VtapError, Wait
from vtap_agent.plan.dataplane import Backend, DataPlane, Direction, Feed, Group
from vtap_agent.plan.foreign_flows import outputs_to, told
from vtap_agent.plan.groups import (
    Counted,
    GroupBridge,
    Present,
    SetFlows,
    bundle,
    desired,
    groups_on,
    layout_for,
    our_groups,
    port_changes,
    refusals,
    tap_numbers,
)
from vtap_agent.plan.groups_flows import BridgeFlows, Layout, our_cookies
from vtap_agent.plan.groups_foreign import ForeignFlows, cookie_of, group_of, packets_of, place_of, read_foreign, without_counters
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.slots import Assignment
from vtap_agent.plan.stamps import Stamp
from vtap_agent.plan.steps import Step
from vtap_agent.plan.tap_ports import AddTapPort, BridgeStep, DeleteTapPort, tap_port_name

LOOK_EVERY, LOOK_AT_LEAST_EVERY = 2.0, 30.0
"""Seconds between looks at other people's flows of a bridge that ours are on: the more of them there are, the longer."""
LOOK_SHARE = 0.02
"""Of its time that a bridge is looked at, where this takes less than LOOK_AT_LEAST_EVERY."""
READ_EVERY = 0.5
"""Seconds between readings of our flows' counters, which vswitchd itself brings up to date about as often."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Cause:
    """What flows are made of."""

    bridge: GroupBridge
    groups: Mapping[Direction, Group]
    wanted: DataPlane
    layout: Layout
    hairpins: bool

    def is_like(self, other: _Cause) -> bool:
        """Whether the same would be made of it."""
        same = self.bridge is other.bridge and self.wanted is other.wanted
        return same and (self.layout, self.hairpins, self.groups) == (other.layout, other.hairpins, other.groups)


@dataclass
class _Bridge:
    """What is remembered of a bridge."""

    pid: int | None = None
    """Of the vswitchd when it was looked at last."""
    look_at: float = -math.inf
    """When others' flows are due to be looked at again, in seconds of a monotonic clock."""
    text: int = 0
    """A hash of others' flows and groups as last read."""
    foreign: ForeignFlows | None = None
    trouble: str = ""
    layout: Layout | None = None
    target: tuple[_Cause, BridgeFlows] | None = None
    """The flows that were last wanted, and what they were made of."""

    @property
    def flows(self) -> BridgeFlows:
        return self.target[1] if self.target else BridgeFlows()

    @property
    def cookies(self) -> frozenset[int]:
        """Of the flows that were last wanted."""
        return frozenset(flow.cookie for flow in self.flows.flows)

    def aim(self, bridge: GroupBridge, groups: Mapping[Direction, Group], wanted: DataPlane, node: str) -> BridgeFlows:
        """What the bridge should have; kept, as passes are many and changes few."""
        if not groups or self.layout is None or self.foreign is None:
            return BridgeFlows()
        cause = _Cause(bridge, groups, wanted, self.layout, self.foreign.hairpins)
        if self.target is None or not self.target[0].is_like(cause):
            self.target = cause, desired(bridge, groups, wanted, self.layout, node, hairpins=self.foreign.hairpins)
        return self.target[1]


class OvsGroupBackend:
    """The flows, groups and tap ports of this node. Call it from one thread.

    `on_loss` is called where flows of ours are found missing, or others' have changed so that ours may have to, so that a pass
    comes soon. What flows have counted is kept in the file `counts` for the agent that comes next.
    """

    def __init__(
        self,
        connection: OvsdbConnection,
        node: str,
        generation: int = 0,
        on_loss: Callable[[], None] = lambda: None,
        counts: Path | None = None,
    ) -> None:
        self._connection = connection
        self._ofctl = Ofctl(connection.vswitchd.run_dir)
        self._stamp = Stamp(node, generation, Backend.OVS_GROUP)
        self._on_loss = on_loss
        self._left_out = LeftOut(counts)
        self._known: dict[str, _Bridge] = defaultdict(_Bridge)
        self._swept: set[str] = set()
        self._read_at = 0.0
        self._flood_problems: dict[str, str] = {}
        self._unflooded: dict[str, tuple[int | None, int]] = {}
        self._observed: tuple[int, Mapping[str, GroupBridge]] | None = None
        self._checked: Mapping[str, GroupBridge] = {}

    @property
    def backend(self) -> Backend:
        """OVSGroup."""
        return Backend.OVS_GROUP

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what cannot be kept away from tap ports, which harms no tap as long as nobody's flows flood."""
        return tuple(sentence for _, sentence in sorted(self._flood_problems.items()))

    @property
    def purges(self) -> int:
        """None: vswitchd itself sees that flows have changed."""
        return 0

    def uncopied(self) -> Mapping[Assignment, int]:
        """Packets that the flows did not copy since a tap point has its slot, as no tap of its pod wants them.

        Those of tap points that are gone stay there until others have their slots. Counted by the switch, for which a
        super-packet is one packet. Read now, but at most once in READ_EVERY seconds; where the switch does not answer, as of the
        last time. The bridges are watched on the way.
        """
        now = time.monotonic()
        if now - self._read_at >= READ_EVERY:
            self._read_at = now
            for name in self._left_out.inherited | {name for name, known in self._known.items() if known.flows.flows}:
                try:
                    self._watch(name)
                except VtapError as reason:
                    log.debug("flows of %s were not read: %s", name, reason)
        return self._left_out.packets

    def _watch(self, name: str) -> None:
        """Read the counters of our flows, and ask for a pass where what they were made for is not so any more."""
        known, there = self._known[name], self._left_out.counted(name)
        before = known.foreign, known.trouble
        self._look(name)
        if (known.foreign, known.trouble) != before:
            self._on_loss()
        counted = self._counted(name)
        self._left_out.read(name, counted, known.cookies)
        if there.keys() & known.cookies - counted.keys():
            self._on_loss()

    def close(self) -> None:
        """Keep what was counted for the next agent."""
        self._left_out.keep()

    def observe(self) -> Mapping[str, GroupBridge]:
        """Bridges by name, as the database tells them. Raises Wait where it is down."""
        self._observed = self._connection.read_if_changed(observed, self._observed)
        seen = {name: self._with_devices(bridge) for name, bridge in self._observed[1].items()}
        if seen != self._checked:
            self._checked = seen
        return self._checked

    def _with_devices(self, bridge: GroupBridge) -> GroupBridge:
        if not bridge.tap_ports:
            return bridge
        return replace(bridge, tap_ports=tuple(tap_ports.checked(port) for port in bridge.tap_ports))

    def refusals(self, wanted: DataPlane) -> dict[Feed, str]:
        """The feeds that cannot be had, and why: to be read after "OVSGroup can't be had:"."""
        found: dict[Feed, str] = {}
        bridges = self._observe_for(wanted)
        for name in sorted({feed.place for feed in wanted.groups} & bridges.keys()):
            groups = groups_on(name, wanted.groups)
            known = self._look(name)
            if known.trouble:
                found.update({group.feed: known.trouble for group in groups.values()})
            elif known.foreign is not None:
                found.update(refusals(bridges[name], groups, known.foreign, known.layout, self._stamp.node))
        return found

    def plan(self, wanted: DataPlane) -> tuple[BridgeStep, ...]:
        """The steps from what is to `wanted`. Raises Wait where the database or vswitchd is down, unless nothing is wanted."""
        steps: list[BridgeStep] = []
        bridges = self._observe_for(wanted)
        self._left_out.forget({point.slot: point.incarnation for point in wanted.points})
        if bridges:
            self._left_out.only(bridges)
        for name, bridge in sorted(bridges.items()):
            groups = groups_on(name, wanted.groups)
            if groups:
                self._swept.discard(name)
            elif name in self._swept and not bridge.tap_ports:
                continue
            ports = port_changes(bridge, groups, self._stamp)
            try:
                changes = self._changes(bridge, groups, wanted)
            except VtapError:
                if groups and not self._known[name].trouble:
                    raise
                # Nobody wants anything there, or only until what `refusals` has told makes it go elsewhere. What is left of our
                # flows goes when the bridge answers; without its tap port a copy is nothing to the bridge until then.
                steps.extend(port for port in ports if isinstance(port, DeleteTapPort))
                continue
            if changes or ports:
                steps.extend((*ports, SetFlows(name, groups, wanted)))
            elif not groups:
                self._swept.add(name)
        return tuple(steps)

    def apply(self, steps: Iterable[Step]) -> None:
        """Apply the steps of ours among `steps`: new ports, then flows bridge by bridge, then ports that go."""
        ours = [step for step in steps if isinstance(step, BridgeStep) and step.backend is self.backend]
        self._transact([step for step in ours if isinstance(step, AddTapPort)])
        for step in ours:
            if isinstance(step, SetFlows):
                self._set_flows(step)
        self._transact([step for step in ours if isinstance(step, DeleteTapPort)])

    def sweep(self) -> None:
        """Remove all of ours, of this run or an earlier one. Raises Wait, Retry, TellUser where something may stay."""
        for name, bridge in sorted(self.observe().items()):
            ports = port_changes(bridge, {}, self._stamp)
            if ports or self._ofctl.is_installed():  # Without the program no agent here has ever written a flow.
                self.apply((*ports, SetFlows(name, {}, DataPlane())))

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        """What still differs from `wanted`, and whom it concerns. Raises as `plan`."""
        bridges = self._observe_for(wanted)
        self._keep_out_of_floods(bridges, wanted)
        found = [
            Shortfall(f"there is no bridge {feed.place}", frozenset({feed}))
            for feed in wanted.groups
            if feed.place not in bridges
        ]
        for step in self.plan(wanted):
            feeds = frozenset(feed for feed in wanted.groups if feed.place == step.bridge)
            found.append(Shortfall(f"not done yet: {step}", feeds))
        for feed, group in wanted.groups.items():
            bridge = bridges.get(feed.place)
            if bridge is not None:
                numbered = {port.uuid for port in bridge.ports if port.numbers}
                lost = frozenset(member.port_uuid for member in group.members) - numbered
                if lost:
                    sentence = (
                        f"ports of pods on bridge {feed.place} have no OpenFlow number, as vswitchd has not opened their devices"
                    )
                    found.append(Shortfall(sentence, frozenset({feed}), lost))
        return tuple(found)

    def problems(self, wanted: DataPlane, suspects: frozenset[Feed]) -> dict[Feed, str]:
        """Sentences about feeds whose flows are missing, or whose tap port gets what others' flows send there."""
        found: dict[Feed, str] = {}
        bridges = self._observe_for(wanted)
        for name in sorted({feed.place for feed in wanted.groups} & bridges.keys()):
            groups = groups_on(name, wanted.groups)
            if self._changes(bridges[name], groups, wanted):
                sentence = f"flows of ours are missing on bridge {name} or others are there; they are put right"
                found.update({group.feed: sentence for group in groups.values()})
                self._on_loss()
            for feed in suspects & {group.feed for group in groups.values()}:
                if sentence := self._strange_flows(bridges[name], feed):
                    found[feed] = sentence
        return found

    # --- flows -----------------------------------------------------------------------------------------------------------

    def _set_flows(self, step: SetFlows) -> None:
        bridge = self.observe().get(step.bridge)
        if bridge is None:
            raise Retry(f"bridge {step.bridge} has gone")
        changes = self._changes(bridge, step.groups, step.wanted)
        if changes:
            self._left_out.change()
            self._ofctl.bundle(step.bridge, changes)

    def _changes(self, bridge: GroupBridge, groups: Mapping[Direction, Group], wanted: DataPlane) -> tuple[str, ...]:
        """What to change in the flows, with their counters read on the way."""
        known = self._look(bridge.name) if groups else self._known[bridge.name]
        try:
            present = self._present(bridge.name)
        except TellUser:
            known.look_at = -math.inf  # Something has changed there: the next pass asks again what can be had.
            raise
        self._left_out.read(bridge.name, present.flows, known.cookies)
        self._left_out.inherited.discard(bridge.name)
        if not groups:
            known.target = None
        target = known.target
        flows = known.aim(bridge, groups, wanted, self._stamp.node)
        if known.target is not target:
            counting = {flow.cookie: flow.uncopied for flow in flows.flows if flow.uncopied}
            self._left_out.aim(bridge.name, counting, {point.slot: point.incarnation for point in wanted.points})
        return bundle(flows, present)

    def _present(self, bridge: str) -> Present:
        numbers = {group_of(line) for line in self._ofctl.groups(bridge)}
        return Present(self._counted(bridge), our_groups(self._stamp.node) & numbers)

    def _counted(self, bridge: str) -> Mapping[int, Counted]:
        """What each flow of ours has counted, by cookie."""
        flows = self._ofctl.flows(bridge, our_cookies(self._stamp.node))
        return {cookie_of(line): Counted(place_of(line), packets_of(line)) for line in flows}

    def _look(self, name: str) -> _Bridge:
        """At other people's flows: at first, after a restart of vswitchd, and every few seconds. Raises Wait, Retry."""
        known, pid, begin = self._known[name], self._connection.vswitchd.pid(), time.monotonic()
        if known.pid == pid and begin < known.look_at and (known.foreign or known.trouble):
            return known
        self._left_out.counted_by(name, pid)
        try:
            self._read_foreign(name, known)
        except TellUser as error:
            known.trouble = str(error)
        now = time.monotonic()
        known.pid = known.pid if pid is None else pid
        known.look_at = now + min(LOOK_AT_LEAST_EVERY, max(LOOK_EVERY, (now - begin) / LOOK_SHARE))
        return known

    def _read_foreign(self, name: str, known: _Bridge) -> None:
        """Dumping is cheap, understanding is not: what says the same as before means the same."""
        flows, groups = self._foreign(name)
        text = hash(tuple(map(without_counters, (*flows, *groups))))
        if known.foreign is None or text != known.text:
            known.foreign, known.text = read_foreign(flows, groups), text
            known.layout = layout_for(known.foreign, known.layout)
        known.trouble = ""

    def _foreign(self, name: str) -> tuple[list[str], list[str]]:
        value, mask = our_cookies(self._stamp.node)
        flows = [line for line in self._ofctl.flows(name) if cookie_of(line) & mask != value]
        mine = our_groups(self._stamp.node)
        return flows, [line for line in self._ofctl.groups(name) if group_of(line) not in mine]

    # --- ports -----------------------------------------------------------------------------------------------------------

    def _observe_for(self, wanted: DataPlane) -> Mapping[str, GroupBridge]:
        """A node without Open vSwitch is in order as long as nobody wants anything there."""
        try:
            return self.observe()
        except Wait:
            if wanted.groups:
                raise
            return {}

    def _transact(self, steps: list[AddTapPort] | list[DeleteTapPort]) -> None:
        if steps:
            self._connection.transact(lambda api: [command(api, step) for step in steps])

    def _keep_out_of_floods(self, bridges: Mapping[str, GroupBridge], wanted: DataPlane) -> None:
        """NORMAL sends nothing to a port in no VLAN, FLOOD does unless vswitchd remembers that we asked it not to."""
        pid = self._connection.vswitchd.pid()
        self._flood_problems = {}
        for name in sorted({feed.place for feed in wanted.groups} & bridges.keys()):
            groups = groups_on(name, wanted.groups)
            for direction, number in tap_numbers(bridges[name], groups, self._stamp.node).items():
                port = tap_port_name(self._stamp.node, groups[direction].feed)
                if self._unflooded.get(port) == (pid, number):
                    continue
                try:
                    self._connection.vswitchd.never_flood_to(name, port)
                    self._unflooded[port] = (pid, number)
                except VtapError as error:
                    self._flood_problems[port] = str(error)

    def _strange_flows(self, bridge: GroupBridge, feed: Feed) -> str:
        number = tap_numbers(bridge, {feed.direction: Group(feed, ())}, self._stamp.node).get(feed.direction)
        if number is None:
            return ""
        flows, _ = self._foreign(bridge.name)
        return told(outputs_to("\n".join(flows), number), bridge.name, tap_port_name(self._stamp.node, feed), number)
