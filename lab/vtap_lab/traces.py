"""What labs and tests could leave on a machine, one sorted line each: `python -m vtap_lab.traces`. Labs in use don't count."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

from vtap_lab import registry

_PROGRAMS = re.compile(r"^(ovs-vswitchd|ovsdb-server|vtap-agent|vtap-collector|vtap|iperf3|tshark|dumpcap|tcpdump)$")


def traces() -> list[str]:
    """Records, namespaces, devices of this namespace, mounts and processes."""
    used = [record for record in registry.records() if record.owner.is_alive]
    used_names = {name for record in used for name in registry.namespaces_of(record)}
    used_paths = tuple(str(record.directory) for record in used)
    used_pids = set(registry.processes_in(used_names))
    found = [f"lab {record.id}" for record in registry.records() if record not in used]
    found += [f"namespace {path.name}" for path in registry.NETNS.glob("*") if path.name not in used_names]
    found += [f"device {name}" for _, name in socket.if_nameindex()]
    found += [f"mount {point}" for point in registry.mounts_under(registry.ROOT) if not point.startswith(used_paths or ("\0",))]
    commands = {pid: _our_command(pid) for pid in (int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit())}
    found += [
        f"process {pid} {command}"
        for pid, command in commands.items()
        if command and pid not in used_pids and not any(path in command for path in used_paths)
    ]
    return sorted(found)


def _our_command(pid: int) -> str | None:
    """The command line, if it is of a program that labs start."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # It has ended.
        return None
    named = any(_PROGRAMS.match(Path(argument).name) for argument in arguments[:2])
    return " ".join(arguments).strip() if named else None


def main() -> int:
    """Print them."""
    for line in traces():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
