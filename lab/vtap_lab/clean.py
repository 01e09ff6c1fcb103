"""Take down the labs that nobody uses any more: `python -m vtap_lab.clean`. Those whose makers still run are left alone."""

from __future__ import annotations

import os
import shutil
import sys

from vtap_lab import preflight, registry
from vtap_lab.errors import LabError


def main() -> int:
    """0 when nothing is left that could be removed."""
    if not registry.ROOT.exists() or (os.geteuid() != 0 and not registry.records()):
        return 0
    if os.geteuid() != 0:
        print("clean: labs are left in /run/vtap-lab, and removing them needs root", file=sys.stderr)
        return 1
    preflight.use_unpacked_switch()
    try:
        for record in registry.sweep(kept_too=True):
            print(f"clean: removed lab {record.id}")
    except LabError as problem:
        print(f"clean: {problem}", file=sys.stderr)
        return 1
    if not registry.records():
        shutil.rmtree(registry.ROOT)
    for record in registry.records():
        print(f"clean: lab {record.id} is in use by process {record.owner.pid}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
