"""The Open_vSwitch database (RFC 7047, ovs-vswitchd.conf.db(5)): a live replica of the columns we need, and transactions."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ovs.db import idl as ovs_idl
from ovsdbapp import exceptions as ovsdbapp_exceptions
from ovsdbapp.api import Command
from ovsdbapp.backend.ovs_idl import connection as ovsdbapp_connection
from ovsdbapp.backend.ovs_idl import idlutils, transaction
from ovsdbapp.schema.open_vswitch import impl_idl

from vtap_agent.drivers.unixctl import Vswitchd, is_listening
from vtap_agent.errors import Retry, VtapError, Wait
from vtap_agent.plan.inventory_model import Bridge, BridgePort, Switch
from vtap_agent.plan.stamps import read_stamp

T = TypeVar("T")
Tables = Mapping[str, Any]
log = logging.getLogger(__name__)

SCHEMA = "Open_vSwitch"
TIMEOUT = 5
CONFIGURE_TIMEOUT = 5.0
_COLUMNS = {
    "Open_vSwitch": ("bridges", "cur_cfg", "next_cfg", "ovs_version", "dpdk_initialized"),
    "Bridge": (
        *("name", "datapath_type", "ports", "mirrors", "controller"),
        *("fail_mode", "mcast_snooping_enable", "external_ids"),
    ),
    "Port": ("name", "interfaces", "tag", "trunks", "vlan_mode", "protected", "external_ids", "other_config"),
    "Interface": ("name", "type", "options", "ofport", "external_ids", "mtu", "mtu_request", "error"),
    "Mirror": (
        *("name", "select_all", "select_src_port", "select_dst_port", "select_vlan"),
        *("output_port", "output_vlan", "snaplen", "filter", "statistics", "external_ids"),
    ),
    "Controller": ("target",),
}
_DPDK = frozenset({"dpdk", "dpdkvhostuser", "dpdkvhostuserclient"})
_AF_XDP = frozenset({"afxdp", "afxdp-nonpmd"})
_KERNEL_DEVICE = re.compile(r"net_af_(?:packet|xdp)[^,]*,(?:.*,)?iface=([^,]+)")
"""Of DPDK's drivers for devices of the kernel."""
_QUIET = {"Open_vSwitch": {"cur_cfg", "next_cfg"}, "Mirror": {"statistics"}}
"""Columns that change by themselves all the time; a change of these alone is no event."""


class _Replica(ovsdbapp_connection.OvsdbIdl):
    """Runs on ovsdbapp's thread, under its lock: what it calls must return at once."""

    def __init__(self, remote: str, helper: Any, changed: Callable[[], None], configured: Callable[[int], None]) -> None:
        self._changed = changed
        self._configured = configured
        self._was_usable = False
        super().__init__(remote, helper)

    @property
    def usable(self) -> bool:
        """Connected, and the replica is complete."""
        return bool(self._session.is_connected()) and self.state == ovs_idl.Idl.IDL_S_MONITORING

    def run(self) -> Any:
        outcome = super().run()
        if self.usable != self._was_usable:
            self._was_usable = self.usable
            self._changed()
        return outcome

    def notify(self, event: str, row: Any, updates: Any = None) -> None:
        table = row._table.name
        columns = set(updates._data) if event == ovs_idl.ROW_UPDATE and updates is not None else None
        if table == "Open_vSwitch":
            self._configured(row.cur_cfg)
        if columns is None or not columns <= _QUIET.get(table, set()):
            self._changed()


class _Transaction(transaction.Transaction):
    """Asks vswitchd to take the change, as ovs-vsctl does, without waiting for it on the connection's thread."""

    next_cfg = 0

    def pre_commit(self, txn: Any) -> None:
        self.api._ovs.increment("next_cfg")

    def post_commit(self, txn: Any) -> None:
        super().post_commit(txn)
        self.next_cfg = int(txn.get_increment_new_value())


