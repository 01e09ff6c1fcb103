"""Lists and watches survive what an API server does to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bench.api_server import StandIn
from vtap_operator import reflector
from vtap_operator.access import Access, Credentials
from vtap_operator.audit import Audit
from vtap_operator.client import Client
from vtap_operator.errors import ApiError
from vtap_operator.keeping import KeyedSink
from vtap_operator.reflector import Reflector
from vtap_operator.resources import PODS, VIRTUAL_TAPS
from vtap_operator.wire import Bare
from vtap_operator.work import Queue

PATIENCE = 30.0


async def until(what: str, holds: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"this did not happen: {what}")


class World:
    """What a sink was told."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}

    def sink(self) -> KeyedSink[Bare, str]:
        return KeyedSink(lambda item: item.metadata.name, self._put, self._drop)

    def _drop(self, name: str) -> None:
        self.there.pop(name, "")

    def _put(self, item: Bare) -> None:
        self.there[item.metadata.name] = (item.metadata.labels or {}).get("v", "")


def pod(name: str, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "shop", "labels": {"v": version}}, "spec": {}}


def with_server(
    test: Callable[[StandIn, Client], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, bookmarks: float = 30.0
) -> None:
    monkeypatch.setattr(reflector, "BACKOFF", (0.01,))
    monkeypatch.setattr(reflector, "PAGE", 3)
    monkeypatch.setattr("vtap_operator.client.BACKOFFS", (0.01, 0.01))

    async def main() -> None:
        async with StandIn(bookmarks=bookmarks) as stand_in, Client(Access(stand_in.url)) as client:
            await test(stand_in, client)

    asyncio.run(main())


@pytest.mark.parametrize("metadata_only", [False, True])
def test_what_is_there_comes_page_by_page_and_then_what_happens(monkeypatch: pytest.MonkeyPatch, metadata_only: bool) -> None:
    async def test(server: StandIn, client: Client) -> None:
        for number in range(8):
            server[PODS].put(pod(f"p{number}"))
        world = World()
        one = Reflector(client, PODS, Bare, world.sink(), metadata_only=metadata_only)
        task = asyncio.create_task(one.run())
        await one.synced.wait()
        assert len(world.there) == 8 and server[PODS].pages == 3
        server[PODS].put(pod("p1", "2"))
        server[PODS].put(pod("new"))
        server[PODS].drop(("shop", "p0"))
        await until("events arrive", lambda: "new" in world.there and "p0" not in world.there and world.there["p1"] == "2")
        task.cancel()

    with_server(test, monkeypatch)


def test_what_went_while_the_watch_was_too_old_is_gone_after_410(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: StandIn, client: Client) -> None:
        for number in range(5):
            server[PODS].put(pod(f"p{number}"))
        world = World()
        one = Reflector(client, PODS, Bare, world.sink())
        task = asyncio.create_task(one.run())
        await until("it watches", lambda: bool(server[PODS].watchers))
        server[PODS].objects.pop(("shop", "p3"))
        server[PODS].forget()
        await until("it listed anew", lambda: "p3" not in world.there)
        assert len(world.there) == 4
        server[PODS].put(pod("later"))
        await until("it watches again", lambda: "later" in world.there)
        task.cancel()

    with_server(test, monkeypatch)


def test_a_listing_that_expires_half_way_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: StandIn, client: Client) -> None:
        for number in range(9):
            server[PODS].put(pod(f"p{number}"))
        pages = server[PODS].page

        def page(*arguments: Any) -> Any:
            answer = pages(*arguments)
            if server[PODS].pages == 2:
                server[PODS].oldest = server.clock.tick()
            return answer

        monkeypatch.setattr(server[PODS], "page", page)
        world = World()
        one = Reflector(client, PODS, Bare, world.sink())
        task = asyncio.create_task(one.run())
        await one.synced.wait()
        assert len(world.there) == 9 and server[PODS].pages == 5
        task.cancel()

    with_server(test, monkeypatch)


def test_errors_that_pass_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: StandIn, client: Client) -> None:
        server[PODS].put(pod("a"))
        server.failing.extend([500, 429, 503, 500, 500])
        world = World()
        one = Reflector(client, PODS, Bare, world.sink())
        task = asyncio.create_task(one.run())
        await asyncio.wait_for(one.synced.wait(), PATIENCE)
        assert world.there == {"a": "1"}
        task.cancel()

    with_server(test, monkeypatch)


