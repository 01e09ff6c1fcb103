"""The agent as a whole: makes its parts, starts and stops them in order, and answers over HTTP."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from vtap_agent.accounts import Accounts
from vtap_agent.backends.ebpf import EbpfBackend
from vtap_agent.backends.ovs_group import OvsGroupBackend
from vtap_agent.backends.ovs_mirror import OvsMirrorBackend
from vtap_agent.cleanup import Failure, clean_kernel, clean_switch, told
from vtap_agent.cluster import STOPPED, ClusterMetrics, access_of, starting, waiting_for, writer_of
from vtap_agent.drivers.bpffs import pin_root, remove_pin_root
from vtap_agent.drivers.ovsdb import OvsdbConnection
from vtap_agent.drivers.unixctl import PollThread
from vtap_agent.errors import TellUser, VtapError
from vtap_agent.events import Mailbox
from vtap_agent.health import Health
from vtap_agent.inventory import Observer
from vtap_agent.inventory.observer import PodSource
from vtap_agent.inventory.pod_ends import PodEnds
from vtap_agent.loop import Loop, Parts, TapSource, View
from vtap_agent.pipeline import Pipeline
from vtap_agent.pipeline.edges import Edges
from vtap_agent.pipeline.rewrites import rewrite_ids
from vtap_agent.plan.dataplane import Backend
from vtap_agent.report.announcer import Announcer
from vtap_agent.report.edges import EdgeMetrics
from vtap_agent.report.identity import ClientIdentity
from vtap_agent.report.ledger import keys_to_json, ledger_to_json
from vtap_agent.report.pmds import PollThreadMetrics
from vtap_agent.report.server import Answer, Routes, Server, as_json
from vtap_agent.report.status import rates_by_point, status_to_json
from vtap_agent.report.tapnode import NodeView, TapNodeWriter
from vtap_agent.sources.directory import TapDirectory
from vtap_agent.sources.kubernetes.memory import FILE as CLUSTER_FILE
from vtap_agent.sources.kubernetes.source import ClusterSource
from vtap_agent.sources.pods import NamespacePods, PodsFile

log = logging.getLogger(__name__)

STATE_FILE = "agent.json"
TAPS_FILE, PODS_FILE = "taps.json", "pods.json"
"""What the files of taps and pods said when they were last without a mistake."""
COUNTS_FILE = "flow-counts.json"
"""What flows have left out."""
SOCKET = "agent.sock"
LOCK = "agent.lock"
PODS_ARE_NAMESPACES = "netns"
KEPT = 120.0
"""Seconds that copies go on after an agent that keeps them on exit: an upgrade's next agent has begun by then."""
LOOK_EVERY = 1.0


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
    kubernetes: bool = False
    kubeconfig: Path | None = None
    namespace: str = ""
    tls: Path | None = None
    bpffs: Path | None = None
    export_cpus: frozenset[int] = frozenset()

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
            kubernetes=options.kubernetes,
            kubeconfig=options.kubeconfig,
            namespace=options.namespace,
            tls=options.tls,
            bpffs=options.bpffs,
            export_cpus=options.export_cpus,
        )

    def pins(self) -> Path:
        """Where eBPF objects are pinned. Raises TellUser where --bpffs names no bpffs."""
        return self.run_dir / "bpf" if self.bpffs is None else pin_root(self.bpffs)