class Api(impl_idl.OvsdbIdl):
    """ovsdbapp's API on a connection of its own: upstream's is one per process."""

    _own_connection: Any = None

    @property
    def ovsdb_connection(self) -> Any:
        return self._own_connection

    @ovsdb_connection.setter
    def ovsdb_connection(self, connection: Any) -> None:
        self._own_connection = connection

    def create_transaction(self, check_error: bool = False, log_errors: bool = True, **_: Any) -> Any:
        return _Transaction(self, self.ovsdb_connection, check_error=check_error, log_errors=log_errors)


class OvsdbConnection:
    """A connection that outlives restarts of ovsdb-server and of vswitchd. Thread-safe.

    `remote` is a connection string such as "unix:/run/openvswitch/db.sock". `run_dir` is where vswitchd's pid file and control
    socket lie, by default the folder of the database's socket. Nothing is opened before it is needed; `close` ends its thread.
    """

    def __init__(self, remote: str, run_dir: Path | None = None) -> None:
        self.remote = remote
        socket = _socket_of(remote)
        self.vswitchd = Vswitchd(run_dir or (socket.parent if socket else Path("/run/openvswitch")))
        self._api: Api | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._connecting = threading.Lock()
        self._configured = threading.Condition()
        self._cur_cfg = 0
        self._restarts = 0
        self._last_pid: int | None = None

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each change of what `snapshot` tells, and when the database goes or returns.

        It is called on another thread, and must return at once without calling this object. Set it before the first `snapshot`.
        """
        self._callbacks.append(callback)

    def connect(self) -> None:
        """Open the connection and wait for the replica. Raises Wait where no database answers. No effect when already open."""
        with self._connecting:
            if self._api is None:
                self._api = self._open()

    def close(self) -> None:
        """End the connection and its thread."""
        with self._connecting:
            api, self._api = self._api, None
        if api is not None:
            api.ovsdb_connection.stop(TIMEOUT)

    def snapshot(self) -> Switch:
        """The switch as it is now. Where the database or vswitchd does not answer, `reachable` is False, never an error."""
        version = self._vswitchd_version()
        restarts = self._count_restarts(running=version is not None)
        try:
            return self.read(lambda tables: _switch(tables, version, restarts))
        except Wait as reason:
            log.debug("%s", reason)
            return Switch(version="", bridges=(), reachable=False, restarts=restarts)

    def read(self, function: Callable[[Tables], T]) -> T:
        """Call `function` with the tables of the replica, which stand still meanwhile. Rows must not leave it. Raises Wait."""
        api = self._usable()
        with api.ovsdb_connection.lock:
            return function(api.tables)

    def read_if_changed(self, function: Callable[[Tables], T], known: tuple[int, T] | None) -> tuple[int, T]:
        """As `read`, with the number of the replica's state; `known` again where that is still its state."""
        api = self._usable()
        with api.ovsdb_connection.lock:
            state = api.idl.change_seqno
            if known is not None and known[0] == state:
                return known
            return state, function(api.tables)

    def transact(self, commands: Callable[[Api], Iterable[Command]]) -> None:
        """Commit all the commands or none, then wait until vswitchd has taken them.

        Raises Retry where the database refuses them, Wait where the database or vswitchd is down; in the latter case the change
        is committed, and vswitchd takes it when it returns.
        """
        api = self._usable()
        change = api.create_transaction(check_error=True, log_errors=False)
        for command in commands(api):
            change.add(command)
        try:
            done = change.commit()
        except ovsdbapp_exceptions.TimeoutException as error:
            raise Wait(f"the Open vSwitch database at {self.remote} did not answer within {TIMEOUT} s") from error
        except (ovsdbapp_exceptions.OvsdbAppException, RuntimeError) as error:
            raise Retry(f"the Open vSwitch database refused a change: {error}") from error
        if done is None:
            raise Retry("the Open vSwitch database dropped a change, because what it builds on has changed")
        self._wait_configured(change.next_cfg)

    def _vswitchd_version(self) -> str | None:
        """None while vswitchd does not answer."""
        try:
            return self.vswitchd.version() if self.vswitchd.is_running() else None
        except VtapError as reason:
            log.debug("%s", reason)
            return None

    def _open(self) -> Api:
        down = Wait(f"no Open vSwitch database answers at {self.remote}; is ovsdb-server running?")
        path = _socket_of(self.remote)
        if path is not None and not is_listening(path):
            raise down  # Before ovsdbapp logs an error of its own, in every pass.
        try:
            helper = _helper(self.remote)
            replica = _Replica(self.remote, helper, self._notify_changed, self._notify_configured)
            return Api(ovsdbapp_connection.Connection(replica, TIMEOUT))
        except Exception as error:  # ovsdbapp raises a bare Exception where nobody listens
            raise down from error

    def _usable(self) -> Api:
        self.connect()
        api = self._api
        if api is None or not api.idl.usable:
            raise Wait(f"the connection to the Open vSwitch database at {self.remote} is down")
        return api

    def _notify_changed(self) -> None:
        for callback in self._callbacks:
            callback()

    def _notify_configured(self, cur_cfg: int) -> None:
        with self._configured:
            self._cur_cfg = cur_cfg
            self._configured.notify_all()

    def _wait_configured(self, next_cfg: int) -> None:
        deadline = time.monotonic() + CONFIGURE_TIMEOUT
        with self._configured:
            while self._cur_cfg < next_cfg:
                left = deadline - time.monotonic()
                if left <= 0 or not self.vswitchd.is_running():
                    raise Wait("ovs-vswitchd has not taken the change yet; is it running?")
                self._configured.wait(min(left, 0.5))

    def _count_restarts(self, running: bool) -> int:
        pid = self.vswitchd.pid() if running else None
        if pid is not None and pid != self._last_pid:
            self._restarts += self._last_pid is not None
            self._last_pid = pid
        return self._restarts


