"""Whether a process stays within its memory whatever is written: `python -m benchmarks.store_churn [MiB...]`.

For each mix of value sizes a process of its own, with the allocator, the collector and the memory keeper of
a real node, writes the whole of `max_memory` many times over, in random order, and reads in between.
Printed are the largest resident size beside the promise of max_memory x 1.15 + 64 MiB, and how much of
max_memory the keeper left to the entries, at the least and at the end.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from random import Random

import cacheservice.server.app  # noqa: F401  (a node's own memory is part of the promise)
from cacheservice.server.memory import MemoryKeeper, resident_bytes, settle_allocator, settle_collector
from cacheservice.store import Entry, Store, pack

MiB = 1 << 20
MAX_MEMORY = (256,)
TURNOVERS = 20
CHECK_EVERY = 200
HOT_SHARE = 0.2
PROMISE = 1.15
SLACK_BYTES = 64 * MiB

Sizes = Iterator[int]


def _fixed(size: int) -> Callable[[Random, Callable[[], float]], Sizes]:
    def sizes(_random: Random, _progress: Callable[[], float]) -> Sizes:
        while True:
            yield size

    return sizes


def _lognormal(random: Random, _progress: Callable[[], float]) -> Sizes:
    while True:
        yield min(MiB, 1 + int(random.lognormvariate(5.7, 1.5)))


def _uniform(random: Random, _progress: Callable[[], float]) -> Sizes:
    while True:
        yield random.randrange(1, 64 << 10)


def _two_kinds(random: Random, _progress: Callable[[], float]) -> Sizes:
    while True:
        yield 100 if random.random() < 0.9 else random.randrange(100_000, MiB)


def _phases(*phases: int) -> Callable[[Random, Callable[[], float]], Sizes]:
    """Values that change their size when a part of the run is over."""

    def sizes(_random: Random, progress: Callable[[], float]) -> Sizes:
        while True:
            yield phases[min(len(phases) - 1, int(progress() * len(phases)))]

    return sizes


MIXES: dict[str, Callable[[Random, Callable[[], float]], Sizes]] = {
    "100 B": _fixed(100),
    "2 KiB": _fixed(2_048),
    "67 KB": _fixed(67_000),
    "lognormal, median 300 B": _lognormal,
    "uniform to 64 KiB": _uniform,
    "9 in 10 100 B, else to 1 MiB": _two_kinds,
    "growing 100 B to 67 KB, and back": _phases(100, 180, 700, 5_000, 67_000, 100),
    "to and fro": _phases(100, 5_000, 100, 67_000, 700, 180),
}


def measure(mix: str, max_memory: int, policy: str) -> None:
    """Prints largest resident bytes, least share, last share, bytes in use at the end, entries."""
    settle_allocator()
    settle_collector()
    random = Random(1)
    store = Store(max_memory, policy, now=0)
    keeper = MemoryKeeper(store)
    to_write = TURNOVERS * max_memory
    sizes = MIXES[mix](random, lambda: store.stats.written / to_write)
    largest, least, number, checked = 0, 1.0, 0, 0
    while store.stats.written < to_write:
        for _ in range(CHECK_EVERY):
            # Half of the writes are of new keys, the others renew keys that may still be there.
            number += random.random() < 0.5
            picked = (
                number
                if random.random() < HOT_SHARE
                else random.randrange(max(0, number - 500_000), number + 1)
            )
            key = f"user:{picked:010d}"
            store.get(key, 0)
            store.set(key, pack(Entry(bytes(next(sizes)), 1, 0, 3_600_000)))
            if store.stats.written >= checked + max_memory / 50:
                break
        checked = store.stats.written
        resident = resident_bytes()
        largest = max(largest, resident)
        keeper.check(resident)
        while store.upkeep(0) or keeper.compact():
            pass
        least = min(least, keeper.share)
    print(largest, least, keeper.share, store.bytes, len(store))


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or list(MAX_MEMORY)
    print(
        f"{'':34}{'max_memory':>11}{'largest':>9}{'promised':>10}{'':>7}{'least share':>12}{'last share':>11}"
    )
    for size in sizes:
        max_memory = size * MiB
        promised = max_memory * PROMISE + SLACK_BYTES
        for mix in MIXES:
            row = f"from benchmarks.store_churn import measure; measure({mix!r}, {max_memory}, 'lru')"
            done = subprocess.run([sys.executable, "-c", row], check=True, capture_output=True, text=True)
            largest, least, last, _used, _entries = map(float, done.stdout.split())
            verdict = "PASS" if largest <= promised else "FAIL"
            print(
                f"{mix:34}{size:8} MiB{largest / MiB:9.0f}{promised / MiB:10.0f}{verdict:>7}"
                f"{least:12.2f}{last:11.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
