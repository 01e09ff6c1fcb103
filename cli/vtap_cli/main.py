"""`vtap`: validate taps, see what they do, read the packets they copied."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtap_cli import daemons, files, keys, ledger, packets, status
from vtap_cli.errors import CliError

if TYPE_CHECKING:
    from vtap_api.values import Duration

RUN_DIR = Path("/run/vtap")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where something is refused or wrong, with one sentence on standard error; 2 for a wrong command line."""
    options = _parser().parse_args(argv)
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except CliError as error:
        print(f"vtap: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough. What is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vtap", description=__doc__)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--run-dir", type=Path, default=RUN_DIR, metavar="DIR", help="where the daemons' sockets are (default: /run/vtap)"
    )
    common = argparse.ArgumentParser(add_help=False, parents=[place])
    common.add_argument("-o", "--output", choices=("text", "json"), default="text", help="for people (default) or for programs")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text[:1].lower() + text[1:].split(".")[0], description=text)
        made.set_defaults(run=run)
        return made

    _add_validate(command)
    _add_ledger(command)
    _add_packets(command)
    command("status", _status, "Show what the agent of this node does for each tap.")
    mapping = commands.add_parser(
        "keys",
        parents=[place],
        help="list which key on the wire is which tap point",
        description="List which key (GRE key, VXLAN network identifier) on the wire is which tap point, for any sensor.",
    )
    mapping.add_argument("-o", "--output", choices=("table", "csv", "json"), default="table", help="default: table")
    mapping.set_defaults(run=_keys)
    listing = command("files", _files, "List the files that the collector has stored.")
    listing.add_argument("tap", nargs="?", default="", metavar="TAP", help="NAMESPACE/NAME (default: every tap)")
    return parser


Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def _add_validate(command: Command) -> None:
    made = command(
        "validate",
        _validate,
        "Check files as the agent does. One line a file; below a folder named `invalid`, being refused is what is right.",
    )
    made.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="files, or directories that are searched for YAML and JSON"
    )
    made.add_argument("--cluster", action="store_true", help="for a cluster, where the operator fills in a collector's address")


def _add_ledger(command: Command) -> None:
    made = command("ledger", _ledger, "Show what happened to every packet, by tap point. UNACCOUNTED is 0 at rest.")
    made.add_argument("tap", nargs="?", default="", metavar="TAP", help="NAME or NAMESPACE/NAME (default: every tap)")
    made.add_argument("--summary", action="store_true", help="print the totals as one line")


def _add_packets(command: Command) -> None:
    made = command("packets", _packets, "Read the packets a tap copied: decoded by tshark, or as pcapng with -w.")
    made.add_argument("tap", metavar="TAP", help="NAMESPACE/NAME (a NAME alone means namespace default)")
    source = made.add_mutually_exclusive_group()
    source.add_argument("--stored", action="store_true", help="what is on disk now (default)")
    source.add_argument("--live", action="store_true", help="what arrives from now on, until interrupted")
    made.add_argument(
        "--filter", default="", metavar="EXPR", help="any display filter of tshark's, such as 'dns.flags.rcode != 0'"
    )
    made.add_argument("--capture-filter", default="", metavar="EXPR", help="any capture filter, such as 'tcp port 80'; cheaper")
    made.add_argument(
        "--every",
        type=_duration,
        metavar="TIME",
        help="with --count N: the first N packets of each TIME, such as 10s; before --filter",
    )
    made.add_argument("--count", type=_positive, default=0, metavar="N", help="at most N packets, in all or with --every")
    made.add_argument("-w", "--write", type=Path, metavar="FILE", help="write pcapng; '-w -' feeds `wireshark -k -i -`")


# The models take longest to load; only what needs them waits for them.


def _duration(text: str) -> Duration:
    from pydantic_core import PydanticCustomError

    from vtap_api.values import Duration, DurationBetween

    try:
        return DurationBetween(Duration("1ms"), Duration("24h")).check(text)
    except PydanticCustomError as error:
        raise argparse.ArgumentTypeError(error.message()) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no count; write a whole number above 0")
    return int(text)


def _show(options: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False) if options.output == "json" else text())


def _validate(options: argparse.Namespace) -> int:
    from vtap_cli import validate

    checked = validate.check(options.paths, standalone=not options.cluster)
    _show(options, [file.as_json() for file in checked], lambda: "\n".join(line for file in checked for line in file.lines()))
    return 0 if all(file.as_meant for file in checked) else 1


def _ledger(options: argparse.Namespace) -> int:
    books = ledger.read(options.run_dir, options.tap, both=options.summary)
    if options.summary:
        print(ledger.summary(books))
    else:
        _show(options, ledger.as_json(books), lambda: ledger.render(books))
    return 0


def _packets(options: argparse.Namespace) -> int:
    if options.every is not None and not options.count:
        raise CliError("--every needs --count, as in --every 10s --count 10")
    request = packets.Request(
        tap=options.tap,
        live=options.live,
        display_filter=options.filter,
        capture_filter=options.capture_filter,
        every=options.every,
        count=options.count,
        output=options.write,
        as_json=options.output == "json",
    )
    return packets.run(request, daemons.collector(options.run_dir))


def _status(options: argparse.Namespace) -> int:
    answer = status.read(options.run_dir)
    _show(options, answer, lambda: status.render(answer))
    return 0


def _keys(options: argparse.Namespace) -> int:
    answer = keys.read(options.run_dir)
    forms = {"table": keys.as_table, "csv": keys.as_csv, "json": lambda data: json.dumps(data, indent=2, ensure_ascii=False)}
    print(forms[options.output](answer))
    return 0


def _files(options: argparse.Namespace) -> int:
    answer = files.read(options.run_dir, options.tap)
    _show(options, answer, lambda: files.render(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
