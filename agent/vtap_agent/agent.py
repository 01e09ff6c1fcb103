"""The agent as a whole: makes its parts, starts and stops them in order, and answers over HTTP."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from vtap_agent.accounts import Accounts
from vtap_agent.backends.ovs_mirror import OvsMirrorBackend
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.errors import TellUser, VtapError, Wait
from vtap_agent.events import Mailbox
from vtap_agent.inventory import Observer, give_back_neighbours
from vtap_agent.loop import Loop, Parts, View
from vtap_agent.pipeline import Pipeline
from vtap_agent.plan.dataplane import DataPlane
from vtap_agent.plan.steps import ordered
from vtap_agent.report.announcer import Announcer
from vtap_agent.report.ledger import keys_to_json, ledger_to_json
from vtap_agent.report.server import Answer, Routes, Server, as_json
from vtap_agent.report.status import rates_by_point, status_to_json
from vtap_agent.sources.directory import TapDirectory
from vtap_agent.sources.pods import NamespacePods, PodsFile

log = logging.getLogger(__name__)

STATE_FILE = "agent.json"
SOCKET = "agent.sock"
PODS_ARE_NAMESPACES = "netns"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says."""

    taps: Path
    pods: str
    node: str
    run_dir: Path
    state_dir: Path
    ovsdb: str
    listen: str
    first_key: int
    keep_on_exit: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> Settings:
        """From parsed arguments."""
        return cls(
            taps=options.taps,
            pods=options.pods,
            node=options.node,
            run_dir=options.run_dir,
            state_dir=options.state_dir,
            ovsdb=options.ovsdb,
            listen=options.listen,
            first_key=options.first_key,
            keep_on_exit=options.on_exit == "keep",
        )


class Agent:
    """`run` returns after `stop`, with the taps removed or kept as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mailbox = Mailbox()

    def stop(self) -> None:
        """From any thread or signal handler."""
        self._mailbox.stop()

    def run(self) -> None:
        """Until stopped. Raises TellUser where it cannot start."""
        settings, mailbox = self._settings, self._mailbox
        with ExitStack() as stack:
            stack.enter_context(_only_one(settings.run_dir))
            accounts = Accounts(settings.state_dir / STATE_FILE, settings.first_key)
            pipeline = Pipeline.open(settings.run_dir / "bpf", settings.node)
            closing = stack.enter_context(ExitStack())
            closing.callback(pipeline.close)
            if not pipeline.adopted:
                accounts.forget_counters()
            ovsdb = OvsdbConnection(settings.ovsdb)
            stack.callback(ovsdb.close)
            mirrors = OvsMirrorBackend(ovsdb, settings.node, generation=os.getpid())
            stack.callback(mirrors.close)
            taps = TapDirectory(settings.taps)
            pods = NamespacePods() if settings.pods == PODS_ARE_NAMESPACES else PodsFile(Path(settings.pods))
            observer = Observer(ovsdb, pods)
            announcer = Announcer(settings.node, mailbox.changed)
            taps.on_change(mailbox.changed)
            observer.on_change(mailbox.changed)
            loop = Loop(Parts(taps, observer, mirrors, pipeline, announcer, accounts, mailbox), settings.first_key)
            for part in (taps, pods, observer):
                part.start()
                stack.callback(part.stop)
            server = Server(self._routes(loop), settings.run_dir / SOCKET, settings.listen)
            server.start()
            stack.callback(server.stop)
            stack.callback(announcer.stop)
            loop.run()
            if settings.keep_on_exit:
                log.info("stopping; copies go on until the lease ends")
            else:
                loop.remove_everything()
                closing.pop_all()
                pipeline.destroy()

    def cleanup(self) -> None:
        """Remove what an agent of this node has left behind; refused while one is running."""
        settings = self._settings
        with _only_one(settings.run_dir):
            ovsdb = OvsdbConnection(settings.ovsdb)
            mirrors = OvsMirrorBackend(ovsdb, settings.node)
            try:
                mirrors.apply(ordered(mirrors.plan(DataPlane())))
            except Wait as reason:
                log.warning("%s; its mirrors, if any, stay", reason)
            finally:
                mirrors.close()
                ovsdb.close()
            Pipeline.open(settings.run_dir / "bpf", settings.node).destroy()
            give_back_neighbours()

    def _routes(self, loop: Loop) -> Routes:
        node, mailbox = self._settings.node, self._mailbox
        return {
            "/healthz": lambda: Answer(b"ok\n", "text/plain"),
            "/metrics": lambda: _metrics(loop, mailbox),
            "/v1/ledger": lambda: as_json(ledger_to_json(node, *mailbox.call(loop.ledger))),
            "/v1/status": lambda: as_json(_status(node, loop.view)),
            "/v1/keys": lambda: as_json(keys_to_json(node, loop.view.rows)),
        }


def _metrics(loop: Loop, mailbox: Mailbox) -> Answer:
    """Fresh numbers; while a pass holds up the loop those of the last tick, whose age is a metric too."""
    try:
        mailbox.call(loop.refresh)
    except VtapError as reason:
        log.debug("metrics are those of the last tick: %s", reason)
    return Answer(loop.metrics.render(), CONTENT_TYPE_LATEST)


def _status(node: str, view: View) -> dict[str, Any]:
    return status_to_json(node, view.statuses, view.problems, rates_by_point(view.rows, view.rates))


@contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Two agents with the same run directory would undo each other's work."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / "agent.lock").open("w")
    except OSError as error:
        raise TellUser(f"--run-dir {run_dir}: cannot be used ({error}); name a directory that can be written") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TellUser(f"another vtap-agent uses {run_dir}; stop it, or give this one its own --run-dir") from error
        yield
