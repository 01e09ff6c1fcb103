"""vtap-collector: receives copies, accounts for each, stores them as pcapng, serves them live."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
import platform
import re
import resource
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aiohttp import web

from vtap_collector.access import Access, ClusterAccess, Token, TokenAccess
from vtap_collector.certificates import Certificates
from vtap_collector.errors import CollectorError
from vtap_collector.native import Core, CoreSettings, Sink
from vtap_collector.registry import Registry
from vtap_collector.reviews import InClusterApi, Reviewer
from vtap_collector.rings import AUTO, Dropper, RingPlan, capabilities, plan_rings
from vtap_collector.server import Server
from vtap_collector.service import Service
from vtap_collector.sockets import (
    VXLAN_PORT,
    DataSocket,
    Endpoint,
    Ring,
    listening_socket,
    open_rings,
    open_sockets,
    parse_endpoint,
    parse_endpoints,
)
from vtap_collector.storage import Storage

log = logging.getLogger("vtap_collector")

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_DURATIONS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, understood."""

    directory: Path
    run_dir: Path
    data: tuple[Endpoint, ...]
    own_addresses: tuple[str, ...]
    listen: Endpoint | None
    token_file: Path | None
    tls: Path | None
    kubernetes: bool
    gre: bool
    rings: str
    vxlan_port: int | None
    receive_buffer: int
    retain_bytes: int
    settings: CoreSettings


def _quantity(text: str, units: dict[str, int], what: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([A-Za-z]{0,2})", text)
    if match is None or match[2] not in units:
        suffixes = ", ".join(unit for unit in units if unit)
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}; write a whole number, with a unit of {suffixes} if need be")
    return int(match[1]) * units[match[2]]


def _bytes(text: str) -> int:
    return _quantity(text, _UNITS, "size")


def _seconds(text: str) -> int:
    return _quantity(text, _DURATIONS, "duration")


def _natural(text: str) -> int:
    return _quantity(text, {"": 1}, "number")


