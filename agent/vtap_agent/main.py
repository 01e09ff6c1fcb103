"""`vtap-agent`: taps from a directory of files become mirrors, preprocessing and export on this node."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vtap_agent.drivers.capabilities import STATUS, effective, missing
from vtap_agent.drivers.steering import parse_cpus
from vtap_agent.errors import VtapError
from vtap_agent.plan.dataplane import MAX_SLOTS

log = logging.getLogger("vtap_agent")

NEEDED = ("BPF", "NET_ADMIN", "NET_BROADCAST", "PERFMON")
"""NET_BROADCAST is what hearing of changes in pods' network namespaces takes."""
NEEDED_IN_CLUSTER = (*NEEDED, "SYS_PTRACE")
"""SYS_PTRACE is what looking at the namespaces of pods' processes takes."""
FOR_REWRITING = ("NET_RAW",)
"""Without it the agent works, but sends no copies to destinations of kind rewrite: it can't ask for monitors' edges."""


def _cpus(text: str) -> frozenset[int]:
    try:
        return parse_cpus(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vtap-agent", description=__doc__)
    parser.add_argument("--taps", type=Path, metavar="DIR", help="directory of VirtualTap and TapDestination files, watched")
    parser.add_argument(
        "--pods",
        default="netns",
        metavar="FILE|netns",
        help="file that lists pods, watched; or 'netns': every named network namespace is a pod (default)",
    )
    parser.add_argument(
        "--kubernetes", action="store_true", help="taps, destinations and this node's pods come from the Kubernetes API"
    )
    parser.add_argument(
        "--kubeconfig", type=Path, metavar="FILE", help="reach the API server as this file says, not as a pod does (development)"
    )
    parser.add_argument(
        "--namespace", default="vtap-system", help="the namespace of our own objects and pods (default: %(default)s)"
    )
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="DIR",
        help="ca.crt, tls.crt and tls.key that say who we are to collectors; read again on change",
    )
    parser.add_argument(
        "--bpffs", type=Path, metavar="DIR", help="pin eBPF objects under DIR/vtap, where a bpffs is (default: mount our own)"
    )
    parser.add_argument("--node", default=os.uname().nodename, help="this node's name (default: the host name)")
    parser.add_argument("--run-dir", type=Path, default=Path("/run/vtap"), help="sockets and pins (default: /run/vtap)")
    parser.add_argument(
        "--state-dir", type=Path, default=Path("/var/lib/vtap"), help="what survives a reboot (default: /var/lib/vtap)"
    )
    parser.add_argument("--ovsdb", default="unix:/run/openvswitch/db.sock", help="OVSDB remote (default: %(default)s)")
    parser.add_argument("--listen", default="", metavar="ADDRESS:PORT", help="serve metrics on TCP too")
    parser.add_argument(
        "--export-cpus",
        type=_cpus,
        default=frozenset(),
        metavar="LIST",
        help="CPUs, like 2-3,6, that work at copies, in place of those that carry the pods' packets (single packets and"
        " super-packets of TCP)",
    )
    parser.add_argument("--first-key", type=int, default=MAX_SLOTS, help="first stream key of this node (default: %(default)s)")
    parser.add_argument(
        "--on-exit",
        choices=("remove", "keep"),
        default="remove",
        help="when stopped: remove all taps (default), or keep copying until the lease ends, for a restart without a gap",
    )
    parser.add_argument(
        "--cleanup", action="store_true", help="remove everything an agent of this node has left behind, then exit"
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    options = parser.parse_args(argv)
    if not options.cleanup and not options.kubernetes and options.taps is None:
        parser.error("--taps DIR is required, or --kubernetes")
    if options.kubernetes and options.taps is not None:
        parser.error("--taps and --kubernetes: give one of them")
    if options.kubeconfig is not None and not options.kubernetes:
        parser.error("--kubeconfig goes with --kubernetes")
    if not 1 <= options.first_key <= 2**24 - MAX_SLOTS:
        parser.error(f"--first-key: must be from 1 to {2**24 - MAX_SLOTS}, so that keys fit a VXLAN network identifier")
    return options


def _missing(options: argparse.Namespace) -> str:
    """What the process may not do and has to; empty where it may. Root on a machine may do all of it."""
    lacking = missing(NEEDED_IN_CLUSTER if options.kubernetes else NEEDED, effective(STATUS.read_text(encoding="ascii")))
    if not lacking:
        return ""
    named = ", ".join(f"CAP_{name}" for name in lacking)
    cure = "add them to securityContext.capabilities" if options.kubernetes else "run it as root, with sudo"
    return f"lacks {named}, to load eBPF programs and configure interfaces; {cure}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit status: 0, or 1 with one sentence on standard error."""
    options = _arguments(argv)
    # Libraries tell every message of theirs at lower levels, which is too much to find ours among.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    log.setLevel(options.log_level.upper())
    if lacks := _missing(options):
        sys.stderr.write(f"vtap-agent: {lacks}\n")
        return 1
    # Imported here so that --help needs neither libbpf nor Open vSwitch's libraries.
    from vtap_agent.agent import Agent, Settings

    try:
        agent = Agent(Settings.of(options))
        if options.cleanup:
            agent.cleanup()
            return 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        agent.run()
    except VtapError as error:
        sys.stderr.write(f"vtap-agent: {error}\n")
        return 1
    except Exception as error:
        log.exception("unexpected failure")
        sys.stderr.write(f"vtap-agent: failed unexpectedly ({type(error).__name__}: {error}); please report the above\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
