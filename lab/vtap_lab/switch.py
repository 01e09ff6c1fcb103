"""An Open vSwitch of one's own: ovsdb-server and ovs-vswitchd in a directory, without any state that others share."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from vtap_lab.errors import PATIENCE, LabError, comes_true

START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
_PACKAGE_FOLDERS = ("usr/sbin", "usr/bin", "usr/lib/openvswitch-switch", "usr/lib/openvswitch-common")


class SwitchError(LabError):
    """A daemon did not start or a command failed; `str()` ends with what it printed."""


def _prefix() -> Path:
    """Where Open vSwitch lives: the root, or the folder named by `OVS_PREFIX` that a package was extracted to."""
    return Path(os.environ.get("OVS_PREFIX") or "/")


def find_program(name: str) -> str:
    """The path of an Open vSwitch program; SwitchError when it isn't installed."""
    for folder in _PACKAGE_FOLDERS:
        candidate = _prefix() / folder / name
        if os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which(name)
    if found is None:
        raise SwitchError(f"{name} is not installed; install openvswitch-switch or point OVS_PREFIX at an extracted package")
    return found


def put_programs_on_path() -> None:
    """Programs that are given no path, such as the agent's ovs-ofctl, are found where `OVS_PREFIX` has them, too."""
    prefix = _prefix()
    if prefix == Path("/"):
        return
    on_path = os.environ.get("PATH", os.defpath).split(":")
    missing = [str(prefix / folder) for folder in _PACKAGE_FOLDERS if str(prefix / folder) not in on_path]
    if not missing:
        return
    os.environ["PATH"] = ":".join([*missing, *on_path])
    os.environ["LD_LIBRARY_PATH"] = _library_path(prefix)


def is_installed() -> bool:
    """Whether every program that `Switch` needs is there."""
    try:
        for name in ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl"):
            find_program(name)
    except SwitchError:
        return False
    return True


def has_kernel_datapath() -> bool:
    """Whether the openvswitch kernel module is loaded or built in."""
    return Path("/sys/module/openvswitch").exists()


