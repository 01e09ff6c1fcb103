"""`vtap keys`: which key on the wire stands for which tap point, for sensors that are not ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtap_cli.daemons import agent, get_json
from vtap_cli.errors import CliError
from vtap_cli.tables import table

COLUMNS = (
    "key",
    "tap_namespace",
    "tap",
    "pod_namespace",
    "pod",
    "pod_uid",
    "interface",
    "direction",
    "destination",
    "node",
    "incarnation",
)


def read(run_dir: Path) -> dict[str, Any]:
    """The agent's answer. Raises CliError."""
    daemon = agent(run_dir)
    answer = get_json(daemon, "/v1/keys")
    if not isinstance(answer, dict) or not isinstance(answer.get("keys"), list):
        raise CliError(f"{daemon.name} answers /v1/keys with something unexpected; is it of another version?")
    return answer


def as_csv(answer: Mapping[str, Any]) -> str:
    """With a line of column names, as RFC 4180 has it but for the line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(answer))
    return text.getvalue().rstrip("\n")


def as_table(answer: Mapping[str, Any]) -> str:
    """For people: without identities of pods and streams."""
    rows = [(row[0], f"{row[1]}/{row[2]}", f"{row[3]}/{row[4]}", row[6], row[7], row[8]) for row in _rows(answer)]
    return table(("KEY", "TAP", "POD", "INTERFACE", "DIRECTION", "DESTINATION"), rows, frozenset({"KEY"}))


def _rows(answer: Mapping[str, Any]) -> Iterable[Sequence[str]]:
    for item in sorted(answer["keys"], key=lambda item: (item["key"], item.get("node", ""))):
        tap, pod = item["tap"], item["pod"]
        node = item.get("node", answer.get("node", ""))
        yield (
            *(str(item["key"]), tap["namespace"], tap["name"], pod["namespace"], pod["name"], pod["uid"]),
            *(item["interface"], item["direction"], item["destination"], node, item["incarnation"]),
        )
