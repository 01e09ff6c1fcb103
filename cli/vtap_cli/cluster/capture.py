"""`kubectl vtap capture`: a tap for as long as one file takes; by its ttl it goes even if nobody is left to delete it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any

from vtap_cli import ledger as books
from vtap_cli import packets
from vtap_cli.cluster import ledger
from vtap_cli.cluster.api import NotFound, of_core, of_group
from vtap_cli.cluster.collectors import Collector, collector_of
from vtap_cli.cluster.objects import Object, identity, labels_of, name_of
from vtap_cli.cluster.session import Session
from vtap_cli.errors import CliError
from vtap_cli.progress import progress

MARGIN = 60
"""Seconds that the tap may outlive the capture, for being set up and for the last copies."""
POLL = 0.5
LEDGER_SECONDS = 15.0
"""How long the ledger may take to close after the tap has gone."""
WORKLOADS = {
    "deployment": "/apis/apps/v1",
    "statefulset": "/apis/apps/v1",
    "daemonset": "/apis/apps/v1",
    "replicaset": "/apis/apps/v1",
    "job": "/apis/batch/v1",
}
SHORT = {"deploy": "deployment", "sts": "statefulset", "ds": "daemonset", "rs": "replicaset", "svc": "service", "po": "pod"}
POD_NAME_LABEL = "statefulset.kubernetes.io/pod-name"


@dataclass(frozen=True, slots=True)
class Capture:
    """What is wanted. `pods` are names, or TYPE/NAME of something that owns pods; `selector` is ``key=value,…`` instead."""

    pods: Sequence[str]
    selector: str
    seconds: float
    wait: float
    destination: str
    snap_length: int
    request: packets.Request


def run(session: Session, wanted: Capture) -> int:
    """Make the tap, wait until it copies, write what arrives, delete it, and say what became of every packet. Raises CliError."""
    namespace = session.place.namespace or session.config.namespace
    selector = pod_selector(session, namespace, wanted)
    collector = collector_of(session, wanted.destination)
    with _terminated_as_interrupted():
        tap = session.api.create(of_group("virtualtaps", namespace), manifest(selector, wanted))
        name = f"{namespace}/{name_of(tap)}"
        try:
            with progress(f"waiting for tap {name}") as shown:
                _await_programmed(session, tap, wanted.wait, shown)
            code = _copy(replace(wanted.request, tap=name), collector, wanted, name)
        finally:
            with _uninterrupted():
                session.api.delete(of_group("virtualtaps", namespace, name_of(tap)))
        _say_ledger(session, tap, collector)
    return code


def manifest(selector: Mapping[str, Any], wanted: Capture) -> dict[str, Any]:
    """The tap as it is asked for."""
    spec: dict[str, Any] = {
        "podSelector": dict(selector),
        "destinationRef": {"name": wanted.destination},
        "ttl": f"{ceil(wanted.seconds + wanted.wait) + MARGIN}s",
    }
    if wanted.snap_length:
        spec["packet"] = {"snapLength": wanted.snap_length}
    return {
        "apiVersion": "vtap.dev/v1alpha1",
        "kind": "VirtualTap",
        "metadata": {"generateName": "capture-", "labels": {"app.kubernetes.io/managed-by": "kubectl-vtap"}},
        "spec": spec,
    }


# ---- which pods ----


def pod_selector(session: Session, namespace: str, wanted: Capture) -> dict[str, Any]:
    """A label selector for exactly the pods that are meant. Raises CliError where labels can't tell them from others."""
    if wanted.selector:
        return {"matchLabels": parse_selector(wanted.selector)}
    kinds = [text.partition("/") for text in wanted.pods]
    owners = [(SHORT.get(kind.lower(), kind.lower()), name) for kind, slash, name in kinds if slash]
    owners = [(kind, name) for kind, name in owners if kind != "pod"]
    if owners and len(wanted.pods) > 1:
        raise CliError("one TYPE/NAME at a time; several pods can be named one by one, or selected with -l")
    if owners:
        return _selector_of_owner(session, namespace, *owners[0])
    names = {name or kind for kind, _, name in kinds}
    pods = {name_of(pod): labels_of(pod) for pod in session.api.list(of_core("pods", namespace))}
    return selector_for(names, pods, namespace)


def parse_selector(text: str) -> dict[str, str]:
    """``key=value,…`` as labels. Raises CliError."""
    labels: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or not key or key.endswith("!"):
            raise CliError(f"-l {text}: {part.strip()!r} is no key=value; write labels such as -l app=web,tier=front")
        labels[key.strip()] = value.removeprefix("=").strip()
    return labels


