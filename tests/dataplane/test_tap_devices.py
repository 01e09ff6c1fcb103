"""The tap port of a bridge whose packets DPDK moves is a tap device; it takes no DPDK to write to one."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from tests.unit.pipeline.frames import PEER4, POD4, ethernet, ipv4, udp
from tests.unit.pipeline.node import EGRESS, INGRESS, PEER_MAC, POD_MAC, Node, wait_until, why_not
from vtap_agent.drivers import links

COUNT = 50


@pytest.fixture
def node() -> Iterator[Node]:
    if reason := why_not():
        pytest.skip(reason)
    if not links.may_create_taps():
        pytest.skip(f"{links.TUN} can't be opened here")
    with Node() as made:
        yield made


@pytest.fixture
def tap_file(node: Node) -> Iterator[int]:
    """The egress tap port's file, opened as vswitchd opens it."""
    names = node.ports[EGRESS] = node.pipeline.ensure_tap_port(EGRESS, polled=True)
    handle = os.open(links.TUN, os.O_RDWR)
    request = struct.pack("16sH", names.switch.encode(), links.IFF_TAP | links.IFF_NO_PI).ljust(40, b"\0")
    fcntl.ioctl(handle, links.TUNSETIFF, request)
    yield handle
    os.close(handle)


def test_what_is_written_to_the_file_is_picked_and_sent(node: Node, tap_file: int) -> None:
    node.apply(node.plane())
    capture = node.capture()
    frame = ethernet(PEER_MAC, POD_MAC, 0x0800, ipv4(POD4, PEER4, 17, udp(POD4, PEER4, 9, 80, b"x" * 1400)))
    for _ in range(COUNT):
        assert os.write(tap_file, frame) == len(frame)
    wait_until(lambda: node.counters(1).sent == COUNT, "the copies are sent")
    assert node.settled(1).seen == COUNT and capture.frames(COUNT)


def test_it_says_nothing_by_itself_and_outlives_who_has_it_open(node: Node, tap_file: int) -> None:
    names = node.ports[EGRESS]
    before = links.find(names.switch)
    os.set_blocking(tap_file, False)
    with pytest.raises(BlockingIOError):
        os.read(tap_file, 2048)
    other = os.dup2(os.open("/dev/null", os.O_RDONLY), tap_file)
    assert other == tap_file and links.find(names.switch) == before
    assert node.pipeline.ensure_tap_port(EGRESS, polled=True) == names


def test_it_is_found_again_and_removed(node: Node) -> None:
    names = node.pipeline.ensure_tap_port(EGRESS, polled=True)
    assert names.ours == names.switch and links.is_tap(names.switch)
    node.reopen()
    assert node.pipeline.tap_ports() == {EGRESS, INGRESS} and node.pipeline.tap_port_devices(EGRESS) == names
    node.pipeline.remove_tap_port(EGRESS)
    assert links.find(names.switch) is None and node.pipeline.tap_ports() == {INGRESS}


def test_it_follows_the_bridge_s_datapath_both_ways(node: Node) -> None:
    veth = node.ports[EGRESS]
    tap = node.pipeline.ensure_tap_port(EGRESS, polled=True)
    assert tap.switch == veth.switch and links.find(veth.ours) is None
    assert node.pipeline.ensure_tap_port(EGRESS) == veth and not links.is_tap(veth.switch)


def test_without_the_tun_device_it_is_a_veth(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "TUN", "/nowhere")
    assert node.pipeline.ensure_tap_port(EGRESS, polled=True) == node.ports[EGRESS]
    assert not links.is_tap(node.ports[EGRESS].switch)
