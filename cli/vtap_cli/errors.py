"""What a user of `vtap` can be told."""

from __future__ import annotations


class CliError(Exception):
    """`str()` is one sentence: what is wrong, and what helps."""
