"""``python -m vtap_agent.pipeline.build`` compiles the eBPF programs where that is needed and prints the object files' paths."""

from __future__ import annotations

import sys

from vtap_agent.errors import TellUser
from vtap_agent.pipeline.compiler import build
from vtap_agent.pipeline.recover import build_recover


def main() -> int:
    """0, or 1 after a sentence on the standard error."""
    try:
        print(build())
        print(build_recover())
    except TellUser as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
