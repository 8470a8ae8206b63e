"""One key that nearly everybody reads: with what clients do about it, and without.

    python -m benchmarks.hot_key [--rounds 7] [--seconds 4] [--callers 25]

Three nodes, each entry on two; four client processes, each with so many callers who ask again as soon as they
are answered: nine reads in ten of one key, the others of 10,000 keys alike. In each round all clients run
once with the treatment and once without, in turns; the ratios are those of a round, and medians are printed.
Linux only, for the figures of CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

import uvloop

from cacheservice.client import Client, SyncClient
from cacheservice.client.hot_keys import HotKeys
from cacheservice.ring import Ring, RingMember
from tests.integration.processes import ClusterProcesses

NODES, CLIENTS, KEYS = 3, 4, 10_000
VALUE = b"x" * 100
HOT_SHARE = 0.9
HOT = "hot"
MODES = ("without", "with")
_KEYS_OF_A_CALLER = 5_000
_START_SECONDS = 1.5
_WARM_UP_SECONDS = 1.5
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Seen:
    """Of one run: reads a second, latencies in ms, and what each node's process computed, in cores."""

    rate: float
    p50: float
    p99: float
    cores: list[float]
    client_cores: float


async def client(mode: str, addresses: str, callers: int, begins: float, seconds: float, seed: int) -> None:
    """One client process; prints the latencies in microseconds, and the seconds that it computed."""
    latencies: list[int] = []
    async with Client(addresses.split(","), timeout=10) as cache:
        if mode == "without":
            # By this clock every key's time is up at once.
            cache.hot = HotKeys(lambda: inf)
        await cache.get(HOT)
        starts = begins + _WARM_UP_SECONDS
        ends = starts + seconds

        async def caller(random: Random) -> None:
            keys = [
                HOT if random.random() < HOT_SHARE else key_of(random.randrange(KEYS))
                for _ in range(_KEYS_OF_A_CALLER)
            ]
            now, get = time.time, cache.get
            await asyncio.sleep(begins - now())
            while True:
                for key in keys:
                    asked = now()
                    if await get(key) != VALUE:
                        raise SystemExit(f"{key} was not found")
                    answered = now()
                    if answered > ends:
                        return
                    if asked > starts:
                        latencies.append(round((answered - asked) * 1e6))

        async def computed() -> float:
            await asyncio.sleep(starts - time.time())
            before = time.process_time()
            await asyncio.sleep(ends - time.time())
            return time.process_time() - before

        some = (caller(Random(seed * 1_000 + number)) for number in range(callers))
        used, *_ = await asyncio.gather(computed(), *some)
    print(json.dumps([latencies, used]))


def run(mode: str, cluster: ClusterProcesses, callers: int, seconds: float) -> Seen:
    begins = time.time() + _START_SECONDS
    command = (sys.executable, "-W", "ignore", "-m", "benchmarks.hot_key", "--client", mode)
    options = (",".join(cluster.addresses), str(callers), str(begins), str(seconds))
    clients = [
        subprocess.Popen([*command, *options, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(CLIENTS)
    ]
    time.sleep(begins + _WARM_UP_SECONDS - time.time())
    before = cpu_seconds(cluster)
    time.sleep(seconds)
    cores = [(after - then) / seconds for after, then in zip(cpu_seconds(cluster), before, strict=True)]
    answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in clients]
    latencies = sorted(latency for some, _ in answers for latency in some)
    p50, p99 = (latencies[int(len(latencies) * part)] / 1_000 for part in (0.5, 0.99))
    return Seen(len(latencies) / seconds, p50, p99, cores, sum(used for _, used in answers) / seconds)


def cpu_seconds(cluster: ClusterProcesses) -> list[float]:
    """What each node's process has computed so far."""
    stats = [Path(f"/proc/{node.process.pid}/stat").read_text() for node in cluster.nodes]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return [(int(some[11]) + int(some[12])) / _TICKS_PER_SECOND for some in fields]


def show(rounds: Sequence[dict[str, Seen]], callers: int) -> None:
    ring = Ring(RingMember(f"n{number}") for number in range(1, NODES + 1))
    first, replica = ring.owners(HOT, 2)
    print(
        f"{NODES} nodes, {CLIENTS} clients with {callers} callers each, {os.cpu_count()} cores for them all;"
    )
    print(f"{HOT_SHARE:.0%} of the reads are of one key: {first} is its first owner, {replica} its replica")
    print(f"{'':32}{'without':>12}{'with':>12}{'ratio':>8}   in the rounds")
    figures: dict[str, Callable[[Seen], float]] = {
        "reads a second": lambda seen: seen.rate,
        "p50, ms": lambda seen: seen.p50,
        "p99, ms": lambda seen: seen.p99,
        "CPU of clients, us a read": lambda seen: seen.client_cores / seen.rate * 1e6,
        "CPU of all nodes, us a read": lambda seen: sum(seen.cores) / seen.rate * 1e6,
        "CPU of busiest node, us a read": lambda seen: max(seen.cores) / seen.rate * 1e6,
    }
    for place, member in enumerate(ring.members):
        figures[f"cores that {member.node_id} had"] = lambda seen, place=place: seen.cores[place]  # type: ignore[misc]
    for name, figure in figures.items():
        without, with_ = (median(figure(turn[mode]) for turn in rounds) for mode in MODES)
        ratios = sorted(figure(turn["with"]) / figure(turn["without"]) for turn in rounds)
        digits = 0 if without > 1_000 else 2
        line = f"{name:32}{without:12,.{digits}f}{with_:12,.{digits}f}{median(ratios):8.2f}"
        print(f"{line}   {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print("Where nodes and clients share their cores, the rate shows what a read costs all of them together.")
    print("Where each has its own, the busiest node is the bound: see what a read costs that.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--callers", type=int, default=25)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        cluster = ClusterProcesses(Path(folder), NODES)
        try:
            with SyncClient(cluster.addresses, timeout=10) as cache:
                cache.set_many(dict.fromkeys([HOT, *map(key_of, range(KEYS))], VALUE))
            rounds = [
                {mode: run(mode, cluster, options.callers, options.seconds) for mode in in_turns(number)}
                for number in range(options.rounds)
            ]
        finally:
            cluster.stop()
    show(rounds, options.callers)


def in_turns(number: int) -> Sequence[str]:
    return MODES if number % 2 else MODES[::-1]


def key_of(number: int) -> str:
    return f"k{number}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        mode, addresses, callers, begins, seconds, seed = sys.argv[2:]
        uvloop.run(client(mode, addresses, int(callers), float(begins), float(seconds), int(seed)))
    else:
        main()
