"""Each command of `vtap`, against a cluster: what the command line says, into what the user sees."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vtap_cli import files, packets, wireshark
from vtap_cli import ledger as machine_ledger
from vtap_cli.cluster.collectors import collector_of, collector_of_tap, destinations_of, questions
from vtap_cli.cluster.kubectl import Place
from vtap_cli.cluster.session import Session, opened
from vtap_cli.errors import CliError
from vtap_cli.output import show


def place_of(options: argparse.Namespace) -> Place:
    """Which cluster is meant."""
    return Place(
        options.context,
        options.kubeconfig,
        options.namespace,
        options.all_namespaces,
        options.vtap_namespace,
        options.service_account,
    )


def status(options: argparse.Namespace) -> int:
    """The tree."""
    from vtap_cli.cluster import status

    with opened(place_of(options)) as session:
        where = f"in namespace {session.namespace} (-A shows all)" if session.namespace else "in any namespace"
        nowhere = f"no VirtualTap {where}; `kubectl vtap explain POD` says what it would take"

        def shown(data: Mapping[str, Any]) -> None:
            show(options, data, lambda: status.render(data, nowhere))

        if options.watch:
            status.watch(session, options.tap, shown)
        else:
            status.once(session, options.tap, shown)
    return 0


def ledger(options: argparse.Namespace) -> int:
    """The table, or one line."""
    from vtap_cli.cluster import ledger

    with opened(place_of(options)) as session:
        read = ledger.read(session, options.tap)
    if options.summary and read.notes:
        raise CliError("; ".join(read.notes))
    _tell(read.notes)
    if options.summary:
        print(machine_ledger.summary(read.books))
    else:
        data = {**machine_ledger.as_json(read.books), "notes": list(read.notes)}
        show(options, data, lambda: machine_ledger.render(read.books))
    return 0


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def list_keys(options: argparse.Namespace, forms: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> int:
    """Key → pod, in one of the `forms`."""
    from vtap_cli.cluster import keys

    with opened(place_of(options)) as session:
        print(forms[options.output](keys.read(session)))
    return 0


def list_files(options: argparse.Namespace) -> int:
    """What the collectors have stored of the taps that are meant."""
    with opened(place_of(options)) as session:
        found, notes = _files(session, options.tap, options.destination)
    _tell(notes)
    data = {"files": found, "notes": notes}
    show(options, data, lambda: files.render(data))
    return 0


def _files(session: Session, tap: str, destination: str) -> tuple[list[Any], list[str]]:
    if destination and tap:
        query = {"tap": "/".join(session.tap_name(tap))}
        return files.ask(collector_of(session, destination), query)["files"], []
    taps = session.taps(tap)
    destinations = destinations_of(session, taps)
    asked, notes = questions(session, taps, destinations, everything=session.place.all_namespaces and not tap)
    if notes and not asked:
        raise CliError("; ".join(notes))
    return [file for collector, query in asked for file in files.ask(collector, query)["files"]], notes


def read_packets(options: argparse.Namespace, request: packets.Request) -> int:
    """Live unless the command line says otherwise."""
    with opened(place_of(options)) as session:
        tap = session.tap_name(request.tap)
        return packets.run(_of(request, tap), collector_of_tap(session, tap, options.destination))


def show_in_wireshark(options: argparse.Namespace, request: packets.Request, program: str) -> int:
    """As `read_packets`, into Wireshark."""
    with opened(place_of(options)) as session:
        tap = session.tap_name(request.tap)
        return wireshark.run(_of(request, tap), collector_of_tap(session, tap, options.destination), program)


def _of(request: packets.Request, tap: tuple[str, str]) -> packets.Request:
    return replace(request, tap="/".join(tap))


def explain(options: argparse.Namespace) -> int:
    """Exit status 0 whatever the answer is: that a pod is not tapped is no failure."""
    from vtap_cli.cluster import explain

    with opened(place_of(options)) as session:
        answer = explain.explain(explain.read(session, options.pod))
    show(options, answer.as_json(), lambda: explain.render(answer))
    return 0


def capture(options: argparse.Namespace, request: packets.Request) -> int:
    """A tap for as long as one file takes."""
    from vtap_cli.cluster import capture

    if bool(options.pods) == bool(options.selector):
        raise CliError("say which pods to capture: names, TYPE/NAME such as deployment/web, or -l LABEL=VALUE")
    wanted = capture.Capture(
        tuple(options.pods),
        options.selector,
        options.duration.nanoseconds / 1e9,
        options.wait.nanoseconds / 1e9,
        options.destination or "default",
        options.snap_length,
        request,
    )
    with opened(place_of(options)) as session:
        return capture.run(session, wanted)
