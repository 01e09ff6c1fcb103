"""Validate taps, see what they do, read the packets they copied: on this machine, or in a cluster."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtap_cli import completion, daemons, files, keys, ledger, packets, status, wireshark
from vtap_cli.errors import CliError
from vtap_cli.output import as_json, show

if TYPE_CHECKING:
    from vtap_api.values import Duration

RUN_DIR = Path("/run/vtap")
CLUSTER_OPTIONS = (
    "cluster",
    "context",
    "kubeconfig",
    "namespace",
    "all_namespaces",
    "vtap_namespace",
    "service_account",
)
"""Any of them on the command line means a cluster."""


def main(argv: Sequence[str] | None = None) -> int:
    """`vtap`: this machine, unless the command line names a cluster.

    Exit status: 0; 1 where something is refused or wrong, with one sentence on standard error; 2 for a wrong command line.
    """
    return _main(argv, "vtap", cluster=False)


def kubectl_main(argv: Sequence[str] | None = None) -> int:
    """`kubectl vtap`, which kubectl starts as `kubectl-vtap`: a cluster."""
    return _main(argv, "kubectl vtap", cluster=True)


def _main(argv: Sequence[str] | None, prog: str, *, cluster: bool) -> int:
    parser = make_parser(prog, cluster=cluster)
    completion.complete(parser)
    options = parser.parse_args(argv)
    options.cluster = cluster or any(getattr(options, name, None) for name in CLUSTER_OPTIONS)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except CliError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough. What is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def make_parser(prog: str, *, cluster: bool) -> argparse.ArgumentParser:
    """The command line. `cluster`: what is left unsaid means a cluster, and this machine's options are not shown."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    _add_place(common, cluster=cluster)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, forms: tuple[str, ...] = ("text", "json")
    ) -> argparse.ArgumentParser:
        summary = text[:1].lower() + text[1:].split(". ")[0].removesuffix(".")
        made = commands.add_parser(name, parents=[common], help=summary, description=text)
        if forms:
            made.add_argument("-o", "--output", choices=forms, default=forms[0], help=f"default: {forms[0]}")
        made.set_defaults(run=run)
        return made

    _add_status(command)
    _add_packets(command, live=cluster)
    _add_wireshark(command)
    _add_capture(command)
    _add_ledger(command)
    command(
        "keys",
        _keys,
        "List which key (GRE key, VXLAN network identifier) on the wire is which tap point.",
        ("table", "csv", "json"),
    )
    _add_files(command)
    _add_explain(command)
    _add_validate(command)
    made = command("completion", _completion, "Print the completion script of a shell.", ())
    made.add_argument("shell", choices=completion.SHELLS)
    return parser


Command = Callable[..., argparse.ArgumentParser]


def _add_place(common: argparse.ArgumentParser, *, cluster: bool) -> None:
    machine = common.add_argument_group("this machine")
    machine.add_argument(
        "--run-dir",
        type=Path,
        default=RUN_DIR,
        metavar="DIR",
        help=argparse.SUPPRESS if cluster else "where the daemons' sockets are (default: /run/vtap)",
    )
    group = common.add_argument_group("cluster", None if cluster else "any of these asks a cluster instead of this machine")
    group.add_argument(
        "--cluster", action="store_true", help=argparse.SUPPRESS if cluster else "the kubeconfig's current context"
    )

    def add(*flags: str, metavar: str, text: str, complete: completion.Completer | None = None) -> None:
        completion.completed(group.add_argument(*flags, default="", metavar=metavar, help=text), complete)

    add("--context", metavar="NAME", text="the kubeconfig's context", complete=completion.contexts)
    add("--kubeconfig", metavar="FILE", text="the kubeconfig (default: as kubectl's)")
    add("-n", "--namespace", metavar="NAME", text="default: the context's", complete=completion.namespaces)
    group.add_argument("-A", "--all-namespaces", action="store_true", help="all of them")
    add("--vtap-namespace", metavar="NAME", text="where VirtualTap itself runs (default: found out, else vtap-system)")
    add(
        "--service-account",
        metavar="NAMESPACE/NAME",
        text="read packets as this ServiceAccount (default: as yourself; with a client certificate, vtap-reader)",
    )


def _tap(made: argparse.ArgumentParser, **other: Any) -> None:
    completion.completed(made.add_argument("tap", metavar="TAP", **other), completion.taps)


