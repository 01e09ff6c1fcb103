"""Build the C core next to this package: ``python -m vtap_collector.build``. Needs a C compiler, make and libpcap's headers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vtap_collector.errors import CollectorError

PROJECT = Path(__file__).resolve().parent.parent


def build() -> None:
    """Run the Makefile. Raises CollectorError with what to install, or with the compiler's own words."""
    if not (PROJECT / "Makefile").is_file():
        raise CollectorError(f"{PROJECT} holds no Makefile: build from a source tree")
    try:
        done = subprocess.run(["make", "-C", str(PROJECT)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CollectorError("building the collector needs make, a C compiler and libpcap-dev") from None
    if done.returncode != 0:
        raise CollectorError(f"building the collector failed (it needs a C compiler and libpcap-dev):\n{done.stderr.strip()}")


def main() -> int:
    """Exit status 0, or 1 with the reason on standard error."""
    try:
        build()
    except CollectorError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
