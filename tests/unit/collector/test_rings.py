"""Where copies are captured, and where they are left to the sockets."""

from __future__ import annotations

import pytest

from vtap_collector.rings import CAP_NET_ADMIN, CAP_NET_RAW, RingPlan, drop_rules, plan_rings
from vtap_collector.sockets import Endpoint

ROOT = frozenset({CAP_NET_ADMIN, CAP_NET_RAW})
INTERFACES = {"10.0.0.1": "eth0", "10.0.0.2": "eth1", "fd00::1": "eth0"}


def plan(*addresses: str, asked: str = "auto", held: frozenset[int] = ROOT) -> RingPlan:
    return plan_rings(asked, [Endpoint(address, 4754) for address in addresses], held, INTERFACES.get)


def test_by_itself_on_the_interfaces_of_the_addresses() -> None:
    assert plan("10.0.0.1", "fd00::1", "10.0.0.2").interfaces == ("eth0", "eth1")
    assert plan("10.0.0.1", "fd00::1").expression() == "dst host 10.0.0.1 or dst host fd00::1"


@pytest.mark.parametrize(
    ("addresses", "held", "why"),
    [
        (["10.0.0.1"], frozenset(), "needs CAP_NET_RAW"),
        (["::"], ROOT, "needs this machine's addresses in --listen-data"),
        (["10.0.0.1", "0.0.0.0"], ROOT, "needs this machine's addresses in --listen-data"),
        (["10.0.0.9"], ROOT, "no interface is known to have 10.0.0.9"),
    ],
)
def test_else_by_sockets_with_the_reason(addresses: list[str], held: frozenset[int], why: str) -> None:
    made = plan(*addresses, held=held)
    assert made.interfaces == () and why in made.why_not


def test_loopback_is_left_to_sockets_silently() -> None:
    assert plan("127.0.0.1") == RingPlan((), ("127.0.0.1",))


def test_as_told() -> None:
    assert plan("10.0.0.1", asked="none").interfaces == ()
    assert plan("10.0.0.1", asked="eth7,eth8", held=frozenset()) == RingPlan(("eth7", "eth8"), ("10.0.0.1",), demanded=True)
    assert plan("::", asked="eth7").expression() == ""


def test_only_what_the_rings_take_is_dropped() -> None:
    rules = drop_rules("t", RingPlan(("eth0",), ("10.0.0.1",)), 4754)
    assert 'device "eth0"' in rules and "ip daddr { 10.0.0.1 }" in rules and "ip6" not in rules and "flags owner" in rules
