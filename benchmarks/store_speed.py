"""What an operation of the store takes, beside other caches: `python -m benchmarks.store_speed [entries]`.

All hold the same 100-byte values under the same 15-byte keys; ours checks the expiry of each read and
counts its bytes, which the others do not. Reads are Zipf-distributed, keys given as strings of their own,
as they come from the wire. The rounds of all candidates are interleaved, and the median is printed.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import cachebox
import cachetools

from cacheservice.store import POLICIES, Entry, Store, pack

ENTRIES = 10_000
OPERATIONS = 50_000
BATCH = 100
ROUNDS = 7
SIMPLE = ("lru", "fifo")
GOALS_NS = {"hit": 450, "evict": 1_300, "batch": 30_000}
GOAL_OF_CLEVER = 1.6

Run = Callable[[Sequence[str]], None]


class Candidate:
    """A cache that is full, and what it does with a row of keys."""

    def __init__(self, name: str, hit: Run, put: Run, many: Run | None = None) -> None:
        self.name = name
        self.runs = {"hit": hit, "replace": put, "evict": put, "batch": many}
        self.ns: dict[str, list[float]] = {kind: [] for kind, run in self.runs.items() if run}


def ours(policy: str, keys: Sequence[str]) -> Candidate:
    store = Store(1 << 40, policy, now=0)
    packed = pack(Entry(bytes(100), 1, 0, 1_000_000))
    for key in keys:
        store.set(key, packed)
    store.limit = store.max_bytes = store.bytes

    def hit(row: Sequence[str]) -> None:
        get = store.get
        for key in row:
            get(key, 1)

    def put(row: Sequence[str]) -> None:
        set_ = store.set
        for key in row:
            set_(key, packed)

    def many(row: Sequence[str]) -> None:
        for start in range(0, len(row), BATCH):
            store.get_many(row[start : start + BATCH], 1)

    return Candidate(f"cacheservice {policy}", hit, put, many)


def mapping(name: str, cache: Any, keys: Sequence[str]) -> Candidate:
    value = bytes(100)
    for key in keys:
        cache[key] = value

    def hit(row: Sequence[str]) -> None:
        get = cache.get
        for key in row:
            get(key)

    def put(row: Sequence[str]) -> None:
        for key in row:
            cache[key] = value

    return Candidate(name, hit, put)


class OrderedDictLRU:
    """An LRU as one writes it by hand."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def __setitem__(self, key: str, value: bytes) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


def key_of(number: int) -> str:
    return f"user:{number:010d}"


def zipf(count: int, entries: int, random: Random) -> list[str]:
    places = random.choices(range(entries), [1 / (rank + 1) for rank in range(entries)], k=count)
    spread = list(range(entries))
    random.shuffle(spread)
    return [key_of(spread[place]) for place in places]


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    random = Random(1)
    keys = [key_of(number) for number in range(entries)]
    candidates = [
        *(ours(policy, keys) for policy in POLICIES),
        mapping("OrderedDict by hand", OrderedDictLRU(entries), keys),
        mapping("cachetools LRU", cachetools.LRUCache(entries), keys),
        mapping("cachetools LFU", cachetools.LFUCache(entries), keys),
        mapping("cachetools FIFO", cachetools.FIFOCache(entries), keys),
        mapping("cachetools TTL", cachetools.TTLCache(entries, 3_600), keys),
        mapping("cachebox LRU (Rust)", cachebox.LRUCache(entries), keys),
        mapping("cachebox LFU (Rust)", cachebox.LFUCache(entries), keys),
        mapping("cachebox TTL (Rust)", cachebox.TTLCache(entries, 3_600), keys),
    ]
    fresh = entries
    for _ in range(ROUNDS):
        for candidate in candidates:
            for kind, run in candidate.runs.items():
                if run is None:
                    continue
                if kind == "evict":
                    row = [key_of(number) for number in range(fresh, fresh + OPERATIONS)]
                    fresh += OPERATIONS
                else:
                    row = zipf(OPERATIONS, entries, random)
                    if kind == "replace" or kind == "hit" or kind == "batch":
                        candidate.runs["replace"](keys)  # type: ignore[misc]
                began = perf_counter()
                run(row)
                candidate.ns[kind].append((perf_counter() - began) / OPERATIONS * 1e9)
    report(candidates, entries)


def report(candidates: Sequence[Candidate], entries: int) -> None:
    print(f"ns an operation, median of {ROUNDS} rounds, {entries:,} entries; batch: us for {BATCH} reads")
    print(f"{'':26}{'hit':>8}{'replace':>9}{'evict':>8}{'batch':>8}")
    for candidate in candidates:
        cells = {kind: median(ns) for kind, ns in candidate.ns.items()}
        batch = f"{cells['batch'] * BATCH / 1_000:8.1f}" if "batch" in cells else ""
        print(f"{candidate.name:26}{cells['hit']:8.0f}{cells['replace']:9.0f}{cells['evict']:8.0f}{batch}")
    for candidate in candidates[: len(POLICIES)]:
        policy = candidate.name.split()[1]
        factor = 1 if policy in SIMPLE else GOAL_OF_CLEVER
        for kind, goal in GOALS_NS.items():
            size = BATCH if kind == "batch" else 1
            limit = goal if kind == "batch" else goal * factor
            got = median(candidate.ns[kind]) * size
            print(
                f"  {policy:10}{kind:8}{got:8.0f} ns, goal {limit:6.0f}: {'PASS' if got <= limit else 'FAIL'}"
            )


if __name__ == "__main__":
    main()
