"""The agent as it would be elsewhere, or with less patience: what it is built of, altered before it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import vtap_lab.lab

BEFORE_TCX = """
from tests.dataplane import hooked_node
from vtap_agent.drivers import libbpf
libbpf.attach_tcx, libbpf.has_tcx = hooked_node.refuse_tcx, lambda: False
"""
"""As on kernels before Linux 6.6."""


TREE = Path(__file__).parents[2]


def alter_agents(monkeypatch: pytest.MonkeyPatch, directory: Path, statements: str) -> None:
    """Labs start agents that execute `statements` before anything else. The program goes to `directory`."""
    program = directory / "vtap-agent"
    tests = f"import sys\nsys.path.insert(0, {str(TREE)!r})"
    program.write_text(f"#!{sys.executable}\n{tests}\n{statements}\nfrom vtap_agent.main import main\nmain()\n")
    program.chmod(0o755)
    usual = vtap_lab.lab._script
    monkeypatch.setattr(vtap_lab.lab, "_script", lambda name: str(program) if name == program.name else usual(name))