def _destination(made: argparse.ArgumentParser, text: str) -> None:
    completion.completed(made.add_argument("--destination", default="", metavar="NAME", help=text), completion.destinations)


def _add_status(command: Command) -> None:
    made = command("status", _status, "Show what taps do: tap, node, pod and interface as a tree, with rates.")
    _tap(made, nargs="?", default="", help="in a cluster: NAME or NAMESPACE/NAME (default: every tap of the namespace)")
    made.add_argument("-w", "--watch", action="store_true", help="in a cluster: again every two seconds, until interrupted")


def _add_validate(command: Command) -> None:
    made = command(
        "validate",
        _validate,
        "Check files as the agent does. One line a file; below a folder named `invalid`, being refused is what is right.",
    )
    made.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="files, - for standard input, or directories that are searched for YAML and JSON",
    )


def _add_ledger(command: Command) -> None:
    made = command("ledger", _ledger, "Show what happened to every packet, by tap point. UNACCOUNTED is 0 at rest.")
    _tap(made, nargs="?", default="", help="NAME or NAMESPACE/NAME (default: every tap)")
    made.add_argument("--summary", action="store_true", help="print the totals as one line")


def _add_packets(command: Command, *, live: bool) -> None:
    made = command("packets", _packets, "Read the packets a tap copied: decoded by tshark, or as pcapng with -w.")
    _tap(made, help="NAMESPACE/NAME, or NAME in namespace default, in a cluster in the chosen one")
    _add_selection(made, live=live)
    made.add_argument("-w", "--write", type=Path, metavar="FILE", help="write pcapng; '-w -' feeds `wireshark -k -i -`")
    _destination(made, "in a cluster: where the packets of a tap that is gone went")


def _add_wireshark(command: Command) -> None:
    made = command(
        "wireshark", _wireshark, "Look at a tap's packets in Wireshark as they arrive; without it, decoded by tshark.", ()
    )
    _tap(made, help="as for packets")
    _add_selection(made, live=True)
    made.add_argument("-w", "--write", type=Path, metavar="FILE", help="write pcapng instead")
    _destination(made, "in a cluster: where the packets of a tap that is gone went")


def _add_selection(made: argparse.ArgumentParser, *, live: bool) -> None:
    source = made.add_mutually_exclusive_group()
    source.add_argument(
        "--stored", action="store_true", help="what is on disk now" + ("" if live else " (default on one machine)")
    )
    source.add_argument(
        "--live", action="store_true", help="what arrives from now on, until interrupted" + (" (default)" if live else "")
    )
    _add_filters(made)
    made.add_argument(
        "--every",
        type=_duration,
        metavar="TIME",
        help="with --count N: the first N packets of each interface in each TIME, such as 10s, of those that match",
    )
    made.add_argument("--count", type=_positive, default=0, metavar="N", help="at most N packets, in all or with --every")


def _add_filters(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--filter", default="", metavar="EXPR", help="any display filter of tshark's, such as 'dns.flags.rcode != 0'"
    )
    made.add_argument("--capture-filter", default="", metavar="EXPR", help="any capture filter, such as 'tcp port 80'; cheaper")


def _add_capture(command: Command) -> None:
    made = command(
        "capture",
        _capture,
        "Tap pods of a cluster until there are enough packets, write them, and remove the tap. It goes by itself, whatever "
        "happens to this command.",
    )
    pods = made.add_argument("pods", nargs="*", metavar="POD", help="pods by name, or TYPE/NAME such as deployment/web")
    completion.completed(pods, completion.pods)
    made.add_argument("-l", "--selector", default="", metavar="LABEL=VALUE,…", help="pods by their labels")
    made.add_argument("-w", "--write", type=Path, metavar="FILE", help="write pcapng (default: decoded lines)")
    made.add_argument("--count", type=_positive, default=0, metavar="N", help="at most N packets")
    made.add_argument(
        "--duration", type=_lifetime, default="10m", metavar="TIME", help="at most so long (default: 10m, most: 24h)"
    )
    _add_filters(made)
    made.add_argument("--snap-length", type=_snap_length, default=0, metavar="BYTES", help="copy only the first BYTES of a frame")
    made.add_argument("--wait", type=_duration, default="60s", metavar="TIME", help="how long setting up may take (default: 60s)")
    _destination(made, "the TapDestination whose collector is used (default: default)")


def _add_files(command: Command) -> None:
    made = command("files", _files, "List the files that the collector has stored.")
    _tap(made, nargs="?", default="", help="NAMESPACE/NAME (default: every tap)")
    _destination(made, "in a cluster, with TAP: where the packets of a tap that is gone went")


