"""Columns of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[str] = frozenset()) -> str:
    """Lines of aligned columns; those named in `right` are aligned to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    columns = [(width, name in right) for name, width in zip(head, widths, strict=True)]
    return "\n".join("  ".join(map(_aligned, line, columns)).rstrip() for line in lines)


def _aligned(cell: str, column: tuple[int, bool]) -> str:
    width, right = column
    return cell.rjust(width) if right else cell.ljust(width)


def tap_name(text: str) -> tuple[str, str]:
    """``NAMESPACE/NAME`` or ``NAME`` (in namespace default) as (namespace, name)."""
    namespace, slash, name = text.partition("/")
    return (namespace, name) if slash else ("default", namespace)
