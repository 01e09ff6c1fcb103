"""`vtap keys` maps keys to tap points, for people and for programs; `vtap status` shows rates."""

from __future__ import annotations

import csv
import io

import pytest

from vtap_cli import keys, status

ANSWER = {
    "node": "node-1",
    "keys": [
        {
            "key": key,
            "incarnation": f"{key:016x}",
            "tap": {"namespace": "shop", "name": "web"},
            "pod": {"namespace": "shop", "name": f"web-{key}", "uid": f"uid-{key}"},
            "interface": "eth0",
            "direction": "Egress",
            "destination": "sensor",
        }
        for key in (4097, 4096)
    ],
}


def test_csv_can_be_read_back() -> None:
    rows = list(csv.DictReader(io.StringIO(keys.as_csv(ANSWER))))
    assert [row["key"] for row in rows] == ["4096", "4097"]
    assert rows[0] == {
        "key": "4096",
        "tap_namespace": "shop",
        "tap": "web",
        "pod_namespace": "shop",
        "pod": "web-4096",
        "pod_uid": "uid-4096",
        "interface": "eth0",
        "direction": "Egress",
        "destination": "sensor",
        "node": "node-1",
        "incarnation": f"{4096:016x}",
    }


def test_the_table_names_tap_and_pod() -> None:
    head, first, _second = keys.as_table(ANSWER).splitlines()
    assert head.split() == ["KEY", "TAP", "POD", "INTERFACE", "DIRECTION", "DESTINATION"]
    assert first.split() == ["4096", "shop/web", "shop/web-4096", "eth0", "Egress", "sensor"]


@pytest.mark.parametrize(("value", "shown"), [(0, "0 "), (12.4, "12.4 "), (999.6, "1 k"), (123456, "123 k"), (2.5e9, "2.5 G")])
def test_rates_have_three_digits_and_a_prefix(value: float, shown: str) -> None:
    assert status._scaled(value) == shown


def test_status_shows_rates_where_there_are_some() -> None:
    point = {
        "pod": {"namespace": "shop", "name": "web-1"},
        "message": "mirrored at veth1 on br0",
        "rates": {"seenPackets": 1234.5, "seenBits": 8e6, "sentPackets": 12.0, "sentBits": 9600},
    }
    text = status.render({"node": "n", "taps": [{"namespace": "shop", "name": "web", "points": [point]}], "problems": []})
    assert "mirrored at veth1 on br0; seen 1.23 kp/s 8 Mb/s, sent 12 p/s 9.6 kb/s" in text
