"""The entries of one node: bounded in bytes, with expiry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from sys import getsizeof

from cacheservice.errors import EntryTooLarge
from cacheservice.store.entry import Entry, dead_at, pack, unpack
from cacheservice.store.expiry import ExpiryIndex
from cacheservice.store.fifo import FIFO
from cacheservice.store.lfu import LFU
from cacheservice.store.lru import LRU
from cacheservice.store.policy import EvictionPolicy
from cacheservice.store.s3fifo import S3FIFO

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": LRU,
    "lfu": LFU,
    "fifo": FIFO,
    "s3fifo": S3FIFO,
}

ENTRY_OVERHEAD = {"lru": 246, "fifo": 243, "lfu": 415, "s3fifo": 453}
"""Bytes that an entry costs beyond its key and its packed value: the policy's tables and the expiry index.

Measured by benchmarks/memory.py with 700,000 entries that expire, each renewed twice, right after the
tables have grown, which is when they are emptiest; a store that was never full costs some 100 less.
"""

_ASCII_STR_BYTES = getsizeof("")
_WIDE_STR_BYTES = getsizeof("\U0001f4a1")
_WIDEST_CHARACTER_BYTES = 4


@dataclass(slots=True)
class StoreStats:
    """Counters since the store was made."""

    hits: int = 0
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0


def key_bytes(key: str) -> int:
    """What a key occupies, at most; a function of its text alone.

    `sys.getsizeof` is not: a str that is not ASCII grows when its UTF-8 form, once asked for, is kept in it.
    """
    if key.isascii():
        return _ASCII_STR_BYTES + len(key)
    return _WIDE_STR_BYTES + _WIDEST_CHARACTER_BYTES * len(key) + len(key.encode())


class Store:
    """At most `max_bytes` of entries (and at most `max_entries`, when given), chosen by `policy`.

    `now` is always the clock's now_ms. No operation blocks or does I/O; each is O(1) plus the evictions
    that it causes. The caller collects the expired entries by `collect_expired` now and then; until then
    they occupy memory, but are never returned.
    """

    def __init__(
        self, max_bytes: int, policy: str = "lru", *, now: int, max_entries: int | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self.policy = policy
        self.stats = StoreStats()
        self.bytes = 0
        self._max_entries = max_entries
        self._entries = POLICIES[policy]()
        self._overhead = ENTRY_OVERHEAD[policy]
        self._expiry = ExpiryIndex(now)

    def get(self, key: str, now: int) -> Entry | None:
        """The entry, fresh or stale; counts as a use and as a hit or miss."""
        packed = self._entries.get(key)
        if packed is not None:
            entry = unpack(packed)
            if entry.is_served(now):
                self.stats.hits += 1
                return entry
            self._drop_expired(key)
        self.stats.misses += 1
        return None

    def peek(self, key: str, now: int) -> Entry | None:
        """The entry, fresh or stale; counts as nothing."""
        packed = self._entries.peek(key)
        if packed is None:
            return None
        entry = unpack(packed)
        return entry if entry.is_served(now) else None

    def set(self, key: str, entry: Entry) -> None:
        """Adds or replaces the entry, evicting what it needs room for.

        EntryTooLarge when the store could not hold it even alone; nothing changes then.
        """
        packed = pack(entry)
        cost = self._cost(key, packed)
        if cost > self.max_bytes:
            raise EntryTooLarge(
                f"an entry of {cost:,} bytes does not fit a store of {self.max_bytes:,} bytes",
                field="value",
                bound=f"at most {self.max_bytes} bytes with key and overhead",
            )
        replaced = self._entries.peek(key)
        if replaced is not None:
            self._forget(key, replaced)
        # The policy keeps the replaced entry's place (and holds it while others go), so that a new
        # value is a use of the entry and not a new entry.
        while self.bytes + cost > self.max_bytes or self._is_full(adding=replaced is None):
            victim, packed_victim = self._entries.evict()
            self.stats.evictions += 1
            if victim == key:
                replaced = None
            else:
                self._forget(victim, packed_victim)
        self._entries.put(key, packed)
        self.bytes += cost
        if entry.dead_at:
            self._expiry.add(key, entry.dead_at)
        self.stats.sets += 1

    def delete(self, key: str) -> bool:
        """Removes the entry; False when there was none."""
        packed = self._entries.pop(key)
        if packed is None:
            return False
        self._forget(key, packed)
        self.stats.deletes += 1
        return True

    def collect_expired(self, now: int, limit: int) -> int:
        """Removes up to `limit` dead entries, to the second. Fewer than `limit`: none are left."""
        keys = self._expiry.due(now, limit)
        for key in keys:
            packed = self._entries.pop(key)
            if packed is not None:
                self.bytes -= self._cost(key, packed)
        self.stats.expirations += len(keys)
        return len(keys)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """The keys, dead ones not yet collected included, in no particular order."""
        return iter(self._entries)

    def _is_full(self, *, adding: bool) -> bool:
        return self._max_entries is not None and len(self._entries) + adding > self._max_entries

    def _cost(self, key: str, packed: bytes) -> int:
        return key_bytes(key) + getsizeof(packed) + self._overhead

    def _forget(self, key: str, packed: bytes) -> None:
        """Takes an entry off the books that has left the table, or is about to be replaced in it."""
        self.bytes -= self._cost(key, packed)
        due = dead_at(packed)
        if due:
            self._expiry.remove(key, due)

    def _drop_expired(self, key: str) -> None:
        packed = self._entries.pop(key)
        if packed is not None:
            self._forget(key, packed)
            self.stats.expirations += 1
