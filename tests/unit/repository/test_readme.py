"""What the README tells people to type and write holds."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from vtap_api.load import load_text

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    """Every command of the shell blocks, without what a pipe or redirection adds."""
    lines = [line for language, _, text in BLOCKS if language == "sh" for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _commands_of(start: str) -> list[list[str]]:
    return [words for words in _commands() if words[0].startswith(start)]


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_two_commands_are_there() -> None:
    assert {"demo", "test"} <= {words[1] for words in _commands_of("make")}


@pytest.mark.parametrize("target", sorted({words[1] for words in _commands_of("make")}))
def test_each_make_target_exists(target: str) -> None:
    assert f"make {target} " in _run("make", "help").stdout


@pytest.mark.parametrize("words", _commands_of(".venv/bin/"), ids=" ".join)
def test_each_option_is_one_the_program_has(words: list[str]) -> None:
    program, *arguments = words
    subcommand = [arguments[0]] if arguments and not arguments[0].startswith("-") else []
    shown = _run(program, *subcommand, "--help")
    assert shown.returncode == 0, shown.stderr
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", shown.stdout), f"{program} has no {option}"


@pytest.mark.parametrize("script", [text for language, tag, text in BLOCKS if language == "sh" and "tested" in tag])
def test_each_block_marked_as_tested_runs(script: str) -> None:
    done = _run("bash", "-euo", "pipefail", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", [text for language, _, text in BLOCKS if language == "yaml"])
def test_each_resource_is_valid(text: str) -> None:
    if "apiVersion" not in text:
        whole = {"apiVersion": "vtap.dev/v1alpha1", "kind": "VirtualTap", "metadata": {"name": "shown", "namespace": "shop"}}
        text = yaml.safe_dump({**whole, **yaml.safe_load(text)})
    loaded = load_text(text)
    assert [str(problem) for problem in loaded.problems] == []
    assert len(loaded.documents) == 1


def test_each_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
