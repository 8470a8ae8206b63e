"""What the client does about hot keys: its table, rows that callers share, and whom it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cacheservice.client import Client
from cacheservice.client.batch import HotReads, Reads, Removals, Writes
from cacheservice.client.hot_keys import MAX_HOT, HotKeys
from cacheservice.client.pending import MAX_KEYS
from cacheservice.errors import CacheServiceError, InvalidArgument
from cacheservice.ring import Ring, RingMember
from cacheservice.server.app import NodeServer
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.v1 import cluster_pb2
from cacheservice.v1.admin_pb2 import StatsRequest
from tests.client.leaving import pending, request_of, taken
from tests.client.test_exchange import address_of, cluster

NAMES = ("n0", "n1", "n2")
RING = Ring(map(RingMember, NAMES))
LONG_MS = 600_000


def owned_by(*node_ids: str, but: str = "") -> str:
    """A key with these owners, in this order."""
    return next(key for key in map(str, range(1_000)) if RING.owners(key, 2) == node_ids and key != but)


KEY = owned_by("n0", "n1")


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_hot_from_the_last_answer_that_said_so_for_so_long() -> None:
    time = Time()
    hot = HotKeys(time)
    assert not hot.has_all(["a"])
    hot.note("a", 1_000)
    time.now += 0.9
    hot.note("b", 1_000)
    assert "a" in hot
    assert hot.has_all(["a", "b"])
    time.now += 0.1
    assert list(hot) == ["b"]
    assert "a" not in hot
    assert not hot.has_all(["a", "b"])
    time.now += 0.8
    hot.note("b", 1_000)
    time.now += 0.9
    assert list(hot) == ["b"]


def test_a_key_has_one_lot_for_as_long_as_it_is_hot() -> None:
    time = Time()
    hot = HotKeys(time, iter((0.1, 0.2, 0.3)).__next__)
    hot.note("a", 1_000)
    hot.note("b", 1_000)
    time.now += 0.9
    hot.note("a", 1_000)
    assert [hot.lot(key) for key in "ab"] == [0.1, 0.2]
    time.now += 0.1
    assert "b" not in hot
    hot.note("b", 1_000)
    assert [hot.lot(key) for key in "ab"] == [0.1, 0.3]


def test_callers_in_company_read_from_the_first_owner() -> None:
    hot = HotKeys(Time(), lambda: 0.9)
    hot.note("a", 1_000)
    assert hot.lot("a") == 0.9
    for _ in range(20):
        hot.note("a", 1_000, callers=4)
    assert hot.lot("a") == 0
    for _ in range(20):
        hot.note("a", 1_000, callers=2)
    assert hot.lot("a") == 0.9
    assert hot.lot("unknown") == 0


def test_the_table_is_bounded() -> None:
    hot = HotKeys(Time())
    hot.note("first", 1_000)
    for number in range(MAX_HOT - 1):
        hot.note(f"k{number}", 1_000)
    hot.note("first", 1_000)
    hot.note("last", 1_000)
    assert len(list(hot)) == MAX_HOT
    assert "k0" not in hot
    assert hot.has_all(["first", "k1", "last"])


def found(values: dict[str, bytes], *keys: str) -> pb.ExchangeResponse:
    outcomes = [pb.GET_OUTCOME_HIT if key in values else pb.GET_OUTCOME_MISS for key in keys]
    columns = pb.GetResultColumns(outcomes=outcomes, values=[values.get(key, b"") for key in keys])
    return pb.ExchangeResponse(get=columns)


async def test_who_asks_for_a_hot_key_at_the_same_time_shares_a_row() -> None:
    waiting = pending()
    futures = [waiting.read_hot(key) for key in "abaab"]
    plain = waiting.read("a")
    alone, batch = taken(waiting)
    assert (type(alone), alone.keys, type(batch), batch.keys) == (Reads, ["a"], HotReads, ["a", "b"])
    assert request_of(batch).get.read_preference == pb.READ_PREFERENCE_NEAREST
    assert request_of(alone).get.read_preference == pb.READ_PREFERENCE_UNSPECIFIED
    assert batch.settle(found({"a": b"1"}, "a", "b")) == ([], [])
    assert [future.result() for future in futures] == [b"1", None, b"1", b"1", None]
    assert not plain.done()
    assert [batch.waiting.callers(row) for row in range(2)] == [3, 2]
    assert alone.waiting.callers(0) == 1


async def test_who_gives_up_leaves_the_others_their_row() -> None:
    waiting = pending()
    first, second, other = waiting.read_hot("a"), waiting.read_hot("a"), waiting.read_hot("b")
    first.cancel()
    [batch] = taken(waiting)
    assert not batch.waiting.is_over
    response = found({"a": b"1"}, "a", "b")
    response.errors.add(index=1).status.code = 3
    batch.settle(response)
    assert second.result() == b"1"
    assert isinstance(other.exception(), CacheServiceError)
    alone = waiting.read_hot("a")
    alone.cancel()
    [batch] = taken(waiting)
    assert batch.waiting.is_over


async def test_an_error_is_everybodys() -> None:
    waiting = pending()
    futures = [waiting.read_hot("a") for _ in range(3)]
    [batch] = taken(waiting)
    batch.fail(InvalidArgument("no"))
    assert [str(future.exception()) for future in futures] == ["no"] * 3


async def test_so_many_share_a_row_and_no_more() -> None:
    waiting = pending()
    for _ in range(2 * MAX_KEYS + 1):
        waiting.read_hot("a")
    assert [batch.keys for batch in taken(waiting)] == [["a"]] * 3
    for number in range(MAX_KEYS + 1):
        waiting.read_hot(f"k{number}")
    assert [len(batch.keys) for batch in taken(waiting)] == [MAX_KEYS, 1]
    assert waiting.is_empty


async def test_what_changes_a_key_is_known_until_it_leaves() -> None:
    waiting = pending()
    waiting.read("read")
    waiting.write("written", b"", 0, 0)
    waiting.remove("removed")
    for _ in range(2):
        assert [waiting.changes(key) for key in ("read", "written", "removed")] == [False, True, True]
        waiting.seal()
    batches = taken(waiting)
    assert [type(batch) for batch in batches] == [Reads, Writes, Removals]
    assert not waiting.changes("written")
    assert [list(batch.changed) for batch in batches] == [[], ["written"], ["removed"]]


@pytest.fixture
async def servers(stack: AsyncExitStack) -> dict[str, NodeServer]:
    """Three nodes that have all been given what they own."""
    nodes = dict(zip(NAMES, await cluster(stack, len(NAMES)), strict=True))
    async with Client(address_of(nodes["n0"])) as cache, asyncio.timeout(20):
        for node in nodes.values():
            describe = cache.nodes.at(address_of(node)).cluster.Describe
            while [
                member.state for member in (await describe(cluster_pb2.DescribeRequest())).topology.members
            ] != [cluster_pb2.MEMBER_STATE_ALIVE] * len(NAMES):
                await asyncio.sleep(0.01)
    return nodes


Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
def connect(stack: AsyncExitStack, servers: dict[str, NodeServer]) -> Connect:
    async def open_client(*, hot_lot: float | None = None, **options: Any) -> Client:
        """A client that knows all nodes, one of which is behind any that it is given."""
        cache = await stack.enter_async_context(Client(address_of(servers["n0"]), timeout=10, **options))
        if hot_lot is not None:
            cache.hot = HotKeys(random=lambda: hot_lot)
        await cache.get(KEY)
        async with asyncio.timeout(20):
            while options.get("routing") != "proxy" and len(cache.nodes.addresses) < len(NAMES):
                await asyncio.sleep(0.01)
        return cache

    return open_client


async def reads_at(cache: Client, servers: dict[str, NodeServer]) -> dict[str, int]:
    """How often each of the nodes has looked for an entry."""
    stats = {
        name: await cache.nodes.at(address_of(node)).admin.Stats(StatsRequest())
        for name, node in servers.items()
    }
    return {name: answer.hits + answer.misses for name, answer in stats.items()}


async def spread(
    cache: Client, servers: dict[str, NodeServer], read: Callable[[], Awaitable[object]]
) -> set[str]:
    """The nodes that answer when something is read many times."""
    before = await reads_at(cache, servers)
    for _ in range(60):
        await read()
    after = await reads_at(cache, servers)
    return {name for name in servers if after[name] > before[name]}


async def heated(cache: Client) -> None:
    """Asks for the key until the client has been told that it is hot."""
    async with asyncio.timeout(60):
        while KEY not in cache.hot:
            await asyncio.gather(*(cache.get_many([KEY, f"other{number}"]) for number in range(500)))


async def test_a_key_that_is_asked_for_often_is_read_from_any_of_its_owners(
    servers: dict[str, NodeServer], connect: Connect
) -> None:
    """By all callers of a client from the same one."""
    cache = await connect()
    await cache.set(KEY, b"v")
    assert await spread(cache, servers, lambda: cache.get(KEY)) == {"n0"}
    for lot, owner in ((0.0, "n0"), (0.49, "n0"), (0.5, "n1"), (0.99, "n1")):
        cache = await connect(hot_lot=lot)
        await heated(cache)
        cache.hot.note(KEY, LONG_MS)
        assert await spread(cache, servers, lambda cache=cache: cache.get(KEY)) == {owner}  # type: ignore[misc]
        assert await spread(cache, servers, lambda cache=cache: cache.get_many([KEY])) == {owner}  # type: ignore[misc]
        assert list(cache.hot) == [KEY]


async def test_callers_who_share_their_reads_of_a_key_read_it_from_the_first_owner(
    servers: dict[str, NodeServer], connect: Connect
) -> None:
    cache = await connect(hot_lot=0.9)
    await cache.set(KEY, b"v")

    async def read_by_many() -> None:
        await asyncio.gather(*(cache.get(KEY) for _ in range(50)))

    async with asyncio.timeout(60):
        while KEY not in cache.hot:
            await read_by_many()
    cache.hot.note(KEY, LONG_MS)
    assert await spread(cache, servers, read_by_many) == {"n0"}


async def test_what_was_written_is_read_by_all_from_then_on(connect: Connect) -> None:
    writer = await connect()
    readers = [await connect(hot_lot=lot) for lot in (0.0, 0.9)]
    for reader in readers:
        reader.hot.note(KEY, LONG_MS)
    for number in range(100):
        value = str(number).encode()
        written = await writer.set(KEY, value)
        assert written.replicas == 2
        for reader in readers:
            assert await asyncio.gather(*(reader.get(KEY) for _ in range(3))) == [value] * 3
            assert await reader.get_many([KEY]) == {KEY: value}
    await writer.delete(KEY)
    assert [await reader.get(KEY) for reader in readers] == [None, None]


async def test_ones_own_writes_that_are_not_waited_for_are_read(connect: Connect) -> None:
    cache = await connect(hot_lot=0.9)
    cache.hot.note(KEY, LONG_MS)
    for number in range(100):
        value = str(number).encode()
        writing = asyncio.create_task(cache.set(KEY, value))
        reading = [asyncio.create_task(cache.get(KEY)) for _ in range(3)]
        assert [await read for read in reading] == [value] * 3
        removing = asyncio.create_task(cache.delete(KEY))
        assert await asyncio.create_task(cache.get(KEY)) is None
        assert await writing
        assert await removing


async def test_a_replica_that_lacks_the_entry_asks_the_first_owner(
    servers: dict[str, NodeServer], connect: Connect
) -> None:
    cache = await connect(hot_lot=0.9)
    missing = owned_by("n0", "n1", but=KEY)
    cache.hot.note(missing, LONG_MS)
    assert await spread(cache, servers, lambda: cache.get(missing)) == {"n0"}
    assert [await cache.get(missing) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize(("name", "lot"), [("n0", 0.0), ("n1", 0.9)])
async def test_the_other_owner_answers_when_one_stops(
    servers: dict[str, NodeServer], connect: Connect, name: str, lot: float
) -> None:
    cache = await connect(hot_lot=lot)
    await cache.set(KEY, b"v")
    cache.hot.note(KEY, LONG_MS)
    for number in range(50):
        if number == 10:
            stopping = asyncio.create_task(servers[name].stop())
        assert await cache.get(KEY) == b"v"
    await stopping
    assert await asyncio.gather(*(cache.get(KEY) for _ in range(50))) == [b"v"] * 50


async def test_with_proxy_routing_no_key_is_hot(connect: Connect) -> None:
    cache, others = await connect(routing="proxy"), await connect()
    await others.set(KEY, b"v")
    await heated(others)
    assert await cache.get(KEY) == b"v"
    assert list(cache.hot) == []
