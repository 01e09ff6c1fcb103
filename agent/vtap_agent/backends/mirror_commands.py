"""Mirror steps as ovsdbapp commands, in its style. Sets are changed by mutation, so that elements of others are never rewritten.

A row that has vanished since it was observed is no error: the next pass sees what became of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from ovsdbapp.api import Command

from vtap_agent.backends.tap_port_commands import AddTapPortCommand, DeleteTapPortCommand, StepCommand
from vtap_agent.plan.dataplane import Direction
from vtap_agent.plan.mirrors import ChangeMirror, CreateMirror, DeleteMirror
from vtap_agent.plan.tap_ports import AddTapPort, BridgeStep, DeleteTapPort


def command(api: Any, step: BridgeStep) -> Command:
    """The command that performs a step."""
    return _COMMANDS[type(step)](api, step)


class _MirrorCommand(StepCommand):
    def port_named(self, name: str) -> Any | None:
        """Also one that an earlier command of the same transaction made."""
        ports = [row for row in self.table("Port").values() if row.name == name]
        fresh = [row for row in ports if row._data is None]
        return next(iter(fresh or ports), None)

    def ports(self, uuids: Iterable[str]) -> list[Any]:
        rows = self.table("Port")
        return [rows[key] for key in map(uuid.UUID, sorted(uuids)) if key in rows]


class CreateMirrorCommand(_MirrorCommand):
    """Insert a Mirror whose output is the tap port of the same name."""

    step: CreateMirror

    def run_idl(self, txn: Any) -> None:
        row = txn.insert(self.api.tables["Mirror"])
        _fill(row, self.step, self.port_named(self.step.name), self.ports(self.step.ports))
        self.bridge().addvalue("mirrors", row)


class ChangeMirrorCommand(_MirrorCommand):
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


class DeleteMirrorCommand(_MirrorCommand):
    """Take the Mirror out of its bridge; the database collects the row."""

    step: DeleteMirror

    def run_idl(self, txn: Any) -> None:
        row = self.table("Mirror").get(uuid.UUID(self.step.uuid))
        if row is not None:
            self.bridge().delvalue("mirrors", row)


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


_COMMANDS: dict[type[BridgeStep], type[StepCommand]] = {
    AddTapPort: AddTapPortCommand,
    CreateMirror: CreateMirrorCommand,
    ChangeMirror: ChangeMirrorCommand,
    DeleteMirror: DeleteMirrorCommand,
    DeleteTapPort: DeleteTapPortCommand,
}
