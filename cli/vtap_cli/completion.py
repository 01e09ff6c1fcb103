"""Shell completion, by argcomplete: of `vtap`, and of `kubectl vtap`, for which kubectl asks `kubectl_complete-vtap` on PATH.

Names are looked up in the cluster or at the agent. What can't be had in LOOK_UP_SECONDS is not offered, and nothing is said.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vtap_cli.errors import CliError

if TYPE_CHECKING:
    from vtap_cli.cluster.kubectl import Place

SHELLS = ("bash", "zsh", "fish")
LOOK_UP_SECONDS = 2
MOST = 500
"""Names that are offered."""
GROUP, CORE = "/apis/vtap.dev/v1alpha1", "/api/v1"
ASKED = "_ARGCOMPLETE"
"""argcomplete's variable, which says that completions are wanted."""
_NO_FILES = ":4"
"""Cobra's directive NoFileComp: nothing but what was printed."""
_FILES = ":0"
"""Cobra's directive Default: files, where nothing was printed."""

Completer = Callable[..., list[str]]


def completed(action: argparse.Action, completer: Completer | None) -> argparse.Action:
    """`action`, with words that may stand there."""
    if completer is not None:
        action.completer = completer  # pyright: ignore[reportAttributeAccessIssue]
    return action


def complete(parser: argparse.ArgumentParser) -> None:
    """Where a shell asks for completions, print them and end the process."""
    if ASKED in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)


def script(shell: str) -> str:
    """What a shell has to read to complete `vtap` and `kubectl-vtap`; `kubectl vtap` is completed by kubectl's own script."""
    from argcomplete.shell_integration import shellcode

    return shellcode(["vtap", "kubectl-vtap"], shell=shell)


def kubectl_complete_main(argv: Sequence[str] | None = None) -> int:
    """`kubectl_complete-vtap WORD…`: words for the last one, then a directive of Cobra's."""
    from vtap_cli.main import make_parser

    words = list(sys.argv[1:] if argv is None else argv) or [""]
    found = candidates(make_parser("kubectl-vtap", cluster=True), words)
    print("\n".join([*found, _NO_FILES if found else _FILES]))
    return 0


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """What the last of `words` may become."""
    from argcomplete.completers import BaseCompleter
    from argcomplete.finders import CompletionFinder

    class Ended(Exception):
        pass

    class Nothing(BaseCompleter):
        def __call__(self, **_: Any) -> list[str]:
            return []

    def end(_status: int = 0) -> None:
        raise Ended

    line = " ".join(["kubectl-vtap", *map(shlex.quote, words[:-1]), words[-1]])
    asked = {ASKED: "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line.encode()))}
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    out = io.StringIO()
    try:
        finder = CompletionFinder(default_completer=Nothing())
        finder(
            parser,
            exit_method=end,
            output_stream=out,
            append_space=False,
            always_complete_options=False,
            default_completer=Nothing(),
        )
    except Ended:
        return [word for word in out.getvalue().split("\n") if word]
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return []


# ---- names ----


def taps(parsed_args: argparse.Namespace, parser: argparse.ArgumentParser, **_: Any) -> list[str]:
    """VirtualTaps of the chosen namespace, or those of this machine's agent."""
    if not _in_cluster(parsed_args, parser):
        return _taps_here(parsed_args)
    return _named(parsed_args, GROUP, "virtualtaps", namespaced=True)


def pods(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Pods of the chosen namespace."""
    return _named(parsed_args, CORE, "pods", namespaced=True)


def destinations(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """TapDestinations."""
    return _named(parsed_args, GROUP, "tapdestinations")


def namespaces(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Namespaces."""
    return _named(parsed_args, CORE, "namespaces")


def contexts(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Contexts of the kubeconfig."""
    return _kubectl(_place(parsed_args), "config", "get-contexts", "-o", "name").split()


def _in_cluster(parsed_args: argparse.Namespace, parser: argparse.ArgumentParser) -> bool:
    named = any(getattr(parsed_args, name, None) for name in ("cluster", "context", "kubeconfig", "namespace", "all_namespaces"))
    return named or parser.prog.startswith("kubectl")


def _named(parsed_args: argparse.Namespace, group: str, plural: str, *, namespaced: bool = False) -> list[str]:
    """Names of objects, with their namespace where all namespaces are meant. Asked for as they are: discovery takes its time."""
    from vtap_cli.cluster.kubectl import read_config

    place = _place(parsed_args)
    everywhere = parsed_args.all_namespaces
    try:
        namespace = place.namespace or (read_config(place).namespace if namespaced and not everywhere else "")
        path = f"{group}/namespaces/{namespace}/{plural}" if namespaced and not everywhere else f"{group}/{plural}"
        items = json.loads(_kubectl(place, "get", "--raw", f"{path}?limit={MOST}"))["items"]
        found = [item["metadata"] for item in items]
    except (CliError, ValueError, LookupError, TypeError):
        return []
    return [f"{meta['namespace']}/{meta['name']}" if namespaced and everywhere else meta["name"] for meta in found]


def _place(parsed_args: argparse.Namespace) -> Place:
    from vtap_cli.cluster.kubectl import Place

    return Place(parsed_args.context, parsed_args.kubeconfig, parsed_args.namespace)


def _kubectl(place: Place, *arguments: str) -> str:
    command = ["kubectl", *place.flags(), f"--request-timeout={LOOK_UP_SECONDS}s", *arguments]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=2 * LOOK_UP_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout


def _taps_here(parsed_args: argparse.Namespace) -> list[str]:
    from vtap_cli import status

    try:
        answer = status.read(parsed_args.run_dir)
    except CliError:
        return []
    return [f"{tap.get('namespace')}/{tap.get('name')}" for tap in answer["taps"]]
