"""Whether to capture by rings, on which interfaces, and what spares the IP stack the packets that a ring has had.

A ring costs less than a socket (docs/decisions), but needs CAP_NET_RAW and sees packets before the stack has decided whose they
are. So it is used by itself only where `--listen-data` names addresses: the ring then takes datagrams to these alone.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_collector.errors import CollectorError
from vtap_collector.sockets import Endpoint

log = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
_SIOCGIFADDR = 0x8915
_MAX_ADDRESSES = 8
_STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RingPlan:
    """Where to capture, and datagrams to which addresses (none: to all). `why_not` is a sentence where nothing is captured."""

    interfaces: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    demanded: bool = False
    why_not: str = ""

    def expression(self) -> str:
        """The addresses in libpcap's language."""
        return " or ".join(f"dst host {address}" for address in self.addresses)


def capabilities() -> frozenset[int]:
    """Numbers of the effective ones."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    bits = int(line.split()[1], 16)
    return frozenset(number for number in range(64) if bits >> number & 1)


def interface_with(address: str) -> str | None:
    """The interface whose first IPv4 address, or one of whose IPv6 addresses, this is."""
    if ":" in address:
        wanted = ipaddress.IPv6Address(address).packed.hex()
        lines = Path("/proc/self/net/if_inet6").read_text().splitlines() if Path("/proc/self/net/if_inet6").exists() else []
        return next((line.split()[5] for line in lines if line.split()[0] == wanted), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _index, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def plan_rings(
    asked: str,
    endpoints: Sequence[Endpoint],
    held: frozenset[int],
    interface_of: Callable[[str], str | None] = interface_with,
) -> RingPlan:
    """`asked` is "auto", "none" or interfaces, separated by commas; `held` are capabilities."""
    parsed = [ipaddress.ip_address(endpoint.address) for endpoint in endpoints]
    addresses = () if any(address.is_unspecified for address in parsed) else tuple(str(address) for address in parsed)
    if asked != AUTO:
        names = () if asked in (NONE, "") else tuple(name for name in asked.split(",") if name)
        return RingPlan(names, addresses[:_MAX_ADDRESSES] if len(addresses) <= _MAX_ADDRESSES else (), demanded=True)
    if CAP_NET_RAW not in held:
        return RingPlan(why_not="capturing on the interface, which costs less, needs CAP_NET_RAW")
    if not addresses or len(addresses) > _MAX_ADDRESSES or len({endpoint.port for endpoint in endpoints}) != 1:
        return RingPlan(why_not="capturing on the interface, which costs less, needs this machine's addresses in --listen-data")
    found = {address: interface_of(address) for address in addresses if not ipaddress.ip_address(address).is_loopback}
    unknown = sorted(address for address, interface in found.items() if interface is None)
    if unknown:
        return RingPlan(why_not=f"no interface is known to have {unknown[0]}, so that nothing is captured on it")
    return RingPlan(tuple(sorted({name for name in found.values() if name})), addresses)


def drop_rules(table: str, plan: RingPlan, port: int) -> str:
    """For nft(8): drop behind the rings what they take, as src/ring.c says it. The kernel removes the table with its owner."""
    families: dict[int, list[str]] = {4: [], 6: []}
    for address in plan.addresses:
        families[ipaddress.ip_address(address).version].append(address)
    rules: list[str] = []
    if families[4]:
        rules.append(
            f"meta pkttype host ip daddr {{ {', '.join(families[4])} }} ip hdrlength 5 ip frag-off 0x4000 "
            f"udp dport {port} udp checksum 0 drop"
        )
    if families[6]:
        rules.append(
            f"meta pkttype host ip6 daddr {{ {', '.join(families[6])} }} ip6 nexthdr udp ip6 length <= 1240 "
            f"udp dport {port} udp checksum 0 drop"
        )
    chains = [
        f'chain ring{number} {{ type filter hook ingress device "{name}" priority 0; {"; ".join(rules)}; }};'
        for number, name in enumerate(plan.interfaces)
    ]
    return f"add table netdev {table} {{ flags owner; {' '.join(chains)} }}\n"


class Dropper:
    """The table of `drop_rules`, as long as this object, or the process, lives."""

    def __init__(self, plan: RingPlan, port: int) -> None:
        self._plan, self._port = plan, port
        self._table = f"vtap_collector_{os.getpid()}"
        self._nft: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Raises CollectorError with the reason where it can't be had; the rings work without it."""
        program = shutil.which("nft", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if not self._plan.addresses:
            raise CollectorError("--listen-data names no addresses")
        if any(ipaddress.ip_address(address).is_loopback for address in self._plan.addresses):
            raise CollectorError("packets of the loopback interface are left alone")
        if CAP_NET_ADMIN not in capabilities() or program is None:
            raise CollectorError("it takes CAP_NET_ADMIN and nft")
        self._nft = subprocess.Popen(
            [program, "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._nft.stdin is not None
        try:
            self._nft.stdin.write(drop_rules(self._table, self._plan, self._port))
            self._nft.stdin.write("list table netdev no_such_table_of_ours\n")  # its complaint tells that the first is done
            self._nft.stdin.flush()
            self._await_table(program)
        except (OSError, CollectorError):
            self.stop()
            raise CollectorError("nft refuses the rules that it takes") from None

    def _await_table(self, program: str) -> None:
        assert self._nft is not None and self._nft.stderr is not None
        if not self._nft.stderr.readline():
            raise CollectorError("nft has ended")
        listed = subprocess.run([program, "list", "table", "netdev", self._table], capture_output=True, check=False)
        if listed.returncode != 0:
            raise CollectorError("there is no table")

    def stop(self) -> None:
        """The table goes with the process that owns it."""
        if self._nft is None:
            return
        self._nft.kill()
        self._nft.communicate(timeout=_STOP_SECONDS)
        self._nft = None
