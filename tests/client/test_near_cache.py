"""The client's near cache, against real nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest

from cacheservice.client import Client, NearCache, Outcome, SyncClient
from cacheservice.client.batch import Reads
from cacheservice.client.exchange import Exchange
from cacheservice.client.versioned import VersionedReads
from cacheservice.client.waiting import Caller
from cacheservice.config import Settings
from cacheservice.ring import Ring, RingMember
from cacheservice.server.app import NodeServer
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1.admin_pb2 import StatsRequest
from tests.client.leaving import TIMES, pending, request_of, taken

NAMES = ("n1", "n2", "n3")
DEADLINE_SECONDS = 20
Routing = Literal["direct", "proxy"]


class Cluster:
    """Real nodes in this process, and clients of them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.servers: dict[str, NodeServer] = {}

    async def start(self, *names: str) -> None:
        for name in names:
            seeds = tuple(f"127.0.0.1:{server.port}" for server in self.servers.values())
            server = NodeServer(
                Settings(node_id=name, listen="127.0.0.1:0", drain_seconds=0, seeds=seeds, zone=name)
            )
            await server.start()
            self.servers[name] = server
            self._stack.push_async_callback(server.stop)
            await server.join()

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.servers[name].port}"

    async def client(self, **options: Any) -> Client:
        return await self._stack.enter_async_context(Client(self.address("n1"), timeout=10, **options))

    async def near(self, routing: Routing = "direct", **options: Any) -> Client:
        """A client with a near cache that hears all nodes."""
        near_cache = NearCache(prefixes=("near:",))
        cache = await self.client(routing=routing, near_cache=near_cache, **options)
        await cache.get("near:")
        # One that relays the others is heard before them.
        await until(lambda: heard_by(cache) >= len(self.servers))
        await hears(cache)
        return cache

    async def asked(self, cache: Client) -> int:
        """How often nodes have looked for an entry."""
        stats = [
            await cache.nodes.at(self.address(name)).admin.Stats(StatsRequest()) for name in self.servers
        ]
        return sum(answer.hits + answer.misses for answer in stats)


def copies_of(cache: Client) -> Any:
    assert cache._near is not None
    return cache._near.copies


def heard_by(cache: Client) -> int:
    """How many nodes the client hears."""
    assert cache._near is not None
    return sum(until > 0 for until, _ in cache._near.watch._sources._heard.values())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def hears(cache: Client) -> None:
    await until(lambda: copies_of(cache).begin() is not None)