def test_a_silent_watch_is_given_up_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "SILENCE", 0.3)

    async def test(server: StandIn, client: Client) -> None:
        world = World()
        one = Reflector(client, PODS, Bare, world.sink())
        task = asyncio.create_task(one.run())
        watch = lambda: sum(1 for method, path in server.requests if path.endswith("/pods"))  # noqa: E731
        await until("it watched twice after one list", lambda: watch() >= 3)
        assert server[PODS].pages == 1
        server[PODS].put(pod("a"))
        await until("nothing is missed", lambda: "a" in world.there)
        task.cancel()

    with_server(test, monkeypatch, bookmarks=60.0)


def test_bookmarks_are_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "SILENCE", 5.0)

    async def test(server: StandIn, client: Client) -> None:
        one = Reflector(client, PODS, Bare, World().sink())
        task = asyncio.create_task(one.run())
        await one.synced.wait()
        heard = one.heard
        await until("a bookmark is heard", lambda: one.heard > heard)
        task.cancel()

    with_server(test, monkeypatch, bookmarks=0.1)


def test_a_refusal_is_a_sentence_with_the_api_servers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: StandIn, client: Client) -> None:
        server.failing.append(403)
        with pytest.raises(ApiError, match="asked to fail") as refused:
            await client.apply(VIRTUAL_TAPS, {"metadata": {"name": "a", "namespace": "b"}})
        assert refused.value.status == 403 and not refused.value.passing
        await client.delete(VIRTUAL_TAPS, "never-was", "b")
        assert await client.merge(VIRTUAL_TAPS, "never-was", {}, namespace="b") is None

    with_server(test, monkeypatch)


def test_an_audit_finds_what_nobody_told_us(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: StandIn, client: Client) -> None:
        known: dict[str, tuple[str, str]] = {}
        audit = Audit(client, PODS, lambda: known, lambda name: known.pop(name))  # type: ignore[arg-type, return-value]
        made = server[PODS].put(pod("a"))["metadata"]
        await audit.look()
        assert not audit.synced.is_set(), "an object that we were not told of yet"
        known["shop/a"] = (made["uid"], made["resourceVersion"])
        known["shop/b"] = ("u", "1")
        await audit.look()
        assert audit.synced.is_set() and set(known) == {"shop/a"} and audit.lag == 0
        server[PODS].put(pod("a", "2"))
        await audit.look()
        await audit.look()
        assert audit.lag > 0, "there is a newer one"

    with_server(test, monkeypatch)


def test_what_fails_is_tried_again_and_what_is_marked_meanwhile_is_looked_at_once_more() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def handle(key: str) -> None:
            seen.append(key)
            if seen == ["a"]:
                raise ApiError(409, "Conflict", "somebody was faster")
            if seen.count("b") == 1 and key == "b":
                queue.mark("b", "b")

        queue = Queue[str]("test", handle)
        task = asyncio.create_task(queue.run())
        queue.mark("a", "a")
        await until("it was tried again", lambda: seen.count("a") == 2)
        queue.mark("b")
        await until("it was looked at twice", lambda: seen.count("b") == 2)
        await until("nothing is left", lambda: queue.idle)
        assert seen == ["a", "a", "b", "b"]
        task.cancel()

    asyncio.run(main())


def test_what_failed_and_is_offered_again_and_again_waits_for_its_time() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def handle(key: str) -> None:
            seen.append(key)
            raise ApiError(403, "Forbidden", "a webhook forbids it")

        queue = Queue[str]("test", handle)
        task = asyncio.create_task(queue.run())
        begun, offers = time.monotonic(), 0
        while offers < 2 or time.monotonic() - begun < 0.2:
            queue.offer(["a"])
            offers += 1
            await asyncio.sleep(0.001)
        assert seen == ["a"], "the next try is due in half a second"
        task.cancel()

    asyncio.run(main())


def test_a_rotated_token_is_read_again(tmp_path: Any) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    access = Access("https://192.0.2.1", token_file=file)
    assert access.credentials() == Credentials(token="one")
    file.write_text("two\n")
    assert access.credentials().token == "two" and access.for_kopf().token == "two"
