"""`vtap files`: what the collector has stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtap_cli.daemons import Daemon, collector, get_json
from vtap_cli.errors import CliError
from vtap_cli.tables import table, tap_name

HEAD = ("TAP", "FILE", "BYTES", "PACKETS", "FIRST", "LAST", "STATE")


def read(run_dir: Path, tap: str) -> dict[str, Any]:
    """The answer of this machine's collector. Raises CliError."""
    return ask(collector(run_dir), {"tap": "/".join(tap_name(tap))} if tap else {})


def ask(daemon: Daemon, query: Mapping[str, str]) -> dict[str, Any]:
    """A collector's answer. Raises CliError."""
    answer = get_json(daemon, "/v1/files", query)
    if not isinstance(answer, dict) or not isinstance(answer.get("files"), list):
        raise CliError(f"{daemon.name} answers /v1/files with something unexpected; is it of another version?")
    return answer


def render(answer: Mapping[str, Any]) -> str:
    """A row a file, oldest first."""
    if not answer["files"]:
        return "no file yet; `vtap ledger` shows whether packets arrive"
    return table(HEAD, [_row(file) for file in answer["files"]], right=frozenset({"BYTES", "PACKETS"}))


def _row(file: Mapping[str, Any]) -> tuple[str, ...]:
    tap = file.get("tap") or {}
    return (
        f"{tap.get('namespace', '?')}/{tap.get('name', '?')}",
        str(file.get("name", "?")),
        str(file.get("bytes", "?")),
        str(file.get("packets", "?")),
        str(file.get("first") or "-"),
        str(file.get("last") or "-"),
        "open" if file.get("open") else "complete",
    )
