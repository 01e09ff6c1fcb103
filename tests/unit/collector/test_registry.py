"""What agents announce, on a core without threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.collector.copies import copy, numbered_frame
from tests.unit.collector.core_library import NODE_ADDRESS, IdleCore, idle_core
from vtap_collector.announcements import Announcement, Stream, TapName, Totals, parse_announcement
from vtap_collector.errors import Refused
from vtap_collector.registry import STATE_FILE, Registry
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


@pytest.mark.parametrize("content", [b"", b"{", b'{"nodes": {}, "taps": [], "streams": [], "more": 1}'])
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