async def kept(cache: Client, key: str) -> bytes | None:
    """Reads until there is a copy; that one."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while copies_of(cache).get(key) is None:
            await cache.get(key)
    value: bytes | None = copies_of(cache).get(key)
    return value


async def dropped(cache: Client, key: str) -> None:
    await until(lambda: copies_of(cache).get(key) is None)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


@pytest.fixture(params=["direct", "proxy"])
def routing(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_what_was_read_is_not_asked_for_again(cluster: Cluster, routing: Routing) -> None:
    await cluster.start(*NAMES)
    other = await cluster.client()
    values = {f"near:{number}": str(number).encode() for number in range(100)} | {"near:empty": b""}
    await other.set_many({**values, "far": b"v"})
    cache = await cluster.near(routing)
    for key, value in values.items():
        assert await kept(cache, key) == value
    before = await cluster.asked(cache)
    assert [await cache.get(key) for key in values] == list(values.values())
    assert await cache.get_many(values) == values
    assert await cluster.asked(cache) == before
    assert await cache.get_many([*values, "far", "near:missing"]) == {**values, "far": b"v"}
    assert await cluster.asked(cache) == before + 2
    assert (await cache.lookup("near:1")).value == b"1"
    assert await cluster.asked(cache) == before + 3
    assert await cache.get("far") == b"v"
    assert copies_of(cache).get("far") is None
    assert await cache.get("near:missing", b"default") == b"default"
    assert await cluster.asked(cache) == before + 5


CHANGES: dict[str, Callable[[Client], Awaitable[object]]] = {
    "set": lambda other: other.set("near:1", b"9"),
    "set if present": lambda other: other.set("near:1", b"9", if_present=True),
    "delete": lambda other: other.delete("near:1"),
    "touch": lambda other: other.touch("near:1", 60),
    "incr": lambda other: other.incr("near:1"),
    "set many": lambda other: other.set_many({"near:1": b"9", "other": b""}),
    "delete many": lambda other: other.delete_many(["near:1", "other"]),
    "invalidate tag": lambda other: other.invalidate_tag("t"),
    "invalidate prefix": lambda other: other.invalidate_prefix("near:"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_others_change_is_dropped(cluster: Cluster, routing: Routing, change: str) -> None:
    await cluster.start("n1", "n2")
    other = await cluster.client()
    await other.set("near:1", b"1", tags=["t"])
    cache = await cluster.near(routing)
    assert await kept(cache, "near:1") == b"1"
    await CHANGES[change](other)
    await dropped(cache, "near:1")
    assert await cache.get("near:1") == await other.get("near:1")


@pytest.mark.parametrize("change", CHANGES)
async def test_what_a_client_changes_itself_it_reads(cluster: Cluster, change: str) -> None:
    await cluster.start("n1")
    other = await cluster.client()
    await other.set("near:1", b"1", tags=["t"])
    cache = await cluster.near()
    assert await kept(cache, "near:1") == b"1"
    await CHANGES[change](cache)
    assert copies_of(cache).get("near:1") is None
    assert await cache.get("near:1") == await other.get("near:1")


@pytest.mark.parametrize("change", ["set", "delete", "invalidate tag", "invalidate prefix"])
async def test_an_answer_that_a_change_overtook_is_not_kept(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The node answers, another client changes the entry, and only then the answer is taken."""
    await cluster.start("n1")
    other = await cluster.client()
    await other.set("near:1", b"1", tags=["t"])
    cache = await cluster.near()
    answered, let_go = asyncio.Event(), asyncio.Event()

    class HeldUp:
        """The exchange, whose answers to reads of many are taken late."""

        def __init__(self, exchange: Exchange) -> None:
            self._exchange = exchange

        def __getattr__(self, name: str) -> Any:
            return getattr(self._exchange, name)

        async def read_many(self, *arguments: Any, **options: Any) -> Any:
            found = await self._exchange.read_many(*arguments, **options)
            answered.set()
            await let_go.wait()
            return found

    monkeypatch.setattr(cache, "_opened", HeldUp(cache._exchange))
    reading = asyncio.create_task(cache.get("near:1"))
    await answered.wait()
    before = copies_of(cache)._changes, copies_of(cache)._era
    await CHANGES[change](other)
    await until(lambda: (copies_of(cache)._changes, copies_of(cache)._era) != before)
    let_go.set()
    assert await reading == b"1"
    assert copies_of(cache).get("near:1") is None
    assert await cache.get("near:1") == await other.get("near:1")


async def test_stale_and_absent_entries_are_not_kept(cluster: Cluster) -> None:
    await cluster.start("n1")
    other = await cluster.client()
    cache = await cluster.near()
    await other.set("near:1", b"1", ttl=0.001, stale=60)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await other.lookup("near:1")).outcome is not Outcome.STALE:
            await asyncio.sleep(0.01)
    absent = pb.SetRequest(key="near:2", absent=True, ttl_seconds=60)
    await other.nodes.at(cluster.address("n1")).cache.Set(absent)
    await hears(cache)
    for _ in range(2):
        assert await cache.get("near:1") == b"1"
        assert await cache.get("near:2") is None
        assert await cache.get_many(["near:1", "near:2"]) == {"near:1": b"1"}
    assert await other.get("near:2", b"default") == b"default"
    assert await other.get_many(["near:1", "near:2"]) == {"near:1": b"1"}
    assert (await other.lookup("near:2")).found is False
    assert len(copies_of(cache)) == 0


async def test_a_copy_goes_when_its_entry_expires(cluster: Cluster) -> None:
    await cluster.start("n1")
    cache = await cluster.near()
    await cache.set("near:1", b"1", ttl=2)
    assert await kept(cache, "near:1") == b"1"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await cache.get("near:1") is not None:
            await asyncio.sleep(0.01)


