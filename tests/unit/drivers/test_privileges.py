"""Where pins may go and which capabilities are missing, as sentences rather than tracebacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtap_agent.drivers import capabilities
from vtap_agent.drivers.bpffs import file_system_of, pin_root, remove_pin_root
from vtap_agent.errors import TellUser

MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:27 / /sys rw - sysfs sysfs rw
31 30 0:28 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700
32 22 0:29 / /mnt/a\\040b rw - tmpfs tmpfs rw
33 32 0:30 / /mnt/a\\040b/bpf rw - tmpfs tmpfs rw
34 33 0:31 / /mnt/a\\040b/bpf rw - bpf bpf rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/sys/fs/bpf", "bpf"),
        ("/sys/fs/bpf/vtap/maps", "bpf"),
        ("/sys/fs/bpfoo", "sysfs"),
        ("/mnt/a b", "tmpfs"),
        ("/mnt/a b/bpf", "bpf"),
        ("/home", "ext4"),
    ],
)
def test_the_file_system_a_path_is_on(path: str, kind: str) -> None:
    assert file_system_of(path, MOUNTS.splitlines()) == kind


def test_pins_go_on_a_bpffs_only(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS + f"35 22 0:32 / {tmp_path}/bpf rw - bpf bpf rw\n")
    (tmp_path / "bpf").mkdir()
    root = pin_root(tmp_path / "bpf", mounts)
    assert root == tmp_path / "bpf" / "vtap"
    with pytest.raises(TellUser, match="is no bpffs; mount one on the node"):
        pin_root(tmp_path, mounts)
    remove_pin_root(root)
    root.mkdir()
    remove_pin_root(root)
    assert not root.exists()


def test_missing_capabilities_have_names() -> None:
    bits = capabilities.effective("Name:\tx\nCapPrm:\t0\nCapEff:\t000000c000081800\n")
    assert capabilities.missing(("BPF", "PERFMON", "NET_ADMIN", "NET_BROADCAST", "SYS_PTRACE"), bits) == ()
    assert capabilities.missing(("BPF", "NET_ADMIN", "SYS_PTRACE"), 1 << 12) == ("BPF", "SYS_PTRACE")
    assert capabilities.missing(("BPF", "PERFMON", "NET_ADMIN"), 1 << 21) == ("NET_ADMIN",)
    with pytest.raises(ValueError, match="CapEff"):
        capabilities.effective("Name:\tx\n")
