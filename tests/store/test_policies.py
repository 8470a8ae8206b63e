from __future__ import annotations

import zlib
from collections.abc import Callable, MutableMapping
from random import Random

import cachetools
import pytest

from cacheservice.store import Entry, Store
from cacheservice.store.fifo import FIFO
from cacheservice.store.lfu import LFU
from cacheservice.store.lru import LRU
from cacheservice.store.policy import EvictionPolicy
from cacheservice.store.s3fifo import S3FIFO


def test_lru_gives_up_the_least_recently_used() -> None:
    assert order(LRU, "abc", used="ab") == ["c", "a", "b"]


def test_to_lru_a_new_value_is_a_use() -> None:
    assert order(LRU, "abca") == ["b", "c", "a"]


def test_lfu_gives_up_the_least_often_used() -> None:
    assert order(LFU, "abc", used="aabc") == ["b", "c", "a"]


def test_of_equals_lfu_gives_up_the_one_longest_unused() -> None:
    assert order(LFU, "abc", used="cba") == ["c", "b", "a"]


def test_fifo_gives_up_the_oldest_whatever_its_use() -> None:
    assert order(FIFO, "abca", used="aab") == ["a", "b", "c"]


def test_s3fifo_gives_up_first_what_was_not_used_again_soon() -> None:
    policy = S3FIFO()
    for key in "abcdefghij":
        policy.put(key, b"-")
    for key in "aabbc":
        policy.get(key)
    # a and b were used enough to go on to the main queue, c was not.
    assert [policy.evict()[0] for _ in range(8)] == ["c", "d", "e", "f", "g", "h", "i", "j"]
    assert sorted(policy) == ["a", "b"]


def test_what_s3fifo_gave_up_and_sees_again_soon_enters_the_main_queue() -> None:
    policy = S3FIFO()
    for key in "xabc":
        policy.put(key, b"-")
    for key in "abcabc":
        policy.get(key)
    assert policy.evict()[0] == "x"
    policy.put("x", b"again")
    for key in "0123456789":
        policy.put(key, b"-")
    assert [policy.evict()[0] for _ in range(8)] == list("01234567")
    assert policy.peek("x") == b"again"


def test_a_scan_does_not_drive_out_what_is_in_use() -> None:
    working_set = [f"used{number}" for number in range(50)]
    kept = {}
    for name in ("lru", "s3fifo"):
        store = Store(1 << 30, name, now=0, max_entries=100)
        for _ in range(4):
            for key in working_set:
                if store.get(key, 0) is None:
                    store.set(key, Entry(b"", 1, 0))
        for number in range(1_000):
            store.set(f"scan{number}", Entry(b"", 1, 0))
        kept[name] = sum(store.peek(key, 0) is not None for key in working_set)
    assert kept == {"lru": 0, "s3fifo": 50}


def test_the_memory_of_what_was_given_up_is_bounded() -> None:
    store = Store(1 << 30, "s3fifo", now=0, max_entries=100)
    for number in range(10_000):
        store.set(str(number), Entry(b"", 1, 0))
    policy = store._entries
    assert isinstance(policy, S3FIFO)
    assert len(policy._ghosts) <= 100
    assert len(policy._uses) <= 100


def order(make: Callable[[], EvictionPolicy], puts: str, used: str = "") -> list[str]:
    policy = make()
    for key in puts:
        policy.put(key, b"-")
    for key in used:
        policy.get(key)
    return [policy.evict()[0] for _ in range(len(policy))]


def zipf_keys(count: int, seed: int) -> list[str]:
    random = Random(seed)
    return [str(int(random.paretovariate(0.8)) % 5_000) for _ in range(count)]


Reference = MutableMapping[str, bool]


@pytest.mark.parametrize(
    ("policy", "reference"),
    [("lru", cachetools.LRUCache), ("fifo", cachetools.FIFOCache), ("lfu", cachetools.LFUCache)],
)
@pytest.mark.parametrize("capacity", [50, 500])
def test_hits_are_those_of_cachetools(
    policy: str, reference: Callable[[int], Reference], capacity: int
) -> None:
    """Exactly, for LRU and FIFO; for LFU to 1 point, since cachetools breaks ties its own way."""
    store, model = Store(1 << 40, policy, now=0, max_entries=capacity), reference(capacity)
    hits = expected = 0
    requests = zipf_keys(40_000, seed=zlib.crc32(policy.encode()))
    for key in requests:
        if store.get(key, 0) is None:
            store.set(key, Entry(b"", 1, 0))
        else:
            hits += 1
        if model.get(key):
            expected += 1
        else:
            model[key] = True
    assert 0.2 < hits / len(requests) < 0.99
    if policy == "lfu":
        assert hits == pytest.approx(expected, abs=len(requests) / 100)
    else:
        assert hits == expected
