"""All measurements, one after another; `python -m bench NAME…` runs some of them."""

from __future__ import annotations

import subprocess
import sys

NAMES = ("preprocessor", "tap_cost", "backends", "collector", "dpdk", "reaction", "operator_scale")


def main(names: list[str]) -> int:
    """Each in a process of its own, so that none disturbs the next. The number of those that failed."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.stderr.write(f"bench: there is no {', '.join(unknown)}; there are {', '.join(NAMES)}\n")
        return 2
    failed = 0
    for name in names or NAMES:
        failed += subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
