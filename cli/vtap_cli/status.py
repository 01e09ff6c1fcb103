"""`vtap status`: what the agent of this node does for each tap, as a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vtap_cli.daemons import agent, get_json
from vtap_cli.errors import CliError
from vtap_cli.tables import table


def read(run_dir: Path) -> dict[str, Any]:
    """The agent's answer. Raises CliError."""
    daemon = agent(run_dir)
    answer = get_json(daemon, "/v1/status")
    if not isinstance(answer, dict) or not isinstance(answer.get("taps"), list):
        raise CliError(f"{daemon.name} answers /v1/status with something unexpected; is it of another version?")
    return answer


def render(status: Mapping[str, Any]) -> str:
    """The tree: node, taps, and for each its conditions and tap points; then what is wrong with files."""
    lines = [f"node {status.get('node', '?')}"]
    taps = status["taps"]
    for index, tap in enumerate(taps):
        last = index == len(taps) - 1
        lines.append(f"{'└─' if last else '├─'} {_title(tap)}")
        lines.extend(f"{'   ' if last else '│  '}{line}" for line in _tap_lines(tap))
    if not taps:
        lines.append("└─ no tap; put a VirtualTap into the agent's --taps directory")
    problems = status.get("problems") or []
    if problems:
        lines += ["", "problems:", *(f"- {problem}" for problem in problems)]
    return "\n".join(lines)


def _title(tap: Mapping[str, Any]) -> str:
    title = f"VirtualTap {tap.get('namespace', '?')}/{tap.get('name', '?')}"
    if "destination" in tap:
        title += f" → {tap['destination']}"
    if "matchedPods" in tap:
        title += f": pods {tap['matchedPods']}, attached {tap.get('attachedPods', '?')}, failed {tap.get('failedPods', '?')}"
    return title


def _tap_lines(tap: Mapping[str, Any]) -> Iterator[str]:
    rows: list[Sequence[str]] = [
        (_text(item, "type"), _text(item, "status"), _text(item, "reason"), _text(item, "message"))
        for item in tap.get("conditions") or []
    ]
    yield from _bulleted(rows, more=bool(tap.get("points")))
    yield from _bulleted([_point(point) for point in tap.get("points") or []], more=False)


def _bulleted(rows: list[Sequence[str]], *, more: bool) -> Iterator[str]:
    if not rows:
        return
    for index, line in enumerate(table(("",) * len(rows[0]), rows).split("\n")[1:]):
        last = index == len(rows) - 1 and not more
        yield f"{'└─' if last else '├─'} {line}"


def _point(point: Mapping[str, Any]) -> Sequence[str]:
    pod = point.get("pod") or {}
    said = [_text(point, "message"), rates_text(point.get("rates") or {})]
    return (
        f"{pod.get('namespace', '?')}/{pod.get('name', '?')}",
        _text(point, "interface"),
        _text(point, "direction"),
        _text(point, "backend"),
        _text(point, "state"),
        "; ".join(part for part in said if part),
    )


def rates_text(rates: Mapping[str, Any]) -> str:
    """What is seen and sent a second; empty where nothing is known."""
    return ", ".join(
        f"{what} {_scaled(rates[f'{what}Packets'])}p/s {_scaled(rates[f'{what}Bits'])}b/s"
        for what in ("seen", "sent")
        if f"{what}Packets" in rates and f"{what}Bits" in rates
    )


def _scaled(value: float) -> str:
    """With three digits and a decimal prefix."""
    for prefix in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    return "" if value is None else str(value)
