"""Which labs exist on this machine, and how one is taken down: by its maker, or by anybody once its maker is dead.

Everything a lab makes hangs on its id: namespaces named vtap-ID-*, a directory /run/vtap-lab/ID, and whatever runs in those
namespaces. The record is written before anything else, so that a lab whose maker is killed at any moment can be found again.
Nothing but the standard library is needed here: cleaning up works when nothing else is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vtap_lab.errors import LabError, comes_true
from vtap_lab.switch import Switch

ROOT = Path("/run/vtap-lab")
NETNS = Path("/run/netns")
APPLICATIONS = "apps"
"""The folder of a second switch, which plays the pods' DPDK applications in labs that have some."""
_END_TIMEOUT = 5.0


@dataclass(frozen=True)
class Owner:
    """A process, told from a later one with the same pid by its start time in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def myself(cls) -> Owner:
        return cls(os.getpid(), _start_time(os.getpid()))

    @property
    def is_alive(self) -> bool:
        try:
            return _start_time(self.pid) == self.started
        except OSError:
            return False


def _start_time(pid: int) -> int:
    # Field 22 of proc(5) stat; the second one may hold spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(f"{pid} has ended")
    return int(fields[19])


@dataclass(frozen=True)
class Record:
    """A lab as written to /run/vtap-lab/ID.json. A kept lab outlives its owner and is only removed on request."""

    id: str
    owner: Owner
    kept: bool = False
    namespaces: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        return ROOT / self.id

    @property
    def file(self) -> Path:
        return ROOT / f"{self.id}.json"

    @property
    def is_leftover(self) -> bool:
        return not self.kept and not self.owner.is_alive

    def namespace(self, role: str) -> str:
        return f"vtap-{self.id}-{role}"

    def with_namespace(self, name: str) -> Record:
        return replace(self, namespaces=(*self.namespaces, name))

    def without_namespace(self, name: str) -> Record:
        return replace(self, namespaces=tuple(n for n in self.namespaces if n != name))

    def save(self) -> None:
        ROOT.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".tmp")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(self.file)


def new_record(*, kept: bool = False) -> Record:
    """A record under an id of its own, written and with its directory made."""
    record = Record(secrets.token_hex(3), Owner.myself(), kept)
    ROOT.mkdir(parents=True, exist_ok=True)
    record.save()
    record.directory.mkdir()
    return record


def keep(record: Record) -> Record:
    """The record of a lab that lives on when its owner ends."""
    kept = replace(record, kept=True)
    kept.save()
    return kept


def _read(file: Path) -> Record:
    raw = json.loads(file.read_text())
    return Record(
        id=raw["id"],
        owner=Owner(**raw["owner"]),
        kept=raw["kept"],
        namespaces=tuple(raw["namespaces"]),
    )


def records() -> list[Record]:
    """Every lab on this machine."""
    found: list[Record] = []
    for file in sorted(ROOT.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # Taken down meanwhile.
            found.append(_read(file))
    return found


@contextlib.contextmanager
def _one_sweeper() -> Iterator[None]:
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sweep(*, kept_too: bool = False) -> list[Record]:
    """Take down the labs whose makers are dead, with `kept_too` those that were kept on purpose as well; return them."""
    with _one_sweeper():
        leftovers = [r for r in records() if r.is_leftover or (kept_too and r.kept and not r.owner.is_alive)]
        for record in leftovers:
            take_down(record)
    return leftovers


def take_down(record: Record) -> None:
    """Remove all that belongs to a lab. What has gone already is no error, so that it can be repeated after a failure.

    LabError when something can't be removed; the record stays then.
    """
    names = namespaces_of(record)
    switch = Switch(record.directory / "ovs")
    end_processes_in(names, spare=switch.vswitchd_pid)
    switch.stop()
    end_processes_in(names)
    Switch(record.directory / APPLICATIONS).stop()
    for mount in sorted(mounts_under(record.directory), reverse=True):
        run("umount", "--lazy", mount)
    for name in names:
        run("ip", "netns", "delete", name)
    if record.directory.exists():
        shutil.rmtree(record.directory)
    record.file.unlink(missing_ok=True)


def namespaces_of(record: Record) -> list[str]:
    """Those that exist. One may have been made in the moment before the record could name it, hence the look by prefix."""
    prefix = record.namespace("")
    return sorted(path.name for path in NETNS.glob(f"{prefix}*"))


def processes_in(names: Iterable[str]) -> list[int]:
    """The pids of all that runs in the named network namespaces."""
    inodes = _inodes(names)
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _net_inode(entry.name) in inodes]


def _inodes(names: Iterable[str]) -> set[int]:
    return {(NETNS / name).stat().st_ino for name in names if (NETNS / name).exists()}


def _net_inode(pid: str) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:  # It has ended, or is the kernel's.
        return None


def end_processes_in(names: Iterable[str], spare: int | None = None) -> None:
    """End all that runs in the namespaces but `spare`: SIGTERM, and SIGKILL for what still runs after a few seconds."""
    inodes = _inodes(names)
    handles: dict[int, int] = {}
    try:
        for pid in processes_in(names):
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        # Looked at once more: the handle may have been opened on a later process with the same pid.
        ours = {pid: handle for pid, handle in handles.items() if pid != spare and _net_inode(str(pid)) in inodes}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for handle in ours.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
            if comes_true(lambda: not any(_runs(pid) for pid in ours), _END_TIMEOUT):
                return
    finally:
        for handle in handles.values():
            os.close(handle)


def _runs(pid: int) -> bool:
    try:
        _start_time(pid)
    except OSError:
        return False
    return True


def mounts_under(directory: Path) -> list[str]:
    """Mount points below a directory, in the order in which they were mounted."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [point for line in lines if (point := line.split()[1]).startswith(f"{directory}/")]


def run(*command: str) -> None:
    """Run a command; LabError with its complaint when it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
