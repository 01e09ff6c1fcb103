"""Processes in network namespaces that end with their maker."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtap_lab.errors import PATIENCE, LabError, comes_true
from vtap_lab.registry import NETNS

STOP_TIMEOUT = 10.0


def in_namespace(namespace: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a network namespace and otherwise where the caller is.

    Not `ip netns exec`: that gives a mount namespace of its own, where an eBPF file system mounted by the agent would be seen by
    nobody else and die with it.
    """
    return ["nsenter", f"--net={NETNS / namespace}", "--", *argv]


def with_own_sysfs(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` with a /sys that shows the network namespace it is in. All other mounts are shared."""
    mount = 'mount --make-rprivate /sys && mount -t sysfs none /sys && exec "$@"'
    return ["unshare", "--mount", "--propagation=unchanged", "sh", "-ec", mount, "sh", *argv]


def run_in(namespace: str, argv: Sequence[str], *, check: bool = True, timeout: float = 30, stdin: str | None = None) -> str:
    """Run a command to its end and return what it printed; LabError with its complaint when it fails and `check` is set."""
    try:
        done = subprocess.run(
            in_namespace(namespace, argv), input=stdin, capture_output=True, text=True, timeout=timeout * PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise LabError(f"{' '.join(argv)}: still running after {timeout:g} s") from late
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip() or f'status {done.returncode}'}")
    return done.stdout


@dataclass
class LabProcess:
    """A program in the background. Its output goes to `log`, standard output and standard error alike."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """The exit status; LabError when it still runs after `timeout` seconds."""
        try:
            return self.process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired as late:
            raise LabError(f"{self.name}: still running after {timeout:g} s") from late

    def wait_ok(self, timeout: float) -> None:
        """Wait for its end; LabError with its last lines when it failed."""
        status = self.wait(timeout)
        if status != 0:
            raise LabError(f"{self.name}: ended with status {status}: {self.last_lines()}")

    def wait_ready(self, ready: object, timeout: float, what: str) -> None:
        """Wait until the callable `ready` returns true; LabError with its last lines when it ends before."""
        assert callable(ready)

        def ready_or_dead() -> bool:
            if not self.is_running:
                raise LabError(f"{self.name}: ended with status {self.process.returncode}: {self.last_lines()}")
            return bool(ready())

        if not comes_true(ready_or_dead, timeout):
            raise LabError(f"{self.name} {what}: not within {timeout:g} s: {self.last_lines()}")

    def last_lines(self, count: int = 8) -> str:
        return "\n".join(self.output().splitlines()[-count:])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it and wait for the end, with SIGKILL after STOP_TIMEOUT seconds; the exit status. Nothing when it has ended."""
        if self.is_running:
            self.process.send_signal(number)
            try:
                self.process.wait(STOP_TIMEOUT * PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.stop(signal.SIGKILL)


def start_in(
    namespace: str, argv: Sequence[str], *, name: str, log: Path, outlives_maker: bool, env: Mapping[str, str] | None = None
) -> LabProcess:
    """Start a program in the background, in a session of its own so that Ctrl-C reaches only its maker.

    Unless it outlives its maker the kernel kills it when the *thread* that called this ends (prctl(2), PR_SET_PDEATHSIG): call
    from a thread that lives as long as the process should.
    """
    bound = [] if outlives_maker else ["setpriv", "--pdeathsig", "KILL", "--"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*bound, *in_namespace(namespace, argv)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )
    return LabProcess(name, process, log)