async def test_what_is_kept_is_read_from_the_first_owner(cluster: Cluster) -> None:
    await cluster.start(*NAMES)
    ring = Ring([RingMember(name, name) for name in NAMES])
    other = await cluster.client()
    cache = await cluster.near(zone="n1", read_preference="nearest")
    key = next(
        f"near:{i}"
        for i in range(1_000)
        if ring.owners(f"near:{i}", 2)[0] != "n1" in ring.owners(f"near:{i}", 2)
    )
    await other.set(key, b"v")
    assert await kept(cache, key) == b"v"


async def test_everything_is_dropped_when_a_stream_ends_and_kept_again_when_all_are_heard(
    cluster: Cluster, routing: Routing
) -> None:
    await cluster.start("n1", "n2")
    cache = await cluster.near(routing)
    keys = [f"near:{number}" for number in range(20)]
    await cache.set_many(dict.fromkeys(keys, b"v"))
    for key in keys:
        await kept(cache, key)
    watches = cluster.servers["n2"]._watches
    watches.close()
    await until(lambda: not len(copies_of(cache)))
    assert await cache.get_many(keys) == dict.fromkeys(keys, b"v")
    assert not len(copies_of(cache))
    watches._closed = False
    await hears(cache)
    assert await kept(cache, keys[0]) == b"v"


async def test_a_node_that_joins_or_leaves_is_heard_before_copies_are_kept_again(
    cluster: Cluster, routing: Routing
) -> None:
    await cluster.start("n1", "n2")
    cache, other = await cluster.near(routing), await cluster.client()
    keys = [f"near:{number}" for number in range(50)]
    number = 0

    async def changes_are_heard() -> None:
        nonlocal number
        for key in keys:
            number += 1
            await other.set(key, str(number).encode())
        for key in keys:
            value = await kept(cache, key)
            assert value == await other.get(key)
            number += 1
            await other.set(key, str(number).encode())
            await dropped(cache, key)

    await changes_are_heard()
    era, epoch = copies_of(cache)._era, copies_of(cache).ring_epoch
    await cluster.start("n3")
    await until(lambda: copies_of(cache).ring_epoch != epoch)
    assert copies_of(cache)._era > era
    await hears(cache)
    await changes_are_heard()
    era, epoch = copies_of(cache)._era, copies_of(cache).ring_epoch
    await cluster.servers.pop("n2").stop()
    await until(lambda: copies_of(cache).ring_epoch != epoch)
    assert copies_of(cache)._era > era
    await hears(cache)
    await changes_are_heard()


async def test_a_gap_drops_everything(cluster: Cluster) -> None:
    await cluster.start("n1")
    cache = await cluster.near()
    await cache.set("near:1", b"1")
    await kept(cache, "near:1")
    events = cluster.servers["n1"]._node.events
    [[backlog]] = events._watchers.values()
    backlog._size = 1
    for _ in range(2):
        events._changed("near:other", 1)
    await until(lambda: not len(copies_of(cache)))
    await hears(cache)
    assert await kept(cache, "near:1") == b"1"


async def test_without_watch_nothing_is_kept(cluster: Cluster, routing: Routing) -> None:
    await cluster.start("n1")
    cluster.servers["n1"]._watches.close()
    cache = await cluster.client(routing=routing, near_cache=NearCache())
    await cache.set("a", b"v")
    for _ in range(3):
        assert await cache.get("a") == b"v"
    assert not len(copies_of(cache))


async def test_threads_have_it_too(cluster: Cluster) -> None:
    await cluster.start("n1")
    other = await cluster.client()
    await other.set("a", b"v")

    def read() -> None:
        with SyncClient(cluster.address("n1"), near_cache=NearCache()) as cache:
            while True:
                assert cache.get("a") == b"v"
                background = cache._background
                assert background is not None
                if copies_of(background._client).get("a") == b"v":
                    break

    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.to_thread(read)


async def test_reads_of_one_kind_leave_together() -> None:
    loop = asyncio.get_running_loop()
    waiting = pending()
    for number, kind in enumerate([Reads, Reads, VersionedReads, VersionedReads]):
        waiting.add(kind([str(number)], Caller(loop.create_future(), 1), TIMES))
    left = taken(waiting, under_way_large=100)
    assert [(type(batch), batch.keys) for batch in left] == [
        (Reads, ["0", "1"]),
        (VersionedReads, ["2", "3"]),
    ]
    request = request_of(left[1])
    assert (list(request.get.keys), request.get.values_only) == (["2", "3"], False)
