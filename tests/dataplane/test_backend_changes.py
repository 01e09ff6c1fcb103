"""A tap whose backend changes while traffic runs: which copies that costs, what is counted, and that no original notices.

What may be missing is judged by what the agent itself logs and by when each datagram was under way, so that a busy machine, on
which all takes longer, is judged by its own clock.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest

from tests.contract import captured
from tests.contract.scene import expect_originals
from tests.contract.traffic import Talk, end_all
from tests.dataplane.site import Site, point
from vtap_lab.datagrams import Datagram
from vtap_lab.exchange import Exchange
from vtap_lab.lab import Lab, Pod

pytestmark = pytest.mark.slow

BACKENDS = ("OVSMirror", "OVSGroup", "EBPF")
CHANGES = [*itertools.permutations(BACKENDS, 2), ("Auto", "OVSMirror"), ("Auto", "OVSGroup")]
"""A tap that goes over to `Auto` does what one that goes over to what `Auto` stands for does."""
FOR_AUTO = "EBPF"
"""What `Auto` stands for at pods with a veth."""
RATE = 250
PAUSE = "let 0.05 s pass"
"""What the agent logs when tap points are at neither feed, for as long as is documented."""
AT_MOST = 2.0
"""Seconds' worth of datagrams that may be missing: the pause, and generously what it takes to write sources before and after."""
STEP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) I vtap_agent\.loop: (.*)$", re.MULTILINE)
RESOLUTION = 0.001
"""Seconds: the log cuts off what is less."""
DIRECTIONS = ("Egress", "Ingress")


