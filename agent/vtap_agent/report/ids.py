"""Whether rewritten copies find ids: where two buckets of them are full, copies to one more destination end as `noId`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from vtap_agent.pipeline.recover_layout import REWRITE_IDLE
from vtap_agent.report.rates import Sample

QUIET = 2.0 * REWRITE_IDLE
"""Seconds without such a copy before it is over. Full buckets of ids stay full for as long as an id stays taken; with less than
that the status would change with every copy of a flow that sends seldom."""


def lacking_ids(known: Mapping[str, float], before: Sample, now: Sample) -> Mapping[str, float]:
    """Streams, by incarnation, of which copies find no id, and when such a copy was last counted; `known` as of `before`.

    Of a stream that `before` lacks nothing is concluded: what it counts may have been counted long ago.
    """
    counted = {row.incarnation: count for row in now.rows if not row.closed and (count := row.counters.dropped.get("noId", 0))}
    if not counted:
        return {}
    earlier = {row.incarnation: row.counters.dropped.get("noId", 0) for row in before.rows if row.incarnation in counted}
    grown = {stream: now.at for stream, count in counted.items() if count > earlier.get(stream, count)}
    lately = {**known, **grown}
    return {stream: at for stream, at in lately.items() if stream in counted and now.at - at < QUIET}
