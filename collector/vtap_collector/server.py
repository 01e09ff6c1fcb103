"""HTTP: the control channel for agents, and what the collector serves (docs/architecture.md).

Who may ask what is for `access` to say; every handler comes after its judgement.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from vtap_collector.access import Access, Recheck, is_open
from vtap_collector.announcements import TapName, parse_announcement, parse_node, parse_tap, parse_totals
from vtap_collector.errors import CollectorError, Refused
from vtap_collector.metrics import Exporter
from vtap_collector.native import NO_TAP, Selection, check_filter, replay
from vtap_collector.service import Service
from vtap_collector.storage import StoredFile

log = logging.getLogger(__name__)

MAX_BODY = 8 << 20
MAX_FILTER = 4096
MAX_EVERY = 86400.0
MAX_COUNT = 2**53
MAX_REPLAYS = 8
PUMP_BYTES = 256 << 10
CLIENT_CHECK_SECONDS = 1.0
PCAPNG = "application/x-pcapng"
RECHECK_SECONDS = 60.0
"""How long a reader whose right was withdrawn goes on reading at most."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The handlers, over one service."""

    def __init__(self, service: Service, access: Access, about: dict[str, Any], own_addresses: Sequence[str] = ()) -> None:
        """`own_addresses` are all that copies to this collector may be sent to; none where they are not known."""
        # Who sends totals with terms is told in turn what has arrived of them.
        self._to_agents: dict[str, Any] = {"terms": True, **({"addresses": list(own_addresses)} if own_addresses else {})}
        self._service = service
        self._access = access
        self._about = about
        self._exporter = Exporter(service.numbers)
        # A replay holds its thread for as long as its reader takes; the default executor is for what must not wait for readers.
        self._replay_threads = ThreadPoolExecutor(MAX_REPLAYS, "replay")
        self._replays = 0

    def application(self, trusted: bool) -> web.Application:
        """`trusted`: whoever reaches it may read without a token (the Unix socket)."""
        application = web.Application(client_max_size=MAX_BODY, middlewares=[_sentences, self._authorize(trusted)])
        application.add_routes(
            [
                web.put("/v1/nodes/{node}/streams", self._put_streams),
                web.post("/v1/nodes/{node}/totals", self._post_totals),
                web.get("/v1/ledger", self._get_ledger),
                web.get("/v1/live", self._get_live),
                web.get("/v1/stored", self._get_stored),
                web.get("/v1/files", self._get_files),
                web.get("/metrics", self._get_metrics),
                web.get("/healthz", self._get_health),
            ]
        )
        return application

    def _authorize(self, trusted: bool) -> Any:
        @web.middleware
        async def authorize(request: web.Request, handler: Handler) -> web.StreamResponse:
            tap = None if is_open(request) else _tap_of(request)
            recheck = await self._access.check(request, tap, trusted)
            return await (handler(request) if recheck is None else _while_permitted(request, handler, recheck))

        return authorize

    # ---- the control channel ----

    async def _put_streams(self, request: web.Request) -> web.Response:
        node = parse_node(request.match_info["node"])
        try:
            await self._service.announce(node, parse_announcement(await request.read()))
        except Refused as refused:
            refused.beside = self._to_agents
            raise
        return web.json_response(self._to_agents)

    async def _post_totals(self, request: web.Request) -> web.Response:
        node = parse_node(request.match_info["node"])
        totals = parse_totals(await request.read())
        received = self._service.totals(node, totals)
        if totals.streams and all(total.terms is None for total in totals.streams):
            return web.Response(status=204)  # of a version that reads no answer
        return web.json_response({"streams": received})

    # ---- numbers ----

    async def _get_ledger(self, request: web.Request) -> web.Response:
        return web.json_response(self._service.ledger(_tap_of(request)))

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._exporter.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _get_health(self, _request: web.Request) -> web.Response:
        return web.json_response(self._about)

    async def _get_files(self, request: web.Request) -> web.Response:
        tap = _tap_of(request)
        rows = await asyncio.to_thread(self._file_rows, tap)
        return web.json_response({"files": rows})

    def _file_rows(self, tap: TapName | None) -> list[dict[str, Any]]:
        return [row for file in self._service.storage.files(tap) if (row := self._file_row(file)) is not None]

    def _file_row(self, file: StoredFile) -> dict[str, Any] | None:
        try:
            summary = self._service.storage.summary(file)
        except FileNotFoundError:
            return None
        return {
            "tap": {"namespace": file.namespace, "name": file.tap},
            "name": file.name,
            "bytes": file.bytes,
            "packets": summary.packets,
            "first": _iso(summary.first_ns),
            "last": _iso(summary.last_ns),
            "open": self._service.is_open(file),
        }

    # ---- packets ----

    async def _get_live(self, request: web.Request) -> web.StreamResponse:
        tap, selection = _tap_of(request), _selection_of(request)
        number = NO_TAP
        if tap is not None:
            known = self._service.registry.taps().get(tap)
            if known is None:
                raise Refused(f"tap: {tap} has not been announced", 404)
            number = known.number
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                try:
                    consumer = self._service.core.open_live(number, selection, theirs.fileno())
                except CollectorError as error:
                    raise Refused(str(error), 503) from None
                theirs.detach()  # the core's from now on
            self._service.add_consumer(consumer, f"{request.remote or 'local'} {tap or 'all'}")
            try:
                return await _pump(request, ours)
            finally:
                await asyncio.shield(self._service.remove_consumer(consumer))

    async def _get_stored(self, request: web.Request) -> web.StreamResponse:
        tap, selection = _tap_of(request), _selection_of(request)
        if self._replays >= MAX_REPLAYS:
            raise Refused(f"at most {MAX_REPLAYS} readers of stored files at a time; try again when one of them has ended", 503)
        self._replays += 1
        try:
            files = await self._opened_files(tap)
            return await self._replay(request, files, selection)
        finally:
            self._replays -= 1

    async def _replay(self, request: web.Request, files: Sequence[int], selection: Selection) -> web.StreamResponse:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        replaying = loop.run_in_executor(self._replay_threads, _replay_and_close, files, selection, theirs)
        try:
            with ours:
                return await _pump(request, ours)
        finally:
            await asyncio.shield(replaying)

    async def _opened_files(self, tap: TapName | None) -> list[int]:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open_files, tap))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)  # the thread goes on: what it opens is nobody's
            raise

    def _open_files(self, tap: TapName | None) -> list[int]:
        files: list[int] = []
        try:
            for file in self._service.storage.files(tap):
                try:
                    files.append(self._service.storage.open(file))
                except FileNotFoundError:
                    continue  # retention was faster
        except OSError as error:
            _close_all(files)
            raise Refused(f"the stored files cannot be read: {error.strerror}", 503) from None
        return files


