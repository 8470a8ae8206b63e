"""What an operation of the store takes, beside other caches: `python -m benchmarks.store_speed [entries]`.

All hold the same 100-byte values under the same 15-byte keys; ours checks the expiry of each read and
counts its bytes, which the others do not. Reads are Zipf-distributed, keys given as strings of their own,
as they come from the wire. Each candidate has a process of its own, as a node has one policy: the
interpreter specialises code for the one type that it sees there. One works at a time; the rounds of all
candidates are interleaved, and the median is printed.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import cachebox
import cachetools

from cacheservice.store import POLICIES, Entry, Store, pack
from cacheservice.store import store as store_module

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

    def __init__(self, hit: Run, put: Run, many: Run | None = None) -> None:
        self.runs = {"hit": hit, "replace": put, "evict": put} | ({"batch": many} if many else {})


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

    return Candidate(hit, put, many)


def mapping(make: Callable[[int], Any], keys: Sequence[str]) -> Candidate:
    value = bytes(100)
    cache = make(len(keys))
    for key in keys:
        cache[key] = value

    def hit(row: Sequence[str]) -> None:
        get = cache.get
        for key in row:
            get(key)

    def put(row: Sequence[str]) -> None:
        for key in row:
            cache[key] = value

    return Candidate(hit, put)


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


CANDIDATES: dict[str, Callable[[Sequence[str]], Candidate]] = {
    **{f"cacheservice {policy}": partial(ours, policy) for policy in POLICIES},
    "OrderedDict by hand": partial(mapping, OrderedDictLRU),
    "cachetools LRU": partial(mapping, cachetools.LRUCache),
    "cachetools LFU": partial(mapping, cachetools.LFUCache),
    "cachetools FIFO": partial(mapping, cachetools.FIFOCache),
    "cachetools TTL": partial(mapping, lambda entries: cachetools.TTLCache(entries, 3_600)),
    "cachebox LRU (Rust)": partial(mapping, cachebox.LRUCache),
    "cachebox LFU (Rust)": partial(mapping, cachebox.LFUCache),
    "cachebox TTL (Rust)": partial(mapping, lambda entries: cachebox.TTLCache(entries, 3_600)),
}


def work(name: str, entries: int, orders: Connection) -> None:
    """Answers each order, a seed, with the ns of each kind of operation."""
    keys = [key_of(number) for number in range(entries)]
    candidate = CANDIDATES[name](keys)
    fresh = entries
    while (seed := orders.recv()) is not None:
        random = Random(seed)
        ns = {}
        for kind, run in candidate.runs.items():
            if kind == "evict":
                row = [key_of(number) for number in range(fresh, fresh + OPERATIONS)]
                fresh += OPERATIONS
            else:
                row = zipf(OPERATIONS, entries, random)
                candidate.runs["replace"](keys)
            began = perf_counter()
            run(row)
            ns[kind] = (perf_counter() - began) / OPERATIONS * 1e9
        orders.send(ns)


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    context = get_context("spawn")
    pipes = {}
    for name in CANDIDATES:
        pipes[name], end = context.Pipe()
        context.Process(target=work, args=(name, entries, end), daemon=True).start()
        end.close()
    results: dict[str, dict[str, list[float]]] = {name: {} for name in CANDIDATES}
    for seed in range(ROUNDS + 1):
        for name, pipe in pipes.items():
            pipe.send(seed)
            for kind, ns in pipe.recv().items():
                if seed > 0:  # the first round warms up
                    results[name].setdefault(kind, []).append(ns)
    for pipe in pipes.values():
        pipe.send(None)
    report(
        {name: {kind: median(ns) for kind, ns in kinds.items()} for name, kinds in results.items()}, entries
    )


def report(results: dict[str, dict[str, float]], entries: int) -> None:
    how = "interpreted" if str(store_module.__file__).endswith(".py") else "compiled"
    print(f"ns an operation, median of {ROUNDS} rounds, {entries:,} entries; batch: us for {BATCH} reads")
    print(f"(the store is {how}: see `make compiled`)")
    print(f"{'':26}{'hit':>8}{'replace':>9}{'evict':>8}{'batch':>8}")
    for name, ns in results.items():
        batch = f"{ns['batch'] * BATCH / 1_000:8.1f}" if "batch" in ns else ""
        print(f"{name:26}{ns['hit']:8.0f}{ns['replace']:9.0f}{ns['evict']:8.0f}{batch}")
    for policy in POLICIES:
        factor = 1 if policy in SIMPLE else GOAL_OF_CLEVER
        for kind, goal in GOALS_NS.items():
            size = BATCH if kind == "batch" else 1
            limit = goal if kind == "batch" else goal * factor
            got = results[f"cacheservice {policy}"][kind] * size
            print(
                f"  {policy:10}{kind:8}{got:8.0f} ns, goal {limit:6.0f}: {'PASS' if got <= limit else 'FAIL'}"
            )


if __name__ == "__main__":
    main()
