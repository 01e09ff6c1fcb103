"""What the operator serves: its metrics, and whether it works as kopf's probes say."""

from __future__ import annotations

import asyncio
import logging
import socket

import aiohttp
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vtap_operator import metrics
from vtap_operator.errors import OperatorError

log = logging.getLogger(__name__)

ANSWERS_WITHIN = 4.0
"""Seconds for kopf's probes."""
STARTS_WITHIN = 60.0
"""Seconds for kopf to serve its probes."""


def parse_endpoint(text: str) -> tuple[str, int]:
    """``[::]:9472`` or ``127.0.0.1:9472``. Raises OperatorError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise OperatorError(f"--listen: {text!r} is no ADDRESS:PORT; write one such as [::]:9472")
    return host.removeprefix("[").removesuffix("]"), int(port)


def free_port() -> int:
    """One of loopback, for kopf's probes: kopf serves on no Unix socket, and the kubelet asks us."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Health:
    """`/healthz` asks kopf's probes, so that it fails where kopf is stuck; `/metrics` is Prometheus text."""

    def __init__(self, probes: str) -> None:
        self._probes = probes
        self._started = asyncio.get_running_loop().time()
        self._seen = False

    async def healthz(self, _: web.Request) -> web.Response:
        """200, or 503 with a sentence."""
        trouble = await self._trouble()
        return web.Response(status=503 if trouble else 200, text=(trouble or "ok") + "\n")

    async def _trouble(self) -> str:
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWERS_WITHIN)) as session,
                session.get(self._probes) as answer,
            ):
                said = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            young = asyncio.get_running_loop().time() - self._started < STARTS_WITHIN
            return "" if young and not self._seen else "kopf does not answer"
        self._seen = True
        return str(said.get("trouble") or "")

    async def serve(self, host: str, port: int) -> web.AppRunner:
        """Serves until the runner is cleaned up. Raises OperatorError."""
        application = web.Application()
        application.add_routes([web.get("/healthz", self.healthz), web.get("/metrics", _metrics)])
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host or None, port).start()
        except OSError as error:
            await runner.cleanup()
            raise OperatorError(f"--listen: {host}:{port} cannot be listened on ({error.strerror})") from None
        return runner


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})
