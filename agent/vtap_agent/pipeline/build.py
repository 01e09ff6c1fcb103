"""``python -m vtap_agent.pipeline.build`` compiles the preprocessor where that is needed and prints the object file's path."""

from __future__ import annotations

import sys

from vtap_agent.errors import TellUser
from vtap_agent.pipeline.compiler import build


def main() -> int:
    """0, or 1 after a sentence on the standard error."""
    try:
        print(build())
    except TellUser as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