class Agent:
    """`run` returns after `stop`, with the taps removed or kept as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mailbox = Mailbox()
        self._loop: Loop | None = None
        self._waiting: Callable[[], str] = lambda: "the agent is starting"

    def stop(self) -> None:
        """From any thread or signal handler."""
        self._mailbox.stop()

    def run(self) -> None:
        """Until stopped. Raises TellUser where it cannot start."""
        with ExitStack() as stack:
            stack.enter_context(_only_one(self._settings.run_dir))
            if self._settings.kubernetes:
                self._run_in_cluster(stack)
            else:
                self._run_with_files(stack)

    def _run_with_files(self, stack: ExitStack) -> None:
        settings = self._settings
        taps = TapDirectory(settings.taps, memory=settings.state_dir / TAPS_FILE)
        memory = settings.state_dir / PODS_FILE
        listed = settings.pods != PODS_ARE_NAMESPACES
        pods = PodsFile(Path(settings.pods), memory=memory) if listed else NamespacePods(memory=memory)
        taps.on_change(self._mailbox.changed)
        accounts = Accounts(settings.state_dir / STATE_FILE, settings.first_key)
        with self._loop_on(stack, taps, pods, accounts, settings.first_key) as (loop, observer):
            for part in (taps, pods, observer):
                part.start()
                stack.callback(part.stop)
            self._serve(stack)
            loop.run()

    def _run_in_cluster(self, stack: ExitStack) -> None:
        settings, mailbox = self._settings, self._mailbox
        access = access_of(settings.kubeconfig)
        source = ClusterSource(access, settings.node, settings.namespace, settings.state_dir)
        source.on_change(mailbox.changed)
        writer = writer_of(source, access, settings.node, lambda: self._node_view(source))
        self._waiting = lambda: waiting_for(source)[1]
        self._serve(stack)
        source.start()
        stack.callback(source.stop)
        writer.start()
        stack.callback(self._last_word, writer)
        if not self._await(source):
            return
        block = source.key_block
        if block is None:
            raise TellUser("the TapNode's key block has gone while the agent started; start it again")
        accounts = Accounts(settings.state_dir / STATE_FILE, block.first, block.size, move=True)
        with self._loop_on(stack, source, source.pods, accounts, block.first) as (loop, observer):
            observer.on_change(source.pods.sandboxes.look_again)
            loop.metrics.add(ClusterMetrics(source, writer))
            source.on_change(lambda: mailbox.stop() if source.key_block != block else None)
            observer.start()
            stack.callback(observer.stop)
            loop.run()
        if source.key_block != block:
            raise TellUser(f"the TapNode's key block is another than {block.first}: the agent has to start again")

    def _await(self, source: ClusterSource) -> bool:
        """Wait until enough is known to begin; False where the agent is stopped before."""
        while not source.ready:
            _, stopping = self._mailbox.wait(time.monotonic() + LOOK_EVERY)
            if stopping:
                return False
        return True

    def _last_word(self, writer: TapNodeWriter) -> None:
        writer.stop(("", "") if self._settings.keep_on_exit else STOPPED)

    def _node_view(self, source: ClusterSource) -> NodeView:
        loop = self._loop
        if loop is None:
            return NodeView(trouble=waiting_for(source))
        view = loop.view
        return NodeView(view.statuses, view.rows, view.inventory, switch_expected=_has_switch(self._settings.ovsdb))

    @contextmanager
    def _loop_on(
        self, stack: ExitStack, taps: TapSource, pods: PodSource, accounts: Accounts, first_key: int
    ) -> Iterator[tuple[Loop, Observer]]:
        """The loop over these sources; afterwards its copies are kept or removed, as the settings say."""
        settings, mailbox = self._settings, self._mailbox
        root = settings.pins()
        pipeline = Pipeline.open(root, settings.node, settings.export_cpus)
        closing = stack.enter_context(ExitStack())
        closing.callback(pipeline.close)
        if not pipeline.adopted:
            accounts.forget_counters()
        ovsdb = OvsdbConnection(settings.ovsdb)
        stack.callback(ovsdb.close)
        mirrors = OvsMirrorBackend(ovsdb, settings.node, generation=os.getpid())
        stack.callback(mirrors.close)
        counts = settings.state_dir / COUNTS_FILE
        groups = OvsGroupBackend(ovsdb, settings.node, generation=os.getpid(), on_loss=mailbox.changed, counts=counts)
        stack.callback(groups.close)
        observer = Observer(ovsdb, pods)
        identity = ClientIdentity(settings.tls) if settings.tls is not None else None
        announcer = Announcer(settings.node, mailbox.changed, identity)
        stack.callback(announcer.stop)
        observer.on_change(mailbox.changed)
        backends = (mirrors, groups, EbpfBackend(pipeline.hooks))
        edges = Edges(root, mailbox.changed)
        closing.callback(edges.close)
        parts = Parts(
            taps,
            observer,
            backends,
            pipeline,
            announcer,
            accounts,
            mailbox,
            groups.uncopied,
            edges.look,
            lambda: _has_switch(settings.ovsdb),
            PodEnds().passed_by,
            pipeline.hooks.without_place,
        )
        loop = self._loop = Loop(parts, first_key)
        loop.metrics.add(PollThreadMetrics(lambda: _poll_threads(ovsdb)))
        loop.metrics.add(EdgeMetrics(lambda: edges.counted))
        yield loop, observer
        if settings.keep_on_exit:
            pipeline.renew_lease(KEPT)
            log.info("stopping; copies go on for %g s, or until another agent takes over", KEPT)
        else:
            loop.remove_everything()
            closing.pop_all()
            edges.destroy()
            pipeline.destroy()
            if settings.bpffs is not None:
                remove_pin_root(root)

    def _serve(self, stack: ExitStack) -> None:
        server = Server(self._routes(), self._settings.run_dir / SOCKET, self._settings.listen)
        server.start()
        stack.callback(server.stop)

    def cleanup(self) -> None:
        """Remove what an agent of this node has left behind; refused while one is running.

        Raises TellUser, with everything else done, where something may stay; it says what, why and what to do.
        """
        settings = self._settings
        with _only_one(settings.run_dir):
            failures = clean_switch(settings.ovsdb, settings.node)
            try:
                served = self._clean_kernel()
            except VtapError as reason:
                raise TellUser(told((*failures, Failure(Backend.EBPF, str(reason))))) from reason
        if settings.kubernetes:
            _forget(settings)
        has_switch = _has_switch(settings.ovsdb)
        if left := told(failure for failure in failures if has_switch or failure.backend in served):
            raise TellUser(left)

    def _clean_kernel(self) -> frozenset[Backend]:
        settings = self._settings
        root = settings.pins()
        served = clean_kernel(root, settings.node)
        if settings.bpffs is not None:
            remove_pin_root(root)
        return served

    def _health(self) -> Health:
        loop = self._loop
        if loop is None:
            return Health(waiting=self._waiting())
        return Health(loop.silence, loop.ready)

    def _running(self) -> Loop:
        """Raises Wait while there is no loop yet."""
        if self._loop is None:
            raise starting(self._waiting())
        return self._loop

    def _routes(self) -> Routes:
        node, mailbox = self._settings.node, self._mailbox
        return {
            "/healthz": lambda: _probe(self._health().dead()),
            "/readyz": lambda: _probe(self._health().unready()),
            "/metrics": lambda: _metrics(self._running(), mailbox),
            "/v1/ledger": lambda: as_json(ledger_to_json(node, *mailbox.call(self._running().ledger))),
            "/v1/status": lambda: as_json(_status(node, self._running().view)),
            "/v1/keys": lambda: as_json(keys_to_json(node, self._running().view.rows)),
            "/v1/rewrites": lambda: as_json({"node": node, "ids": [one.to_json() for one in rewrite_ids(self._settings.pins())]}),
        }


def _probe(trouble: str) -> Answer:
    if trouble:
        return Answer(f"{trouble}\n".encode(), "text/plain", HTTPStatus.SERVICE_UNAVAILABLE)
    return Answer(b"ok\n", "text/plain")


def _forget(settings: Settings) -> None:
    """The state of a node that has no agent any more, and the directories where nothing else is in them."""
    names = (STATE_FILE, COUNTS_FILE, CLUSTER_FILE)
    for path in (*(settings.state_dir / name for name in names), settings.run_dir / LOCK):
        path.unlink(missing_ok=True)
    for directory in (settings.state_dir, settings.run_dir):
        try:
            directory.rmdir()
        except OSError as error:
            log.info("%s stays: %s", directory, error.strerror)


def _metrics(loop: Loop, mailbox: Mailbox) -> Answer:
    """Fresh numbers; while a pass holds up the loop those of the last tick, whose age is a metric too."""
    try:
        mailbox.call(loop.refresh)
    except VtapError as reason:
        log.debug("metrics are those of the last tick: %s", reason)
    return Answer(loop.metrics.render(), CONTENT_TYPE_LATEST)


def _poll_threads(ovsdb: OvsdbConnection) -> tuple[PollThread, ...]:
    """Without asking vswitchd where none can be."""
    polled = any(bridge.polled for bridge in ovsdb.snapshot().bridges)
    return ovsdb.vswitchd.poll_threads() if polled else ()


def _status(node: str, view: View) -> dict[str, Any]:
    return status_to_json(node, view.statuses, view.problems, rates_by_point(view.rows, view.rates))


def _has_switch(remote: str) -> bool:
    """Whether there is an Open vSwitch at all, as far as its run directory tells; a remote elsewhere was named on purpose."""
    kind, _colon, path = remote.partition(":")
    return kind != "unix" or (Path(path).parent.is_dir() and any(Path(path).parent.iterdir()))


@contextmanager
def _only_one(run_dir: Path) -> Iterator[None]:
    """Two agents with the same run directory would undo each other's work."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / LOCK).open("w")
    except OSError as error:
        raise TellUser(f"--run-dir {run_dir}: cannot be used ({error}); name a directory that can be written") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TellUser(f"another vtap-agent uses {run_dir}; stop it, or give this one its own --run-dir") from error
        yield