def _socket_of(remote: str) -> Path | None:
    kind, _, path = remote.partition(":")
    return Path(path) if kind == "unix" else None


def _helper(remote: str) -> Any:
    """Ask for the columns we need, of those that this version's schema has."""
    helper = idlutils.get_schema_helper(remote, SCHEMA)
    known: Any = helper.schema_json
    for table, columns in _COLUMNS.items():
        helper.register_columns(table, [column for column in columns if column in known["tables"][table]["columns"]])
    return helper


def _switch(tables: Tables, version: str | None, restarts: int) -> Switch:
    root = next(iter(tables["Open_vSwitch"].rows.values()), None)
    if root is None:
        return Switch(version="", bridges=(), reachable=False, restarts=restarts)
    bridges = sorted((_bridge(row, dpdk=root.dpdk_initialized) for row in root.bridges), key=lambda bridge: bridge.name)
    return Switch(
        version=version or first(root.ovs_version, ""),
        bridges=tuple(bridges),
        reachable=version is not None,
        restarts=restarts,
    )


def _bridge(row: Any, *, dpdk: bool) -> Bridge:
    ports = sorted((_port(row.name, port) for port in row.ports), key=lambda port: port.name)
    return Bridge(
        name=row.name,
        uuid=str(row.uuid),
        datapath_type=row.datapath_type,
        controllers=tuple(sorted(controller.target for controller in row.controller)),
        ports=tuple(ports),
        mirror_count=len(row.mirrors),
        foreign_mirror_count=sum(read_stamp(mirror.external_ids) is None for mirror in row.mirrors),
        polled=dpdk and row.datapath_type == "netdev",
    )


def _port(bridge: str, row: Any) -> BridgePort:
    return BridgePort(
        bridge=bridge,
        name=row.name,
        uuid=str(row.uuid),
        tag=first(row.tag, 0),
        vlan_mode=first(row.vlan_mode, ""),
        external_ids=dict(row.external_ids),
        interface_ids={key: value for interface in row.interfaces for key, value in interface.external_ids.items()},
        device=next(filter(None, map(_device, row.interfaces)), ""),
        deviceless=any(interface.type in _DPDK and not _device(interface) for interface in row.interfaces),
        mtu=max((first(interface.mtu, 0) for interface in row.interfaces), default=0),
        by_xdp=any(interface.type in _AF_XDP for interface in row.interfaces),
    )


def _device(interface: Any) -> str:
    found = _KERNEL_DEVICE.search(interface.options.get("dpdk-devargs", ""))
    return found[1] if found else ""


def first(values: list[T], otherwise: T) -> T:
    """An optional column, which the replica holds as a list of none or one."""
    return values[0] if values else otherwise
