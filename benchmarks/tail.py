"""How late the slowest answers are at half of what each system can do, with a million entries resident.

    python -m benchmarks.tail [--entries 1000000] [--seconds 20] [--rounds 3]

One client process and one server process at a time, 100 callers, 90 % reads, values of 100 bytes. The peak is
what the callers reach when each asks again as soon as it is answered. Then operations are due at even
times, half of the peak a second, and latencies count from when an operation was due: a server that stands
still makes all of them late that are due meanwhile; at most as many as there are callers are under way. The
systems take turns; medians of the rounds are printed. A last row has our node at half of the better peer's
peak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from random import Random
from statistics import median

import uvloop

from benchmarks import peer_servers
from benchmarks.peer_clients import Cache, key_of, load, open_cache
from cacheservice.loadgen.clock import SystemClock
from cacheservice.loadgen.loops import OpenLoop
from cacheservice.loadgen.operations import Operation
from cacheservice.loadgen.plan import GET, SET

SYSTEMS = ("cacheservice", "redis-py", "glide")
CALLERS = 100
VALUE = b"x" * 100
PEAK_SECONDS = 3.0
AT_A_TIME = 1_000
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def operations(entries: int) -> Iterator[Operation]:
    random = Random(1)
    while True:
        kind = SET if random.random() < 0.1 else GET
        yield kind, [key_of(random.randrange(entries))], len(VALUE), 0


async def latencies_at(cache: Cache, entries: int, rate: float, seconds: float) -> list[float]:
    clock = SystemClock()
    found: list[float] = []

    async def perform(operation: Operation, due: float) -> None:
        kind, [key], *_ = operation
        await (cache.get(key) if kind == GET else cache.set(key, VALUE))
        found.append(clock.now() - due)

    loop = OpenLoop(CALLERS, 1 / rate, clock.now(), operations(entries), perform, clock, lambda _: None)
    asyncio.get_running_loop().call_later(seconds, loop.stop)
    await loop.run()
    return found


async def fill(cache: Cache, entries: int) -> None:
    for start in range(0, entries, AT_A_TIME):
        await cache.set_many({key_of(number): VALUE for number in range(start, start + AT_A_TIME)})


async def work(system: str, address: str, entries: int, rate: float, seconds: float) -> None:
    """Prints what came of it as JSON; without a rate, the peak."""
    async with AsyncExitStack() as stack:
        cache = await open_cache(system, [address], CALLERS, stack)
        if seconds == 0:
            await fill(cache, entries)
        elif rate == 0:
            done, took, _ = await load(cache, "mix", CALLERS, len(VALUE), seconds)
            print(json.dumps({"rate": done / took}))
        else:
            found = sorted(await latencies_at(cache, entries, rate, seconds))
            seen = {name: found[int(len(found) * part)] * 1_000 for name, part in PERCENTILES.items()}
            print(json.dumps({"rate": len(found) / seconds, **seen, "max": found[-1] * 1_000}))


def run(system: str, address: str, entries: int, rate: float, seconds: float) -> dict[str, float]:
    arguments = (system, address, str(entries), str(rate), str(seconds))
    command = (sys.executable, "-W", "ignore", "-m", "benchmarks.tail", "--work", *arguments)
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return found


def report(name: str, rows: Sequence[dict[str, float]]) -> None:
    seen = {field: median(row[field] for row in rows) for field in rows[0]}
    shown = "   ".join(f"{field} {seen[field]:8.3f} ms" for field in (*PERCENTILES, "max"))
    print(f"{name:36} {seen['rate']:9,.0f}/s   {shown}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        system, address, entries, rate, seconds = sys.argv[2:]
        uvloop.run(work(system, address, int(entries), float(rate), float(seconds)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        [ours] = stack.enter_context(peer_servers.cacheservice(max_memory="1GiB"))
        redis = stack.enter_context(peer_servers.redis())
        addresses = {"cacheservice": ours, "redis-py": redis, "glide": redis}
        for filled in ("cacheservice", "redis-py"):
            began = time.monotonic()
            run(filled, addresses[filled], options.entries, 0, 0)
            print(f"{filled} filled with {options.entries:,} entries in {time.monotonic() - began:.0f} s")
        peaks = {
            system: median(
                run(system, addresses[system], options.entries, 0, PEAK_SECONDS)["rate"]
                for _ in range(options.rounds)
            )
            for system in SYSTEMS
        }
        loads = {
            f"{system}, half of {peaks[system]:,.0f}/s": (system, peaks[system] / 2) for system in SYSTEMS
        }
        best = max(("redis-py", "glide"), key=peaks.__getitem__)
        loads[f"cacheservice, half of {best}'s peak"] = ("cacheservice", peaks[best] / 2)
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in loads}
        for _ in range(options.rounds):
            for name, (system, rate) in loads.items():
                seen[name].append(run(system, addresses[system], options.entries, rate, options.seconds))
        for name, rows in seen.items():
            report(name, rows)


if __name__ == "__main__":
    main()
