"""Steps of tap ports as ovsdbapp commands, in its style. For every backend that has tap ports.

A row that has vanished since it was observed is no error: the next pass sees what became of it.
"""

from __future__ import annotations

import uuid
from typing import Any

from ovsdbapp.api import Command
from ovsdbapp.backend.ovs_idl.command import BaseCommand

from vtap_agent.backends.tap_ports import OTHER_CONFIG, interface_type
from vtap_agent.errors import Retry
from vtap_agent.plan.tap_ports import TRUNKS, AddTapPort, DeleteTapPort


def command(api: Any, step: AddTapPort | DeleteTapPort) -> Command:
    """The command that performs a step."""
    return AddTapPortCommand(api, step) if isinstance(step, AddTapPort) else DeleteTapPortCommand(api, step)


class StepCommand(BaseCommand):
    """Performs one step at a bridge."""

    def __init__(self, api: Any, step: Any) -> None:
        super().__init__(api)
        self.step = step

    def table(self, name: str) -> Any:
        """Its rows, by UUID."""
        return self.api.tables[name].rows

    def bridge(self) -> Any:
        """Of the step. Raises Retry."""
        for row in self.table("Bridge").values():
            if row.name == self.step.bridge:
                return row
        raise Retry(f"bridge {self.step.bridge} has gone")


class AddTapPortCommand(StepCommand):
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
        port.tag, port.trunks, port.vlan_mode = [], list(TRUNKS[self.step.backend]), []
        port.other_config = OTHER_CONFIG
        port.external_ids = self.step.stamp.external_ids()
        for interface in port.interfaces:
            interface.type = interface_type(self.step.name)
            interface.mtu_request = [self.step.mtu] if self.step.mtu else []
            interface.external_ids = self.step.stamp.external_ids()


class DeleteTapPortCommand(StepCommand):
    """Take the Port out of its bridge; the database collects it and its Interface."""

    step: DeleteTapPort

    def run_idl(self, txn: Any) -> None:
        row = self.table("Port").get(uuid.UUID(self.step.uuid))
        if row is not None:
            self.bridge().delvalue("ports", row)
