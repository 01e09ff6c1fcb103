"""Documents as this machine's own agent needs them, or what is wrong in sentences."""

from __future__ import annotations

from vtap_api import Resource
from vtap_api.load import load_text


def load_documents(text: str, file: str) -> tuple[tuple[Resource, ...], tuple[str, ...]]:
    """(all documents, none) or (none, sentences). Pure."""
    loaded = load_text(text, file, standalone=True)
    if loaded.problems:
        return (), tuple(str(problem) for problem in loaded.problems)
    return tuple(located.document for located in loaded.documents), ()