@pytest.fixture(scope="module")
def shared_site(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(shared_lab, tmp_path_factory.mktemp("captures"))


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """With names of the test's own."""
    shared_site.new_scene()
    try:
        yield shared_site
    finally:
        end_all()


@dataclass(frozen=True)
class Step:
    """A line of the agent's log, written before what it says is done. `at` in seconds since 1970."""

    at: float
    text: str


def steps(site: Site) -> list[Step]:
    found = STEP.findall(site.agent.process.output())
    return [Step(datetime.strptime(moment, "%Y-%m-%d %H:%M:%S,%f").timestamp(), text) for moment, text in found]


@dataclass(frozen=True)
class Pause:
    """From before the tap points left their feeds (`begin`) until after they were at their new ones (`end`).

    In between, from `away` until `back`, they were at neither.
    """

    begin: float
    away: float
    back: float
    end: float


def pause_in(change: list[Step]) -> Pause:
    """There is one."""
    (at,) = (number for number, step in enumerate(change) if step.text.startswith(PAUSE))
    parked, waited, selected, following = change[at - 1 : at + 3]
    assert parked.text.endswith("without what moves") and selected.text.endswith("and no others")
    assert following.at + RESOLUTION - waited.at >= 0.05
    return Pause(parked.at, waited.at + RESOLUTION, selected.at, following.at + RESOLUTION)


def unattributed(site: Site) -> Counter[str]:
    """By feed."""
    return Counter(site.agent.get("/v1/ledger")["unattributed"])


def at(feeds: Counter[str], direction: str, *backends: str) -> int:
    """The sum over these backends' feeds. A feed's text ends with its backend, or with its direction where that is OVSMirror."""
    ends = {direction if backend == "OVSMirror" else f"{direction} {backend}" for backend in backends}
    return sum(count for feed, count in feeds.items() if any(feed == end or feed.endswith(f" {end}") for end in ends))


def streams(site: Site, web: Pod) -> set[tuple[str, int, str]]:
    """Of the pod, closed ones too."""
    rows = [row for row in site.agent.get("/v1/ledger")["points"] if row["pod"]["name"] == web.name]
    return {(row["direction"], row["key"], row["incarnation"]) for row in rows}


def passed(site: Site, pod: Pod) -> dict[str, int]:
    """Packets that left the pod and that came to it, by its own device."""
    (told,) = json.loads(site.lab.run(pod, "ip", "-json", "-statistics", "link", "show", "dev", pod.interface))
    return {"Egress": told["stats64"]["tx"]["packets"], "Ingress": told["stats64"]["rx"]["packets"]}


@dataclass
class Traffic:
    """Numbered datagrams from a pod to another and back, and whatever else the pod says and hears meanwhile."""

    site: Site
    web: Pod
    client: Pod

    def __post_init__(self) -> None:
        self._before = passed(self.site, self.web)
        self.talks = {
            "Egress": Talk(self.web, self.client, count=0, rate=RATE),
            "Ingress": Talk(self.client, self.web, count=0, rate=RATE),
        }
        self.exchanges: dict[str, Exchange] = {}
        self.others: dict[str, int] = {}
        """Packets that were none of these datagrams, by direction: pods ask for neighbours now and then."""

    def flows_on(self) -> None:
        for talk in self.talks.values():
            talk.flows_on()

    def stop(self) -> None:
        """Every original has arrived, once."""
        self.exchanges = {direction: talk.stop() for direction, talk in self.talks.items()}
        for exchange in self.exchanges.values():
            expect_originals(exchange)
        after = passed(self.site, self.web)
        self.others = {name: after[name] - self._before[name] - len(self.exchanges[name].sent) for name in DIRECTIONS}


@dataclass(frozen=True)
class Copies:
    """Of one direction's datagrams."""

    missing: list[Datagram]
    twice: list[Datagram]
    latest: float
    """By how many seconds a copy was made later than its original was received, at most."""

    @classmethod
    def of(cls, site: Site, name: str, talk: Talk, exchange: Exchange) -> Copies:
        packets = [packet for packet in captured.stored(site.files("web")) if packet.interface == name]
        made = {found: packet.time_ns / 1e9 for packet in packets if (found := captured.datagram_in(packet.frame)) is not None}
        counts, arrived = captured.numbered(packets), {datagram: end for datagram, (_, end) in talk.under_way().items()}
        return cls(
            [datagram for datagram in exchange.sent if not counts[name, datagram]],
            [datagram for datagram in exchange.sent if counts[name, datagram] > 1],
            max((made[datagram] - arrived[datagram] for datagram in made if datagram in arrived), default=0.0),
        )


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=["-".join(change) for change in CHANGES])
def test_a_change_of_backend_costs_copies_only_while_it_pauses_and_never_an_original(site: Site, old: str, new: str) -> None:
    web, client = site.pod("web"), site.pod("client")
    site.tap("web", backend=old)
    of_old, known = streams(site, web), len(steps(site))
    traffic = Traffic(site, web, client)
    traffic.flows_on()
    before = unattributed(site)
    site.tap("web", backend=new)
    after = unattributed(site)
    traffic.flows_on()
    later = unattributed(site)
    traffic.stop()
    summary = site.closes("web")

    status = site.status("web")
    assert status and {one["backend"] for one in status["points"]} == {new}
    assert streams(site, web) == of_old, "key and sequence go on"
    assert summary["lost"] == summary["dropped"] == 0
    assert all(before[feed] <= after[feed] <= later[feed] for feed in before | after), "what was counted stays to be read"
    pause = pause_in(steps(site)[known:])
    for direction, talk in traffic.talks.items():
        copies = Copies.of(site, point(web, direction.lower()), talk, traffic.exchanges[direction])
        times, slack = talk.under_way(), max(0.0, copies.latest)
        # What a switch without a CPU holds back for as long as the pause takes passes both places at work.
        twice = [one for one in copies.twice if times[one][0] > pause.away or times[one][1] + slack < pause.back]
        assert not twice, f"{direction}: {len(twice)} are copied twice, first {twice[:3]}"
        outside = [one for one in copies.missing if times[one][0] > pause.end or times[one][1] + slack < pause.begin]
        assert not outside, f"{direction}: {len(outside)} are missing that were not under way in the pause, first {outside[:3]}"
        counted = f"{direction}: {len(copies.missing)} are missing, and counted: {before} before, {after} after, {later} later"
        # What has passed a device before there is a hook, and waits in the switch, only the old place can count.
        sent_later = [one for one in copies.missing if times[one][0] >= pause.begin]
        for backend, missing in ((FOR_AUTO if old == "Auto" else old, copies.missing), (new, sent_later)):
            assert len(missing) <= at(after - before, direction, backend), f"{counted}: not all at {backend}"
        # Neither machine nor sender is as fast where patience is needed: the rate is less by as much as the time is more.
        assert len(copies.missing) <= RATE * AT_MOST, f"{counted}: more than {AT_MOST:g} s of them"
        assert at(later - after, direction, *BACKENDS) <= traffic.others[direction], counted
