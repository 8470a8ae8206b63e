"""One process of readers of one key, as a program of its own.

    python -m benchmarks.stampede_readers OPTIONS

OPTIONS are Options as JSON. Prints a line once it is connected, takes the time of time.monotonic at which to
begin as a line of its input, and prints Seen as JSON. Open loop: reads are due at a fixed rate, whether those
before them are done or not, and each latency counts from when the read was due.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

import uvloop

from benchmarks.stampede_origin import OriginClient
from cacheservice import Client

PRODUCT = 7
KEY = f"product:{PRODUCT}"
MAX_IN_FLIGHT = 5_000
"""Reads of one process at a time; what is due then is read later, and late."""
TICK_SECONDS = 0.001
"""What is due within so long is read together, and by so much late, at most."""
TIMEOUT_SECONDS = 5.0
"""More than the client's own, so that a pause of this machine is a late read and no failed one."""


@dataclass(frozen=True)
class Options:
    """What the readers of one process do. Times in seconds."""

    addresses: list[str]
    socket: str
    """Where the origin is."""
    is_naive: bool
    """Whether each caller who misses asks the origin; else get_or_load does."""
    stale: float
    ttl: float
    rate: float
    """Reads a second."""
    seconds: float


@dataclass
class Seen:
    """What the readers noticed."""

    latencies_us: list[int]
    """Of each read that was due, in order; the last are late."""
    failed: dict[str, int] = field(default_factory=dict)
    """How many, by the exception's name."""
    ended: float = 0.0
    """When the last read did, on time.monotonic."""


Read = Callable[[], Awaitable[bytes | None]]


def reading(options: Options, cache: Client[bytes], origin: OriginClient) -> Read:
    """A function that reads the key as the options say."""

    async def load(_key: str) -> bytes:
        return await origin.query(PRODUCT)

    async def read_naively() -> bytes:
        value = await cache.get(KEY)
        if value is None:
            value = await load(KEY)
            await cache.set(KEY, value, ttl=options.ttl)
        return value

    async def read_through() -> bytes | None:
        return await cache.get_or_load(KEY, load, ttl=options.ttl, stale=options.stale)

    return read_naively if options.is_naive else read_through


async def read_all(read: Read, options: Options, begin: float) -> Seen:
    """Reads at the rate from `begin` on."""
    reads = round(options.rate * options.seconds)
    seen = Seen([0] * reads)
    failed: Counter[str] = Counter()
    clock = time.monotonic
    room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def read_one(number: int, due: float) -> None:
        try:
            await read()
        except Exception as error:
            failed[type(error).__name__] += 1
        finally:
            seen.latencies_us[number] = round((clock() - due) * 1e6)
            room.release()

    async with asyncio.TaskGroup() as group:
        for number in range(reads):
            due = begin + number / options.rate
            if (early := due - clock()) > 0:
                await asyncio.sleep(max(early, TICK_SECONDS))
            await room.acquire()
            group.create_task(read_one(number, due))
    seen.failed = dict(failed)
    seen.ended = clock()
    return seen


async def run(options: Options) -> Seen:
    origin = OriginClient()
    await origin.open(options.socket)
    async with Client(options.addresses, timeout=TIMEOUT_SECONDS) as cache:
        await cache.get_many([f"warm-up:{number}" for number in range(100)])
        print("ready", flush=True)
        begin = float(await asyncio.to_thread(sys.stdin.readline))
        seen = await read_all(reading(options, cache, origin), options, begin)
    await origin.close()
    return seen


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(run(options))
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
