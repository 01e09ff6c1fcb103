"""Who may ask the collector what in a cluster: agents by certificate, readers by what the API server says of their token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from tests.unit.collector.core_library import idle_core
from vtap_collector import reviews
from vtap_collector import server as server_module
from vtap_collector.access import BEHIND_PROXY, ClusterAccess
from vtap_collector.certificates import Certificates
from vtap_collector.errors import CollectorError, Refused
from vtap_collector.main import parse_options
from vtap_collector.registry import Registry
from vtap_collector.reviews import (
    AUDIENCE,
    MAX_REVIEWS,
    MAX_REVIEWS_OF_ONE,
    REMEMBERED_SECONDS,
    InClusterApi,
    Reviewer,
)
from vtap_collector.server import Server
from vtap_collector.service import Service
from vtap_collector.sockets import Endpoint, listening_socket
from vtap_collector.storage import Storage

ANNOUNCEMENT: Mapping[str, Any] = {"version": 1, "addresses": ["10.0.0.1"], "taiOffset": 37, "streams": []}


class FakeApiServer:
    """Knows tokens and who may read in which namespaces ("" is all of them), and speaks as the API server does."""

    def __init__(self) -> None:
        self.users: dict[str, tuple[str, frozenset[str]]] = {}
        """Token → (user, audiences); no audiences: the API server's own."""
        self.readers: dict[str, set[str]] = {}
        self.asked = 0
        self.judged = 0

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes(
            [
                web.post("/apis/authentication.k8s.io/v1/tokenreviews", self._who),
                web.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", self._may),
            ]
        )
        return application

    async def _who(self, request: web.Request) -> web.Response:
        self.asked += 1
        assert request.headers["Authorization"] == "Bearer collectors-own"
        spec = (await request.json())["spec"]
        user, audiences = self.users.get(spec["token"], ("", frozenset[str]()))
        wanted = frozenset(spec.get("audiences", []))
        if not user or wanted != audiences:
            return web.json_response({"status": {"authenticated": False}}, status=201)
        said = {
            "authenticated": True,
            "audiences": sorted(audiences),
            "user": {"username": user, "groups": ["system:authenticated"]},
        }
        return web.json_response({"status": said}, status=201)

    async def _may(self, request: web.Request) -> web.Response:
        self.judged += 1
        spec = (await request.json())["spec"]
        attributes = spec["resourceAttributes"]
        assert (attributes["group"], attributes["resource"], attributes["subresource"]) == ("vtap.dev", "virtualtaps", "packets")
        allowed = self.readers.get(spec["user"], set())
        return web.json_response({"status": {"allowed": attributes.get("namespace", "") in allowed or "" in allowed}}, status=201)


class Site:
    """A collector that serves HTTPS on loopback, and an API server behind it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.api = FakeApiServer()
        self.authority = trustme.CA()
        self.tls = directory / "tls"
        self.tls.mkdir()
        self.write_certificate(self.authority)
        self.url = ""
        self.later = 0.0
        """Seconds by which the judge's clock is ahead."""

    def clock(self) -> float:
        return time.monotonic() + self.later

    def write_certificate(self, authority: trustme.CA) -> None:
        made = authority.issue_cert("localhost", common_name="collector")
        authority.cert_pem.write_to_path(self.tls / "ca.crt")
        made.cert_chain_pems[0].write_to_path(self.tls / "tls.crt")
        made.private_key_pem.write_to_path(self.tls / "tls.key")

    def client(self, common_name: str = "", authority: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if common_name:
            (authority or self.authority).issue_cert("agent.invalid", common_name=common_name).configure_cert(context)
        return context

    def run(self, scenario: Callable[[Certificates], Awaitable[None]]) -> None:
        """With the collector serving. The core outlives the event loop, as in the collector itself."""
        files = self.directory / "files"
        files.mkdir()
        (self.directory / "token").write_text("collectors-own\n")
        with idle_core(files) as core:
            core.start()
            asyncio.run(self._serve(Service(core, Registry(core, core.settings), Storage(files), 0), scenario))

    async def _serve(self, service: Service, scenario: Callable[[Certificates], Awaitable[None]]) -> None:
        certificates = Certificates(self.tls)
        async with contextlib.AsyncExitStack() as stack:
            api_port = await _listen(stack, self.api.application(), None)
            # Plain HTTP here; the file given as the API server's CA is read all the same.
            api = InClusterApi(f"http://localhost:{api_port}", self.directory / "token", self.tls / "ca.crt")
            server = Server(service, ClusterAccess(Reviewer(api, self.clock)), {"status": "ok"}, ("10.0.0.9", "fd00::9"))
            port = await _listen(stack, server.application(trusted=False), certificates.context)
            self.url = f"https://localhost:{port}"
            await scenario(certificates)

    async def ask(
        self,
        method: str,
        path: str,
        context: ssl.SSLContext,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] = ANNOUNCEMENT,
    ) -> tuple[int, str]:
        sent = body if method != "GET" else None
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.url + path, ssl=context, headers=headers, json=sent) as answer,
        ):
            return answer.status, await answer.text()


