"""Client and nodes beside Redis, Redis Cluster and twemproxy, with the clients that Python has for them.

    python -m benchmarks.peers [--rounds 5] [--seconds 3] [--only WORDS]

Each figure is a client process of its own, whose callers each ask again as soon as they are answered. The
systems take turns within a round, so that what the machine does else meets them alike; the ratios are those
of a round, and the median of them is printed, with the goal that it is held against.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from statistics import median

from benchmarks import peer_servers

Servers = dict[str, list[str]]


@dataclass(frozen=True)
class Row:
    """One kind of load, and how much better than each peer ours is to be."""

    name: str
    work: str
    callers: int
    ours: str
    goals: dict[str, float]
    """By peer: the least ratio of our rate to its."""
    value_bytes: int = 100
    latency_goals: dict[str, float] = field(default_factory=dict)
    """By peer: the largest ratio of our median latency to its."""


@dataclass(frozen=True)
class Stage:
    """Rows that share their servers."""

    servers: Callable[[], AbstractContextManager[Servers]]
    rows: Sequence[Row]


@contextmanager
def single() -> Iterator[Servers]:
    with ExitStack() as stack:
        ours = stack.enter_context(peer_servers.cacheservice())
        redis = [stack.enter_context(peer_servers.redis())]
        yield {"cacheservice": ours, "redis-py": redis, "glide": redis}


@contextmanager
def clusters() -> Iterator[Servers]:
    with ExitStack() as stack:
        ours = stack.enter_context(peer_servers.cacheservice(3))
        redis = stack.enter_context(peer_servers.redis_cluster())
        yield {"cacheservice": ours, "redis-py-cluster": redis, "glide-cluster": redis}


@contextmanager
def proxies() -> Iterator[Servers]:
    with ExitStack() as stack:
        ours = stack.enter_context(peer_servers.cacheservice(3))
        redis = stack.enter_context(peer_servers.redis())
        proxy = [stack.enter_context(peer_servers.nutcracker(redis))]
        yield {"cacheservice-proxy": ours[:1], "redis-py-proxy": proxy}


@contextmanager
def for_threads() -> Iterator[Servers]:
    with ExitStack() as stack:
        ours = stack.enter_context(peer_servers.cacheservice())
        redis = [stack.enter_context(peer_servers.redis())]
        memcached = [stack.enter_context(peer_servers.memcached())]
        yield {"cacheservice-sync": ours, "redis-py-sync": redis, "pymemcache": memcached}


REDIS = ("redis-py", "glide")
REDIS_CLUSTER = ("redis-py-cluster", "glide-cluster")


def row(
    name: str, work: str, callers: int, peers: Sequence[str], *goals: float, value_bytes: int = 100
) -> Row:
    """A row with a goal for each of the peers, or with one for all."""
    return Row(name, work, callers, "cacheservice", dict(zip(peers, goals * 2, strict=False)), value_bytes)


STAGES = (
    Stage(
        single,
        (
            replace(row("get, 32 callers", "get", 32, REDIS, 3.0, 2.3), latency_goals={"redis-py": 0.35}),
            row("get, 100 callers", "get", 100, REDIS, 3.5),
            row("set, 100 callers", "set", 100, REDIS, 2.5),
            row("90:10, 100 callers", "mix", 100, REDIS, 3.0),
            row("get_many of 100, 8 in flight", "get_many", 8, REDIS, 1.1),
        ),
    ),
    Stage(
        single,
        (row("get_many of 100, 8 in flight, 2,048 bytes", "get_many", 8, REDIS, 1.0, value_bytes=2_048),),
    ),
    Stage(
        clusters,
        (
            row("3 nodes, 90:10, 100 callers", "mix", 100, REDIS_CLUSTER, 2.0),
            row("3 nodes, 90:10, 300 callers", "mix", 300, REDIS_CLUSTER, 3.5),
        ),
    ),
    Stage(
        proxies,
        (
            Row(
                "any of 3 nodes, 90:10, 100 callers",
                "mix",
                100,
                "cacheservice-proxy",
                {"redis-py-proxy": 2.0},
            ),
        ),
    ),
    Stage(
        for_threads,
        (
            Row(
                "get, 32 threads", "threads", 32, "cacheservice-sync", {"redis-py-sync": 2.0, "pymemcache": 0}
            ),
            Row(
                "get, 1 thread",
                "threads",
                1,
                "cacheservice-sync",
                {"redis-py-sync": 0, "pymemcache": 0},
                latency_goals={"redis-py-sync": 2.5},
            ),
        ),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    for stage in STAGES:
        rows = [row for row in stage.rows if options.only in row.name]
        if not rows:
            continue
        with stage.servers() as servers:
            for row in rows:
                measure(row, servers, options.rounds, options.seconds)


def measure(row: Row, servers: Servers, rounds: int, seconds: float) -> None:
    """Fills the servers with values of the row's size, runs its rounds, and prints what came of them."""
    systems = [row.ours, *row.goals]
    for system in systems:
        run(system, "fill", servers[system], 1, row.value_bytes, 0)
    seen = [
        {
            system: run(system, row.work, servers[system], row.callers, row.value_bytes, seconds)
            for system in systems
        }
        for _ in range(rounds)
    ]
    print(f"\n{row.name}")
    for system in systems:
        rate, p50, p999 = (
            median(turn[system][figure] for turn in seen) for figure in ("rate", "p50", "p999")
        )
        print(f"  {system:20s} {rate:12,.0f}/s   p50 {p50:7.3f} ms   p99.9 {p999:8.3f} ms")
    for peer, goal in row.goals.items():
        ratio = median(turn[row.ours]["rate"] / turn[peer]["rate"] for turn in seen)
        print(f"  {ratio:6.2f} x {peer}  (goal {goal}): {'PASS' if ratio >= goal else 'FAIL'}")
    for peer, goal in row.latency_goals.items():
        ratio = median(turn[row.ours]["p50"] / turn[peer]["p50"] for turn in seen)
        print(f"  {ratio:6.2f} x {peer}'s p50  (goal {goal}): {'PASS' if ratio <= goal else 'FAIL'}")
    sys.stdout.flush()


def run(
    system: str, work: str, addresses: Sequence[str], callers: int, value_bytes: int, seconds: float
) -> dict[str, float]:
    arguments = (system, work, ",".join(addresses), str(callers), str(value_bytes), str(seconds))
    command = (sys.executable, "-W", "ignore", "-m", "benchmarks.peer_clients", *arguments)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1]) if work != "fill" else {}
    return found


if __name__ == "__main__":
    main()
