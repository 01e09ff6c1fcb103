"""What a tap promises, whoever makes its copies. Each case is judged by numbered datagrams that the pods themselves logged."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest

from tests.contract import captured
from tests.contract.columns import DPDK, NO_SWITCH
from tests.contract.frames import frame
from tests.contract.scene import CUTTING, Scene, expect_originals, snapshot
from tests.contract.sockets import PacketSocket, gather
from tests.contract.traffic import GreListener, Talk, bulk, talk
from tests.dataplane.site import PATIENCE, expect_each_once, point
from vtap_api.virtualtap import BackendName
from vtap_lab.errors import comes_true, wait_for

ETHERNET, IPV4, UDP = 14, 20, 8
OUTER = ETHERNET + IPV4 + UDP + 12 + 20
"""What a copy to our collector has around its frame: GRE with key and sequence over UDP, and the trailer."""
FULL = 1472
"""UDP payload of a packet as large as the pods' MTU."""
LEASE = 9.0
"""Seconds that copies go on without an agent, less some for reading the clock elsewhere."""
NO_VLANS = "a plain bridge: its access VLANs are the bridge's own matter"

NO_FRAGMENTS = "DPDK's af_packet driver delivers no IP fragments here, tapped or not"


class Contract:
    """Subclasses name the backend; conftest.py gives them their columns."""

    backend: BackendName

    # --- directions ------------------------------------------------------------------------------------------------------

    def test_egress_alone(self, scene: Scene) -> None:
        scene.tap("tap", direction="Egress")
        out, back = talk(scene.web, scene.client), talk(scene.client, scene.web)
        scene.judge("tap", out, point(scene.web, "egress"))
        scene.judge("tap", back)

    def test_ingress_alone(self, scene: Scene) -> None:
        scene.tap("tap", direction="Ingress")
        out, back = talk(scene.web, scene.client), talk(scene.client, scene.web)
        scene.judge("tap", out)
        scene.judge("tap", back, point(scene.web, "ingress"))

    def test_both_directions(self, scene: Scene) -> None:
        scene.tap("tap")
        out, back, beside = talk(scene.web, scene.client), talk(scene.client, scene.web), talk(scene.left, scene.client)
        scene.judge("tap", out, point(scene.web, "egress"))
        scene.judge("tap", back, point(scene.web, "ingress"))
        scene.judge("tap", beside)

    def test_a_pair_of_tapped_pods(self, scene: Scene) -> None:
        scene.tap("tap", "pair")
        exchange = talk(scene.left, scene.right)
        scene.judge("tap", exchange, point(scene.left, "egress"), point(scene.right, "ingress"))

    def test_two_taps_on_a_pod(self, scene: Scene) -> None:
        scene.tap("all")
        scene.tap("out", direction="Egress", filter=_include({"protocol": "UDP"}))
        exchange, back = talk(scene.web, scene.client), talk(scene.client, scene.web)
        scene.judge("all", exchange, point(scene.web, "egress"))
        scene.judge("all", back, point(scene.web, "ingress"))
        scene.judge("out", exchange, point(scene.web, "egress"))
        scene.judge("out", back)

    # --- what is copied --------------------------------------------------------------------------------------------------

    def test_filter_by_port(self, scene: Scene) -> None:
        rule = {"protocol": "UDP", "peerPorts": [{"port": 30000, "endPort": 30006}]}
        scene.tap("tap", direction="Egress", filter=_include(rule))
        wanted = Talk(scene.web, scene.client, port=30005).finish()
        unwanted = Talk(scene.web, scene.client, port=30007).finish()
        scene.judge("tap", wanted, point(scene.web, "egress"))
        scene.judge("tap", unwanted)

    def test_filter_by_prefix(self, scene: Scene) -> None:
        scene.tap("tap", filter=_include({"peer": {"cidr": f"{scene.client.ipv4}/32"}}))
        wanted, back = talk(scene.web, scene.client), talk(scene.client, scene.web)
        unwanted = talk(scene.web, scene.left)
        scene.judge("tap", wanted, point(scene.web, "egress"))
        scene.judge("tap", back, point(scene.web, "ingress"))
        scene.judge("tap", unwanted)

    def test_filter_that_excludes(self, scene: Scene) -> None:
        rules = [
            {"action": "Include", "peer": {"cidr": f"{scene.client.ipv4}/32"}, "protocol": "UDP", "peerPorts": [{"port": 30010}]},
            {"action": "Exclude", "peer": {"cidr": f"{scene.client.ipv4}/32"}},
        ]
        scene.tap("tap", direction="Egress", filter={"defaultAction": "Include", "rules": rules})
        first = Talk(scene.web, scene.client, port=30010).finish()
        second = Talk(scene.web, scene.client, port=30011).finish()
        third = talk(scene.web, scene.left)
        scene.judge("tap", first, point(scene.web, "egress"))
        scene.judge("tap", second)
        scene.judge("tap", third, point(scene.web, "egress"))

    def test_filter_edited_under_traffic(self, scene: Scene) -> None:
        scene.tap("tap", direction="Egress")
        wanted, unwanted = (Talk(scene.web, scene.client, count=0, rate=500) for _ in range(2))
        unwanted.flows_on()
        rule = {"action": "Exclude", "protocol": "UDP", "peerPorts": [{"port": unwanted.port}]}
        scene.tap("tap", direction="Egress", filter={"defaultAction": "Include", "rules": [rule]})
        edited_at = unwanted.sent_so_far()
        unwanted.flows_on(200)
        kept, cut = wanted.stop(), unwanted.stop()
        expect_originals(cut)
        scene.judge("tap", kept, point(scene.web, "egress"))
        copied = sorted(datagram.sequence for _, datagram in scene.stored("tap").elements() if datagram.sender == cut.sender)
        assert copied == list(range(len(copied))), "copies end once, and for good"
        assert 0 < len(copied) < edited_at + 100

    def test_one_in_four(self, scene: Scene) -> None:
        scene.tap("tap", direction="Egress", filter=_include({"protocol": "UDP"}), sampling={"type": "OneIn", "oneIn": 4})
        exchange = talk(scene.web, scene.client, count=400)
        expect_originals(exchange)
        summary = scene.closes("tap")
        copied = scene.stored("tap")
        assert set(copied.values()) == {1} and copied.total() == summary["stored"]
        # Binomial: mean 100, standard deviation 8.7; six of them.
        assert abs(summary["stored"] - 100) < 52
        assert summary["stored"] + summary["unsampled"] == len(exchange.sent)

    def test_ten_an_interval(self, scene: Scene) -> None:
        sampling = {"type": "PerInterval", "perInterval": {"packets": 10, "interval": "1h"}}
        scene.tap("tap", direction="Egress", filter=_include({"protocol": "UDP"}), sampling=sampling)
        exchange = talk(scene.web, scene.client, count=200)
        expect_originals(exchange)
        summary = scene.closes("tap")
        assert [datagram.sequence for _, datagram in scene.stored("tap")] == list(range(10))
        assert (summary["stored"], summary["unsampled"]) == (10, 190)

    def test_whole_flows(self, scene: Scene) -> None:
        """Of half of the flows every packet, at either end of each."""
        sampling = {"type": "Flows", "flows": {"percent": 50}}
        scene.tap("tap", "pair", filter=_include({"protocol": "UDP"}), sampling=sampling)
        talks = [Talk(scene.left, scene.right, count=10) for _ in range(24)]
        flows = [one.finish() for one in talks]
        for flow in flows:
            expect_originals(flow)
        summary, found = scene.closes("tap"), scene.stored("tap")
        ends = point(scene.left, "egress"), point(scene.right, "ingress")
        copied = [flow for flow in flows if any(found[end, datagram] for end in ends for datagram in flow.sent)]
        for flow in copied:
            expect_each_once(found, flow, *ends)
        assert 0 < len(copied) < len(flows), "all or none: a chance of 1 in 2 ** 23"
        assert (summary["stored"], summary["unsampled"]) == (20 * len(copied), 20 * (len(flows) - len(copied)))
        assert found.total() == summary["stored"] and summary["lost"] == summary["dropped"] == 0

    def test_rate_limit(self, scene: Scene) -> None:
        """What fits the bucket and what it gains while the copies are made; the rest is counted as limited."""
        rate, burst = 8000, 524288
        limit = {"bitsPerSecond": rate, "burst": burst}
        scene.tap("tap", direction="Egress", filter=_include({"protocol": "UDP"}), rateLimit=limit)
        exchange = talk(scene.web, scene.client, count=90, size=1000)
        expect_originals(exchange)
        summary, packets = scene.closes("tap"), scene.packets("tap")
        assert set(captured.numbered(packets).values()) == {1} and len(packets) == summary["stored"]
        assert summary["stored"] + summary["limited"] == len(exchange.sent) and summary["limited"] > 0
        assert summary["lost"] == summary["dropped"] == summary["unsampled"] == 0
        moments = [packet.time_ns for packet in packets]
        gained = rate * (max(moments) - min(moments)) / 1e9
        bits = 8 * (OUTER + ETHERNET + IPV4 + UDP + 1000)
        assert burst // bits <= len(packets) <= (burst + gained) / bits + 1

    def test_truncation(self, scene: Scene) -> None:
        scene.tap("tap", packet={"snapLength": 80})
        exchange = talk(scene.web, scene.client, size=500)
        scene.judge("tap", exchange, point(scene.web, "egress"))
        sizes = {(packet.length, len(packet.frame)) for packet in scene.packets("tap") if captured.datagram_in(packet.frame)}
        assert sizes == {(ETHERNET + IPV4 + UDP + 500, 80)}

    # --- what comes and goes ---------------------------------------------------------------------------------------------

    def test_taps_come_and_go_under_traffic(self, scene: Scene) -> None:
        """Nobody's packets but the copies change."""
        out, back = (Talk(*pods, count=0, rate=500) for pods in ((scene.web, scene.client), (scene.client, scene.web)))
        for name in ("first", "second"):
            scene.tap(name)
            out.flows_on(50)
            scene.remove_tap(name)
        sent, returned = out.stop(), back.stop()
        expect_originals(sent)
        expect_originals(returned)
        for name in ("first", "second"):
            scene.closes(name)
            for exchange, direction in ((sent, "egress"), (returned, "ingress")):
                found = Counter(d.sequence for (at, d) in scene.stored(name).elements() if d.sender == exchange.sender)
                numbers = sorted(found)
                assert set(found.values()) == {1} and numbers == list(range(numbers[0], numbers[-1] + 1)), direction

    def test_pod_recreated(self, scene: Scene) -> None:
        first_pod = scene.new_pod("mayfly", "mayfly")
        scene.tap("tap", "mayfly")
        first = talk(first_pod, scene.client)
        scene.lab.delete_pod(first_pod)
        wait_for(lambda: not scene.points("tap"), PATIENCE, "the pod is seen to be gone")
        second_pod = scene.new_pod("mayfly", "mayfly")
        wait_for(lambda: _ready(scene, "tap", 2) and scene.delivers("tap"), PATIENCE, "the new pod is tapped")
        second, back = talk(second_pod, scene.client), talk(scene.client, second_pod)
        scene.judge("tap", first, point(first_pod, "egress"))
        scene.judge("tap", second, point(second_pod, "egress"))
        scene.judge("tap", back, point(second_pod, "ingress"))

    def test_agent_killed_and_started(self, scene: Scene) -> None:
        """Copies go on meanwhile; where the next agent comes after the lease has ended they rest, what is missing is counted."""
        scene.tap("tap", direction="Egress", filter=_include({"protocol": "UDP"}))
        running = Talk(scene.web, scene.client, count=0, rate=200)
        running.flows_on()
        killed = time.monotonic()
        scene.agent.kill()
        scene.start_agent()
        wait_for(lambda: scene.delivers("tap"), PATIENCE, "the tap delivers")
        lease_held = time.monotonic() - killed < LEASE
        running.flows_on()
        exchange = running.stop()
        if lease_held:
            scene.judge("tap", exchange, point(scene.web, "egress"))
            return
        expect_originals(exchange)
        summary, found = scene.closes("tap"), scene.stored("tap")
        assert set(found.values()) == {1}
        assert found.total() + summary["dropped"] == len(exchange.sent) and summary["lost"] == 0
        expect_each_once(found, replace(exchange, sent=exchange.sent[-50:]), point(scene.web, "egress"))

    def test_vswitchd_killed_and_started(self, scene: Scene) -> None:
        if not scene.column.has_switch:
            pytest.skip(NO_SWITCH)
        scene.tap("tap")
        scene.lab.switch.kill_vswitchd()
        scene.lab.switch.start_vswitchd()

        def all_is_copied() -> bool:
            exchange = talk(scene.web, scene.client, count=20)
            scene.at_rest("tap")
            found = scene.stored("tap")
            return all(found[point(scene.web, "egress"), datagram] == 1 for datagram in exchange.sent)

        wait_for(all_is_copied, PATIENCE, "copies are made again")
        out, back = talk(scene.web, scene.client), talk(scene.client, scene.web)
        scene.judge("tap", out, point(scene.web, "egress"))
        scene.judge("tap", back, point(scene.web, "ingress"))

    def test_removed_tap_leaves_nothing(self, scene: Scene) -> None:
        before = snapshot(scene.lab)
        scene.tap("tap")
        scene.tap("out", direction="Egress", sampling={"type": "OneIn", "oneIn": 2}, filter=_include({"protocol": "UDP"}))
        assert snapshot(scene.lab) != before
        scene.remove_tap("tap")
        scene.remove_tap("out")
        left = lambda: sorted(snapshot(scene.lab) ^ before)  # noqa: E731
        assert comes_true(lambda: not left(), PATIENCE, every=0.1), left()
        expect_originals(talk(scene.web, scene.client, count=20))

    def test_stopped_agent_leaves_nothing(self, scene: Scene) -> None:
        scene.tap("tap")
        assert scene.agent.stop() == 0
        assert sorted(snapshot(scene.lab) ^ scene.before_the_agent) == []
        assert not (scene.lab.run_dir / "bpf" / "maps").exists()
        expect_originals(talk(scene.web, scene.client, count=20))

    # --- loops -----------------------------------------------------------------------------------------------------------

    def test_destination_inside_a_tapped_pod(self, scene: Scene) -> None:
        inside = scene.write_destination("inside", gre={"address": scene.web.ipv4})
        scene.write_tap("tap", destinationRef={"name": inside})
        wait_for(lambda: scene.says("tap", "tapping it would loop"), PATIENCE, "the tap is refused")
        assert {one["state"] for one in scene.points("tap")} == {"Refused"}
        with_listener = GreListener(scene.web)
        expect_originals(talk(scene.client, scene.web))
        with_listener.close()
        assert with_listener.frames == [] and scene.summary("tap")["sent"] == 0

    def test_copies_are_not_copied(self, scene: Scene) -> None:
        """They cross the very bridge whose pods are all tapped; the pod that receives them is not."""
        sink = scene.new_pod("sink", "sink")
        destination = scene.write_destination("sink", gre={"address": sink.ipv4})
        scene.write_tap("tap", "", destinationRef={"name": destination})
        wait_for(lambda: _ready(scene, "tap", 8), PATIENCE, "all other pods are tapped")
        assert {one["state"] for one in scene.points("tap") if one["pod"]["name"] == sink.name} <= {"Refused"}
        listener = GreListener(sink)
        exchange = talk(scene.web, scene.client)
        expect_originals(exchange)

        def copies() -> Counter[object]:
            return Counter(d for frame in list(listener.frames) if (d := captured.datagram_in(frame)) is not None)

        expected: Counter[object] = Counter(dict.fromkeys(exchange.sent, 2))
        comes_true(lambda: copies().total() >= expected.total(), PATIENCE)
        listener.close()
        assert copies() == expected, "one at the sender, one at the receiver"

    # --- packets of every kind -------------------------------------------------------------------------------------------

    def test_oversize_in_fragments(self, scene: Scene) -> None:
        """A pod's MTU is the underlay's: copies leave in fragments and arrive whole."""
        scene.tap("tap")
        out, back = talk(scene.web, scene.client, size=FULL), talk(scene.client, scene.web, size=FULL)
        scene.judge("tap", out, point(scene.web, "egress"))
        scene.judge("tap", back, point(scene.web, "ingress"))
        sizes = {(packet.length, len(packet.frame)) for packet in scene.packets("tap") if captured.datagram_in(packet.frame)}
        assert sizes == {(ETHERNET + IPV4 + UDP + FULL,) * 2}

    def test_oversize_cut(self, scene: Scene) -> None:
        scene.tap("tap", destinationRef={"name": CUTTING})
        exchange = talk(scene.web, scene.client, size=FULL)
        scene.judge("tap", exchange, point(scene.web, "egress"))
        sizes = {(packet.length, len(packet.frame)) for packet in scene.packets("tap") if captured.datagram_in(packet.frame)}
        ((length, kept),) = sizes
        assert length == ETHERNET + IPV4 + UDP + FULL and 1400 < kept < length

    def test_access_vlan(self, scene: Scene) -> None:
        if not scene.column.has_switch:
            pytest.skip(NO_VLANS)
        one, other = scene.new_pod("one", "access", vlan=7), scene.new_pod("other", "access", vlan=7)
        scene.tap("tap", "access")
        exchange = talk(one, other)
        scene.judge("tap", exchange, point(one, "egress"), point(other, "ingress"))
        assert not any(captured.is_tagged(packet.frame) for packet in scene.packets("tap")), "as the pods see it"

    def test_trunk_vlan(self, scene: Scene) -> None:
        settings = ("trunks=30", "vlan_mode=trunk") if scene.column.has_switch else ()
        one, other = (scene.new_pod(name, "trunk", port_settings=settings) for name in ("one", "other"))
        scene.tap("tap", "trunk")
        ends = {pod.name: PacketSocket(pod.netns, pod.interface) for pod in (one, other)}
        there = [frame(other.mac, one.mac, vlan=30) for _ in range(50)]
        for each in there:
            ends[one.name].send(each)
        assert Counter(gather(ends, len(there))[other.name]) == Counter(there)
        for end in ends.values():
            end.close()
        summary = scene.closes("tap")
        assert summary["lost"] == 0 and summary["dropped"] == 0
        found = captured.frames(scene.packets("tap"))
        assert found == Counter((at, each) for each in there for at in (point(one, "egress"), point(other, "ingress")))

    def test_ipv6(self, scene: Scene) -> None:
        scene.tap("tap")
        out, back = talk(scene.web, scene.client, family=6), talk(scene.client, scene.web, family=6)
        scene.judge("tap", out, point(scene.web, "egress"))
        scene.judge("tap", back, point(scene.web, "ingress"))

    def test_fragments(self, scene: Scene) -> None:
        """Ninety at a time, as many as the packet socket of a switch in user space holds while the switch waits for a CPU."""
        if scene.column.datapath == DPDK and not any(talk(scene.web, scene.client, size=4000, count=5).received.values()):
            pytest.skip(NO_FRAGMENTS)
        scene.tap("tap")
        out, back = talk(scene.web, scene.client, size=4000, count=30), talk(scene.client, scene.web, size=4000, count=30)
        scene.judge("tap", out, point(scene.web, "egress"))
        scene.judge("tap", back, point(scene.web, "ingress"))
        found = captured.fragments(scene.packets("tap"))
        assert set(found.values()) == {1} and Counter(at for at, _, _ in found) == Counter(
            {point(scene.web, "egress"): 90, point(scene.web, "ingress"): 90}
        )

    def test_broadcast(self, scene: Scene) -> None:
        scene.tap("tap", "pair")
        exchange = talk(scene.client, [scene.left, scene.right], address="10.10.255.255")
        scene.judge("tap", exchange, point(scene.left, "ingress"), point(scene.right, "ingress"))

    def test_multicast(self, scene: Scene) -> None:
        scene.tap("tap", "pair")
        exchange = talk(scene.left, [scene.right], address="239.1.2.3")
        scene.judge("tap", exchange, point(scene.left, "egress"), point(scene.right, "ingress"))

    def test_tcp_bulk(self, scene: Scene) -> None:
        """Super-packets are copied as the packets on the wire that they stand for."""
        scene.tap("tap", filter=_include({"protocol": "TCP"}))
        sent = bulk(scene.web, scene.client, 1_000_000 + random.Random(0).randrange(1000))
        assert sent.received == sent.sent
        summary = scene.closes("tap")
        assert summary["lost"] == 0 and summary["dropped"] == 0
        packets = scene.packets("tap")
        assert max(packet.length for packet in packets) <= ETHERNET + 1500
        assert captured.tcp_stream(packets, point(scene.web, "egress"), sent.port) == sent.sent

    def test_tcp_bulk_cut(self, scene: Scene) -> None:
        """Each packet on the wire that a super-packet stands for is cut on its own, and keeps its own length."""
        ways = {"whole": {}, "snapped": {"packet": {"snapLength": 80}}, "headers": {"packet": {"headersOnly": True}}}
        for name, cut in ways.items():
            scene.tap(name, filter=_include({"protocol": "TCP"}), **cut)
        sent = bulk(scene.web, scene.client, 300_000)
        assert sent.received == sent.sent
        for name in ways:
            summary = scene.closes(name)
            assert summary["lost"] == summary["dropped"] == 0
        whole = scene.packets("whole")
        assert captured.tcp_stream(whole, point(scene.web, "egress"), sent.port) == sent.sent
        expected = {
            "snapped": Counter((packet.interface, packet.length, packet.frame[:80]) for packet in whole),
            "headers": Counter((packet.interface, packet.length, packet.frame[: _tcp_headers(packet.frame)]) for packet in whole),
        }
        for name, copies in expected.items():
            assert Counter((packet.interface, packet.length, packet.frame) for packet in scene.packets(name)) == copies, name


def _include(rule: dict[str, object]) -> dict[str, object]:
    """A filter that includes what the rule matches and nothing else."""
    return {"defaultAction": "Exclude", "rules": [{"action": "Include", **rule}]}


def _tcp_headers(frame: bytes) -> int:
    """How long they are in an untagged frame without IP options, in bytes."""
    return ETHERNET + IPV4 + (frame[ETHERNET + IPV4 + 12] >> 4) * 4


def _ready(scene: Scene, tap: str, count: int) -> bool:
    """Whether so many of the tap's points copy."""
    return sum(one["state"] == "Ready" for one in scene.points(tap)) == count
