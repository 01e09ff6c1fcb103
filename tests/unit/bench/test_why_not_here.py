"""A benchmark that needs a lab finds what setup unpacked, and says in a sentence why there can be none."""

from __future__ import annotations

import importlib
import sys

import pytest

from vtap_lab import preflight


@pytest.mark.parametrize("name", ["backends", "dpdk", "reaction", "tap_cost"])
def test_where_no_lab_can_be_the_reason_is_said(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "why_no_lab", lambda: "a lab needs something else")
    monkeypatch.setattr(sys, "argv", [name])
    assert importlib.import_module(f"bench.{name}").main() == 1
    assert capsys.readouterr().err == "bench: a lab needs something else\n"