def _library_path(prefix: Path) -> str:
    """LD_LIBRARY_PATH for an extracted package, whose libraries lie under a folder named by the architecture."""
    folders = [str(folder) for pattern in ("usr/lib", "usr/lib/*-linux-gnu") for folder in prefix.glob(pattern)]
    return ":".join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return once `condition()` holds; SwitchError naming `what` after `timeout` seconds."""
    if not comes_true(condition, timeout):
        raise SwitchError(f"{what} within {timeout:g} s")


@dataclass
class _Daemon:
    """One process, known by its pid file, so that a later process can stop what an earlier one started."""

    name: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """The pid while the daemon runs. A pid that now belongs to another process doesn't count."""
        try:
            pid = int(self.pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            return None
        return pid if f"--pidfile={self.pid_file}" in command else None

    def start(self, argv: list[str], environment: Mapping[str, str]) -> None:
        if self.pid is not None:
            raise SwitchError(f"{self.name} already runs in {self.directory}")
        with (self.directory / f"{self.name}.out").open("ab") as output:
            # A session of its own: Ctrl-C at the terminal goes to the caller, who stops daemons in the right order.
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
            )

    def output(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / f"{self.name}.out").read_text(errors="replace")[-2000:].strip()
        return ""

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        def ready_or_dead() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise SwitchError(f"{self.name} ended with status {self.process.returncode}: {self.output()}")
            return self.pid is not None and ready()

        wait_until(ready_or_dead, START_TIMEOUT, f"{self.name} was not ready")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal and wait for the end, with SIGKILL after STOP_TIMEOUT seconds. No error when it doesn't run."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if not self._wait_ended(STOP_TIMEOUT):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                if not self._wait_ended(STOP_TIMEOUT):
                    raise SwitchError(f"{self.name} (pid {pid}) does not end")
        elif self.process is not None and self.process.poll() is None:
            self.process.kill()  # Not yet as far as writing its pid file.
        if self.process is not None:
            self.process.wait(STOP_TIMEOUT)
            self.process = None

    def _wait_ended(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while self.pid is not None:
            if self.process is not None:
                self.process.poll()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@dataclass
class Switch:
    """ovsdb-server and ovs-vswitchd whose sockets, pid files, logs and database all lie in `directory`.

    `namespace` names a network namespace under /run/netns that vswitchd works in; None is the caller's own. `userspace_tso` must
    be known before vswitchd starts. `datapath` is "netdev" (userspace, everywhere) or "system" (needs the kernel module). Keep
    `directory` short: the path of a Unix socket holds 107 bytes.

    The daemons outlive the process that started them; `Switch(directory).stop()` from another process ends exactly those.
    """

    directory: Path
    namespace: str | None = None
    userspace_tso: bool = False
    datapath: str = "netdev"
    other_config: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = Path(self.directory).absolute()
        self._database = _Daemon("ovsdb-server", self.directory)
        self._vswitchd = _Daemon("ovs-vswitchd", self.directory)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def db_socket(self) -> Path:
        return self.directory / "db.sock"

    @property
    def db_remote(self) -> str:
        """The connection string of the database, as ovs-vsctl's --db takes it."""
        return f"unix:{self.db_socket}"

    @property
    def vswitchd_pid(self) -> int | None:
        """None while it does not run."""
        return self._vswitchd.pid

    @property
    def ovsdb_pid(self) -> int | None:
        """None while it does not run."""
        return self._database.pid

    @property
    def vswitchd_log(self) -> Path:
        return self.directory / "ovs-vswitchd.log"

    @property
    def environment(self) -> dict[str, str]:
        """What a program of Open vSwitch needs in its environment to talk to this switch."""
        ours = {f"OVS_{kind}DIR": str(self.directory) for kind in ("RUN", "LOG", "DB", "SYSCONF")}
        prefix = _prefix()
        if prefix != Path("/"):
            ours["LD_LIBRARY_PATH"] = _library_path(prefix)
        return {**os.environ, **ours}

    def start(self) -> None:
        """Start both daemons and wait until vswitchd has taken its configuration; on failure neither is left."""
        if self.datapath == "system" and not has_kernel_datapath():
            raise SwitchError("datapath system needs the openvswitch kernel module, which is not loaded")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self.start_ovsdb()
            self.vsctl("--no-wait", "init")
            self._configure()
            self.start_vswitchd()
        except BaseException:
            self.stop()
            raise

    def _configure(self) -> None:
        wanted = {**self.other_config, **({"userspace-tso-enable": "true"} if self.userspace_tso else {})}
        if wanted:
            settings = [f"other_config:{key}={value}" for key, value in wanted.items()]
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", *settings)

    def stop(self) -> None:
        """End vswitchd, then ovsdb-server, gracefully; datapaths of ours in the kernel go with `ovs-appctl exit --cleanup`."""
        if self.vswitchd_pid is not None:
            with contextlib.suppress(SwitchError):  # It may have hung; the signal below doesn't depend on it.
                self.appctl("exit", "--cleanup")
        self._vswitchd.stop()
        self._database.stop()

    def start_ovsdb(self) -> None:
        """Start ovsdb-server on this directory's database, which is made when missing."""
        path = self.directory / "conf.db"
        if not path.exists():
            schema = _prefix() / "usr/share/openvswitch/vswitch.ovsschema"
            self._run("ovsdb-tool", "create", str(path), str(schema))
        self._database.start(
            [
                find_program("ovsdb-server"),
                str(path),
                f"--remote=punix:{self.db_socket}",
                *self._daemon_options("ovsdb-server"),
            ],
            self.environment,
        )
        self._database.wait_ready(self.db_socket.exists)

    def stop_ovsdb(self) -> None:
        self._database.stop()

    def restart_ovsdb(self) -> None:
        """End ovsdb-server and start it on the same database; vswitchd and other clients reconnect by themselves."""
        self.stop_ovsdb()
        self.start_ovsdb()

    def start_vswitchd(self) -> None:
        """Start vswitchd and wait until it has configured what the database says."""
        into_namespace = [] if self.namespace is None else ["nsenter", f"--net=/run/netns/{self.namespace}", "--"]
        self._vswitchd.start(
            [*into_namespace, self._vswitchd_program(), self.db_remote, *self._daemon_options("ovs-vswitchd")],
            self.environment,
        )
        self._vswitchd.wait_ready(self._vswitchd_answers)
        self.sync()

    def kill_vswitchd(self) -> None:
        """SIGKILL, as a crash would: no clean-up, devices and database rows stay."""
        self._vswitchd.stop(signal.SIGKILL)

    def sync(self) -> None:
        """Wait until vswitchd has taken every change made to the database so far."""
        self.vsctl("set", "Open_vSwitch", ".", f"external_ids:sync={time.monotonic_ns()}")

    def vsctl(self, *arguments: str) -> str:
        """`ovs-vsctl ARGUMENTS`; its output without the last newline. SwitchError with its message when it fails."""
        return self._run("ovs-vsctl", f"--db={self.db_remote}", f"--timeout={START_TIMEOUT * PATIENCE:.0f}", *arguments)

    def ofctl(self, *arguments: str) -> str:
        """`ovs-ofctl ARGUMENTS`, where bridges are named plainly."""
        return self._run("ovs-ofctl", f"--timeout={START_TIMEOUT * PATIENCE:.0f}", *arguments)

    def appctl(self, *arguments: str) -> str:
        """`ovs-appctl ARGUMENTS` to vswitchd."""
        return self._run("ovs-appctl", f"--timeout={STOP_TIMEOUT * PATIENCE:.0f}", "-t", "ovs-vswitchd", *arguments)

    def add_bridge(self, name: str, *settings: str) -> None:
        """Make a bridge on this switch's datapath without controller; `settings` are further columns of Bridge."""
        self.vsctl("add-br", name, "--", "set", "Bridge", name, f"datapath_type={self.datapath}", *settings)

    def add_port(self, bridge: str, name: str, *settings: str) -> None:
        """Add an existing device to a bridge; `settings` are columns of Port such as "tag=10"."""
        columns = ["--", "set", "Port", name, *settings] if settings else []
        self.vsctl("add-port", bridge, name, *columns)

    def delete_port(self, bridge: str, name: str) -> None:
        self.vsctl("del-port", bridge, name)

    def _daemon_options(self, name: str) -> list[str]:
        return [
            f"--pidfile={self.directory / name}.pid",
            f"--log-file={self.directory / name}.log",
            "--no-chdir",
            "-vconsole:emer",
            "-vsyslog:off",
        ]

    def _vswitchd_program(self) -> str:
        """Its control socket is called as the program is."""
        return find_program("ovs-vswitchd")

    def _vswitchd_answers(self) -> bool:
        try:
            self.appctl("version")
        except SwitchError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> str:
        command = [find_program(program), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SwitchError(f"{program} {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.rstrip("\n")
