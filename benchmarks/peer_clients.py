"""One client process that loads one server for a while, as a program of its own.

    python -m benchmarks.peer_clients SYSTEM WORK ADDRESS[,ADDRESS] CALLERS VALUE_BYTES SECONDS

prints what it saw as JSON: {"rate": keys a second, "p50": ms, "p99": ms, "p999": ms}.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from itertools import cycle
from random import Random
from typing import Any, Protocol

import uvloop

KEYS = 100_000
MANY = 100
"""Keys of one get_many."""
_KEYS_OF_A_CALLER = 1_000
_WARM_UP_SECONDS = 0.5


class Cache(Protocol):
    async def get(self, key: str) -> object: ...
    async def set(self, key: str, value: bytes) -> object: ...
    async def get_many(self, keys: Sequence[str]) -> int: ...
    async def set_many(self, values: dict[str, bytes]) -> object: ...


class Ours:
    def __init__(self, client: Any) -> None:
        self.get = client.get
        self.set = client.set
        self.set_many = client.set_many
        self._get_many = client.get_many

    async def get_many(self, keys: Sequence[str]) -> int:
        return len(await self._get_many(keys))


class RedisPy:
    def __init__(self, client: Any) -> None:
        self._client = client
        self.get = client.get
        self.set = client.set
        self.set_many = getattr(client, "mset_nonatomic", client.mset)
        self._get_many = getattr(client, "mget_nonatomic", client.mget)

    async def get_many(self, keys: Sequence[str]) -> int:
        return sum(value is not None for value in await self._get_many(keys))


class Glide:
    def __init__(self, client: Any) -> None:
        self.get = client.get
        self.set = client.set
        self._client = client

    async def get_many(self, keys: Sequence[str]) -> int:
        return sum(value is not None for value in await self._client.mget(keys))

    async def set_many(self, values: dict[str, bytes]) -> object:
        return await asyncio.gather(*(self._client.set(key, value) for key, value in values.items()))


async def open_cache(system: str, addresses: Sequence[str], callers: int, stack: AsyncExitStack) -> Cache:
    pairs = [(host, int(port)) for host, _, port in (address.rpartition(":") for address in addresses)]
    host, port = pairs[0]
    match system:
        case "cacheservice" | "cacheservice-proxy":
            from cacheservice import Client

            routing: Any = "proxy" if system.endswith("proxy") else "direct"
            client = await stack.enter_async_context(Client(addresses, timeout=10, routing=routing))
            await client.get("warm up")
            return Ours(client)
        case "redis-py" | "redis-py-proxy":
            import redis.asyncio

            # twemproxy knows neither the later protocol nor how a client introduces itself.
            plain: Any = {"protocol": 2, "driver_info": None} if system.endswith("proxy") else {}
            single = redis.asyncio.Redis(host=host, port=port, max_connections=callers, **plain)
            return RedisPy(await stack.enter_async_context(single))
        case "redis-py-cluster":
            import redis.asyncio

            several = redis.asyncio.RedisCluster(host=host, port=port, max_connections=callers)
            return RedisPy(await stack.enter_async_context(several))
        case "glide" | "glide-cluster":
            import glide

            nodes = [glide.NodeAddress(*pair) for pair in pairs]
            if system == "glide":
                opened: Any = await glide.GlideClient.create(
                    glide.GlideClientConfiguration(nodes, request_timeout=10_000)
                )
            else:
                opened = await glide.GlideClusterClient.create(
                    glide.GlideClusterClientConfiguration(nodes, request_timeout=10_000)
                )
            stack.push_async_callback(opened.close)
            return Glide(opened)
    raise ValueError(system)


async def load(
    cache: Cache, work: str, callers: int, value_bytes: int, seconds: float
) -> tuple[int, float, list[float]]:
    """Each caller asks again as soon as it is answered; keys done, seconds, and every latency."""
    value = b"x" * value_bytes
    latencies: list[float] = []
    now = time.perf_counter
    begins = now() + _WARM_UP_SECONDS
    ends = begins + seconds

    async def repeat(operation: Callable[[int], Awaitable[object]]) -> int:
        done = 0
        for number in cycle(range(_KEYS_OF_A_CALLER)):
            started = now()
            await operation(number)
            finished = now()
            if finished > ends:
                break
            if started > begins:
                latencies.append(finished - started)
                done += 1
        return done

    def caller(seed: int) -> Awaitable[int]:
        random = Random(seed)
        keys = [key_of(random.randrange(KEYS)) for _ in range(_KEYS_OF_A_CALLER + MANY)]
        get, set_ = cache.get, cache.set
        match work:
            case "get":
                return repeat(lambda number: get(keys[number]))
            case "set":
                return repeat(lambda number: set_(keys[number], value))
            case "mix":
                return repeat(lambda number: get(keys[number]) if number % 10 else set_(keys[number], value))
            case "get_many":
                return repeat(lambda number: cache.get_many(keys[number : number + MANY]))
        raise ValueError(work)

    done = sum(await asyncio.gather(*map(caller, range(callers))))
    return done * (MANY if work == "get_many" else 1), seconds, latencies


def key_of(number: int) -> str:
    return f"user:{number:08d}"


async def fill(cache: Cache, value_bytes: int) -> None:
    value = b"x" * value_bytes
    for start in range(0, KEYS, 1_000):
        await cache.set_many({key_of(number): value for number in range(start, start + 1_000)})


def load_threads(system: str, address: str, threads: int, seconds: float) -> tuple[int, float, list[float]]:
    """As `load`, of reads by threads that share one client."""
    host, port = address.rsplit(":", 1)
    with ExitStack() as stack:
        match system:
            case "cacheservice-sync":
                from cacheservice import SyncClient

                get: Callable[[str], object] = stack.enter_context(SyncClient(address, timeout=10)).get
            case "redis-py-sync":
                import redis

                get = stack.enter_context(redis.Redis(host=host, port=int(port))).get
            case "pymemcache":
                from pymemcache.client.base import PooledClient

                get = PooledClient((host, int(port)), max_pool_size=threads).get
            case _:
                raise ValueError(system)
        latencies: list[float] = []
        now = time.perf_counter
        begins = now() + _WARM_UP_SECONDS
        ends = begins + seconds

        def work(seed: int) -> int:
            random = Random(seed)
            keys = [key_of(random.randrange(KEYS)) for _ in range(_KEYS_OF_A_CALLER)]
            done = 0
            for key in cycle(keys):
                started = now()
                get(key)
                finished = now()
                if finished > ends:
                    break
                if started > begins:
                    latencies.append(finished - started)
                    done += 1
            return done

        with ThreadPoolExecutor(threads) as pool:
            done = sum(pool.map(work, range(threads)))
    return done, seconds, latencies


def fill_memcached(address: str, value_bytes: int) -> None:
    from pymemcache.client.base import PooledClient

    host, port = address.rsplit(":", 1)
    client = PooledClient((host, int(port)))
    for start in range(0, KEYS, 1_000):
        client.set_many({key_of(number): b"x" * value_bytes for number in range(start, start + 1_000)})
    client.close()


async def main(system: str, work: str, addresses: str, callers: str, size: str, seconds: str) -> None:
    async with AsyncExitStack() as stack:
        if work == "fill" and system == "pymemcache":
            fill_memcached(addresses, int(size))
            return
        if work == "threads":
            loading = asyncio.to_thread(load_threads, system, addresses, int(callers), float(seconds))
            done, took, latencies = await loading
        else:
            name = system.removesuffix("-sync")
            cache = await open_cache(name, addresses.split(","), int(callers), stack)
            if work == "fill":
                await fill(cache, int(size))
                return
            done, took, latencies = await load(cache, work, int(callers), int(size), float(seconds))
    latencies.sort()
    seen = {
        name: latencies[min(len(latencies) - 1, int(len(latencies) * part))] * 1_000
        for name, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
    }
    print(json.dumps({"rate": done / took} | seen))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
