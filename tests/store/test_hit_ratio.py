"""How well the store chooses, beside other implementations of the same policies."""

from __future__ import annotations

import zlib
from collections.abc import Callable, MutableMapping, Sequence
from itertools import accumulate
from random import Random

import cachetools
import pytest

from cacheservice.store import POLICIES, Entry, Store, cost_of_one, pack
from cacheservice.store import store as store_module
from tests.store.naive import Key

PLAIN = pack(Entry(b"", 1, 0))

Reference = MutableMapping[str, bool]


def counting_store(entries: int, policy: str) -> Store:
    return Store(entries, policy, now=0, cost=cost_of_one)


def hits_of(store: Store, requests: Sequence[str]) -> int:
    for key in requests:
        if store.get(key, 0) is None:
            store.set(key, PLAIN)
    return store.stats.hits


def hits_of_reference(cache: Reference, requests: Sequence[str]) -> int:
    hits = 0
    for key in requests:
        if cache.get(key):
            hits += 1
        else:
            cache[key] = True
    return hits


def zipf(keys: int, requests: int, alpha: float, seed: int) -> list[Key]:
    names = [Key(f"key{number}") for number in range(keys)]
    weights = accumulate((rank + 1) ** -alpha for rank in range(keys))
    return Random(seed).choices(names, cum_weights=list(weights), k=requests)


@pytest.mark.parametrize(
    ("policy", "reference"), [("lru", cachetools.LRUCache), ("fifo", cachetools.FIFOCache)]
)
@pytest.mark.parametrize("capacity", [1, 50, 500])
def test_hits_are_exactly_those_of_cachetools(
    policy: str, reference: Callable[[int], Reference], capacity: int
) -> None:
    requests = zipf(5_000, 30_000, alpha=1.0, seed=zlib.crc32(policy.encode()))
    hits = hits_of(counting_store(capacity, policy), requests)
    assert hits == hits_of_reference(reference(capacity), requests)
    assert hits > 0


@pytest.mark.parametrize(
    ("policy", "reference"), [("lru", cachetools.LRUCache), ("fifo", cachetools.FIFOCache)]
)
def test_with_many_segments_the_hit_ratio_is_nearly_exact(
    policy: str, reference: Callable[[int], Reference]
) -> None:
    requests = zipf(100_000, 100_000, alpha=0.8, seed=1)
    store = counting_store(20_000, policy)
    hits = hits_of(store, requests)
    assert len(store._segments) >= 8
    assert store.stats.evictions > 10_000
    expected = hits_of_reference(reference(20_000), requests)
    assert hits == pytest.approx(expected, abs=0.003 * len(requests))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_splitting_costs_next_to_no_hits(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    requests = zipf(10_000, 60_000, alpha=0.9, seed=2)
    whole = hits_of(counting_store(2_000, policy), requests)
    monkeypatch.setattr(store_module, "MAX_ENTRIES", 300)
    split = counting_store(2_000, policy)
    assert hits_of(split, requests) == pytest.approx(whole, abs=0.004 * len(requests))
    assert len(split._segments) >= 8


@pytest.mark.parametrize(("policy", "kept"), [("lru", 0), ("fifo", 0), ("s3fifo", 50), ("adaptive", 50)])
def test_a_scan_does_not_drive_out_what_is_in_use(policy: str, kept: int) -> None:
    working_set = [Key(f"used{number}") for number in range(50)]
    store = counting_store(100, policy)
    hits_of(store, 4 * working_set)
    for number in range(1_000):
        store.set(Key(f"scan{number}"), PLAIN)
    assert sum(store.peek(key, 0) is not None for key in working_set) == kept


def test_lfu_keeps_what_is_in_use_through_a_scan_as_long_as_its_memory_lasts() -> None:
    working_set = [Key(f"used{number}") for number in range(50)]
    store = counting_store(100, "lfu")
    hits_of(store, 4 * working_set)
    left = []
    for number in range(1_000):
        store.set(Key(f"scan{number}"), PLAIN)
        left.append(sum(store.peek(key, 0) is not None for key in working_set))
    assert (left[199], left[-1]) == (50, 0)
