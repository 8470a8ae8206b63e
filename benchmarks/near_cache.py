"""What a near cache costs, and how old what it serves may be.

    python -m benchmarks.near_cache [speed] [staleness] [--writes 100000] ...

speed       gets a second of one process that finds all it asks for in its own memory: our client with a near
            cache, a plain cachetools.LRUCache, and redis-py with its client-side cache
staleness   one client writes counters, another one with a near cache reads them all the time, and every few
            seconds one of the nodes is killed (SIGKILL) and started again: for how long after a write was
            acknowledged by two nodes an older value was served

Without a name: both. redis-py refuses client-side caching with servers before 7.4, for the sake of other
makers' servers; here it takes 7.0 too, which has all that it uses.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import redis
import uvloop
from cachetools import LRUCache
from redis.cache import CacheConfig
from redis.connection import CacheProxyConnection

from benchmarks import peer_servers
from benchmarks.failover_load import print_table, say, until
from benchmarks.failover_nodes import COPIES, Nodes
from benchmarks.impossible import BenchmarkImpossible
from cacheservice import Client, NearCache
from cacheservice.errors import CacheServiceError

PREFIX = "near:"
VALUE = b"v" * 100
KEYS = 1_000
GETS = 100_000
ROUNDS = 9
REDIS_SHARE = 10
"""How many gets of ours come on one of redis-py, which is that much slower."""
READS_AT_A_TIME = 50
WRITERS = 8
RESTART_AFTER_SECONDS = 3.0
SLICE = 5_000


async def speed() -> None:
    keys = [f"{PREFIX}{number}" for number in range(KEYS)]
    with peer_servers.cacheservice(3) as addresses, peer_servers.redis() as redis_address:
        async with Client(addresses, near_cache=NearCache(prefixes=(PREFIX,))) as cache:
            await cache.set_many(dict.fromkeys(keys, VALUE))

            async def ours(count: int) -> None:
                for start in range(0, count, SLICE):
                    for number in range(start, min(count, start + SLICE)):
                        await cache.get(keys[number % KEYS])
                    await asyncio.sleep(0)

            plain: LRUCache[str, bytes] = LRUCache(KEYS)
            plain.update(dict.fromkeys(keys, VALUE))

            async def cachetools(count: int) -> None:
                for number in range(count):
                    plain.get(keys[number % KEYS])

            CacheProxyConnection.MIN_ALLOWED_VERSION = "7.0.0"
            host, port = redis_address.split(":")
            with redis.Redis(host=host, port=int(port), protocol=3, cache_config=CacheConfig()) as peer:
                for key in keys:
                    peer.set(key, VALUE)

                async def redis_py(count: int) -> None:
                    for number in range(count):
                        peer.get(keys[number % KEYS])

                near: Any = cache._near
                await redis_py(KEYS)
                figures: dict[str, list[float]] = {"cacheservice": [], "cachetools": [], "redis-py": []}
                for _ in range(ROUNDS):
                    await until(lambda: _all_kept(cache, near, keys), "everything is kept")
                    figures["cacheservice"].append(await _rate(ours, GETS))
                    if not all(near.get(key) for key in keys):
                        raise BenchmarkImpossible("copies were dropped meanwhile")
                    figures["cachetools"].append(await _rate(cachetools, GETS))
                    figures["redis-py"].append(await _rate(redis_py, GETS // REDIS_SHARE))
    rates = {name: median(found) for name, found in figures.items()}
    print_table(
        {
            name: {
                "gets a second": f"{rate:,.0f}",
                "of cachetools": f"{rate / rates['cachetools']:.2f}",
                "of redis-py": f"{rate / rates['redis-py']:.1f}",
            }
            for name, rate in rates.items()
        }
    )


async def _all_kept(cache: Client, near: Any, keys: Sequence[str]) -> bool:
    await cache.get_many(keys)
    return all(near.get(key) for key in keys)


async def _rate(work: Callable[[int], Awaitable[None]], count: int) -> float:
    began = time.perf_counter()
    await work(count)
    return count / (time.perf_counter() - began)


@dataclass
class Counter:
    """A key, and the writes to it that were acknowledged lately: number and moment, in order."""

    key: str
    written: int = 0
    acknowledged: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=10_000))

    def age(self, found: int, asked_at: float) -> float:
        """For how long a later value had been acknowledged at that moment; 0 when there was none."""
        while self.acknowledged and self.acknowledged[0][0] <= found:
            self.acknowledged.popleft()
        return max(0.0, asked_at - self.acknowledged[0][1]) if self.acknowledged else 0.0


@dataclass
class Figures:
    reads: int = 0
    copies: int = 0
    failed_reads: int = 0
    failed_writes: int = 0
    weak_writes: int = 0
    kills: int = 0
    ages: list[float] = field(default_factory=list)
    """Of the old values that were served, in seconds."""


async def staleness(writes: int, keys: int, size: int, every: float, rate: float) -> None:
    figures = Figures()
    with TemporaryDirectory() as folder:
        async with Nodes(Path(folder)) as nodes:
            await nodes.form(size)
            near_cache = NearCache(prefixes=(PREFIX,))
            async with (
                Client(nodes.addresses) as writing,
                Client(nodes.addresses, near_cache=near_cache) as reading,
            ):
                counters = [Counter(f"{PREFIX}{number}") for number in range(keys)]
                left = [writes // WRITERS] * WRITERS
                writers = [
                    asyncio.create_task(
                        _write(writing, counters[n::WRITERS], left[n], rate / WRITERS, figures)
                    )
                    for n in range(WRITERS)
                ]
                others = [
                    asyncio.create_task(_read(reading, counters, figures)),
                    asyncio.create_task(_kill(nodes, every, figures)),
                ]
                began = time.perf_counter()
                done, _ = await asyncio.wait([*writers[:1], *others], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                await asyncio.gather(*writers)
                seconds = time.perf_counter() - began
                for task in others:
                    task.cancel()
                await asyncio.wait(others)
    ages = sorted(figures.ages)
    shown = {
        "seconds": f"{seconds:.0f}",
        "writes": f"{sum(counter.written for counter in counters):,}",
        "writes that failed": f"{figures.failed_writes:,}",
        "writes that one node alone had": f"{figures.weak_writes:,}",
        "nodes killed": f"{figures.kills}",
        "reads": f"{figures.reads:,}",
        "of them from a copy": f"{figures.copies / max(1, figures.reads):.1%}",
        "reads that failed": f"{figures.failed_reads:,}",
        "reads of old values": f"{len(ages):,}",
        "p99 of their age": f"{ages[int(len(ages) * 0.99)] * 1_000:.1f} ms" if ages else "none",
        "oldest": f"{ages[-1] * 1_000:.1f} ms" if ages else "none",
    }
    print_table({"near cache": shown})


async def _write(
    cache: Client, counters: Sequence[Counter], writes: int, rate: float, figures: Figures
) -> None:
    due = time.perf_counter()
    for number in range(writes):
        due = max(due + 1 / rate, time.perf_counter() - 1)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        counter = counters[number % len(counters)]
        counter.written += 1
        try:
            result = await cache.set(counter.key, str(counter.written).encode())
        except CacheServiceError:
            figures.failed_writes += 1
            continue
        if result.replicas >= COPIES:
            counter.acknowledged.append((counter.written, time.perf_counter()))
        else:
            figures.weak_writes += 1


async def _read(cache: Client, counters: Sequence[Counter], figures: Figures) -> None:
    near: Any = cache._near
    while True:
        for start in range(0, len(counters), READS_AT_A_TIME):
            some = {counter.key: counter for counter in counters[start : start + READS_AT_A_TIME]}
            asked_at = time.perf_counter()
            copies = sum(near.get(key) is not None for key in some)
            try:
                found = await cache.get_many(some)
            except CacheServiceError:
                figures.failed_reads += 1
                continue
            figures.copies += copies
            figures.reads += len(some)
            ages = (some[key].age(int(value), asked_at) for key, value in found.items())
            figures.ages += filter(None, ages)
            await asyncio.sleep(0)


async def _kill(nodes: Nodes, every: float, figures: Figures) -> None:
    while True:
        await asyncio.sleep(every)
        say(await nodes.kill(figures.kills))
        figures.kills += 1
        await asyncio.sleep(RESTART_AFTER_SECONDS)
        say(await nodes.restart())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part")
    parser.add_argument("--writes", type=int, default=100_000, help="in all")
    parser.add_argument("--rate", type=float, default=1_000, help="writes a second")
    parser.add_argument("--keys", type=int, default=200, help="that are written and read")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--every", type=float, default=6.0, help="seconds before a node is killed")
    options = parser.parse_args()
    parts = options.parts or ["speed", "staleness"]
    if not set(parts) <= {"speed", "staleness"}:
        parser.error("the parts are: speed, staleness")
    if "speed" in parts:
        uvloop.run(speed())
    if "staleness" in parts:
        uvloop.run(staleness(options.writes, options.keys, options.nodes, options.every, options.rate))


if __name__ == "__main__":
    try:
        main()
    except BenchmarkImpossible as error:
        sys.exit(f"cannot measure: {error}")
