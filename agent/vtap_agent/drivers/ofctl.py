"""Flows and groups of a bridge, by `ovs-ofctl` at the bridge's own management socket (ovs-ofctl(8)).

It is a process a call, and calls are few; what it spares us is OpenFlow's encodings of matches and actions. It speaks OpenFlow
1.4, the first with bundles, to any Open vSwitch since 2.8.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from vtap_agent.errors import Retry, TellUser, VtapError, Wait

log = logging.getLogger(__name__)

PROGRAM = "ovs-ofctl"
TIMEOUT = 5
VERSION = "OpenFlow14"
MAX_SHOWN = 300


class Ofctl:
    """Talks to the bridges whose management sockets lie in `run_dir`. Thread-safe; each call connects anew."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    @staticmethod
    def is_installed() -> bool:
        """Whether there is the program that all of this takes."""
        return shutil.which(PROGRAM) is not None

    def flows(self, bridge: str, cookie: tuple[int, int] | None = None) -> list[str]:
        """Flows as text, a line each, ports as numbers; those whose cookie is `(value, mask)`, or all. Raises as `bundle`."""
        match = () if cookie is None else (f"cookie={cookie[0]:#x}/{cookie[1]:#x}",)
        return _entries(self._run("dump-flows", bridge, *match), "cookie=")

    def groups(self, bridge: str) -> list[str]:
        """Groups as text, a line each. Raises as `bundle`."""
        return _entries(self._run("dump-groups", bridge), "group_id=")

    def bundle(self, bridge: str, changes: Iterable[str]) -> None:
        """Apply lines like "flow add …", "flow delete …", "group add_or_mod …", in this order, all or none of them at once.

        Raises Wait where vswitchd does not listen, Retry where it refuses or does not answer, TellUser where the program is
        missing or the bridge speaks no OpenFlow 1.4.
        """
        self._run("bundle", bridge, "-", text="".join(f"{change}\n" for change in changes))

    def _run(self, command: str, bridge: str, *arguments: str, text: str = "") -> str:
        path = self._run_dir / f"{bridge}.mgmt"
        argv = [PROGRAM, "-O", VERSION, f"--timeout={TIMEOUT}", "--no-names", command, f"unix:{path}", *arguments]
        try:
            done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False, env=_environment())
        except FileNotFoundError as error:
            raise TellUser(
                f"flows are written by {PROGRAM}, which is not installed beside the agent; install openvswitch-common"
            ) from error
        if done.returncode == 0:
            return done.stdout
        raise _error(bridge, path, command, (done.stderr or done.stdout).strip())


def _environment() -> dict[str, str]:
    """Its sentences in English, since we read them."""
    return {**os.environ, "LC_ALL": "C"}


def _entries(text: str, begin: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(begin)]


def _error(bridge: str, path: Path, command: str, said: str) -> VtapError:
    log.debug("%s %s: %s", command, bridge, said)
    if "version negotiation failed" in said:
        return TellUser(
            f"bridge {bridge} speaks no OpenFlow 1.4, which flows that change all at once need; allow it "
            f"(ovs-vsctl add bridge {bridge} protocols {VERSION})"
        )
    if any(word in said for word in ("No such file", "Connection refused", "is not a bridge or a socket", "failed to connect")):
        return Wait(f"bridge {bridge} cannot be reached at {path}; is ovs-vswitchd running?")
    shown = said if len(said) <= MAX_SHOWN else said[: MAX_SHOWN - 1] + "…"
    return Retry(f"bridge {bridge} did not carry out {command}: {shown}")
