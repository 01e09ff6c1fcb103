"""The devices that copies pass: a tap port for each mirror, and the normalising pair."""

from __future__ import annotations

import hashlib
import itertools
import logging
from dataclasses import dataclass

from vtap_agent.drivers import libbpf, links
from vtap_agent.drivers.links import STAMP, LinkState
from vtap_agent.pipeline.steps import TapPortDevices
from vtap_agent.plan.dataplane import Backend, Direction, Feed
from vtap_agent.plan.tap_ports import tap_port_name

log = logging.getLogger(__name__)

QUEUES_PER_CPU = 64
CUT_QUEUES_PER_CPU = 4
"""As `layout.h` says."""
MAX_QUEUES = 1024
NO_MERGING = 1
"""GRO switches a veth's NAPI on, and a limit below any packet's size keeps it from merging."""


def queues_per_cpu() -> int:
    """A power of two. A queue holds 256 packets, one NAPI poll hands out 64 super-packets."""
    queues = QUEUES_PER_CPU
    while queues > 1 and queues * libbpf.possible_cpus() > MAX_QUEUES:
        queues //= 2
    return queues


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def tap_port_devices(node: str, key: Feed) -> TapPortDevices:
    """The names of a mirror's tap port, the same on every start: the switch's end is called as the mirror's port is.

    Of a tap device, where one was made, both ends have the same name: vswitchd writes to its file, the kernel receives from it.
    """
    names = _veth_names(node, key)
    is_tap = links.index_of(names.ours) is None and links.index_of(names.switch) is not None
    return TapPortDevices(names.switch, names.switch) if is_tap else names


def _veth_names(node: str, key: Feed) -> TapPortDevices:
    named = (node, key.place, key.direction, *_backend_if_not_mirror(key))
    return TapPortDevices(switch=tap_port_name(node, key), ours=f"vtp{_hash(*named)}")


def _backend_if_not_mirror(key: Feed) -> tuple[str, ...]:
    """Tap ports of mirrors are called and stamped as they were when there were no others."""
    return () if key.backend is Backend.OVS_MIRROR else (key.backend,)


def tap_port_alias(node: str, key: Feed) -> str:
    """What a tap port's devices are stamped with."""
    backend = "".join(f" backend={name}" for name in _backend_if_not_mirror(key))
    return f"{STAMP} tap-port node={node}{backend} direction={key.direction} bridge={key.place}"


def tap_port_of(node: str, alias: str) -> Feed | None:
    """Which feed a stamped device serves."""
    for backend, direction in itertools.product((Backend.OVS_MIRROR, Backend.OVS_GROUP), Direction):
        start = tap_port_alias(node, Feed(backend, "", direction))
        if alias.startswith(start):
            return Feed(backend, alias[len(start) :], direction)
    return None


def ensure_tap_port(node: str, key: Feed, *, polled: bool = False) -> TapPortDevices:
    """Both ends exist, are silent and up. The switch's end keeps its offloads: super-packets are to arrive whole.

    A bridge that DPDK's poll-mode threads serve (`polled`) gets a tap device, which costs them half of what a veth does (decision
    0140); a veth still where this process may not make one.
    """
    as_tap = polled and links.may_create_taps()
    names, alias = tap_port_devices(node, key), tap_port_alias(node, key)
    ends = [links.find(names.switch), links.find(names.ours)]
    is_tap = names.ours == names.switch
    if is_tap == as_tap and all(end is not None and end.up and end.alias == alias for end in ends):
        return names
    names = _veth_names(node, key)
    for name in (names.switch, names.ours):
        links.remove(name)
    if as_tap:
        links.create_tap(names.switch)
        links.silence(names.switch, alias, links.LARGEST_TAP_MTU)
        return TapPortDevices(names.switch, names.switch)
    if polled:
        log.warning("bridge %s gets a veth for tap port, which costs DPDK twice: %s can't be opened", key.place, links.TUN)
    links.create_veth(names.switch, names.ours)
    links.silence(names.switch, alias)
    # Receive queues of its own: with this feature the kernel takes what a packet socket sends through NAPI too.
    links.set_offloads(names.ours, gro=True)
    links.set_gro_limit(names.ours, NO_MERGING)
    links.set_feature(names.ours, "rx-udp-gro-forwarding", True)
    links.silence(names.ours, alias)
    return names


def remove_tap_port(node: str, key: Feed) -> None:
    """Removes both ends; nothing happens when they are gone."""
    links.remove(tap_port_devices(node, key).ours)


