"""Whether this machine can hold a lab, and in one sentence why not."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

from vtap_lab import switch

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_PROGRAMS = ("ip", "nsenter", "setpriv", "ethtool", "iperf3", "tshark")
CHECKOUT = Path(__file__).parents[2]


def use_unpacked_switch() -> None:
    """Take the Open vSwitch that scripts/setup unpacked, if it had to, unless OVS_PREFIX names another."""
    if (CHECKOUT / ".cache/ovs/complete").exists():
        os.environ.setdefault("OVS_PREFIX", str(CHECKOUT / ".cache/ovs"))
    switch.put_programs_on_path()


def why_no_lab() -> str | None:
    """A sentence, or None when there is nothing in the way."""
    if platform.system() != "Linux":
        return f"a lab needs Linux, and this is {platform.system()}"
    if os.geteuid() != 0:
        return "a lab needs root, for network namespaces and eBPF"
    if tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) < (6, 1):
        return f"a lab needs Linux 6.1 or newer, and this is {platform.release()}"
    use_unpacked_switch()
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"a lab needs {', '.join(missing)}; scripts/setup installs it"
    if not switch.is_installed():
        return "a lab needs Open vSwitch; scripts/setup provides it"
    return _why_no_namespaces() or _why_no_bpf()


def _why_no_namespaces() -> str | None:
    done = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True)
    return None if done.returncode == 0 else "root may not create network namespaces here (a container without CAP_SYS_ADMIN?)"


def _why_no_bpf() -> str | None:
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return f"a lab needs x86_64 or aarch64, and this is {platform.machine()}"
    libc = ctypes.CDLL(None, use_errno=True)
    # BPF_MAP_CREATE of an array (type 2) with one entry of four bytes: bpf(2).
    attributes = (ctypes.c_uint32 * 18)(2, 4, 4, 1)
    handle = libc.syscall(number, 0, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if handle < 0:
        return f"the kernel refuses eBPF to this process: {os.strerror(ctypes.get_errno())}"
    os.close(handle)
    return None