def _parser() -> argparse.ArgumentParser:
    defaults = CoreSettings()
    parser = argparse.ArgumentParser(prog="vtap-collector", description=__doc__)
    add = parser.add_argument
    add("--directory", type=Path, required=True, help="where capture files and state go")
    add("--run-dir", type=Path, default=Path("/run/vtap"), help="where collector.sock goes (%(default)s)")
    add("--listen-data", default="[::]", metavar="ADDRESS:PORT,…", help="where copies arrive (GRE-in-UDP, [::]:4754)")
    add(
        "--own-addresses",
        default="",
        metavar="ADDRESS,…",
        help="all that this collector has: agents send to no other, should it have moved (a pod's status.podIPs)",
    )
    add("--listen", metavar="ADDRESS:PORT", help="serve HTTP on TCP as well; needs --token-file")
    add("--token-file", type=Path, help="the bearer token of agents and of readers over TCP")
    add("--tls", type=Path, metavar="DIR", help="serve HTTPS: ca.crt, tls.crt and tls.key, read again when they change")
    add("--kubernetes", action="store_true", help="the API server says who may read; agents show certificates; needs --tls")
    add("--gre", action="store_true", help="receive bare GRE too (CAP_NET_RAW)")
    add("--erspan", action="store_true", help="receive ERSPAN II too (CAP_NET_RAW)")
    add("--vxlan", nargs="?", type=_natural, const=VXLAN_PORT, metavar="PORT", help="receive VXLAN too (port 4789)")
    add(
        "--ring",
        default=AUTO,
        metavar="INTERFACE,…",
        help="capture there what needs no IP stack (CAP_NET_RAW); none; or auto, where the addresses of --listen-data are (auto)",
    )
    add("--rotate-size", type=_bytes, default=defaults.rotate_bytes, help="bytes of a file at most, 0: any (256Mi)")
    add("--rotate-interval", type=_seconds, default=0, help="time a file spans at most, 0: any (0)")
    add("--rotate-count", type=_natural, default=0, help="packets of a file at most, 0: any (0)")
    add(
        "--rotate-interfaces",
        type=_natural,
        default=defaults.rotate_interfaces,
        help="pod interfaces that a file describes at most, or twice as many as are tapped at a time (%(default)s)",
    )
    add("--retain-bytes", type=_bytes, default=0, help="what files take at most, the oldest go; 0 keeps all (0)")
    add("--count-only", action="store_true", help="account for copies without writing files")
    add("--buffer-bytes", type=_bytes, default=defaults.buffer_bytes, help="copies waiting for the disk (128Mi)")
    add("--receive-buffer", type=_bytes, default=32 << 20, help="each socket's, as far as the kernel allows (32Mi)")
    add("--max-streams", type=_natural, default=defaults.max_streams, help="streams at a time (%(default)s)")
    add("--max-taps", type=_natural, default=defaults.max_taps, help="taps at a time (%(default)s)")
    add("--grace", type=float, default=defaults.grace, help="seconds a missing copy is awaited (%(default)s)")
    return parser


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Raises CollectorError; argparse ends the process by itself."""
    given = _parser().parse_args(arguments)
    if given.listen and not given.token_file and not given.kubernetes:
        raise CollectorError("--listen needs --token-file: over TCP, packets are only for those who hold the token")
    if given.kubernetes and (given.tls is None or given.token_file is not None):
        raise CollectorError("--kubernetes needs --tls, and takes no --token-file: the API server judges tokens")
    if not 0.01 <= given.grace <= 60:
        raise CollectorError("--grace must lie between 0.01 and 60 seconds")
    return Options(
        directory=given.directory,
        run_dir=given.run_dir,
        data=tuple(parse_endpoints(given.listen_data, "--listen-data")),
        own_addresses=_own_addresses(given.own_addresses),
        listen=parse_endpoint(given.listen, "--listen") if given.listen else None,
        token_file=given.token_file,
        tls=given.tls,
        kubernetes=given.kubernetes,
        gre=given.gre or given.erspan,
        rings=given.ring,
        vxlan_port=given.vxlan,
        receive_buffer=min(given.receive_buffer, 1 << 30),
        retain_bytes=given.retain_bytes,
        settings=CoreSettings(
            sink=Sink.COUNT if given.count_only else Sink.FILES,
            max_streams=given.max_streams,
            max_taps=given.max_taps,
            buffer_bytes=given.buffer_bytes,
            grace=given.grace,
            rotate_bytes=_rotation(given.rotate_size, given.retain_bytes),
            rotate_seconds=given.rotate_interval,
            rotate_packets=given.rotate_count,
            rotate_interfaces=given.rotate_interfaces,
            hardware=platform.machine(),
            os=f"{platform.system()} {platform.release()}",
            application=f"vtap-collector {_version()}",
        ),
    )


def _own_addresses(text: str) -> tuple[str, ...]:
    """Raises CollectorError."""
    try:
        return tuple(str(ipaddress.ip_address(part.strip())) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise CollectorError(f"--own-addresses {text}: {error}; write IPv4 and IPv6 addresses, separated by commas") from None


def _rotation(size: int, retained: int) -> int:
    """Retention deletes whole files: some eight of them make up what is retained."""
    return min(size or retained, max(retained // 8, CoreSettings().chunk_bytes)) if retained else size


def _version() -> str:
    try:
        return version("vtap-collector")
    except PackageNotFoundError:
        return "unknown"


def _raise_descriptor_limit() -> None:
    """One file a tap stays open; the soft limit of 1024 is for programs that use select(2)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _unix_path(run_dir: Path) -> Path:
    """Where the Unix socket goes, freed of what a dead collector left. Raises CollectorError."""
    path = run_dir / "collector.sock"
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise CollectorError(f"{path} is in the way and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise CollectorError(f"another collector answers on {path}; give this one another --run-dir")
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CollectorError(f"--run-dir {run_dir}: {error.strerror}") from None
    return path


def _access(options: Options) -> Access:
    """Raises CollectorError where what judges cannot be had."""
    if options.kubernetes:
        return ClusterAccess(Reviewer(InClusterApi.from_environment()))
    return TokenAccess(Token(options.token_file) if options.token_file else None)


async def _serve_http(
    server: Server, unix_path: Path, listen: Endpoint | None, certificates: Certificates | None, about: dict[str, Any]
) -> list[web.AppRunner]:
    runners: list[web.AppRunner] = []
    local = web.AppRunner(server.application(trusted=True), access_log=None, shutdown_timeout=2)
    await local.setup()
    runners.append(local)
    mask = os.umask(0o117)
    try:
        await web.UnixSite(local, str(unix_path)).start()
    finally:
        os.umask(mask)
    if listen is not None:
        remote = web.AppRunner(server.application(trusted=False), access_log=None, shutdown_timeout=2)
        await remote.setup()
        runners.append(remote)
        context = certificates.context if certificates else None
        await web.SockSite(remote, listening_socket(listen), ssl_context=context).start()
        address, port, *_scope = remote.addresses[0]
        about["listen"] = str(Endpoint(address, port))
    return runners


async def _until_signal() -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _add_rings(core: Core, plan: RingPlan, rings: Sequence[Ring], size: int) -> Dropper | None:
    """Where they were not asked for, what can't be had is said and done without. Raises CollectorError."""
    if plan.why_not:
        log.info("copies are received by sockets: %s", plan.why_not)
    for ring in rings:
        with ring.socket:
            try:
                core.add_ring(os.dup(ring.socket.fileno()), ring.interface, ring.port, plan.expression(), size)
            except CollectorError as error:
                if plan.demanded:
                    raise
                log.warning("copies are received by sockets: %s", error)
                return None
    if not rings:
        return None
    dropper = Dropper(plan, rings[0].port)
    try:
        dropper.start()
    except CollectorError as error:
        log.info("capturing on %s; the IP stack still sees what is captured: %s", ", ".join(plan.interfaces), error)
        return None
    log.info("capturing on %s, before the IP stack", ", ".join(plan.interfaces))
    return dropper


async def _run(
    options: Options, core: Core, storage: Storage, sockets: Sequence[DataSocket], plan: RingPlan, rings: Sequence[Ring]
) -> None:
    access = _access(options)
    certificates = Certificates(options.tls) if options.tls else None
    unix_path = _unix_path(options.run_dir)
    registry = Registry(core, options.settings)
    registry.restore(storage)
    service = Service(core, registry, storage, options.retain_bytes)
    about: dict[str, Any] = {"status": "ok", "data": [str(item.endpoint) for item in sockets], "listen": None}
    for item in sockets:
        core.add_socket(item.source, os.dup(item.socket.fileno()), options.receive_buffer)
        item.socket.close()
    dropper = _add_rings(core, plan, rings, options.receive_buffer)
    core.start()
    stopped = asyncio.create_task(_until_signal())
    runners: list[web.AppRunner] = []
    housekeeping = [asyncio.create_task(service.housekeep())]
    if certificates is not None:
        housekeeping.append(asyncio.create_task(certificates.follow()))
    try:
        server = Server(service, access, about, options.own_addresses)
        runners = await _serve_http(server, unix_path, options.listen, certificates, about)
        serving = [str(unix_path), *([about["listen"]] if about["listen"] else [])]
        log.info("receiving on %s, serving on %s", ", ".join(about["data"]), " and ".join(serving))
        await stopped
    finally:
        if dropper is not None:
            dropper.stop()
        await asyncio.to_thread(core.stop)  # what it still writes is retained or deleted as ever
        for task in housekeeping:
            task.cancel()
        for runner in runners:
            await runner.cleanup()
        await service.save()
        unix_path.unlink(missing_ok=True)


def run(options: Options) -> None:
    """Until SIGTERM or SIGINT. Raises CollectorError."""
    _raise_descriptor_limit()
    plan = plan_rings(options.rings, options.data, capabilities())
    sockets = open_sockets(options.data, options.gre, options.vxlan_port, ringed=bool(plan.interfaces))
    rings = open_rings(plan.interfaces, sockets)
    storage = Storage(options.directory)
    core = Core(storage.descriptor, options.settings)
    try:
        asyncio.run(_run(options, core, storage, sockets, plan, rings))
    finally:
        core.stop()
        core.free()


def main() -> int:
    """The console script. Returns the exit status: 0, or 1 with one sentence on standard error."""
    try:
        options = parse_options()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            run(options)
    except CollectorError as error:
        print(f"vtap-collector: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