@dataclass(frozen=True, slots=True)
class PairDevices:
    """`pick` transmits into `near`, `send` listens at `far`."""

    near: str
    far: str


def pair_devices(node: str) -> PairDevices:
    """The names of the node's normalising pair."""
    suffix = _hash(node, "pair")
    return PairDevices(near=f"vtn{suffix}", far=f"vtf{suffix}")


def pair_alias(node: str) -> str:
    """What the pair's ends are stamped with."""
    return f"{STAMP} pair node={node}"


def cut_devices(node: str) -> PairDevices:
    """The names of the node's pair for single segments, which `pick` cut out of super-packets."""
    suffix = _hash(node, "pair")
    return PairDevices(near=f"vtc{suffix}", far=f"vtd{suffix}")


def handover_devices(node: str) -> PairDevices:
    """The names of the node's pair to the CPUs that are set aside for copies."""
    suffix = _hash(node, "pair")
    return PairDevices(near=f"vth{suffix}", far=f"vto{suffix}")


def handover_is_good(node: str) -> bool:
    """Whether both ends are there, up and ours, and the far end takes what comes."""
    names = handover_devices(node)
    near, far = links.find(names.near), links.find(names.far)
    return all(_good(end, pair_alias(node), 1) for end in (near, far)) and far is not None and far.mtu == links.LARGEST_MTU


def make_handover(node: str, far_mtu: int) -> None:
    """Anew, in the place of any older. Both ends keep their offloads: super-packets are to cross whole."""
    names = handover_devices(node)
    remove_handover(node)
    links.create_veth(names.near, names.far)
    links.silence(names.far, pair_alias(node), far_mtu)
    links.set_gso_limit(names.near)
    links.silence(names.near, pair_alias(node))  # The second to come up is at work at once.


def open_handover(node: str) -> None:
    """The far end takes whatever comes."""
    links.silence(handover_devices(node).far, pair_alias(node))


def remove_handover(node: str) -> None:
    """Removes both ends; nothing happens when they are gone."""
    names = handover_devices(node)
    for name in (names.near, names.far):
        links.remove(name)


def _cut_queues() -> int:
    return min(CUT_QUEUES_PER_CPU * libbpf.possible_cpus(), MAX_QUEUES)


def _good(end: LinkState | None, alias: str, queues: int) -> bool:
    return end is not None and end.up and end.alias == alias and end.tx_queues == queues and end.rx_queues == queues


def pair_is_good(node: str) -> bool:
    """Whether both ends are there, up, ours and with the queues this machine needs."""
    names, queues = pair_devices(node), queues_per_cpu() * libbpf.possible_cpus()
    return _is_good(names, node, queues) and _is_good(cut_devices(node), node, _cut_queues())


def _is_good(names: PairDevices, node: str, queues: int) -> bool:
    return all(_good(links.find(name), pair_alias(node), queues) for name in (names.near, names.far))


def ensure_pair(node: str) -> PairDevices:
    """The near end segments super-packets and completes checksums because it can do nothing itself; the far end has NAPI.

    Beside it the pair for cut segments, whose far end has NAPI by the XDP program that it is given.
    """
    names = pair_devices(node)
    if pair_is_good(node):
        return names
    remove_pair(node)
    links.create_veth(names.near, names.far, queues_per_cpu() * libbpf.possible_cpus())
    links.set_offloads(names.near, tso=False, gso=False, tx=False, sg=False)
    links.set_offloads(names.far, gro=True)
    links.set_gro_limit(names.far, NO_MERGING)
    links.silence(names.far, pair_alias(node))
    links.silence(names.near, pair_alias(node))
    cut = cut_devices(node)
    links.create_veth(cut.near, cut.far, _cut_queues())
    links.set_offloads(cut.near, tso=False, gso=False, tx=False, sg=False)
    links.silence(cut.far, pair_alias(node))
    links.silence(cut.near, pair_alias(node))
    return names


def remove_pair(node: str) -> None:
    """Removes both pairs; nothing happens when they are gone."""
    for names in (pair_devices(node), cut_devices(node)):
        for name in (names.near, names.far):
            links.remove(name)


def pair_dropped(node: str) -> int:
    """Packets the kernel dropped between the ends: a full receive queue or a failed segmentation, both at the sender.

    Of a cut segment also one for which there was no memory at the far end.
    """
    cut = cut_devices(node)
    near = [end.tx_dropped for name in (pair_devices(node).near, cut.near) if (end := links.find(name))]
    far = links.find(cut.far)
    return sum(near) + (far.rx_dropped if far else 0)
