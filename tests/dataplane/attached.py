"""Which programs the kernel runs, and where: asked of the kernel, since not every distribution has a bpftool for its kernel."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
from ctypes import byref, c_char, c_uint32, c_uint64, sizeof

from vtap_agent.drivers import libbpf


class _ProgInfo(ctypes.Structure):
    """struct bpf_prog_info (linux/bpf.h) as far as the name."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_char * 8),
        ("lengths", c_uint32 * 2),
        ("instructions", c_uint64 * 2),
        ("load_time", c_uint64),
        ("created_by", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
    )


def program_name(number: int) -> str | None:
    """The name (15 characters at most) of the program that the kernel knows by this number, None where there is none any more."""
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    descriptor = library.bpf_prog_get_fd_by_id(c_uint32(number))
    if descriptor == -errno.ENOENT:
        return None
    assert descriptor >= 0, os.strerror(-descriptor)
    try:
        info, length = _ProgInfo(), c_uint32(sizeof(_ProgInfo))
        result = library.bpf_obj_get_info_by_fd(descriptor, byref(info), byref(length))
        assert result == 0, os.strerror(-result)
        return bytes(info.name).decode()
    finally:
        os.close(descriptor)


def tcx_programs() -> list[str]:
    """A line for each end of the calling thread's devices that has programs at tcx, which `tc` does not show: how many."""
    hooks = [(index, name, egress) for index, name in socket.if_nameindex() for egress in (False, True)]
    counts = [(name, egress, len(libbpf.tcx_programs(index, egress=egress))) for index, name, egress in hooks]
    return [f"tcx {name} {'egress' if egress else 'ingress'} {count}" for name, egress, count in counts if count]


def programs_at(device: str) -> list[str]:
    """The programs at a device of the calling thread's: at tcx, at clsact, at XDP. By name where the kernel tells it."""
    index = socket.if_nametoindex(device)
    tcx = [number for egress in (False, True) for number in libbpf.tcx_programs(index, egress=egress)]
    clsact = [line for side in ("ingress", "egress") for line in _told("tc", "filter", "show", "dev", device, side).splitlines()]
    (link,) = json.loads(_told("ip", "-d", "-j", "link", "show", "dev", device))
    xdp = [f"xdp {link['xdp']['prog']['id']}"] if "xdp" in link else []
    return [
        *(f"tcx {program_name(number)}" for number in tcx),
        *(line.strip() for line in clsact if "bpf" in line and " handle " in line),
        *xdp,
    ]


def _told(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
