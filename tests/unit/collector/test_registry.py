"""What agents announce, on a core without threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.collector.copies import copy, numbered_frame
from tests.unit.collector.core_library import NODE_ADDRESS, IdleCore, idle_core
from vtap_collector.announcements import Announcement, Stream, TapName, Totals, parse_announcement
from vtap_collector.errors import Refused
from vtap_collector.registry import STALE_SECONDS, STATE_FILE, Registry
from vtap_collector.storage import Storage


def announcement(*streams: tuple[int, int], tap: str = "checkout") -> Announcement:
    return Announcement.model_validate(
        {
            "version": 1,
            "addresses": [NODE_ADDRESS],
            "taiOffset": 37,
            "streams": [
                {
                    "key": key, "incarnation": f"{incarnation:016x}", "trailer": True, "tap": {"namespace": "shop", "name": tap},
                    "pod": {"namespace": "shop", "name": "web-0", "uid": ""}, "interface": "eth0", "direction": "Egress",
                }
                for key, incarnation in streams
            ],
        }
    )  # fmt: skip


def send(core: IdleCore, key: int, numbers: range) -> None:
    for number in numbers:
        core.ingest(0, NODE_ADDRESS, copy(key, number, numbered_frame(number)))


def received(registry: Registry) -> dict[tuple[int, str], tuple[int, bool]]:
    return {(e.stream.key, e.stream.incarnation[-1]): (registry.counts(e).received, e.open) for e in registry.entries()}


def test_announcing_again_changes_nothing(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        send(core, 1, range(5))
        registry.changed = False
        registry.announce("n", announcement((1, 1)))
        assert not registry.changed
        assert received(registry) == {(1, "1"): (5, True)}


def test_what_is_missing_closes_and_comes_back_with_its_counts(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1), (2, 1)))
        send(core, 1, range(5))
        registry.announce("n", announcement((2, 1)))
        assert received(registry) == {(1, "1"): (5, False), (2, "1"): (0, True)}
        registry.announce("n", announcement((1, 1), (2, 1)))
        send(core, 1, range(5, 7))
        assert received(registry) == {(1, "1"): (7, True), (2, "1"): (0, True)}


def test_other_nodes_streams_are_left_alone(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        registry.announce("m", announcement((2, 1)))
        registry.announce("m", announcement())
        assert received(registry) == {(1, "1"): (0, True), (2, "1"): (0, False)}


def test_survives_a_restart(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1), (2, 1)))
        send(core, 1, range(5))
        registry.announce("n", announcement((1, 1)))
        storage.write_state(STATE_FILE, registry.saved())
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.restore(storage)
        send(core, 1, range(5, 8))
        assert received(registry) == {(1, "1"): (8, True), (2, "1"): (0, False)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"nodes": {}, "taps": [], "streams": [], "more": 1}',
        b'{"nodes": {}, "taps": [], "streams": [], "forgotten": {"surprise": 1}}',
    ],
)
def test_an_unreadable_file_is_put_aside(tmp_path: Path, content: bytes) -> None:
    storage = Storage(tmp_path)
    storage.write_state(STATE_FILE, content)
    with idle_core(tmp_path) as core:
        Registry(core, core.settings).restore(storage)
    assert (tmp_path / ".state" / f"{STATE_FILE}.bad").read_bytes() == content


def test_too_many_streams_are_refused_whole(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        with pytest.raises(Refused, match="room for 16 more") as refused:
            registry.announce("n", announcement(*((key, 1) for key in range(17))))
        assert refused.value.status == 507
        assert received(registry) == {}


def test_nodes_that_have_gone_make_room(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:  # two nodes at most
        registry = Registry(core, core.settings)
        for number in range(6):
            registry.announce(f"n{number}", announcement())
            registry.sweep()
        registry.announce("last", announcement((1, 1)))
        send(core, 1, range(3))
        assert received(registry) == {(1, "1"): (3, True)}


def test_closed_taps_make_room(tmp_path: Path) -> None:
    with idle_core(tmp_path, grace=0.0) as core:  # four taps at most
        registry = Registry(core, core.settings)
        for number in range(6):
            registry.announce("n", announcement((number, 1), tap=f"tap-{number}"))
            send(core, number, range(3))
            core.write()
        assert len(registry.taps()) == 4
        assert registry.forgotten.received == 6 == registry.forgotten.stored


def test_the_longest_closed_tap_goes_first_and_open_ones_stay(tmp_path: Path) -> None:
    with idle_core(tmp_path, grace=0.0) as core:
        registry = Registry(core, core.settings)
        registry.announce("m", announcement((9, 1), tap="stays"))
        for number in (1, 2, 3):
            registry.announce("n", announcement((number, 1), tap=f"tap-{number}"))
        registry.announce("n", announcement())
        core.write()
        registry.announce("n", announcement((4, 1), tap="tap-4"))
        assert {tap.name for tap in registry.taps()} == {"stays", "tap-2", "tap-3", "tap-4"}
        with pytest.raises(Refused, match="room for 2 more taps"):
            registry.announce("n", Announcement(version=1, addresses=[NODE_ADDRESS], taiOffset=37, streams=five_taps()))


def five_taps() -> list[Stream]:
    return [announcement((key, 1), tap=f"five-{key}").streams[0] for key in range(20, 25)]


def test_an_agent_that_is_silent_has_stale_streams_until_it_speaks(tmp_path: Path) -> None:
    now = [100.0]
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings, lambda: now[0])
        registry.announce("n", announcement((1, 1)))
        (entry,) = registry.entries()
        now[0] += STALE_SECONDS - 1
        assert not registry.is_stale(entry)
        registry.totals("n", Totals.model_validate({"streams": []}))
        now[0] += STALE_SECONDS
        assert registry.is_stale(entry)
        registry.announce("n", announcement((1, 1)))
        assert not registry.is_stale(entry)


def test_what_the_last_process_knew_grows_stale_as_well(tmp_path: Path) -> None:
    storage, now = Storage(tmp_path), [100.0]
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        storage.write_state(STATE_FILE, registry.saved())
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings, lambda: now[0])
        registry.restore(storage)
        assert [registry.is_stale(entry) for entry in registry.entries()] == [False]
        now[0] += STALE_SECONDS
        assert [registry.is_stale(entry) for entry in registry.entries()] == [True]


def test_stale_streams_make_room(tmp_path: Path) -> None:
    now = [100.0]
    with idle_core(tmp_path, grace=0.0) as core:  # sixteen streams at most
        registry = Registry(core, core.settings, lambda: now[0])
        registry.announce("gone", announcement(*((key, 1) for key in range(16))))
        for _try in range(2):
            with pytest.raises(Refused, match="room for 0 more"):
                registry.announce("n", announcement((99, 1)))
        now[0] += STALE_SECONDS
        with pytest.raises(Refused, match="room for 0 more"):
            registry.announce("n", announcement((99, 1)))
        core.write()
        registry.announce("n", announcement((99, 1)))
        assert received(registry) == {(99, "1"): (0, True)}


def test_what_ended_while_the_collector_was_away_closes_and_its_last_totals_count(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1), (2, 1)))
        send(core, 1, range(5))
        storage.write_state(STATE_FILE, registry.saved())
    with idle_core(tmp_path, grace=0.0) as core:
        registry = Registry(core, core.settings)
        registry.restore(storage)
        registry.announce("n", announcement((2, 1)))
        core.write()
        last = {"key": 1, "incarnation": f"{1:016x}", "sent": 12, "nextSequence": 12}
        registry.totals("n", Totals.model_validate({"streams": [last]}))
        (counts,) = [registry.counts(entry) for entry in registry.entries() if not entry.open]
        assert (counts.received, counts.lost_network, counts.in_flight, counts.closed) == (5, 7, 0, 1)


def test_what_was_missing_when_the_last_process_ended_is_lost(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        send(core, 1, range(0, 10, 2))
        registry.announce("n", announcement())
        storage.write_state(STATE_FILE, registry.saved())
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.restore(storage)
        (counts,) = [registry.counts(entry) for entry in registry.entries()]
        assert (counts.received, counts.lost_network, counts.in_flight) == (5, 4, 0)


def test_a_buffer_that_is_full_drops_and_counts(tmp_path: Path) -> None:
    """Nothing writes before the core stops, so the buffer's four chunks are all there is."""
    with idle_core(tmp_path, buffer_bytes=1 << 20) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        send(core, 1, range(12_000))
        core.stop()
        (counts,) = [registry.counts(entry) for entry in registry.entries()]
        assert counts.received == 12_000 == counts.stored + counts.dropped_slow
        assert counts.stored == 4 * ((256 << 10) // (44 + 64))


def total(key: int, sent: int, before: int = 0, **terms: int) -> Totals:
    row: dict[str, object] = {"key": key, "incarnation": f"{1:016x}", "sent": sent, "nextSequence": sent, "before": before}
    if terms:
        row["terms"] = {"excluded": 0, "unsampled": 0, "limited": 0, "dropped": {}, **terms}
    return Totals.model_validate({"streams": [row]})


def test_what_left_before_the_collector_knew_the_stream_is_not_said_to_be_lost_on_the_way(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with idle_core(tmp_path, grace=0.0) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        registry.totals("n", total(1, 100, before=100))
        send(core, 1, range(100, 105))
        registry.totals("n", total(1, 107, before=107))
        core.write()
        (counts,) = map(registry.counts, registry.entries())
        assert (counts.received, counts.lost_before, counts.lost_network) == (5, 100, 2)
        storage.write_state(STATE_FILE, registry.saved())
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.restore(storage)
        registry.announce("n", announcement((1, 1)))
        registry.totals("n", total(1, 107, before=107))
        (counts,) = map(registry.counts, registry.entries())
        assert (counts.lost_before, counts.lost_network) == (100, 2), "what it knew it still knows"


def test_a_stream_that_is_new_has_no_past(tmp_path: Path) -> None:
    with idle_core(tmp_path, grace=0.0) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        registry.totals("n", total(1, 7))
        core.write()
        (counts,) = map(registry.counts, registry.entries())
        assert (counts.lost_before, counts.lost_network) == (0, 7)


def test_the_agents_side_is_kept_beside_the_stream_and_its_last_word_on_disk(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        registry.totals("n", total(1, 3, seen=5))
        registry.announce("n", announcement())
        registry.changed = False
        registry.totals("n", total(1, 4, seen=9))
        assert registry.changed
        registry.changed = False
        registry.totals("n", total(1, 4, seen=9))
        assert not registry.changed
        storage.write_state(STATE_FILE, registry.saved())
        since = registry.since
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.since = "another"
        registry.restore(storage)
        (entry,) = registry.entries()
        assert entry.agent is not None and (entry.sent, entry.agent.seen) == (4, 9)
        assert registry.since == since


def test_totals_of_unknown_streams_are_passed_over(tmp_path: Path) -> None:
    with idle_core(tmp_path) as core:
        registry = Registry(core, core.settings)
        registry.announce("n", announcement((1, 1)))
        totals = [{"key": key, "incarnation": f"{1:016x}", "sent": 9, "nextSequence": 9} for key in (1, 2)]
        registry.totals("n", Totals.model_validate({"streams": totals}))
        (counts,) = [registry.counts(entry) for entry in registry.entries()]
        assert counts.in_flight == 9


def test_ipv4_in_ipv6_is_the_ipv4_address() -> None:
    body = announcement((1, 1)).model_copy(update={"addresses": ["::ffff:10.0.0.1", "FD00::1"]}).model_dump_json()
    assert parse_announcement(body.encode()).addresses == ["10.0.0.1", "fd00::1"]


def test_a_tap_is_a_safe_path() -> None:
    for name in ("..", ".", "a/b", "", "A", "-a", "a-", "a..b", ".a", "a.", "a\0", "a\n", "x" * 254):
        with pytest.raises(ValueError, match="name"):
            TapName(namespace="shop", name=name)
    assert Stream.model_validate(announcement((1, 1)).streams[0].model_dump()).tap.name == "checkout"
