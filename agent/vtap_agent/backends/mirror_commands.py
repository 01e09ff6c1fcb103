"""Mirror steps as ovsdbapp commands, in its style. Sets are changed by mutation, so that elements of others are never rewritten.

A row that has vanished since it was observed is no error: the next pass sees what became of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from ovsdbapp.api import Command
from ovsdbapp.backend.ovs_idl.command import BaseCommand

from vtap_agent.backends.tap_ports import interface_type
from vtap_agent.errors import Retry
from vtap_agent.plan.dataplane import Direction
from vtap_agent.plan.mirrors import AddTapPort, ChangeMirror, CreateMirror, DeleteMirror, DeleteTapPort, MirrorStep

PORT_OTHER_CONFIG = {"stp-enable": "false", "rstp-enable": "false"}
"""No bridge protocol data units into the copies."""


def command(api: Any, step: MirrorStep) -> Command:
    """The command that performs a step."""
    return _COMMANDS[type(step)](api, step)


class _StepCommand(BaseCommand):
    def __init__(self, api: Any, step: Any) -> None:
        super().__init__(api)
        self.step = step

    def table(self, name: str) -> Any:
        return self.api.tables[name].rows

    def bridge(self) -> Any:
        for row in self.table("Bridge").values():
            if row.name == self.step.bridge:
                return row
        raise Retry(f"bridge {self.step.bridge} has gone")

    def port_named(self, name: str) -> Any | None:
        """Also one that an earlier command of the same transaction made."""
        ports = [row for row in self.table("Port").values() if row.name == name]
        fresh = [row for row in ports if row._data is None]
        return next(iter(fresh or ports), None)

    def ports(self, uuids: Iterable[str]) -> list[Any]:
        rows = self.table("Port")
        return [rows[key] for key in map(uuid.UUID, sorted(uuids)) if key in rows]


class AddTapPortCommand(_StepCommand):
    """Make the Port and Interface rows of an existing device, or restore those that are there."""

    step: AddTapPort

    def run_idl(self, txn: Any) -> None:
        bridge = self.bridge()
        port = next((row for row in bridge.ports if row.name == self.step.name), None)
        if port is None:
            interface = txn.insert(self.api.tables["Interface"])
            interface.name = self.step.name
            port = txn.insert(self.api.tables["Port"])
            port.name = self.step.name
            port.interfaces = [interface]
            bridge.addvalue("ports", port)
        port.tag, port.trunks, port.vlan_mode = [], [], []
        port.other_config = PORT_OTHER_CONFIG
        port.external_ids = self.step.stamp.external_ids()
        for interface in port.interfaces:
            interface.type = interface_type(self.step.name)
            interface.mtu_request = [self.step.mtu] if self.step.mtu else []
            interface.external_ids = self.step.stamp.external_ids()


class CreateMirrorCommand(_StepCommand):
    """Insert a Mirror whose output is the tap port of the same name."""

    step: CreateMirror

    def run_idl(self, txn: Any) -> None:
        row = txn.insert(self.api.tables["Mirror"])
        _fill(row, self.step, self.port_named(self.step.name), self.ports(self.step.ports))
        self.bridge().addvalue("mirrors", row)


class ChangeMirrorCommand(_StepCommand):
    """Grow and shrink the selection; restore the other columns where asked.

    Open vSwitch 3.1 keeps copying what a mirror selects no longer. A change of the tap port's `protected`, which means nothing
    for a port that takes no part in forwarding, makes it translate running flows again in the same reconfiguration.
    """

    step: ChangeMirror

    def run_idl(self, txn: Any) -> None:
        row = self.table("Mirror").get(uuid.UUID(self.step.uuid))
        if row is None:
            return
        column = _selection(self.step)
        if self.step.restore:
            row.verify(column)
            kept = {port.uuid: port for port in getattr(row, column) if str(port.uuid) not in self.step.remove}
            kept.update({port.uuid: port for port in self.ports(self.step.add)})
            _fill(row, self.step, self.port_named(self.step.name), list(kept.values()))
        else:
            self._mutate(row, column)
        tap_port = self.port_named(self.step.name)
        if tap_port is not None:
            tap_port.protected = not tap_port.protected

    def _mutate(self, row: Any, column: str) -> None:
        for port in self.ports(self.step.add):
            row.addvalue(column, port)
        for port in self.ports(self.step.remove):
            row.delvalue(column, port)
        row.external_ids = self.step.stamp.external_ids()


class DeleteMirrorCommand(_StepCommand):
    """Take the Mirror out of its bridge; the database collects the row."""

    step: DeleteMirror

    def run_idl(self, txn: Any) -> None:
        row = self.table("Mirror").get(uuid.UUID(self.step.uuid))
        if row is not None:
            self.bridge().delvalue("mirrors", row)


class DeleteTapPortCommand(_StepCommand):
    """Take the Port out of its bridge; the database collects it and its Interface."""

    step: DeleteTapPort

    def run_idl(self, txn: Any) -> None:
        row = self.table("Port").get(uuid.UUID(self.step.uuid))
        if row is not None:
            self.bridge().delvalue("ports", row)


def _selection(step: CreateMirror | ChangeMirror) -> str:
    return "select_src_port" if step.key.direction is Direction.EGRESS else "select_dst_port"


def _fill(row: Any, step: CreateMirror | ChangeMirror, output: Any | None, ports: list[Any]) -> None:
    """Every column that decides what is copied where."""
    row.name = step.name
    row.select_all = False
    row.select_vlan, row.output_vlan, row.snaplen = [], [], []
    if "filter" in row._table.columns:
        row.filter = []
    row.select_src_port, row.select_dst_port = [], []
    setattr(row, _selection(step), ports)
    row.output_port = [] if output is None else [output]
    row.external_ids = step.stamp.external_ids()


_COMMANDS: dict[type[MirrorStep], type[_StepCommand]] = {
    AddTapPort: AddTapPortCommand,
    CreateMirror: CreateMirrorCommand,
    ChangeMirror: ChangeMirrorCommand,
    DeleteMirror: DeleteMirrorCommand,
    DeleteTapPort: DeleteTapPortCommand,
}
