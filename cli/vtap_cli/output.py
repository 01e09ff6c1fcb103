"""What a command has found, for people or for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any


def show(options: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    """`data` as JSON where the command line asks for it, else `text()`."""
    print(as_json(data) if options.output == "json" else text())


def as_json(data: Any) -> str:
    """Indented, with letters as they are."""
    return json.dumps(data, indent=2, ensure_ascii=False)
