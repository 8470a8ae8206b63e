"""The estimate for other amounts of memory, beside stores that really have them."""

from __future__ import annotations

from random import Random

import pytest

from cacheservice.store import FACTORS, Entry, Store, pack
from cacheservice.store.curve import MAX_SAMPLED

ENTRY = pack(Entry(bytes(100), 1, 0))


def zipf_requests(count: int, keys: int, seed: int) -> list[str]:
    random = Random(seed)
    places = random.choices(range(keys), [1 / (rank + 1) ** 0.8 for rank in range(keys)], k=count)
    spread = list(range(keys))
    random.shuffle(spread)
    return [f"key{spread[place]}" for place in places]


def run(store: Store, requests: list[str]) -> float:
    for key in requests:
        if store.get(key, 0) is None:
            store.set(key, ENTRY)
    return store.stats.hits / len(requests)


@pytest.mark.parametrize("policy", ["lru", "adaptive"])
def test_the_estimate_is_what_such_a_store_would_do(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheservice.store.curve.FIRST_RATE", 1 / 32)
    requests = zipf_requests(150_000, keys=60_000, seed=1)
    max_bytes = 3_000_000
    store = Store(max_bytes, policy, now=0)
    hit_ratio = run(store, requests)
    for factor in FACTORS:
        true = run(Store(int(max_bytes * factor), policy, now=0), requests)
        assert store.curve.estimate(factor, hit_ratio) == pytest.approx(true, abs=0.04)


def test_without_reads_nothing_is_gained() -> None:
    assert Store(1 << 20, now=0).curve.estimate(2.0, 0.5) == 0.5


def test_more_memory_than_all_entries_need_gains_nothing() -> None:
    store = Store(1 << 30, now=0)
    hit_ratio = run(store, zipf_requests(50_000, keys=5_000, seed=2))
    assert store.curve.estimate(2.0, hit_ratio) == pytest.approx(hit_ratio, abs=0.001)


def test_the_sample_stays_small_however_large_the_store() -> None:
    store = Store(1 << 40, now=0)
    for number in range(100_000):
        store.set(f"key{number}", ENTRY)
    sizes = [len(size.entries) for size in store.curve._sizes.values()]
    assert MAX_SAMPLED / 3 < sizes[1] <= MAX_SAMPLED
    assert max(sizes) <= 2 * MAX_SAMPLED


@pytest.mark.parametrize("gone", ["deleted", "expired", "invalidated"])
def test_what_is_gone_is_gone_from_the_sample(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheservice.store.curve.FIRST_RATE", 1 / 4)
    store = Store(1 << 30, now=0)
    keys = [f"key{number}" for number in range(2_000)]
    for key in keys:
        store.set(key, pack(Entry(b"", 1, 0, expires=1_000, tags=("t",))))
    now = 0
    match gone:
        case "deleted":
            assert store.delete_many(keys) == [True] * len(keys)
        case "expired":
            now = 5_000
        case _:
            assert sum(map(len, store.invalidate_tag("t", 2**64 - 1))) == len(keys)
    assert store.get_many(keys, now) == [None] * len(keys)
    assert store.curve.estimate(2.0, 0.0) == 0.0
    assert [size.hits for size in store.curve._sizes.values()] == [0, 0, 0]