def _selector_of_owner(session: Session, namespace: str, kind: str, name: str) -> dict[str, Any]:
    kind = kind.removesuffix("s")
    if kind == "service":
        labels = (session.api.get(of_core("services", namespace, name)).get("spec") or {}).get("selector")
        if not labels:
            raise CliError(f"Service {namespace}/{name} selects no pods; name pods or a workload")
        return {"matchLabels": dict(labels)}
    if kind not in WORKLOADS:
        raise CliError(f"{kind}/{name}: {kind!r} owns no pods; write a pod's name, or one of {', '.join(WORKLOADS)}, service")
    found = session.api.get(f"{WORKLOADS[kind]}/namespaces/{namespace}/{kind}s/{name}")
    return dict((found.get("spec") or {}).get("selector") or {})


def selector_for(names: set[str], pods: Mapping[str, Mapping[str, str]], namespace: str) -> dict[str, Any]:
    """A selector that matches the pods `names` and no other of `pods` (labels by name). Raises CliError. Pure."""
    if missing := sorted(names - pods.keys()):
        raise CliError(f"there is no pod {namespace}/{missing[0]}; `kubectl get pods -n {namespace}` lists them")
    if all(pods[name].get(POD_NAME_LABEL) == name for name in names):
        if len(names) == 1:
            return {"matchLabels": {POD_NAME_LABEL: next(iter(names))}}
        return {"matchExpressions": [{"key": POD_NAME_LABEL, "operator": "In", "values": sorted(names)}]}
    first = pods[next(iter(names))]
    common = {key: value for key, value in first.items() if all(pods[name].get(key) == value for name in names)}
    others = sorted(name for name in pods.keys() - names if common.items() <= pods[name].items())
    if others:
        said = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise CliError(
            f"a tap selects pods by labels, and those of {', '.join(sorted(names))} are also {said}'s; capture their workload "
            "(such as deployment/NAME), or label the pod (`kubectl label pod NAME capture=1`) and use -l capture=1"
        )
    return {"matchLabels": common}


# ---- the tap's life ----


def _await_programmed(session: Session, tap: Object, wait: float, shown: Any) -> None:
    """Until tap points copy. Raises CliError with the tap's own sentence where they don't within `wait` seconds.

    Where copies arrive though not everything is copied (a pod's interface that is on no bridge, say), what is not is a note.
    """
    path = of_group("virtualtaps", *identity(tap))
    until = time.monotonic() + wait
    while True:
        try:
            now = session.api.get(path)
        except NotFound as error:
            raise CliError(f"tap {'/'.join(identity(tap))} was deleted before it copied anything") from error
        conditions = {item.get("type"): item for item in (now.get("status") or {}).get("conditions") or ()}
        accepted, programmed = conditions.get("Accepted"), conditions.get("Programmed")
        if accepted and accepted.get("status") == "False":
            raise CliError(f"the tap is refused: {accepted.get('message')}")
        if programmed and programmed.get("status") == "True":
            return
        if programmed and (conditions.get("Delivering") or {}).get("status") == "True":
            print(f"note: not everything is copied: {programmed.get('message')}", file=sys.stderr)
            return
        said = (programmed or accepted or {}).get("message") or "the operator has not seen it yet; does it run?"
        shown.text = f"waiting for tap {'/'.join(identity(tap))}: {said}"
        if time.monotonic() >= until:
            raise CliError(f"no tap point copies after {wait:.0f} s: {said}")
        time.sleep(POLL)


def _copy(request: packets.Request, collector: Collector, wanted: Capture, name: str) -> int:
    """Until the file has what was asked for, the time is over, or the user interrupts."""
    until = time.monotonic() + wanted.seconds
    opening = time.monotonic() + wanted.wait
    with progress(f"capturing {name}") as shown:
        if request.output is not None and str(request.output) != "-":
            _follow_size(request.output, name, shown)
        while True:
            try:
                return packets.run(request, collector, until)
            except NotFound as error:
                # Programmed, but the agent's announcement of its streams has not reached the collector yet.
                if time.monotonic() >= opening:
                    raise CliError(str(error)) from error
                time.sleep(POLL)
            except KeyboardInterrupt:
                return 0


def _follow_size(output: Path, name: str, shown: Any) -> None:
    def run() -> None:
        while True:
            with suppress(OSError):
                shown.text = f"capturing {name}: {output.stat().st_size} bytes in {output}"
            time.sleep(POLL)

    threading.Thread(target=run, name="size", daemon=True).start()


def _say_ledger(session: Session, tap: Object, collector: Collector) -> None:
    """One line about the tap's packets, once no copy of it is on its way any more. What can't be had is a note."""
    session = replace(session, place=replace(session.place, namespace=identity(tap)[0], all_namespaces=False))
    try:
        with progress("closing the ledger"), _uninterrupted():
            read = ledger.settled(session, tap, collector, LEDGER_SECONDS)
    except CliError as error:
        print(f"without a ledger: {error}", file=sys.stderr)
        return
    for note in read.notes:
        print(f"note: {note}", file=sys.stderr)
    print(books.summary(read.books), file=sys.stderr)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end a capture as Ctrl-C does: with a good file and without a tap left."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """An impatient second Ctrl-C must not leave the tap behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
