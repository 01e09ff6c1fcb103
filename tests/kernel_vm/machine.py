"""A machine of QEMU's that shows the host's files to the guest, runs one job and ends."""

from __future__ import annotations

import codecs
import io
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.kernel_vm.commands import MachineError
from tests.kernel_vm.kernel import Kernel

PATIENCE = {"kvm": "2", "tcg": "10"}
"""VTAP_LAB_PATIENCE in the guest: how many times slower than its host it may be."""
_BOOT_TIMEOUT = 20.0
_SERVER_TIMEOUT = 10.0
_SERVERS = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
_PASSED_ON = ("PATH", "HOME", "OVS_PREFIX", "CI", "PYTEST_ADDOPTS")


@dataclass(frozen=True)
class Machine:
    """`memory` in QEMU's notation. Network and processes are the guest's own; its files are this machine's, left unchanged."""

    kernel: Kernel
    accelerator: str
    memory: str
    cpus: int

    def run(self, command: str, out: TextIO) -> int:
        """Run a shell command in the working directory; what it prints goes to `out`, its status is returned.

        Raises MachineError where the guest ended without a status, as after a panic of its kernel.
        """
        mark = f"kernel-vm-{secrets.token_hex(8)}"
        with tempfile.TemporaryDirectory(prefix="job-", dir=self.kernel.root.parent) as name:
            job = Path(name) / "job"
            job.write_text(self._script(command, mark))
            with _file_server(Path(name)) as server, self._guest(f"job={job}", server) as guest:
                return follow(guest, mark, out)

    def boots(self) -> bool:
        """Whether the kernel comes up, and within seconds."""
        with self._guest("job=none", None) as guest:
            try:
                output, _ = guest.communicate(timeout=_BOOT_TIMEOUT)
            except subprocess.TimeoutExpired:
                return False
            return b"kernel-vm: booted" in output

    def _script(self, command: str, mark: str) -> str:
        modules = self.kernel.modules
        patience = os.environ.get("VTAP_LAB_PATIENCE", PATIENCE[self.accelerator])
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        variables |= {"LC_ALL": "C.UTF-8", "VTAP_LAB_PATIENCE": patience, "PYTHONDONTWRITEBYTECODE": "1"}
        return "\n".join(
            [
                *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
                "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
                "mount -t bpf bpf /sys/fs/bpf",
                "mount -t tracefs tracefs /sys/kernel/tracing",
                f"mkdir -p /lib/modules/{self.kernel.version}",
                f"mount --bind {shlex.quote(str(modules))} /lib/modules/{self.kernel.version}",
                "modprobe tun",  # No udev is there to make /dev/net/tun before somebody opens it.
                "modprobe openvswitch || echo 'kernel-vm: there is no openvswitch.ko'",
                "ip link set lo up",
                f"cd {shlex.quote(str(Path.cwd()))}",
                f'echo; echo "{mark}"',
                f"( {command}\n)",
                f'echo "{mark} $?"',
                "echo o > /proc/sysrq-trigger; sleep 60",
            ]
        )

    @contextmanager
    def _guest(self, parameter: str, server: Path | None) -> Iterator[subprocess.Popen[bytes]]:
        guest = subprocess.Popen(
            bound(self._command(parameter, server)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            yield guest
        finally:
            guest.kill()
            guest.wait()

    def _command(self, parameter: str, server: Path | None) -> list[str]:
        machine = platform.machine()
        console = {"x86_64": "ttyS0"}.get(machine, "ttyAMA0")
        kind = {"x86_64": "pc"}.get(machine, "virt")
        how = "kvm" if self.accelerator == "kvm" else "tcg,thread=multi"
        cpu = ["-cpu", "host"] if self.accelerator == "kvm" else ["-cpu", "max"] if machine == "aarch64" else []
        shared = f"memory-backend-memfd,id=ram,size={self.memory},share=on"
        files = ["-chardev", f"socket,id=fs,path={server}", "-device", "vhost-user-fs-pci,chardev=fs,tag=root"] if server else []
        return [
            f"qemu-system-{machine}",
            *("-machine", kind, "-accel", how, *cpu, "-smp", str(self.cpus), "-m", self.memory),
            *("-object", shared, "-numa", "node,memdev=ram", *files),
            *("-kernel", str(self.kernel.image), "-initrd", str(self.kernel.initrd)),
            *("-append", f"console={console} quiet panic=1 sysrq_always_enabled {parameter}"),
            *("-nographic", "-no-reboot", "-net", "none"),
        ]


def bound(argv: Sequence[str]) -> list[str]:
    """The same, but killed when the thread that starts it ends, however that comes (prctl(2), PR_SET_PDEATHSIG)."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def choose_accelerator(kernel: Kernel) -> str:
    """ "kvm" where this kernel boots under it, which a /dev/kvm alone does not promise; else "tcg", emulation.

    Found out once after each start of this machine.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    answer = kernel.root.parent / "accelerator"
    here = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {kernel.version}"
    known = answer.read_text().rpartition(" ") if answer.exists() else ("", "", "")
    if known[0] == here:
        return known[2]
    chosen = "kvm" if Machine(kernel, "kvm", "1G", 1).boots() else "tcg"
    answer.write_text(f"{here} {chosen}")
    return chosen


def follow(guest: subprocess.Popen[bytes], mark: str, out: TextIO) -> int:
    """Pass on what the guest prints, as it comes, until it says its status; what firmware and kernel say before and after is left
    out. The line of `mark` begins it, and that of `mark` and a status ends it."""
    assert isinstance(guest.stdout, io.BufferedReader)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    begun, pending = False, ""
    while raw := guest.stdout.read1():
        pending += decoder.decode(raw).replace("\r", "")
        if not begun:
            _, begins, pending = pending.rpartition(f"{mark}\n")
            begun = bool(begins)
        if begun:
            text, ends, rest = pending.partition(mark)
            shown = text if ends else pending[: len(pending) - _begun_of(mark, pending)]
            out.write(shown)
            out.flush()
            pending = pending[len(shown) :]
            if ends and "\n" in rest:
                return int(rest.partition("\n")[0])
    raise MachineError(f"the guest ended before its command did; QEMU's status is {guest.wait()}")


def _begun_of(mark: str, text: str) -> int:
    """How many of the last characters of `text` may be the first of `mark`."""
    return next(size for size in range(len(mark), -1, -1) if text.endswith(mark[:size]))


@contextmanager
def _file_server(directory: Path) -> Iterator[Path]:
    """The socket of a virtiofsd that serves this machine's root, read by the guest and never written."""
    socket, log = directory / "files.sock", directory / "files.log"
    with log.open("wb") as output:
        server = subprocess.Popen(bound(_server_command(socket)), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _SERVER_TIMEOUT
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise MachineError(f"virtiofsd did not start: {log.read_text(errors='replace').strip()}")
            time.sleep(0.02)
        yield socket
    finally:
        with suppress(ProcessLookupError):
            server.terminate()
        server.wait()


def _server_command(socket: Path) -> list[str]:
    """virtiofsd is a package of its own, written anew; Debian 12 has QEMU's, with other options."""
    program = next((path for path in _SERVERS if os.access(path, os.X_OK)), shutil.which("virtiofsd"))
    if program is None:
        raise MachineError("virtiofsd is not installed; scripts/setup test-kernel installs it")
    if "qemu" in program:
        return [program, f"--socket-path={socket}", "-o", "source=/", "-o", "cache=auto", "-o", "sandbox=chroot"]
    return [program, f"--socket-path={socket}", "--shared-dir=/", "--cache=auto", "--sandbox=chroot"]
