"""`python -m tests.kernel_vm COMMAND…`: run it under the distribution's kernel, end with its status; see docs/contract.md."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.kernel_vm.commands import MachineError
from tests.kernel_vm.kernel import the_kernel
from tests.kernel_vm.machine import Machine, choose_accelerator


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtap-kernel-vm"
    try:
        kernel = the_kernel(Path(os.environ.get("VTAP_KERNEL_VM_CACHE") or cache))
        accelerator = options.accelerator or choose_accelerator(kernel)
        print(f"kernel-vm: Linux {kernel.version}, {accelerator}", flush=True)
        return Machine(kernel, accelerator, options.memory, options.cpus).run(shlex.join(options.command), sys.stdout)
    except (MachineError, subprocess.SubprocessError, OSError) as problem:
        print(f"kernel-vm: {problem}", file=sys.stderr)
        return 125


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel_vm",
        description="Run a command as root under the distribution's kernel, with this machine's files under a throw-away layer.",
    )
    parser.add_argument("--accelerator", choices=("kvm", "tcg"), help="default: KVM where it boots this kernel")
    parser.add_argument("--memory", default="3G", help="of the machine (default 3G)")
    parser.add_argument("--cpus", type=int, default=min(4, os.cpu_count() or 1), help="virtual CPUs")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    options = parser.parse_args(argv)
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command:
        parser.error("name a command")
    return options


if __name__ == "__main__":
    sys.exit(main())
