"""What is in a pcapng file, as tshark tells it."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vtap_lab.datagrams import MAGIC, Datagram
from vtap_lab.errors import PATIENCE, LabError


def tshark(file: Path, *arguments: str, timeout: float = 60) -> str:
    """`tshark -n -r FILE ARGUMENTS`; LabError when it finds the file damaged or the arguments wrong."""
    command = ["tshark", "-n", "-r", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout * PATIENCE, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def fields(file: Path, names: Sequence[str], display_filter: str = "") -> list[tuple[str, ...]]:
    """One tuple a packet with the named tshark fields, empty where a packet has none of it and "," between several."""
    selection = ["-Y", display_filter] if display_filter else []
    output = tshark(file, *selection, "-T", "fields", *(part for name in names for part in ("-e", name)))
    return [tuple(line.split("\t")) for line in output.splitlines()]


def numbered(files: Path | Sequence[Path]) -> Counter[tuple[str, Datagram]]:
    """How often each numbered datagram is in the captures, by (interface name, datagram)."""
    found: Counter[tuple[str, Datagram]] = Counter()
    for file in [files] if isinstance(files, Path) else files:
        for interface, payload in fields(file, ("frame.interface_name", "udp.payload"), f"udp.payload contains {MAGIC.hex(':')}"):
            datagram = Datagram.parse(bytes.fromhex(payload.replace(":", "")))
            if datagram is not None:
                found[interface, datagram] += 1
    return found
