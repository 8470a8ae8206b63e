from __future__ import annotations

from sys import getsizeof

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cacheservice.errors import EntryTooLarge
from cacheservice.store import POLICIES, Entry, Store
from cacheservice.store.entry import pack
from cacheservice.store.store import ENTRY_OVERHEAD, key_bytes
from cacheservice.v1.cache_pb2 import GetRequest

KEYS = st.sampled_from([f"key{number}" for number in range(9)] + ["ключ", "schlüssel", "🔑"])


def cost(policy: str, key: str, entry: Entry) -> int:
    return key_bytes(key) + getsizeof(pack(entry)) + ENTRY_OVERHEAD[policy]


class StoreAgainstDict(RuleBasedStateMachine):
    """The store beside a dict that knows which entries it may, and may not, still hold."""

    @initialize(policy=st.sampled_from(sorted(POLICIES)), max_bytes=st.integers(500, 4_000))
    def make(self, policy: str, max_bytes: int) -> None:
        self.policy = policy
        self.now = 10_000
        self.store = Store(max_bytes, policy, now=self.now)
        self.written: dict[str, Entry] = {}
        self.version = 0

    @rule(
        key=KEYS,
        size=st.integers(0, 3_000),
        ttl=st.integers(0, 5_000),
        stale=st.integers(0, 2_000),
    )
    def set(self, key: str, size: int, ttl: int, stale: int) -> None:
        self.version += 1
        entry = Entry(bytes(size), self.version, self.now, self.now + ttl if ttl else 0, stale)
        before = {other: self.store.peek(other, self.now) for other in self.written}
        try:
            self.store.set(key, entry)
        except EntryTooLarge:
            assert cost(self.policy, key, entry) > self.store.max_bytes
            assert {other: self.store.peek(other, self.now) for other in self.written} == before
        else:
            self.written[key] = entry
            assert self.store.peek(key, self.now) == (entry if self.lives(entry) else None)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        hits, misses = self.store.stats.hits, self.store.stats.misses
        peeked = self.store.peek(key, self.now)
        entry = self.store.get(key, self.now)
        assert entry == peeked
        if entry is not None:
            assert entry == self.written[key]
            assert self.lives(entry)
        assert (self.store.stats.hits - hits, self.store.stats.misses - misses) == (
            (1, 0) if entry else (0, 1)
        )

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        held = key in set(self.store)
        assert self.store.delete(key) is held
        self.written.pop(key, None)
        assert self.store.peek(key, self.now) is None

    @rule(ms=st.integers(0, 3_000))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule(limit=st.integers(1, 5))
    def collect(self, limit: int) -> None:
        before = len(self.store)
        collected = self.store.collect_expired(self.now, limit)
        assert before - len(self.store) == collected <= limit
        if collected < limit:
            overdue = [
                key
                for key in self.store
                if self.written[key].dead_at and self.written[key].dead_at + 1_000 <= self.now
            ]
            assert overdue == []

    @invariant()
    def accounts_are_exact(self) -> None:
        held = list(self.store)
        assert self.store.bytes == sum(cost(self.policy, key, self.written[key]) for key in held)
        assert self.store.bytes <= self.store.max_bytes
        assert len(self.store) == len(held)

    def lives(self, entry: Entry) -> bool:
        return not entry.dead_at or self.now < entry.dead_at


TestStoreAgainstDict = StoreAgainstDict.TestCase


@pytest.mark.parametrize("key", ["key", "schlüssel", "ключ", "🔑", ""])
def test_a_key_costs_the_same_whatever_was_done_with_it(key: str) -> None:
    fresh = key_bytes(key)
    # This keeps the UTF-8 form in the str, and getsizeof counts it from then on.
    GetRequest(key=key)
    assert key_bytes(key) == fresh >= getsizeof(key)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_does_not_fit_is_refused_and_evicts_nothing(policy: str) -> None:
    store = Store(2_000, policy, now=0)
    store.set("small", Entry(b"x", 1, 0))
    with pytest.raises(EntryTooLarge, match="does not fit") as caught:
        store.set("large", Entry(bytes(2_000), 2, 0))
    assert caught.value.metadata["field"] == "value"
    assert store.peek("small", 0) is not None
    assert store.stats.evictions == 0


def test_expired_entries_are_collected_in_slices() -> None:
    store = Store(1 << 30, now=0)
    for number in range(1_000):
        store.set(str(number), Entry(b"", 1, 0, expires=500))
    store.set("stays", Entry(b"", 1, 0, expires=5_000))
    assert store.collect_expired(999, 10_000) == 0
    assert store.get("7", 999) is None
    assert [store.collect_expired(1_000, 400) for _ in range(4)] == [400, 400, 199, 0]
    assert list(store) == ["stays"]
    assert store.stats.expirations == 1_000


def test_stale_entries_are_kept_until_their_window_closes() -> None:
    store = Store(1 << 20, now=0)
    store.set("a", Entry(b"v", 1, 0, expires=1_000, stale_ms=5_000))
    assert store.collect_expired(3_000, 10) == 0
    assert store.get("a", 3_000) is not None
    assert store.get("a", 6_000) is None


def test_a_shorter_time_to_live_takes_effect() -> None:
    store = Store(1 << 20, now=0)
    store.set("a", Entry(b"", 1, 0, expires=60_000))
    store.set("a", Entry(b"", 2, 0, expires=1_000))
    assert store.collect_expired(2_000, 10) == 1


def test_no_more_entries_than_allowed() -> None:
    store = Store(1 << 20, now=0, max_entries=2)
    for key in "abca":
        store.set(key, Entry(b"", 1, 0))
    assert sorted(store) == ["a", "c"]
    store.set("c", Entry(b"new", 2, 0))
    assert len(store) == 2