def _add_explain(command: Command) -> None:
    made = command("explain", _explain, "Say whether a pod of a cluster is tapped, by which tap and how, and if not, why.")
    completion.completed(made.add_argument("pod", metavar="POD", help="NAME or NAMESPACE/NAME"), completion.pods)


# The models take longest to load; only what needs them waits for them.


def _duration(text: str) -> Duration:
    return _duration_between(text, "1ms", "24h")


def _lifetime(text: str) -> Duration:
    return _duration_between(text, "1s", "24h")


def _duration_between(text: str, least: str, most: str) -> Duration:
    from pydantic_core import PydanticCustomError

    from vtap_api.values import Duration, DurationBetween

    try:
        return DurationBetween(Duration(least), Duration(most)).check(text)
    except PydanticCustomError as error:
        raise argparse.ArgumentTypeError(error.message()) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number above 0")
    return int(text)


def _snap_length(text: str) -> int:
    if not text.isdecimal() or not 14 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no snap length; write a whole number from 14 to 65535")
    return int(text)


def _request(options: argparse.Namespace, *, live: bool, tap: str, every: Duration | None = None) -> packets.Request:
    if every is not None and not options.count:
        raise CliError("--every needs --count, as in --every 10s --count 10")
    return packets.Request(
        tap=tap,
        live=live,
        display_filter=options.filter,
        capture_filter=options.capture_filter,
        every=every,
        count=options.count,
        output=options.write,
        as_json=getattr(options, "output", "") == "json",
    )


def _validate(options: argparse.Namespace) -> int:
    from vtap_cli import validate

    checked = validate.check(options.paths, standalone=not options.cluster)
    data = [file.as_json() for file in checked]
    show(options, data, lambda: "\n".join(line for file in checked for line in file.lines()))
    return 0 if all(file.as_meant for file in checked) else 1


def _status(options: argparse.Namespace) -> int:
    if options.cluster:
        from vtap_cli.cluster import commands

        return commands.status(options)
    if options.tap or options.watch:
        raise CliError("on one machine `vtap status` shows every tap, once; --cluster asks a cluster")
    answer = status.read(options.run_dir)
    show(options, answer, lambda: status.render(answer))
    return 0


def _ledger(options: argparse.Namespace) -> int:
    if options.cluster:
        from vtap_cli.cluster import commands

        return commands.ledger(options)
    books = ledger.read(options.run_dir, options.tap, both=options.summary)
    if options.summary:
        print(ledger.summary(books))
    else:
        show(options, ledger.as_json(books), lambda: ledger.render(books))
    return 0


def _packets(options: argparse.Namespace) -> int:
    live = options.live or (options.cluster and not options.stored)
    request = _request(options, live=live, tap=options.tap, every=options.every)
    if options.cluster:
        from vtap_cli.cluster import commands

        return commands.read_packets(options, request)
    return packets.run(request, daemons.collector(options.run_dir))


def _wireshark(options: argparse.Namespace) -> int:
    program = wireshark.program()
    if options.write is not None or not program:
        if options.write is None:
            print("Wireshark is not installed; showing the packets as tshark decodes them", file=sys.stderr)
        options.live = not options.stored
        return _packets(options)
    request = _request(options, live=not options.stored, tap=options.tap, every=options.every)
    if options.cluster:
        from vtap_cli.cluster import commands

        return commands.show_in_wireshark(options, request, program)
    return wireshark.run(request, daemons.collector(options.run_dir), program)


def _capture(options: argparse.Namespace) -> int:
    from vtap_cli.cluster import commands

    return commands.capture(options, _request(options, live=True, tap=""))


def _keys(options: argparse.Namespace) -> int:
    forms: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
        "table": keys.as_table,
        "csv": keys.as_csv,
        "json": as_json,
    }
    if options.cluster:
        from vtap_cli.cluster import commands

        return commands.list_keys(options, forms)
    print(forms[options.output](keys.read(options.run_dir)))
    return 0


def _files(options: argparse.Namespace) -> int:
    if options.cluster:
        from vtap_cli.cluster import commands

        return commands.list_files(options)
    answer = files.read(options.run_dir, options.tap)
    show(options, answer, lambda: files.render(answer))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from vtap_cli.cluster import commands

    return commands.explain(options)


def _completion(options: argparse.Namespace) -> int:
    print(completion.script(options.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