async def _listen(stack: contextlib.AsyncExitStack, application: web.Application, context: ssl.SSLContext | None) -> int:
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    return runner.addresses[0][1]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path)


def announced(key: int, namespace: str, tap: str) -> Mapping[str, Any]:
    return {
        "key": key,
        "incarnation": f"{key:016x}",
        "trailer": True,
        "tap": {"namespace": namespace, "name": tap},
        "pod": {"namespace": namespace, "name": "web-0", "uid": "u"},
        "interface": "eth0",
        "direction": "Egress",
        "snapLength": 0,
    }


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_only_a_certificate_of_the_agents_opens_the_control_channel(site: Site) -> None:
    async def scenario(_certificates: Certificates) -> None:
        site.api.users["admin"] = ("admin", frozenset())
        site.api.readers["admin"] = {""}
        path = "/v1/nodes/node-1/streams"
        assert (await site.ask("PUT", path, site.client("vtap-agent")))[0] == 200
        status, said = await site.ask("PUT", path, site.client("somebody"))
        assert status == 403 and "client certificate of vtap-agent" in said
        assert (await site.ask("PUT", path, site.client(), bearer("admin")))[0] == 403
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await site.ask("PUT", path, site.client("vtap-agent", trustme.CA()))

    site.run(scenario)


def test_readers_are_judged_by_the_api_server(site: Site) -> None:
    async def scenario(_certificates: Certificates) -> None:
        site.api.users |= {
            "t-alice": ("alice", frozenset()),
            "t-bound": ("bob", frozenset({AUDIENCE})),
            "t-other": ("eve", frozenset({"vault"})),
        }
        site.api.readers |= {"alice": {"shop"}, "bob": {""}, "eve": {""}}
        plain = site.client()
        files = "/v1/files?tap=shop/checkout"
        assert (await site.ask("GET", files, plain, bearer("t-alice")))[0] == 200
        assert (await site.ask("GET", files, plain, {BEHIND_PROXY: "Bearer t-alice"}))[0] == 200
        status, said = await site.ask("GET", "/v1/files?tap=bank/vault", plain, bearer("t-alice"))
        assert status == 403 and "alice may not read packets in namespace bank" in said and "virtualtaps/packets" in said
        status, said = await site.ask("GET", "/v1/ledger", plain, bearer("t-alice"))
        assert status == 403 and "in all namespaces" in said
        assert (await site.ask("GET", "/v1/ledger", plain, bearer("t-bound")))[0] == 200
        for path in ("/v1/live?tap=shop/checkout", "/v1/stored?tap=shop/checkout", files, "/v1/ledger"):
            assert (await site.ask("GET", path, plain))[0] == 401
            assert (await site.ask("GET", path, plain, bearer("forged")))[0] == 401
            assert (await site.ask("GET", path, plain, bearer("t-other")))[0] == 401, "a token that was made for somebody else"
            assert (await site.ask("GET", path, site.client("vtap-agent")))[0] == 401, "agents read no packets"
        for path in ("/healthz", "/metrics"):
            assert (await site.ask("GET", path, plain))[0] == 200

    site.run(scenario)


def test_answers_are_remembered_for_a_while_only(site: Site) -> None:
    async def scenario(_certificates: Certificates) -> None:
        site.api.users["t"] = ("alice", frozenset())
        site.api.readers["alice"] = {"shop"}
        for _ in range(5):
            assert (await site.ask("GET", "/v1/files?tap=shop/checkout", site.client(), bearer("t")))[0] == 200
        assert site.api.asked == 2, "one review a kind of audience"
        site.api.readers["alice"] = set()
        site.later += REMEMBERED_SECONDS + 1
        assert (await site.ask("GET", "/v1/files?tap=shop/checkout", site.client(), bearer("t")))[0] == 403

    site.run(scenario)


