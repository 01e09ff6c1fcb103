"""The columns of the contract's matrix: every way to make copies on every kind of switch, and why one can't be had here."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from vtap_api.refusals import AVAILABLE_BACKENDS
from vtap_api.virtualtap import BackendName
from vtap_lab import preflight, switch
from vtap_lab.dpdk import DpdkLab, why_no_dpdk
from vtap_lab.lab import PLAIN_BRIDGE, Lab, LabOptions

KERNEL, DPDK, PLAIN = "kernel", "dpdk", "bridge"
DATAPATHS = {
    "netdev": LabOptions(),
    "tso": LabOptions(userspace_tso=True),
    KERNEL: LabOptions(datapath="system"),
    DPDK: LabOptions(),
    PLAIN: LabOptions(datapath=PLAIN_BRIDGE),
}
"""Open vSwitch in user space (`netdev`, with TSO `tso`, on DPDK `dpdk`) and in the kernel (`kernel`); none of it (`bridge`)."""
_DPDK_MEMORY = 1024
"""MiB: enough for the ports of all pods, of those that a case adds, and of taps."""
NO_SWITCH = "a plain bridge: there is no Open vSwitch here"


@dataclass(frozen=True, slots=True, order=True)
class Column:
    """A backend on a datapath."""

    backend: str
    datapath: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.datapath}"

    def lab(self) -> Lab:
        """One of this kind, not yet entered."""
        options = DATAPATHS[self.datapath]
        return DpdkLab(options, memory=_DPDK_MEMORY) if self.datapath == DPDK else Lab(options)

    @property
    def has_switch(self) -> bool:
        return self.datapath != PLAIN


def columns_of(backend: BackendName) -> list[Column]:
    """All of a backend's, whether they can be had here or anywhere: what can't be is empty for a reason."""
    return [Column(str(backend.value), name) for name in DATAPATHS]


def why_not(column: Column) -> str | None:
    """Why this column can't be had on this machine, in a sentence; None where it can."""
    if reason := preflight.why_no_lab():
        return reason
    if BackendName(column.backend) not in AVAILABLE_BACKENDS:
        return f"{column.backend} is not in this version"
    if not column.has_switch and column.backend != BackendName.EBPF.value:
        return NO_SWITCH
    if column.datapath == KERNEL:
        return _why_no_kernel_datapath()
    if column.datapath == DPDK:
        past = "EBPF is refused on DPDK, which moves packets past the kernel's hooks"
        return past if column.backend == BackendName.EBPF.value else why_no_dpdk()
    return None


def _why_no_kernel_datapath() -> str | None:
    if switch.has_kernel_datapath():
        return None
    modules = Path("/lib/modules", platform.release(), "modules.dep")
    if modules.exists() and "/openvswitch.ko" in modules.read_text():
        return "openvswitch.ko is not loaded: modprobe openvswitch, or make test-kernel"
    return "openvswitch.ko is not in this kernel: make test-kernel"
