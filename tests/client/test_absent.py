"""What is known not to exist at its origin, as the client reads it from a real server."""

from __future__ import annotations

from cacheservice.client import Client, Outcome
from cacheservice.v1 import cache_pb2 as pb


async def set_absent(cache: Client, key: str) -> pb.SetResponse:
    request = pb.SetRequest(key=key, absent=True, ttl_seconds=60)
    return await cache.nodes.call(
        lambda node, timeout: node.cache.Set(request, timeout=timeout), repeatable=True
    )


async def test_absent_is_a_miss_to_get_and_get_many(cache: Client) -> None:
    await set_absent(cache, "absent")
    await cache.set("empty", b"")
    await cache.set("full", b"v")
    assert await cache.get("absent") is None
    assert await cache.get("absent", b"default") == b"default"
    assert await cache.get("absent", b"default", read_preference="nearest") == b"default"
    assert await cache.get_many(["absent", "empty", "full", "missing"]) == {"empty": b"", "full": b"v"}


async def test_lookup_tells_absent_from_missing(cache: Client) -> None:
    stored = await set_absent(cache, "absent")
    found = await cache.lookup("absent")
    assert (found.outcome, found.found, found.stale, found.value) == (Outcome.ABSENT, False, False, None)
    assert found.version == stored.version
    assert 30 < found.ttl <= 60
    assert (await cache.lookup("missing")).outcome is Outcome.MISS


async def test_a_scan_tells_absent_from_empty(cache: Client) -> None:
    await set_absent(cache, "absent")
    await cache.set("empty", b"")
    entries = {entry.key: (entry.absent, entry.value) async for entry in cache.scan(values=True)}
    assert entries == {"absent": (True, None), "empty": (False, b"")}


async def test_a_value_takes_the_place_of_absent(cache: Client) -> None:
    await set_absent(cache, "a")
    await cache.set("a", b"v")
    assert await cache.get("a") == b"v"
    await set_absent(cache, "a")
    assert await cache.get("a") is None