def test_made_up_tokens_cost_the_api_server_little(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews, "STRANGERS_A_MINUTE", 5)

    async def scenario(_certificates: Certificates) -> None:
        path, plain = "/v1/files?tap=shop/checkout", site.client()
        site.api.users["t"], site.api.readers["alice"] = ("alice", frozenset()), {"shop"}
        assert (await site.ask("GET", path, plain, bearer("t")))[0] == 200
        for number in range(5):
            assert (await site.ask("GET", path, plain, bearer(f"made-up-{number}")))[0] == 401
        asked = site.api.asked
        status, said = await site.ask("GET", path, plain, bearer("one-more"))
        assert status == 429 and "too many bearer tokens" in said and site.api.asked == asked
        site.later += REMEMBERED_SECONDS + 1
        assert (await site.ask("GET", path, plain, bearer("t")))[0] == 200, "who was known goes on"
        assert (await site.ask("GET", path, plain, bearer("one-more")))[0] == 429
        site.later += 60
        assert (await site.ask("GET", path, plain, bearer("one-more")))[0] == 401

    site.run(scenario)


def test_few_requests_are_judged_at_a_time() -> None:
    class Slow:
        """Answers when it is let."""

        def __init__(self) -> None:
            self.asked, self.go_on = 0, asyncio.Event()

        async def create(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
            self.asked += 1
            await self.go_on.wait()
            return {"status": {"authenticated": False}}

    async def refusal(reviewer: Reviewer, token: str, source: str) -> Refused:
        with pytest.raises(Refused) as refused:
            await reviewer.admit(token, None, source)
        return refused.value

    async def main() -> None:
        api = Slow()
        reviewer = Reviewer(api)
        waiting = [
            asyncio.create_task(refusal(reviewer, f"{source}-{number}", source))
            for source in ("10.0.0.1", "10.0.0.2", "10.0.0.3")
            for number in range(MAX_REVIEWS_OF_ONE + 3)
        ]
        async with asyncio.timeout(10):
            while sum(task.done() for task in waiting) < len(waiting) - MAX_REVIEWS:
                await asyncio.sleep(0.01)
        assert api.asked == MAX_REVIEWS
        refused = [task.result() for task in waiting if task.done()]
        assert {(one.status, one.retry_after) for one in refused} == {(429, 1), (503, 1)}
        api.go_on.set()
        await asyncio.gather(*waiting)
        assert (await refusal(reviewer, "another", "10.0.0.1")).status == 401

    asyncio.run(main())


def test_no_answer_of_the_api_server_is_no_permission(site: Site) -> None:
    async def scenario(_certificates: Certificates) -> None:
        (site.directory / "token").unlink()
        status, said = await site.ask("GET", "/v1/files?tap=shop/checkout", site.client(), bearer("t"))
        assert status == 503 and "try again" in said

    site.run(scenario)


def test_a_tenant_sees_the_ledger_of_its_own_tap_alone(site: Site) -> None:
    async def scenario(_certificates: Certificates) -> None:
        site.api.users |= {"t-alice": ("alice", frozenset()), "t-admin": ("admin", frozenset())}
        site.api.readers |= {"alice": {"shop"}, "admin": {""}}
        streams = [announced(4096, "shop", "checkout"), announced(4097, "bank", "vault")]
        status, _said = await site.ask(
            "PUT", "/v1/nodes/node-1/streams", site.client("vtap-agent"), body={**ANNOUNCEMENT, "streams": streams}
        )
        assert status == 200
        status, said = await site.ask("GET", "/v1/ledger?tap=shop/checkout", site.client(), bearer("t-alice"))
        assert status == 200 and "checkout" in said and "vault" not in said
        status, said = await site.ask("GET", "/v1/ledger", site.client(), bearer("t-admin"))
        assert status == 200 and "checkout" in said and "vault" in said

    site.run(scenario)


def test_agents_are_told_where_the_collector_is_and_what_has_arrived(site: Site) -> None:
    async def scenario(_certificates: Certificates) -> None:
        path, agent = "/v1/nodes/node-1", site.client("vtap-agent")
        streams = [announced(4096, "shop", "checkout")]
        status, said = await site.ask("PUT", f"{path}/streams", agent, body={**ANNOUNCEMENT, "streams": streams})
        assert (status, json.loads(said)) == (200, {"addresses": ["10.0.0.9", "fd00::9"], "terms": True})
        total = {"key": 4096, "incarnation": f"{4096:016x}", "sent": 3, "nextSequence": 3}
        assert await site.ask("POST", f"{path}/totals", agent, body={"streams": [total]}) == (204, "")
        terms = {"seen": 8, "excluded": 2, "unsampled": 2, "limited": 0, "dropped": {"noRoute": 1}}
        unknown = {**total, "key": 5}
        rows = [{**total, "terms": terms}, unknown]
        status, said = await site.ask("POST", f"{path}/totals", agent, body={"streams": rows})
        arrived = {"key": 4096, "incarnation": f"{4096:016x}", "received": 0}
        assert (status, json.loads(said)) == (200, {"streams": [arrived]})
        site.api.users["t"], site.api.readers["alice"] = ("alice", frozenset()), {"shop"}
        status, said = await site.ask("GET", "/v1/ledger?tap=shop/checkout", site.client(), bearer("t"))
        ledger = json.loads(said)
        assert ledger["since"] and ledger["streams"][0]["agent"] == {**terms, "sent": 3}
        too_many = [{**announced(key, "shop", "checkout")} for key in range(17)]
        status, said = await site.ask("PUT", f"{path}/streams", agent, body={**ANNOUNCEMENT, "streams": too_many})
        assert status == 507 and json.loads(said)["addresses"] == ["10.0.0.9", "fd00::9"]

    site.run(scenario)


def test_a_live_reader_whose_right_is_withdrawn_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RECHECK_SECONDS", 0.05)

    async def scenario(_certificates: Certificates) -> None:
        site.api.users["t"] = ("alice", frozenset())
        site.api.readers["alice"] = {""}
        live = "/v1/live"
        async with (
            aiohttp.ClientSession() as session,
            session.get(site.url + live, ssl=site.client(), headers=bearer("t")) as answer,
        ):
            assert answer.status == 200
            assert len(await answer.content.readexactly(4)) == 4, "the section header has come"
            del site.api.users["t"]  # an expired token alone ends nothing
            asked = site.api.judged
            async with asyncio.timeout(10):
                while site.api.judged < asked + 2:
                    await asyncio.sleep(0.02)
            assert not answer.content.at_eof() and answer.content.exception() is None
            site.api.readers["alice"] = set()
            site.later += REMEMBERED_SECONDS + 1
            with pytest.raises(aiohttp.ClientError):
                async with asyncio.timeout(10):
                    await answer.content.read()

    site.run(scenario)


def test_new_certificates_are_served_and_bad_ones_are_not(site: Site) -> None:
    async def scenario(certificates: Certificates) -> None:
        (site.tls / "tls.key").write_text("no key")
        certificates.look()
        assert (await site.ask("GET", "/healthz", site.client()))[0] == 200
        newer = trustme.CA()
        site.write_certificate(newer)
        certificates.look()
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await site.ask("GET", "/healthz", site.client())
        site.authority = newer
        assert (await site.ask("PUT", "/v1/nodes/node-1/streams", site.client("vtap-agent")))[0] == 200

    site.run(scenario)


def test_missing_certificates_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CollectorError, match=r"--tls .*ca\.crt.*No such file"):
        Certificates(tmp_path)


def test_own_addresses_are_as_kubernetes_gives_them(tmp_path: Path) -> None:
    def parsed(text: str) -> tuple[str, ...]:
        return parse_options([f"--directory={tmp_path}", f"--own-addresses={text}"]).own_addresses

    assert parsed("10.244.1.5,fd00:0::5") == ("10.244.1.5", "fd00::5")
    assert parsed("") == ()
    with pytest.raises(CollectorError, match="--own-addresses here"):
        parsed("here")


def test_one_wildcard_takes_both_families() -> None:
    """The API server reaches pods by IPv4 in most clusters, and asyncio alone would listen on IPv6 only."""
    with listening_socket(Endpoint("::", 0)) as listening:
        listening.listen()
        port = listening.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5) as made:
                assert made.getpeername()[1] == port
