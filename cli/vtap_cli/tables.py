"""Columns of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[str] = frozenset()) -> str:
    """Lines of aligned columns; those named in `right` are aligned to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def tap_name(text: str) -> tuple[str, str]:
    """``NAMESPACE/NAME`` or ``NAME`` (in namespace default) as (namespace, name)."""
    namespace, slash, name = text.partition("/")
    return (namespace, name) if slash else ("default", namespace)
