"""What a steady load notices while nodes are killed, restarted, added and removed.

    python -m benchmarks.failover [part...] [--seconds 180] [--rate 500] ...

kills     five nodes, of which one after the other is killed and started again at another address
redis     the same with a Redis Cluster: three masters, one after the other killed, with a replica each
rolling   a rolling restart of five nodes; three nodes that become six, and three again
handoff   one node with a million entries, and a second one that joins

Without a name: kills and redis, side by side. The load is open loop at a fixed rate, and its reads know what
they have to find: a write is lost when it was acknowledged and a later read finds less. Seconds without
service are the tenths of seconds in which some request failed, or none succeeded.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import uvloop

from benchmarks.failover_load import (
    Cache,
    Load,
    Outcome,
    encoded,
    figure_rows,
    print_table,
    say,
)
from benchmarks.failover_nodes import Nodes, OurCache, newly_owned
from benchmarks.impossible import BenchmarkImpossible
from benchmarks.redis_cluster import RedisCache, RedisCluster
from cacheservice import Client

NODES = 5
FILL_AT_A_TIME = 1_000
FILL_TIMEOUT_SECONDS = 10.0
HANDOFF_MEMORY = "1GiB"
HANDOFF_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Options:
    """The flags of the command line."""

    parts: list[str]
    rate: float
    writes: float
    keys: int
    in_flight: int
    min_replicas: int
    seconds: float
    calm: float
    every: float
    restart_after: float
    node_timeout: int
    wait: bool
    settle: float
    entries: int
    limit: float
    seed: int


Columns = dict[str, dict[str, str]]
Disturbance = Callable[[], Awaitable[None]]


class Victims(Protocol):
    """A cluster of which something can be killed and started again."""

    async def kill(self, turn: int) -> str:
        """Kills another node each turn; what was done, in words."""
        ...

    async def restart(self) -> str: ...


async def kills(options: Options, folder: Path) -> Columns:
    async with Nodes(folder) as nodes:
        await nodes.form(NODES)
        async with Client(nodes.addresses) as client:
            load = load_of(OurCache(client, options.min_replicas), options)
            outcome = await disturbed(load, options, partial(kill_in_turn, nodes, options))
    return {f"cacheservice, {NODES} nodes": outcome.rows()}


async def redis(options: Options, folder: Path) -> Columns:
    async with RedisCluster(folder, options.node_timeout) as cluster:
        await cluster.form()
        cache = RedisCache(cluster.ports, options.in_flight, options.wait)
        async with cache.client:
            load = load_of(cache, options)
            outcome = await disturbed(load, options, partial(kill_in_turn, cluster, options))
        outcome.notes["kills with a takeover"] = f"{cluster.takeovers} of {cluster.kills}"
        outcome.notes["cluster-node-timeout"] = f"{options.node_timeout:,} ms"
    return {f"Redis Cluster, 3+3{', WAIT 1' if options.wait else ''}": outcome.rows()}


async def rolling(options: Options, folder: Path) -> Columns:
    return await roll(options, folder / "roll") | await scale(options, folder / "scale")


async def roll(options: Options, folder: Path) -> Columns:
    async with Nodes(folder) as nodes:
        await nodes.form(NODES)
        ids = nodes.ids

        async def restart_each() -> None:
            for node_id in ids:
                await nodes.stop(node_id)
                await nodes.start(node_id)
                say(f"restarted {node_id}, now at {nodes[node_id].address}")
            await asyncio.sleep(options.settle)

        async with Client(nodes.addresses) as client:
            load = load_of(OurCache(client, options.min_replicas), options)
            rings = [ids]
            for node_id in ids:
                rings += [[other for other in ids if other != node_id], ids]
            outcome = await moved(nodes, rings, load, options, restart_each)
    return {"rolling restart": outcome.rows()}


async def scale(options: Options, folder: Path) -> Columns:
    few, more = ["n1", "n2", "n3"], ["n4", "n5", "n6"]
    async with Nodes(folder) as nodes:
        await nodes.form(len(few))

        async def grow() -> None:
            await nodes.start(*more)
            say("there are six nodes")
            await asyncio.sleep(options.settle)

        async def shrink() -> None:
            await asyncio.gather(*map(nodes.stop, more))
            say("there are three nodes")
            await asyncio.sleep(options.settle)

        async with Client(nodes.addresses) as client:
            load = load_of(OurCache(client, options.min_replicas), options)
            grown = await moved(nodes, [few, few + more], load, options, grow)
            shrunk = await moved(nodes, [few + more, few], load, options, shrink)
    return {"3 to 6 nodes": grown.rows(), "6 to 3 nodes": shrunk.rows()}


async def handoff(options: Options, folder: Path) -> Columns:
    async with Nodes(folder, "--max-memory", HANDOFF_MEMORY) as nodes:
        await nodes.start("n1")
        async with Client(nodes.addresses, timeout=FILL_TIMEOUT_SECONDS) as client:
            await fill_many(client, options.entries)
        async with Client(nodes.addresses) as client:
            load = Load(
                OurCache(client, 0),
                [key_of(number) for number in range(options.keys)],
                rate=options.rate,
                writes=0,
                in_flight=options.in_flight,
                seed=options.seed,
                counter=1,
            )
            say(f"undisturbed for {options.calm:g} s")
            before = await load.during(asyncio.sleep(options.calm))
            during = await load.during(hand_over(nodes, options))
    return {"before": figure_rows(before), "during the handoff": figure_rows(during)}


async def hand_over(nodes: Nodes, options: Options) -> None:
    """Starts a second node, and prints how long it took until that had everything."""
    await nodes.start("n2")
    say("the second node is ready")
    began = time.perf_counter()
    there = seconds = 0.0
    while there < options.entries and seconds < options.limit:
        await asyncio.sleep(HANDOFF_POLL_SECONDS)
        stats = await nodes["n2"].stats()
        there = stats.entries if stats else there
        seconds = time.perf_counter() - began
    rate = f"{there:,.0f} of {options.entries:,} entries after {seconds:.1f} s, {there / seconds:,.0f}/s"
    say(rate if there >= options.entries else f"not over: {rate}")


async def fill_many(client: Client, entries: int) -> None:
    began = time.perf_counter()
    for start in range(0, entries, FILL_AT_A_TIME):
        numbers = range(start, min(entries, start + FILL_AT_A_TIME))
        await client.set_many({key_of(number): encoded(1) for number in numbers})
    say(f"filled with {entries:,} entries in {time.perf_counter() - began:.1f} s")


async def disturbed(load: Load, options: Options, disturb: Disturbance) -> Outcome:
    """Fills the cache, and loads it: for a while without, and then with the disturbance."""
    await load.fill()
    say(f"filled with {options.keys:,} entries; undisturbed for {options.calm:g} s")
    before = await load.during(asyncio.sleep(options.calm))
    during = await load.during(disturb())
    return Outcome(before, during, await load.check())


async def kill_in_turn(victims: Victims, options: Options) -> None:
    """Kills something every so many seconds, and starts it again a while later."""
    begin = time.perf_counter()
    for turn in range(int(options.seconds / options.every)):
        await asyncio.sleep(begin + turn * options.every - time.perf_counter())
        say(await victims.kill(turn))
        await asyncio.sleep(options.restart_after)
        say(await victims.restart())
    await asyncio.sleep(begin + options.seconds - time.perf_counter())


async def moved(
    nodes: Nodes, rings: Sequence[Sequence[str]], load: Load, options: Options, disturb: Disturbance
) -> Outcome:
    """The outcome, with what moved beside what had to when the rings follow each other."""
    before = await nodes.handed_off()
    outcome = await disturbed(load, options, disturb)
    entries = await nodes.handed_off() - before
    keys = [key_of(number) for number in range(options.keys)]
    ideal = sum(newly_owned(keys, *pair) for pair in pairwise(rings))
    outcome.notes["entries moved"] = f"{entries:,}"
    outcome.notes["ideal"] = f"{ideal:,}"
    outcome.notes["moved / ideal"] = f"{entries / max(1, ideal):.2f}"
    return outcome


def load_of(cache: Cache, options: Options) -> Load:
    return Load(
        cache,
        [key_of(number) for number in range(options.keys)],
        rate=options.rate,
        writes=options.writes,
        in_flight=options.in_flight,
        seed=options.seed,
    )


def key_of(number: int) -> str:
    return f"user:{number:08d}"


PARTS: dict[str, Callable[[Options, Path], Coroutine[Any, Any, Columns]]] = {
    "kills": kills,
    "redis": redis,
    "rolling": rolling,
    "handoff": handoff,
}
SIDE_BY_SIDE = ("kills", "redis")
PLAIN_LOOP = ("redis",)
"""Parts without uvloop, for whose error for a closed connection redis-py does not repeat a request."""


def run(options: Options) -> None:
    together: Columns = {}
    for name in options.parts or SIDE_BY_SIDE:
        print(f"== {name}", flush=True)
        loop_factory = asyncio.new_event_loop if name in PLAIN_LOOP else uvloop.new_event_loop
        with TemporaryDirectory() as folder, asyncio.Runner(loop_factory=loop_factory) as runner:
            columns = runner.run(PARTS[name](options, Path(folder)))
        if name in SIDE_BY_SIDE:
            together |= columns
        else:
            print_table(columns)
    if together:
        print_table(together)


def parse() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rate", type=float, default=500, help="operations a second")
    parser.add_argument("--writes", type=float, default=0.1, help="the part of them that write")
    parser.add_argument("--keys", type=int, default=10_000, help="keys that the load works on")
    parser.add_argument("--in-flight", type=int, default=500, help="operations at a time, at most")
    parser.add_argument(
        "--min-replicas", type=int, default=2, help="of writes to cacheservice; 0 for plain writes"
    )
    parser.add_argument("--seconds", type=float, default=180, help="of kills")
    parser.add_argument("--calm", type=float, default=20, help="seconds of load before a disturbance")
    parser.add_argument("--every", type=float, default=20, help="seconds from kill to kill")
    parser.add_argument("--restart-after", type=float, default=5, help="seconds from kill to restart")
    parser.add_argument(
        "--node-timeout",
        type=int,
        default=5_000,
        help="Redis's cluster-node-timeout, in ms; its own is 15,000",
    )
    parser.add_argument("--wait", action="store_true", help="WAIT 1 after each write to Redis")
    parser.add_argument("--settle", type=float, default=10, help="seconds of load after rolling and scaling")
    parser.add_argument("--entries", type=int, default=1_000_000, help="to hand over")
    parser.add_argument("--limit", type=float, default=300, help="seconds for the handoff, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = Options(**vars(parser.parse_args()))
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    if options.restart_after >= options.every:
        parser.error("--restart-after must be less than --every")
    return options


def main() -> None:
    options = parse()
    # So that nodes and servers end too, however this process is told to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        run(options)
    except BenchmarkImpossible as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
