"""Reading and writing through the cache, against real servers in this process."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from cacheservice.client import Client, SyncClient
from cacheservice.config import NamespaceSettings, Settings
from cacheservice.errors import DeadlineExceeded, InvalidArgument, LoadFailed, Unavailable
from cacheservice.server.app import NodeServer
from cacheservice.v1.admin_pb2 import StatsRequest, StatsResponse
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from tests.client.conftest import DIRECT, PROXY, Start, Way, in_ways

pytest_generate_tests = in_ways(DIRECT[0], PROXY[1])

Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
async def address(start: Start) -> str:
    """That of a node."""
    namespaces = {
        "eager": NamespaceSettings(early_refresh=100),
        "short": NamespaceSettings(lease_seconds=1),
    }
    return await start(namespaces=namespaces)


@pytest.fixture
def connect(address: str, stack: AsyncExitStack, way: Way) -> Connect:
    """A client of its own, as another process has one."""

    async def connected(**options: Any) -> Client:
        return await stack.enter_async_context(Client(address, timeout=5, **way.options, **options))

    return connected


@pytest.fixture
async def cache(connect: Connect) -> Client:
    return await connect()


class Origin:
    """Loads from a dict, once it may; counts the calls."""

    def __init__(self, **values: bytes) -> None:
        self.values = values
        self.calls: list[list[str]] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.error: Exception | None = None
        self.at_once = self.most_at_once = 0

    async def load(self, key: str) -> bytes | None:
        return (await self.load_many([key])).get(key)

    async def load_many(self, keys: list[str]) -> dict[str, bytes]:
        self.calls.append(keys)
        found = {key: self.values[key] for key in keys if key in self.values}
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.may_go_on.wait()
        self.at_once -= 1
        if self.error is not None:
            raise self.error
        return found

    async def has_been_called(self, times: int) -> None:
        async with asyncio.timeout(10):
            while len(self.calls) < times:
                await asyncio.sleep(0)


async def all_wait(*tasks: asyncio.Task[Any]) -> None:
    """Until whatever the tasks can do at once is done."""
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not any(task.done() for task in tasks)


async def test_what_is_missing_is_loaded_once_and_cached(cache: Client) -> None:
    origin = Origin(a=b"1")
    assert await cache.get_or_load("a", origin.load, ttl=60) == b"1"
    assert await cache.get_or_load("a", origin.load, ttl=60) == b"1"
    assert origin.calls == [["a"]]
    found = await cache.lookup("a")
    assert found.value == b"1"
    assert 30 < found.ttl <= 60


async def test_callers_in_one_process_share_a_load(cache: Client) -> None:
    origin = Origin(a=b"1")
    found = await asyncio.gather(*(cache.get_or_load("a", origin.load) for _ in range(200)))
    assert set(found) == {b"1"}
    assert len(origin.calls) == 1


async def test_callers_in_several_processes_share_a_load(connect: Connect) -> None:
    origin = Origin(a=b"1")
    clients = [await connect() for _ in range(5)]
    reads = (client.get_or_load("a", origin.load) for client in clients for _ in range(40))
    assert set(await asyncio.gather(*reads)) == {b"1"}
    assert len(origin.calls) == 1


async def test_many_keys_are_one_load(cache: Client) -> None:
    origin = Origin(b=b"2", c=b"3")
    await cache.set("a", b"1")
    found = await cache.get_or_load_many(["a", "b", "c", "d"], origin.load_many, ttl=60, absent_ttl=60)
    assert found == {"a": b"1", "b": b"2", "c": b"3"}
    assert origin.calls == [["b", "c", "d"]]
    assert await cache.get_or_load_many("abcd", origin.load_many) == found
    assert len(origin.calls) == 1


async def test_callers_of_overlapping_keys_load_each_once(connect: Connect) -> None:
    origin = Origin(**{key: key.encode() for key in "abcdef"})
    first, second = await connect(), await connect()
    results = await asyncio.gather(
        *(
            client.get_or_load_many(keys, origin.load_many)
            for client in (first, second)
            for keys in ("abc", "bcd", "cde", "def")
        )
    )
    assert [set(result) for result in results] == [set("abc"), set("bcd"), set("cde"), set("def")] * 2
    assert sorted(key for call in origin.calls for key in call) == list("abcdef")


async def test_that_there_is_no_value_is_cached_too(cache: Client) -> None:
    origin = Origin()
    for _ in range(3):
        assert await cache.get_or_load("a", origin.load, absent_ttl=60) is None
    assert len(origin.calls) == 1
    assert await cache.get("a") is None


async def test_what_is_invalidated_during_its_load_is_not_cached(connect: Connect) -> None:
    origin = Origin(a=b"old")
    cache, other = await connect(), await connect()
    origin.may_go_on.clear()
    first = asyncio.create_task(cache.get_or_load("a", origin.load, tags=["t"]))
    await origin.has_been_called(1)
    origin.values["a"] = b"new"
    await other.invalidate_tag("t")
    waiting = asyncio.create_task(cache.get_or_load("a", origin.load))
    await all_wait(first, waiting)
    origin.may_go_on.set()
    assert await first == b"old"
    assert await waiting == b"new"
    assert await other.get("a") == b"new"


async def test_a_loaders_error_reaches_its_waiters_and_leaves_nothing_stuck(connect: Connect) -> None:
    origin = Origin(a=b"1")
    cache, other = await connect(), await connect()
    origin.error = OSError("the database is down")
    origin.may_go_on.clear()
    here = [asyncio.create_task(cache.get_or_load("a", origin.load)) for _ in range(5)]
    await origin.has_been_called(1)
    elsewhere = asyncio.create_task(other.get_or_load("a", origin.load))
    await all_wait(*here, elsewhere)
    origin.may_go_on.set()
    for error in await asyncio.gather(*here, return_exceptions=True):
        assert error is origin.error
    with pytest.raises(LoadFailed, match="'a' could not be loaded: OSError: the database is down"):
        await elsewhere
    assert len(origin.calls) == 1
    origin.error = None
    async with asyncio.timeout(10):
        while True:
            try:
                assert await cache.get_or_load("a", origin.load) == b"1"
                break
            except LoadFailed:
                await asyncio.sleep(0.01)


async def test_when_a_load_fails_the_old_value_is_good_enough(
    cache: Client, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Origin(a=b"1")
    assert await cache.get_or_load("a", origin.load, ttl=0.001, stale_if_error=60) == b"1"
    async with asyncio.timeout(10):
        while (await cache.lookup("a")).found:
            await asyncio.sleep(0)
    origin.error = OSError("down")
    with caplog.at_level(logging.WARNING):
        assert await cache.get_or_load("a", origin.load) == b"1"
    assert "serving stale values, for 'a' could not be loaded: OSError('down')" in caplog.text
    assert await cache.get_or_load("a", origin.load) == b"1"
    assert len(origin.calls) == 2


async def becomes_stale(cache: Client, key: str) -> None:
    async with asyncio.timeout(10):
        while not (await cache.lookup(key)).stale:
            await asyncio.sleep(0)


async def test_a_stale_value_is_given_at_once_and_loaded_anew_beside(cache: Client) -> None:
    origin = Origin(a=b"old")
    await cache.get_or_load("a", origin.load, ttl=0.001, stale=60)
    await becomes_stale(cache, "a")
    origin.values["a"] = b"new"
    origin.may_go_on.clear()
    for _ in range(5):
        assert await cache.get_or_load("a", origin.load, ttl=60) == b"old"
    await origin.has_been_called(2)
    origin.may_go_on.set()
    async with asyncio.timeout(10):
        while await cache.get_or_load("a", origin.load) == b"old":
            await asyncio.sleep(0)
    assert len(origin.calls) == 2


async def test_a_refresh_that_fails_is_told_in_the_log(
    cache: Client, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Origin(a=b"old")
    await cache.get_or_load("a", origin.load, ttl=0.001, stale=60)
    await becomes_stale(cache, "a")
    origin.error = OSError("down")
    assert await cache.get_or_load("a", origin.load) == b"old"
    await origin.has_been_called(2)
    async with asyncio.timeout(10):
        while "could not be loaded" not in caplog.text:
            await asyncio.sleep(0)
    assert await cache.get_or_load("a", origin.load) == b"old"


async def test_a_slow_value_is_loaded_before_it_expires(cache: Client) -> None:
    async def slowly(_: str) -> bytes:
        await asyncio.sleep(0.02)
        return b"v"

    origin = Origin(**{"eager:a": b"new"})
    await cache.get_or_load("eager:a", slowly, ttl=2)
    async with asyncio.timeout(10):
        while not origin.calls:
            assert await cache.get_or_load("eager:a", origin.load, ttl=60) == b"v"


async def test_a_caller_that_goes_away_takes_nobody_with_it(cache: Client) -> None:
    origin = Origin(a=b"1")
    origin.may_go_on.clear()
    first = asyncio.create_task(cache.get_or_load("a", origin.load))
    await origin.has_been_called(1)
    second = asyncio.create_task(cache.get_or_load("a", origin.load))
    await all_wait(first, second)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    origin.may_go_on.set()
    assert await second == b"1"
    assert len(origin.calls) == 1


async def test_a_client_that_is_closed_gives_its_leases_back(
    connect: Connect, address: str, way: Way
) -> None:
    origin = Origin(a=b"1")
    origin.may_go_on.clear()
    cache = await connect()
    async with Client(address, **way.options) as doomed:
        loading = asyncio.create_task(doomed.get_or_load("a", origin.load))
        await origin.has_been_called(1)
    with pytest.raises(Unavailable, match="the client was closed"):
        await loading
    origin.may_go_on.set()
    assert await cache.get_or_load("a", origin.load, wait=5) == b"1"
    assert len(origin.calls) == 2


async def test_who_waits_too_long_is_told(connect: Connect) -> None:
    origin = Origin(a=b"1")
    origin.may_go_on.clear()
    cache, other = await connect(), await connect()
    first = asyncio.create_task(cache.get_or_load("a", origin.load))
    await origin.has_been_called(1)
    with pytest.raises(DeadlineExceeded, match=r"others are loading 'a' for longer than 0\.05 s"):
        await other.get_or_load("a", origin.load, wait=0.05)
    origin.may_go_on.set()
    assert await first == b"1"


async def test_a_node_at_which_too_many_wait_is_not_asked_again_and_again(stack: AsyncExitStack) -> None:
    server = NodeServer(Settings(listen="127.0.0.1:0", drain_seconds=0, max_in_flight=2))
    address = await server.start()
    await server.join()
    stack.push_async_callback(server.stop)
    origin = Origin(a=b"1", b=b"2")
    origin.may_go_on.clear()
    cache, other = [await stack.enter_async_context(Client(address, timeout=5)) for _ in range(2)]
    loading = [asyncio.create_task(cache.get_or_load(key, origin.load)) for key in "ab"]
    await origin.has_been_called(2)
    waiting = asyncio.create_task(other.get_or_load("a", origin.load))
    await all_wait(*loading, waiting)
    before = await misses(address)
    with pytest.raises(DeadlineExceeded, match="others are loading 'b'"):
        await other.get_or_load("b", origin.load, wait=0.5)
    assert await misses(address) - before < 30
    origin.may_go_on.set()
    assert await asyncio.gather(*loading, waiting) == [b"1", b"2", b"1"]


async def misses(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stats: StatsResponse = await AdminServiceStub(channel).Stats(StatsRequest())
    return stats.misses


async def test_a_lease_that_comes_when_nobody_waits_any_longer_is_given_back(
    connect: Connect, address: str, way: Way
) -> None:
    """It would keep everybody waiting until it expires, in ten seconds."""
    origin = Origin(a=b"1")
    origin.may_go_on.clear()
    gone, other = await connect(), await connect()
    async with Client(address, **way.options) as doomed:
        loading = asyncio.create_task(doomed.get_or_load("a", origin.load))
        await origin.has_been_called(1)
        waiting = asyncio.create_task(gone.get_or_load("a", origin.load))
        await all_wait(loading, waiting)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    with pytest.raises(Unavailable, match="the client was closed"):
        await loading
    origin.may_go_on.set()
    assert await other.get_or_load("a", origin.load, wait=5) == b"1"


async def test_a_caller_that_goes_away_while_it_reads_leaves_no_lease_behind(connect: Connect) -> None:
    """Wherever its request, or the answer, is at that moment."""
    cache, other = await connect(), await connect()
    keys = [f"key:{steps}" for steps in range(150)]
    await cache.get_many(keys)
    origin, lost = Origin(**dict.fromkeys(keys, b"1")), Origin()
    lost.may_go_on.clear()
    for steps, key in enumerate(keys):
        gone = asyncio.create_task(cache.get_or_load(key, lost.load))
        for _ in range(steps):
            await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
    lost.may_go_on.set()
    await other.get_or_load_many(keys, origin.load_many, wait=5)


async def test_when_a_loader_is_lost_the_next_one_loads(connect: Connect) -> None:
    lost, origin = Origin(**{"short:a": b"?"}), Origin(**{"short:a": b"1"})
    cache, other = await connect(), await connect()
    lost.may_go_on.clear()
    first = asyncio.create_task(cache.get_or_load("short:a", lost.load))
    await lost.has_been_called(1)
    assert await other.get_or_load("short:a", origin.load) == b"1"
    lost.may_go_on.set()
    assert await first == b"?"
    assert await other.get("short:a") == b"1"


async def test_without_a_cache_each_process_loads_once_at_a_time() -> None:
    origin = Origin(a=b"1", b=b"2")
    async with Client("127.0.0.1:1", timeout=0.2) as cache:
        found = await asyncio.gather(*(cache.get_or_load("a", origin.load) for _ in range(50)))
        assert set(found) == {b"1"}
        assert origin.most_at_once == 1
        assert await cache.get_or_load_many("ab", origin.load_many) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("option", ["ttl", "stale", "stale_if_error", "absent_ttl"])
async def test_options_are_checked_before_anything_is_loaded(cache: Client, option: str) -> None:
    origin = Origin(a=b"1")
    wrong: Any = {option: -1}
    with pytest.raises(InvalidArgument) as caught:
        await cache.get_or_load("a", origin.load, **wrong)
    assert caught.value.metadata["field"] == option
    with pytest.raises(InvalidArgument, match="key"):
        await cache.get_or_load("", origin.load)
    assert origin.calls == []


async def test_a_loader_that_gives_no_bytes_is_told_and_leaves_nothing_stuck(cache: Client) -> None:
    async def wrong(_: str) -> Any:
        return 7

    with pytest.raises(TypeError, match="bytes"):
        await cache.get_or_load("a", wrong)
    await asyncio.sleep(0.3)
    assert await cache.get_or_load("a", Origin(a=b"1").load) == b"1"


async def test_what_the_cache_does_not_take_is_nobodys_obstacle(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    cache, other = await connect(), await connect()
    origin = Origin(a=bytes(9 << 20), b=b"2")
    for client in (cache, other):
        assert await client.get_or_load("a", origin.load, wait=5) == origin.values["a"]
        assert (await client.get_or_load_many("ab", origin.load_many, wait=5)).keys() == {"a", "b"}
    assert "'a' was loaded, but not cached: value must be at most" in caplog.text
    assert await cache.get("b") == b"2"


async def test_a_function_is_cached_by_its_arguments(cache: Client) -> None:
    calls: list[tuple[int, int]] = []

    @cache.cached("user:{org}:{user_id}", ttl=60, tags=("org:{org}",))
    async def user(org: int, user_id: int = 7) -> bytes:
        """Gives a user."""
        calls.append((org, user_id))
        return f"{org}/{user_id}".encode()

    assert user.__doc__ == "Gives a user."
    assert [await user(1), await user(1, 7), await user(org=1, user_id=7)] == [b"1/7"] * 3
    assert await user(1, 8) == b"1/8"
    assert calls == [(1, 7), (1, 8)]
    assert user.key(1) == "user:1:7"
    assert await user.invalidate(1)
    await user(1)
    assert (await cache.invalidate_tag("org:1")).removed == 2
    assert len(calls) == 3
    with pytest.raises(TypeError):
        await user()  # type: ignore[call-arg]


async def test_a_method_is_cached(cache: Client) -> None:
    class Users:
        def __init__(self, table: str) -> None:
            self.table = table

        @cache.cached("{self.table}:{number}")
        async def find(self, number: int) -> bytes:
            return f"{self.table}/{number}".encode()

    users = Users("users")
    assert await users.find(1) == b"users/1"
    assert await cache.get("users:1") == b"users/1"
    assert await users.find.invalidate(1)


async def test_a_key_that_names_no_parameter_is_told_at_once(cache: Client) -> None:
    with pytest.raises(ValueError, match="which is no parameter of"):

        @cache.cached("user:{uid}")
        async def user(user_id: int) -> bytes:
            return bytes(user_id)


async def test_write_through(connect: Connect) -> None:
    cache, other = await connect(), await connect()
    origin = Origin(a=b"old")
    await cache.get_or_load("a", origin.load)
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def write(key: str, value: bytes) -> None:
        begun.set()
        await may_go_on.wait()
        origin.values[key] = value

    writing = asyncio.create_task(cache.write_through("a", b"new", write, ttl=60))
    await begun.wait()
    reads = [asyncio.create_task(reader.get_or_load("a", origin.load)) for reader in (cache, other)]
    await all_wait(writing, *reads)
    may_go_on.set()
    await writing
    assert await asyncio.gather(*reads) == [b"new", b"new"]
    assert await cache.get("a") == b"new"
    assert len(origin.calls) == 1


async def test_of_two_who_write_through_at_once_neither_leaves_its_value(connect: Connect) -> None:
    cache, other = await connect(), await connect()
    origin = Origin()
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def slowly(key: str, value: bytes) -> None:
        begun.set()
        await may_go_on.wait()
        origin.values[key] = value

    async def at_once(key: str, value: bytes) -> None:
        origin.values[key] = value

    first = asyncio.create_task(cache.write_through("a", b"first", slowly))
    await begun.wait()
    await other.write_through("a", b"second", at_once)
    may_go_on.set()
    await first
    assert await other.get("a") in (None, origin.values["a"])
    assert await other.get_or_load("a", origin.load) == b"first"


async def test_a_writer_that_fails_leaves_nothing_cached_and_nothing_stuck(cache: Client) -> None:
    async def fails(_: str, __: bytes) -> None:
        raise OSError("down")

    await cache.set("a", b"old")
    with pytest.raises(OSError, match="down"):
        await cache.write_through("a", b"new", fails)
    assert await cache.get_or_load("a", Origin(a=b"loaded").load) == b"loaded"


async def test_write_behind(cache: Client) -> None:
    written: list[Mapping[str, bytes]] = []
    may_go_on = asyncio.Event()

    async def write(values: Mapping[str, bytes]) -> None:
        await may_go_on.wait()
        written.append(values)
        if len(written) == 1:
            raise OSError("try again")

    async with cache.write_behind(write, ttl=60, max_pending=4, max_batch=2) as behind:
        for value in (b"1", b"2"):
            await behind.set("a", value)
            await behind.set("b", value)
        assert await cache.get_many("ab") == {"a": b"2", "b": b"2"}
        await behind.set("c", b"3")
        await behind.set("d", b"4")
        full = asyncio.create_task(behind.set("e", b"5"))
        await all_wait(full)
        assert behind.pending.keys() == set("abcd")
        may_go_on.set()
        await full
        await behind.flush()
        assert behind.pending == {}
        await behind.set("f", b"6")
    assert written[0] == written[1]
    merged: dict[str, bytes] = {}
    for batch in written:
        assert len(batch) <= 2
        merged |= batch
    assert merged == {"a": b"2", "b": b"2", "c": b"3", "d": b"4", "e": b"5", "f": b"6"}
    with pytest.raises(RuntimeError, match="closed"):
        await behind.set("g", b"7")


async def test_write_behind_from_threads(address: str, way: Way) -> None:
    written: dict[str, bytes] = {}
    threads: set[int] = set()
    attempts = 0

    def write(values: Mapping[str, bytes]) -> None:
        nonlocal attempts
        attempts += 1
        threads.add(threading.get_ident())
        if attempts == 1:
            raise OSError("try again")
        written.update(values)

    def work() -> None:
        with SyncClient(address, timeout=5, **way.options) as cache:
            with (
                cache.write_behind(write, max_pending=8, max_batch=4) as behind,
                ThreadPoolExecutor(8) as pool,
            ):
                list(pool.map(lambda number: behind.set(f"k{number}", b"v"), range(50)))
                behind.flush()
                assert len(written) == 50
                assert behind.pending == {}
                behind.set("last", b"v")
            assert written.keys() == {"last", *(f"k{number}" for number in range(50))}
            assert cache.get("last") == b"v"
            assert threading.get_ident() not in threads
            behind.close()
            with pytest.raises(RuntimeError, match="closed"):
                behind.set("k", b"v")

    await asyncio.to_thread(work)


async def test_bounds_of_write_behind(cache: Client) -> None:
    for pending, batch in ((0, 0), (5, 6), (5, 0)):
        with pytest.raises(ValueError, match="max_batch"):
            cache.write_behind(lambda _: asyncio.sleep(0), max_pending=pending, max_batch=batch)


async def test_threads_share_loads_that_run_in_one_of_them(address: str, way: Way) -> None:
    calls: list[str] = []
    threads: set[int] = set()

    def load(key: str) -> bytes:
        calls.append(key)
        threads.add(threading.get_ident())
        return key.encode()

    def work() -> None:
        with SyncClient(address, timeout=5, **way.options) as cache, ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda _: cache.get_or_load("a", load, ttl=60), range(64)))
            assert set(found) == {b"a"}
            assert calls == ["a"]
            assert threads.isdisjoint({threading.get_ident()})
            many = cache.get_or_load_many("abc", lambda keys: {key: load(key) for key in keys})
            assert many == {"a": b"a", "b": b"b", "c": b"c"}

            @cache.cached("double:{number}", ttl=60)
            def double(number: int) -> bytes:
                calls.append("double")
                return str(2 * number).encode()

            assert [double(2), double(2), double(3)] == [b"4", b"4", b"6"]
            assert calls.count("double") == 2
            assert double.invalidate(2)
            stored: dict[str, bytes] = {}
            cache.write_through("w", b"1", stored.__setitem__)
            assert (stored, cache.get("w")) == ({"w": b"1"}, b"1")

            def fails(_: str) -> bytes:
                raise OSError("down")

            with pytest.raises(OSError, match="down"):
                cache.get_or_load("z", fails)
            cache.get_or_load("s", load, ttl=0.001, stale=60)
            while not cache.lookup("s").stale:
                time.sleep(0)
            assert cache.get_or_load("s", fails) == b"s"

    await asyncio.to_thread(work)
