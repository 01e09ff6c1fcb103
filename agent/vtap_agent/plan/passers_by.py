"""Whether packets pass the node's end of a pod's device by, told by the counters of both its ends. Pure.

What one end of a pair sends, the other receives, and both ends tell it. An eBPF program may also put a packet right into the
pod's end (bpf_redirect_peer) or, of a netkit pair, take it from there: then only the pod's end has it in its count, and no hook
at the node's end has seen it. What is tapped need not be seen for that, and super-packets count alike at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass

ENOUGH = 10
"""Packets that have to have passed by, or have come through meanwhile, before anything is concluded."""
QUIET = 300.0
"""Seconds without any before it is over: some packets may always take the other way, as a kubelet's probes do with Cilium."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Packets of one direction since the pair was made: by the pod's end, and by the node's end before and after that was read.

    So that, whatever came in between, of two readings the first's `before` and the second's `after` hold all that came through
    the node's end while the pod's end counted.
    """

    before: int
    pod: int
    after: int


@dataclass(frozen=True, slots=True)
class Watch:
    """One direction of a pair, from the reading `since` on. `seen_at`: when packets were last found to have passed by, in seconds
    of a monotonic clock; None where that isn't so, or is over."""

    since: Reading
    seen_at: float | None = None


def watched(known: Watch | None, now: Reading, at: float) -> Watch:
    """`known` with one more reading, `at` seconds. What is found to have passed by is never too much: few packets are enough."""
    if known is None:
        return Watch(now)
    since = known.since
    passed_by = (now.pod - since.pod) - (now.after - since.before)
    if passed_by >= ENOUGH or (passed_by > 0 and known.seen_at is not None):
        return Watch(now, at)
    is_over = known.seen_at is not None and at - known.seen_at >= QUIET and now.before - since.after >= ENOUGH
    return Watch(now) if is_over else known