def _replay_and_close(files: Sequence[int], selection: Selection, out: socket.socket) -> None:
    try:
        with out:
            replay(files, selection, out.fileno())
            out.detach()  # closed by the core, where it did not refuse
    finally:
        _close_all(files)


def _close_all(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _close_unwanted(opening: asyncio.Future[list[int]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        _close_all(opening.result())


async def _while_permitted(request: web.Request, handler: Handler, recheck: Recheck) -> web.StreamResponse:
    withdrawn = asyncio.create_task(_withdrawn(recheck))
    handling = asyncio.ensure_future(handler(request))
    try:
        await asyncio.wait((withdrawn, handling), return_when=asyncio.FIRST_COMPLETED)
        if not handling.done() and request.transport is not None:
            log.info("a reader may read no longer: %s", withdrawn.result())
            request.transport.abort()  # the answer has begun: only an end without one tells that there is more
        return await handling
    finally:
        for task in (withdrawn, handling):
            task.cancel()
        await asyncio.wait((withdrawn, handling))


async def _withdrawn(recheck: Recheck) -> str:
    """Ends with the sentence when whoever asked may no longer. That nobody can say is no refusal."""
    while True:
        await asyncio.sleep(RECHECK_SECONDS)
        try:
            await recheck()
        except Refused as refused:
            if refused.status in (401, 403):
                return str(refused)


async def _pump(request: web.Request, source: socket.socket) -> web.StreamResponse:
    """Chunks, not packets, from the core to the client until either end closes."""
    source.setblocking(False)
    response = web.StreamResponse(headers={"Content-Type": PCAPNG})
    await response.prepare(request)
    try:
        while chunk := await _next_chunk(request, source):
            await response.write(chunk)
        await response.write_eof()
    except ConnectionError:
        log.debug("a reader of packets has gone")
    return response


async def _next_chunk(request: web.Request, source: socket.socket) -> bytes:
    """Empty at the end. Raises ConnectionResetError where the client goes while there is nothing to tell it."""
    reading = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(source, PUMP_BYTES))
    try:
        while not reading.done():
            await asyncio.wait([reading], timeout=CLIENT_CHECK_SECONDS)
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError("the client has gone")
        return reading.result()
    finally:
        reading.cancel()


@web.middleware
async def _sentences(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal is JSON with one sentence."""
    try:
        return await handler(request)
    except Refused as refused:
        headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else {}
        headers |= {"Retry-After": str(refused.retry_after)} if refused.retry_after else {}
        return web.json_response({"error": str(refused), **refused.beside}, status=refused.status, headers=headers)
    except web.HTTPRequestEntityTooLarge:
        return web.json_response({"error": f"the request is larger than {MAX_BODY} bytes"}, status=413)
    except web.HTTPException as error:
        return web.json_response({"error": f"{request.method} {request.path}: {error.reason}"}, status=error.status)


def _tap_of(request: web.Request) -> TapName | None:
    text = request.query.get("tap", "")
    return parse_tap(text) if text else None


def _selection_of(request: web.Request) -> Selection:
    text = request.query.get("filter", "")
    if len(text.encode()) > MAX_FILTER or "\0" in text:
        raise Refused(f"filter: at most {MAX_FILTER} bytes, none of them zero")
    check_filter(text)
    every = _number(request, "every", float, MAX_EVERY)
    count = _number(request, "count", int, MAX_COUNT)
    if every and not count:
        raise Refused("count: `every` needs it, as in every=10&count=10")
    return Selection(text, every, int(count))


def _number(request: web.Request, name: str, kind: Callable[[str], float], limit: float) -> float:
    text = request.query.get(name, "")
    if not text:
        return 0
    try:
        value = kind(text)
    except ValueError:
        raise Refused(f"{name}: {text!r} is no number") from None
    if not 0 < value <= limit:
        raise Refused(f"{name}: must be above 0 and at most {limit:g}")
    return value


def _iso(time_ns: int) -> str | None:
    """RFC 3339 with nanoseconds, UTC; None for no time at all."""
    if time_ns == 0:
        return None
    seconds, rest = divmod(time_ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
    except (OverflowError, ValueError):
        return None
