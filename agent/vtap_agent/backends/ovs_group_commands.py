"""Tap ports of OVSGroup as ovsdbapp commands, in its style."""

from __future__ import annotations

import uuid
from typing import Any

from ovsdbapp.api import Command
from ovsdbapp.backend.ovs_idl.command import BaseCommand

from vtap_agent.backends.mirror_commands import PORT_OTHER_CONFIG
from vtap_agent.backends.tap_ports import interface_type
from vtap_agent.errors import Retry
from vtap_agent.plan.groups import TRUNKS, AddCopyPort, DropCopyPort


def command(api: Any, step: AddCopyPort | DropCopyPort) -> Command:
    """The command that performs a step. What has vanished since it was observed is no error."""
    return AddCopyPortCommand(api, step) if isinstance(step, AddCopyPort) else DropCopyPortCommand(api, step)


class _StepCommand(BaseCommand):
    def __init__(self, api: Any, step: Any) -> None:
        super().__init__(api)
        self.step = step

    def bridge(self) -> Any | None:
        rows = self.api.tables["Bridge"].rows.values()
        return next((row for row in rows if row.name == self.step.bridge), None)


class AddCopyPortCommand(_StepCommand):
    """Make the Port and Interface rows of an existing device, or restore those that are there."""

    step: AddCopyPort

    def run_idl(self, txn: Any) -> None:
        bridge = self.bridge()
        if bridge is None:
            raise Retry(f"bridge {self.step.bridge} has gone")
        port = next((row for row in bridge.ports if row.name == self.step.name), None)
        if port is None:
            interface = txn.insert(self.api.tables["Interface"])
            interface.name = self.step.name
            port = txn.insert(self.api.tables["Port"])
            port.name = self.step.name
            port.interfaces = [interface]
            bridge.addvalue("ports", port)
        port.tag, port.trunks, port.vlan_mode = [], [TRUNKS], []
        port.other_config = PORT_OTHER_CONFIG
        port.external_ids = self.step.stamp.external_ids()
        for interface in port.interfaces:
            interface.type = interface_type(self.step.name)
            interface.mtu_request = [self.step.mtu] if self.step.mtu else []
            interface.external_ids = self.step.stamp.external_ids()


class DropCopyPortCommand(_StepCommand):
    """Take the Port out of its bridge; the database collects it and its Interface."""

    step: DropCopyPort

    def run_idl(self, txn: Any) -> None:
        row = self.api.tables["Port"].rows.get(uuid.UUID(self.step.uuid))
        bridge = self.bridge()
        if row is not None and bridge is not None:
            bridge.delvalue("ports", row)
