"""Invalidation and scans by the client, against real servers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from cacheservice.client import Client, EntryInfo, Invalidated, SyncClient
from cacheservice.client import scan as scan_module
from cacheservice.errors import InvalidArgument
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.cache_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from tests.client.conftest import DIRECT, PROXY, Way, in_ways

pytest_generate_tests = in_ways(*DIRECT, *PROXY)


async def test_a_tag_takes_its_entries_with_it(cache: Client) -> None:
    await cache.set("a", b"1", tags=["red", "round"])
    await cache.set("b", b"2", tags=["red"])
    await cache.set("c", b"3")
    assert await cache.invalidate_tag("round") == Invalidated(1, ())
    assert await cache.invalidate_tag("red") == Invalidated(1, ())
    assert await cache.get_many("abc") == {"c": b"3"}


async def test_a_prefix_takes_its_entries_with_it(cache: Client) -> None:
    await cache.set_many({"user:1": b"1", "user:2": b"2", "use": b"3"})
    assert await cache.invalidate_prefix("user:") == Invalidated(2, ())
    assert await cache.get_many(["user:1", "user:2", "use"]) == {"use": b"3"}


async def test_a_scan_lists_each_entry_once_over_many_pages(
    cache: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "PAGE_SIZE", 7)
    await cache.set_many({f"user:{number}": b"v" for number in range(50)})
    await cache.set("other", b"v")
    found = cache.scan("user:")
    assert sorted([entry.key async for entry in found]) == sorted(f"user:{number}" for number in range(50))
    assert found.unreachable == ()
    assert len([entry async for entry in cache.scan()]) == 51
    assert [entry async for entry in cache.scan("nothing")] == []


async def test_what_a_scan_tells_of_an_entry(cache: Client) -> None:
    stored = await cache.set("a", b"value", ttl=60, stale=5, tags=["t"])
    [entry] = [each async for each in cache.scan()]
    assert (entry.key, entry.size, entry.version, entry.tags) == ("a", 5, stored.version, ("t",))
    assert 30 < entry.ttl <= 60
    assert 0 <= entry.age < 30
    assert (entry.stale, entry.load, entry.value) == (5, 0, None)
    assert [each.value async for each in cache.scan(values=True)] == [b"value"]
    await cache.set("a", b"")
    assert [each.value async for each in cache.scan(values=True)] == [b""]


@pytest.mark.parametrize("wrong", [None, b"bytes", 5])
async def test_arguments_of_another_type(cache: Client, wrong: Any) -> None:
    for call in (cache.invalidate_tag, cache.invalidate_prefix):
        with pytest.raises(TypeError, match="must be str"):
            await call(wrong)
    with pytest.raises(TypeError, match="must be str"):
        cache.scan(wrong)


Call = Callable[[Client], Any]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda cache: cache.invalidate_tag("\udcff"), "tag"),
        (lambda cache: cache.invalidate_tag(""), "tag"),
        (lambda cache: cache.invalidate_prefix("\udcff"), "prefix"),
        (lambda cache: cache.invalidate_prefix(""), "prefix"),
        (lambda cache: anext(aiter(cache.scan("\udcff"))), "prefix"),
        (lambda cache: anext(aiter(cache.scan("x" * 2_000))), "prefix"),
    ],
)
async def test_arguments_out_of_bounds(cache: Client, call: Call, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call(cache)
    assert caught.value.metadata["field"] == field


class OneNodeMissing(CacheServiceServicer):
    """Answers as a node that cannot reach another one."""

    async def InvalidateTag(self, request: pb.InvalidateTagRequest, context: Any) -> pb.InvalidateTagResponse:  # noqa: N802
        return pb.InvalidateTagResponse(removed=3, unreachable=["n2"])

    async def Scan(self, request: pb.ScanRequest, context: Any) -> pb.ScanResponse:  # noqa: N802
        if not request.page_token:
            return pb.ScanResponse(entries=[pb.EntryInfo(key="a")], next_page_token="1")
        if request.page_token == "1":
            return pb.ScanResponse(next_page_token="2", unreachable=["n2"])
        return pb.ScanResponse(entries=[pb.EntryInfo(key="b")], unreachable=["n2", "n3"])


async def test_nodes_that_gave_no_answer_are_named(stack: AsyncExitStack) -> None:
    server = grpc.aio.server()
    add_CacheServiceServicer_to_server(OneNodeMissing(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, 0)
    async with Client(f"127.0.0.1:{port}", routing="proxy", timeout=5) as cache:
        assert await cache.invalidate_tag("t") == Invalidated(3, ("n2",))
        found = cache.scan()
        assert [(entry.key, found.unreachable) async for entry in found] == [("a", ()), ("b", ("n2", "n3"))]


async def test_the_same_for_threads(address: str, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "PAGE_SIZE", 7)

    def work() -> tuple[list[EntryInfo], tuple[str, ...], list[Invalidated]]:
        with SyncClient(address, timeout=5, **way.options) as cache:
            for number in range(20):
                cache.set(f"user:{number}", b"v", tags=["t"] if number % 2 else [])
            found = cache.scan("user:", values=True)
            entries = list(found)
            removed = [cache.invalidate_tag("t"), cache.invalidate_prefix("user:")]
            assert list(cache.scan()) == []
            return entries, found.unreachable, removed

    entries, unreachable, removed = await asyncio.to_thread(work)
    assert sorted(entry.key for entry in entries) == sorted(f"user:{number}" for number in range(20))
    assert {entry.value for entry in entries} == {b"v"}
    assert unreachable == ()
    assert removed == [Invalidated(10, ()), Invalidated(10, ())]
