"""vtap-operator: accepts taps, resolves peers, runs collectors, and sums up what nodes say. Never in the data path."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kopf
import yaml
from pydantic import ValidationError

from vtap_api import TapDestinationSpec
from vtap_operator import handlers
from vtap_operator.access import SERVICE_ACCOUNT, Access, find_access
from vtap_operator.client import Client
from vtap_operator.errors import ApiError, OperatorError
from vtap_operator.health import Health, free_port, parse_endpoint
from vtap_operator.operator import Operator, Settings
from vtap_operator.reflector import BACKOFF
from vtap_operator.resources import TAP_DESTINATIONS, TAP_NODES, TAP_PEER_SLICES, VIRTUAL_TAPS

log = logging.getLogger("vtap_operator")

POD_FIELDS = frozenset({
    "image", "imagePullPolicy", "imagePullSecrets", "resources", "nodeSelector", "tolerations", "affinity", "priorityClassName",
    "annotations",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The command line, understood."""

    settings: Settings
    listen: tuple[str, int]
    log_level: str


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vtap-operator", description=__doc__)
    add = parser.add_argument
    add("--namespace", default=_own_namespace(), help="where all of ours lives (%(default)s)")
    add("--listen", default="[::]:9472", metavar="ADDRESS:PORT", help="metrics and health, plain HTTP (%(default)s)")
    add("--collector-image", default="vtap-collector", help="the image of collectors (%(default)s)")
    add("--collector-pull-policy", default="IfNotPresent", choices=["Always", "IfNotPresent", "Never"], help="(%(default)s)")
    add("--collector-pull-secret", action="append", default=[], metavar="NAME", help="a Secret for pulling it; may be repeated")
    add("--collector-pod", type=Path, metavar="FILE", help="YAML for collectors' pods: resources, nodeSelector, tolerations, …")
    add("--default-destination", nargs="?", const="collector: {}", metavar="YAML",
        help="make TapDestination default where there is none; its spec (collector: {})")  # fmt: skip
    add("--existing-certificates", action="store_true", help="make no Secret: somebody else issues all certificates")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="(%(default)s)")
    return parser


def _own_namespace() -> str:
    file = SERVICE_ACCOUNT / "namespace"
    return os.environ.get("POD_NAMESPACE") or (file.read_text().strip() if file.exists() else "vtap-system")


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Raises OperatorError; argparse ends the process by itself."""
    given = _parser().parse_args(arguments)
    pods = {
        "image": given.collector_image,
        "imagePullPolicy": given.collector_pull_policy,
        "imagePullSecrets": [{"name": name} for name in given.collector_pull_secret],
        **_pod_fields(given.collector_pod),
    }
    settings = Settings(
        given.namespace, pods, _destination_spec(given.default_destination), own_certificates=not given.existing_certificates
    )
    return Options(settings, parse_endpoint(given.listen), given.log_level)


def _pod_fields(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content: Any = yaml.safe_load(file.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise OperatorError(f"--collector-pod: {file} cannot be read ({error})") from None
    unknown = sorted(set(content) - POD_FIELDS) if isinstance(content, dict) else ["a mapping is needed"]
    if unknown:
        raise OperatorError(f"--collector-pod: {file}: {', '.join(unknown)}: unknown; there are {', '.join(sorted(POD_FIELDS))}")
    return content


def _destination_spec(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        spec: Any = yaml.safe_load(text)
        TapDestinationSpec.model_validate(spec)
    except (yaml.YAMLError, ValidationError) as error:
        raise OperatorError(f"--default-destination: {text!r} is no spec of a TapDestination: {error}") from None
    return spec


async def serve(options: Options, access: Access) -> None:
    """Until SIGTERM or SIGINT, which kopf takes. Raises OperatorError."""
    probes = f"http://127.0.0.1:{free_port()}/probes"
    async with Client(access) as client:
        runner = await Health(probes).serve(*options.listen)
        try:
            await _wait_for_kinds(client, options.settings.namespace)
            operator = Operator(client, options.settings)
            await _run_both(operator, access, probes)
        finally:
            await runner.cleanup()


async def _run_both(operator: Operator, access: Access, probes: str) -> None:
    """Our part and kopf's: where one ends, so does the other."""
    ours = asyncio.create_task(operator.run(), name="operator")
    theirs = asyncio.create_task(
        kopf.operator(
            registry=handlers.registry(operator, access),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=True,
            liveness_endpoint=probes,
        ),
        name="kopf",
    )
    await asyncio.wait({ours, theirs}, return_when=asyncio.FIRST_COMPLETED)
    for task in (ours, theirs):
        task.cancel()
    results = await asyncio.gather(ours, theirs, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _wait_for_kinds(client: Client, namespace: str) -> None:
    """kopf looks once, at its start, which kinds there are."""
    failures = 0
    while True:
        try:
            for resource in (VIRTUAL_TAPS, TAP_DESTINATIONS, TAP_NODES, TAP_PEER_SLICES):
                own = namespace if resource is TAP_PEER_SLICES else ""
                await client.page(resource, namespace=own, params={"limit": "1"})
        except ApiError as error:
            log.warning("the kinds of vtap.dev cannot be listed: %s; are the CRDs installed?", error)
            await asyncio.sleep(BACKOFF[min(failures, len(BACKOFF) - 1)])
            failures += 1
        else:
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    try:
        options = parse_options(arguments)
        logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("kopf").setLevel(logging.DEBUG if options.log_level == "debug" else logging.WARNING)
        logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
        asyncio.run(serve(options, find_access()))
    except OperatorError as error:
        sys.stderr.write(f"vtap-operator: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
