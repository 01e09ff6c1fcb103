"""Copies by eBPF at pods' host-side devices: `watch` looks at the originals and clones what a tap wants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vtap_agent.pipeline.hooks import Hooks
from vtap_agent.plan.dataplane import Backend, DataPlane, Feed
from vtap_agent.plan.shortfalls import Shortfall
from vtap_agent.plan.steps import Phase, Step


@dataclass(frozen=True, slots=True)
class LetEnter:
    """`enter` at the near end of the pair: without it clones would stay as they are."""

    phase: Phase = Phase.ATTACH

    def __str__(self) -> str:
        return "attach enter to the near end of the normalising pair"


@dataclass(frozen=True, slots=True)
class AttachHook:
    """`watch` at one side of a pod's device, in place of an older one."""

    feed: Feed
    phase: Phase = Phase.ATTACH

    def __str__(self) -> str:
        return f"watch {self.feed.direction} at {self.feed.place}"


@dataclass(frozen=True, slots=True)
class DetachHook:
    """Nothing of ours at that side of a device any more."""

    feed: Feed
    phase: Phase = Phase.RETIRE

    def __str__(self) -> str:
        where = self.feed.place or f"device {self.feed.ifindex}, which has gone"
        return f"watch {self.feed.direction} no longer at {where}"


HookStep = LetEnter | AttachHook | DetachHook


class EbpfBackend:
    """Attaches and detaches; which tap wants what of a device is in the pipeline's maps. Call it from one thread."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    @property
    def backend(self) -> Backend:
        """EBPF."""
        return Backend.EBPF

    @property
    def notes(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def purges(self) -> int:
        """Open vSwitch has no part in it."""
        return 0

    def refusals(self, wanted: DataPlane) -> dict[Feed, str]:
        """Devices of our own, which carry copies; and sides of devices that nothing can be attached to."""
        if not wanted.hooks:
            return {}
        own = self._hooks.own_devices()
        return self._hooks.without_place(wanted.hooks) | {
            feed: f"{feed.place} is a device of VirtualTap's own; tapping it would copy copies"
            for feed in wanted.hooks
            if feed.ifindex in own
        }

    def plan(self, wanted: DataPlane) -> tuple[HookStep, ...]:
        """The steps from what is attached to `wanted`."""
        noted = self._hooks.noted()
        if not noted and not wanted.hooks:
            return ()
        running = self._hooks.running()
        steps: list[HookStep] = [LetEnter()] if wanted.hooks and not self._hooks.can_enter() else []
        steps += [AttachHook(feed) for feed in sorted(wanted.hooks - running)]
        sides = {(feed.ifindex, feed.direction) for feed in wanted.hooks}
        steps += [DetachHook(feed) for feed in sorted(noted) if (feed.ifindex, feed.direction) not in sides]
        return tuple(steps)

    def apply(self, steps: Iterable[Step]) -> None:
        """Apply the steps among `steps` that are of this backend. Raises Retry where a device has gone."""
        for step in steps:
            match step:
                case LetEnter():
                    self._hooks.let_enter()
                case AttachHook():
                    self._hooks.attach(step.feed)
                case DetachHook():
                    self._hooks.detach(step.feed)
                case _:
                    continue

    def verify(self, wanted: DataPlane) -> tuple[Shortfall, ...]:
        """What is not attached as wanted, and whom it concerns."""
        return tuple(_concerning(step, wanted) for step in self.plan(wanted))

    def problems(self, wanted: DataPlane, suspects: frozenset[Feed]) -> Mapping[Feed, str]:
        """Those that others' filters are in front of for good."""
        del suspects
        return self._hooks.stay_behind(wanted.hooks)


def _concerning(step: HookStep, wanted: DataPlane) -> Shortfall:
    sentence = f"not done yet: {step}"
    match step:
        case LetEnter():
            return Shortfall(sentence, wanted.hooks)
        case AttachHook():
            return Shortfall(sentence, frozenset({step.feed}))
        case DetachHook():
            return Shortfall(sentence)
