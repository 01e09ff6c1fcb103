"""What goes into the small virtual machine and what comes out of it, without starting one."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from tests.kernel_vm.commands import MachineError
from tests.kernel_vm.kernel import newc, same_kernel
from tests.kernel_vm.machine import follow

DEBIAN = """linux-image-cloud-amd64
  Depends: linux-image-6.1.0-56-cloud-amd64
"""
UBUNTU = """linux-image-6.8.0-88-generic
  Depends: kmod
  Depends: linux-base
  Depends: linux-modules-6.8.0-88-generic
 |Depends: wireless-regdb
"""


def test_packages_of_the_same_kernel_are_told_from_others() -> None:
    assert same_kernel(DEBIAN) == ["linux-image-6.1.0-56-cloud-amd64"]
    assert same_kernel(UBUNTU) == ["linux-modules-6.8.0-88-generic"]


def test_the_archive_is_laid_out_as_cpio_reads_it() -> None:
    entries = [("init", 0o100755, b"#!/bin/busybox sh\n"), ("bin", 0o040755, b""), ("bin/odd", 0o100644, b"12345")]
    archive, found, at = b"".join(newc(entries)), [], 0
    while at < len(archive):
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        assert archive[at : at + 6] == b"070701" and at % 4 == 0
        name = archive[at + 110 : at + 110 + fields[11]]
        start = at + (110 + fields[11] + 3) // 4 * 4
        found.append((name.rstrip(b"\0").decode(), fields[1], archive[start : start + fields[6]]))
        at = start + (fields[6] + 3) // 4 * 4
    assert found == [*entries, ("TRAILER!!!", 0, b"")]


def _guest(text: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", f"print({text!r}, end='')"], stdout=subprocess.PIPE)


def test_output_is_what_the_command_printed_and_the_status_its_own() -> None:
    out = io.StringIO()
    with _guest("SeaBIOS\r\nBooting\r\nMARK\r\none\r\ntwo, no newline MARK 7\r\nreboot: Power down\r\n") as guest:
        assert follow(guest, "MARK", out) == 7
    assert out.getvalue() == "one\ntwo, no newline "


def test_a_guest_that_ends_without_a_status_is_an_error() -> None:
    with _guest("MARK\nKernel panic\n") as guest, pytest.raises(MachineError, match="ended before its command did"):
        follow(guest, "MARK", io.StringIO())


def test_output_is_passed_on_before_its_line_ends() -> None:
    script = "print('MARK\\n..', end='', flush=True); input(); print('. MARK 0')"
    argv = [sys.executable, "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as guest:

        class Reader(io.StringIO):
            """Lets the guest go on once it has seen its first dots."""

            def write(self, text: str, /) -> int:
                if ".." in text and guest.stdin:
                    guest.stdin.write(b"\n")
                    guest.stdin.flush()
                return super().write(text)

        out = Reader()
        assert follow(guest, "MARK", out) == 0
    assert out.getvalue() == "... "


def test_nothing_outlives_a_machine_that_is_killed() -> None:
    words = "['sh', '-c', 'echo started; exec cat']"
    program = f"import subprocess, tests.kernel_vm.machine as machine; subprocess.run(machine.bound({words}))"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"started\n"
        maker.kill()
        assert maker.stdout.read() == b"", "the end of what both write to comes when both have ended"
